//! `make bench`: the figures of ARCHITECTURE.md, measured, each with what it is to
//! reach. Root. Machines differ: what counts are the ratios within one run, such
//! as the marker's time above that of an empty program.

// A measurement that cannot go on ends; the casts are of small numbers.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, clippy::cast_sign_loss)]

mod control;
mod data_path;
mod enrich;
mod load;
mod process;
mod scan;
mod scrape;
mod skops;

fn main() {
    if scan::hold() {
        return;
    }
    let root = nix::unistd::geteuid().is_root();
    assert!(root, "needs root, for eBPF and a network namespace of its own");
    row("what", "measured".into(), "to reach");
    let named: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    for (name, rows) in [
        data_path::SECTIONS,
        control::SECTIONS,
        scan::SECTIONS,
        enrich::SECTIONS,
        scrape::SECTIONS,
        skops::SECTIONS,
    ]
    .concat()
    {
        if named.is_empty() || named.iter().any(|wanted| wanted == name) {
            rows();
        }
    }
}

/// Some rows of the table, and the name that asks for them alone:
/// `cargo bench --bench bench -- api pipe`.
type Section = (&'static str, fn());

/// Prints a row of the table.
fn row(what: &str, measured: String, reach: &str) {
    println!("{what:<62} {measured:>14}   {reach}");
}

/// The value below which that share of the values lie.
fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share).round() as usize]
}
