//! Compiles each bpf/<stem>.bpf.c and packs it into $OUT_DIR/<stem>.bpf.z, which the
//! program embeds, packs the texts that it embeds, and tells it which commit it was
//! built from.
//!
//! Reads from the environment: CLANG and LLVM_STRIP (the tools to use), and
//! GLOWD_COMMIT (for builds outside a git checkout).

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{exit, Command};

fn main() {
    commit();
    let linux = env::var_os("CARGO_CFG_TARGET_OS").is_some_and(|os| os == "linux");
    let ebpf = env::var_os("CARGO_FEATURE_EBPF").is_some() && linux;
    if let Err(message) = texts(ebpf) {
        println!("cargo::error={message}");
        exit(1);
    }
    if ebpf {
        if let Err(message) = bpf() {
            println!("cargo::error={}", message.replace('\n', "\ncargo::error="));
            exit(1);
        }
    }
}

/// Sets GLOWD_COMMIT for the compiler, or leaves it unset: nothing depends on it.
fn commit() {
    println!("cargo::rerun-if-env-changed=GLOWD_COMMIT");
    // These exist only in a git checkout, and a missing file would make cargo
    // run this every time.
    for file in [".git/HEAD", ".git/logs/HEAD"] {
        if Path::new(file).exists() {
            println!("cargo::rerun-if-changed={file}");
        }
    }
    let given = env::var("GLOWD_COMMIT").ok().filter(|commit| !commit.is_empty());
    // A tarball unpacked inside somebody else's repository has another commit.
    let known = given.or_else(|| {
        if !Path::new(".git").exists() {
            return None;
        }
        let git = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output().ok()?;
        let commit = String::from_utf8(git.stdout).ok()?.trim().to_owned();
        (git.status.success() && !commit.is_empty()).then_some(commit)
    });
    if let Some(commit) = known {
        println!("cargo::rustc-env=GLOWD_COMMIT={commit}");
    }
}

/// The texts that are packed: src/texts.rs.
const TEXTS: &[&str] = &[
    "src/plugins/api/openapi.json",
    "data/registry.json",
    "man/glowd.8.in",
    "man/glowd.conf.5.in",
];

/// Writes each text to $OUT_DIR as <name>.z: packed, or as it is where there is nothing
/// to unpack it with. JSON loses its indentation, which is half of it: no string of JSON
/// goes over a line's end.
fn texts(packed: bool) -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    for source in TEXTS {
        println!("cargo::rerun-if-changed={source}");
        let mut text = fs::read_to_string(source).map_err(|error| format!("{source}: {error}"))?;
        if source.ends_with(".json") {
            text = text.lines().map(str::trim).collect();
        }
        let name = Path::new(source).file_name().unwrap_or_default().to_string_lossy();
        let plain = out.join(&*name);
        fs::write(&plain, &text).map_err(|error| format!("{name}: {error}"))?;
        let bytes = if packed { pack(&plain)? } else { text.into_bytes() };
        fs::write(out.join(format!("{name}.z")), bytes)
            .map_err(|error| format!("{name}.z: {error}"))?;
    }
    Ok(())
}

fn bpf() -> Result<(), String> {
    println!("cargo::rerun-if-env-changed=CLANG");
    println!("cargo::rerun-if-env-changed=LLVM_STRIP");
    // The folder itself for files that come and go, each file for its content.
    println!("cargo::rerun-if-changed=bpf");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let entries = fs::read_dir("bpf").map_err(|error| format!("cannot read bpf/: {error}"))?;
    for entry in entries {
        let source = entry.map_err(|error| format!("cannot read bpf/: {error}"))?.path();
        println!("cargo::rerun-if-changed={}", source.display());
        let name = source.file_name().unwrap_or_default().to_string_lossy();
        if let Some(stem) = name.strip_suffix(".c").filter(|stem| stem.ends_with(".bpf")) {
            let object = out.join(format!("{stem}.o"));
            compile(&source, &object)?;
            fs::write(out.join(format!("{stem}.z")), pack(&object)?)
                .map_err(|error| format!("{stem}.z: {error}"))?;
        }
    }
    Ok(())
}

/// What libbpf does not read: DWARF, the relocations of line numbers, and addresses
/// that only linkers want.
const STRIPPED: &[&str] = &["-g", "-R", ".rel.BTF.ext", "-R", ".llvm_addrsig"];

fn compile(source: &Path, object: &Path) -> Result<(), String> {
    let mut clang = Command::new(env::var_os("CLANG").unwrap_or("clang".into()));
    // The v2 instruction set is what every kernel since 4.14 runs; v3 needs 5.1.
    // -g is for BTF; the DWARF that it makes too is stripped below.
    clang.args(["-target", "bpf", "-mcpu=v2", "-O2", "-g"]);
    // No path of the machine that built it belongs in the object.
    clang.args(["-Wall", "-fdebug-compilation-dir=."]);
    clang.args(include_paths());
    clang.arg("-c").arg(source).arg("-o").arg(object);
    let output = clang.output().map_err(|error| {
        format!(
            "cannot run clang, which compiles the eBPF programs: {error}\n\
             install it: apt-get install clang llvm, or dnf install clang llvm\n\
             (CLANG names another one; --no-default-features builds without the marker)"
        )
    })?;
    let text = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("clang cannot compile {}:\n{}", source.display(), text.trim_end()));
    }
    // Not errors: a later clang that warns of more must not break the build.
    text.lines().for_each(|line| println!("cargo::warning={line}"));
    let strip = env::var_os("LLVM_STRIP").unwrap_or("llvm-strip".into());
    // Without it the object is bigger and works as well.
    let _ = Command::new(strip).args(STRIPPED).arg(object).output();
    Ok(())
}

/// A file in the form that src/sys/packed.rs reads: its size, then zlib's form
/// (RFC 1950) of what gzip (RFC 1952) makes of it.
fn pack(object: &Path) -> Result<Vec<u8>, String> {
    let bytes = fs::read(object).map_err(|error| format!("{}: {error}", object.display()))?;
    let size = u32::try_from(bytes.len()).map_err(|error| error.to_string())?;
    // Without the file's name and time, so that the header is of 10 octets.
    let gzip = Command::new("gzip").args(["-9", "-n", "-c"]).arg(object).output();
    let gzip = gzip.map_err(|error| format!("cannot run gzip: {error}"))?;
    let deflated = match gzip.stdout.as_slice() {
        [0x1f, 0x8b, 8, 0, rest @ ..] if gzip.status.success() => {
            rest.get(6..rest.len().saturating_sub(8))
        }
        _ => None,
    };
    let deflated = deflated.ok_or_else(|| {
        format!("gzip failed: {}", String::from_utf8_lossy(&gzip.stderr).trim_end())
    })?;
    Ok([&size.to_le_bytes()[..], &[0x78, 0xda], deflated, &adler32(&bytes).to_be_bytes()].concat())
}

/// The checksum of RFC 1950 section 8.2.
fn adler32(bytes: &[u8]) -> u32 {
    let (low, high) = bytes.iter().fold((1, 0), |(low, high), byte| {
        let low = (low + u32::from(*byte)) % 65521;
        (low, (high + low) % 65521)
    });
    high << 16 | low
}

fn include_paths() -> Vec<OsString> {
    let mut paths = Vec::new();
    // Set by libbpf-sys when it has built its own libbpf; otherwise the
    // system's headers are in clang's path anyway.
    if let Some(libbpf) = env::var_os("DEP_BPF_INCLUDE") {
        let mut unnamed = OsString::from("-ffile-prefix-map=");
        unnamed.push(&libbpf);
        unnamed.push("=libbpf");
        paths.extend(["-I".into(), libbpf, unnamed]);
    }
    // Debian keeps asm/types.h in a folder by architecture that clang does not
    // search for the target bpf.
    let arch = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    let arch = if arch == "powerpc64" { "powerpc64le".into() } else { arch };
    // The second is that of its cross compilers.
    let multiarch =
        [format!("/usr/include/{arch}-linux-gnu"), format!("/usr/{arch}-linux-gnu/include")];
    for path in multiarch.iter().filter(|path| Path::new(path).is_dir()) {
        paths.extend(["-idirafter".into(), path.into()]);
    }
    paths
}
