//! What the process uses, from proc(5). Runs wherever the metrics are asked for; owns
//! nothing. What cannot be read has no sample.

use std::fs;

use nix::unistd::{sysconf, SysconfVar};

use super::families::{CPU, FILES, FILES_LIMIT, RESIDENT, START_TIME, THREADS, VIRTUAL};
use super::{Value, Writer};

/// Writes the samples of this process.
pub fn write(writer: &mut Writer) {
    let text = |path| fs::read_to_string(path).unwrap_or_default();
    let stat = text("/proc/self/stat");
    // Behind the command's name, which may hold anything: field 3 and those after it.
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let fields: Vec<u64> = fields.split_whitespace().map(|f| f.parse().unwrap_or(0)).collect();
    if fields.len() < 22 {
        return;
    }
    let field = |number: usize| fields[number - 3];
    let known = |name| sysconf(name).ok().flatten().and_then(|value| u64::try_from(value).ok());
    let tick = known(SysconfVar::CLK_TCK).map_or(10_000, |ticks| 1_000_000 / ticks.max(1));
    let page = known(SysconfVar::PAGE_SIZE).unwrap_or(4096);
    writer.sample(&CPU, &[], Value::Millionths((field(14) + field(15)) * tick));
    writer.number(&THREADS, &[], field(20));
    writer.number(&VIRTUAL, &[], field(23));
    writer.number(&RESIDENT, &[], field(24) * page);
    let boot = text("/proc/stat");
    let boot = boot.lines().find_map(|line| line.strip_prefix("btime "));
    if let Some(boot) = boot.and_then(|seconds| seconds.trim().parse::<u64>().ok()) {
        writer.sample(&START_TIME, &[], Value::Millionths(boot * 1_000_000 + field(22) * tick));
    }
    if let Ok(files) = fs::read_dir("/proc/self/fd") {
        // Without the one that this takes.
        writer.number(&FILES, &[], files.count().saturating_sub(1) as u64);
    }
    let limits = text("/proc/self/limits");
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let limit = limit.and_then(|limit| limit.split_whitespace().next()?.parse().ok());
    if let Some(limit) = limit {
        writer.number(&FILES_LIMIT, &[], limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Format;

    #[test]
    fn what_the_process_uses_is_what_the_system_says() {
        let (mut writer, mut out) = (Writer::default(), Vec::new());
        write(&mut writer);
        writer.finish(Format::Text, &mut out);
        let text = String::from_utf8(out).unwrap();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("{name} in {text}")).parse().unwrap()
        };
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let rss: f64 = rss.split_whitespace().next().unwrap().parse().unwrap();
        let ratio = value("process_resident_memory_bytes") / (rss * 1024.0);
        assert!((0.5..2.0).contains(&ratio), "{ratio}");
        let now = crate::flow::Timestamp::now().0 as f64 / 1e6;
        let age = now - value("process_start_time_seconds");
        assert!((-2.0..3600.0).contains(&age), "{age}");
        assert!(value("process_cpu_seconds_total") < 3600.0);
        assert!(value("process_threads") >= 2.0);
        assert!(value("process_open_fds") >= 3.0);
        assert!(value("process_max_fds") >= value("process_open_fds"));
        assert!(value("process_virtual_memory_bytes") > value("process_resident_memory_bytes"));
    }
}
