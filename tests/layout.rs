//! That the tree is as ARCHITECTURE.md says.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use glowd::{backends, enrichers, plugins};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below a folder of the tree.
fn rust_files(folder: &str) -> Vec<PathBuf> {
    let mut folders = vec![root().join(folder)];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    assert!(!files.is_empty(), "{folder}");
    files
}

fn snake_case(key: &str) -> String {
    let mut stem = String::new();
    for c in key.chars() {
        if c.is_ascii_uppercase() {
            stem.push('_');
        }
        stem.push(c.to_ascii_lowercase());
    }
    stem
}

#[test]
fn a_part_is_in_the_file_that_its_key_names() {
    let plugins = plugins::ALL.iter().map(|spec| ("plugins", spec.name));
    let backends = backends::ALL.iter().map(|spec| ("backends", spec.name));
    let enrichers = enrichers::ALL.iter().map(|spec| ("enrichers", spec.name));
    for (folder, key) in plugins.chain(enrichers).chain(backends) {
        let stem = snake_case(key);
        let folder = root().join("src").join(folder);
        let file = folder.join(format!("{stem}.rs")).exists();
        let module = folder.join(&stem).join("mod.rs").exists();
        assert!(file ^ module, "{key}: {}/{stem}", folder.display());
    }
}

/// Of a part, of the one command that has a program of its own, or of what parts share.
#[test]
fn a_program_for_the_kernel_has_the_name_of_who_loads_it() {
    for entry in fs::read_dir(root().join("bpf")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let Some(stem) = name.strip_suffix(".bpf.c") else { continue };
        let parts = plugins::ALL.iter().map(|spec| spec.name);
        let parts = parts.chain(backends::ALL.iter().map(|spec| spec.name));
        let parts = parts.chain(enrichers::ALL.iter().map(|spec| spec.name));
        let command = stem == "selftest" && root().join("src/selftest/mod.rs").exists();
        let net = root().join("src/net");
        let shared =
            net.join(format!("{stem}.rs")).exists() || net.join(stem).join("kernel.rs").exists();
        assert!(command || shared || parts.map(snake_case).any(|part| part == stem), "bpf/{name}");
    }
}

/// rustc denies it elsewhere; this denies the attribute that would allow it.
#[test]
fn unsafe_code_is_in_sys_only() {
    for path in rust_files("src") {
        if path.starts_with(root().join("src/sys")) {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for (index, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let allows = code.contains("allow(unsafe_code");
            let uses = ["{", "fn", "impl", "extern", "trait"]
                .iter()
                .any(|next| code.contains(&format!("unsafe {next}")));
            assert!(!allows && !uses, "{}:{}: {line}", path.display(), index + 1);
        }
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for folder in ["src", "tests", "benches"] {
        for path in rust_files(folder) {
            let text = fs::read_to_string(&path).unwrap();
            let described = text.starts_with("//! ") && !text.starts_with("//! Stub");
            assert!(described, "{}", path.display());
        }
    }
}

#[test]
fn the_changelog_knows_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    let changelog = fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    let heading = changelog.lines().find(|line| line.starts_with("## "));
    let heading = heading.expect("a section for each version");
    assert!(heading.contains(version), "{heading:?} is not {version}");
}

/// src/plugins/mod.rs and src/backends/mod.rs compile and run the same files.
#[test]
fn the_worked_example_is_the_code_that_is_tested() {
    let text = fs::read_to_string(root().join("CONTRIBUTING.md")).unwrap();
    for file in ["standing.rs", "ledger.rs"] {
        let code = fs::read_to_string(root().join("tests/data/example").join(file)).unwrap();
        assert!(text.contains(&format!("```rust\n{code}```\n")), "{file} is not in it as it is");
    }
}

#[test]
fn the_variable_that_the_help_names_is_the_one_that_is_read() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let fuzz = makefile.lines().find(|line| line.starts_with("fuzz:")).unwrap();
    let script = fs::read_to_string(root().join("tools/fuzz")).unwrap();
    assert!(fuzz.contains("(SECONDS_EACH=60)"), "{fuzz}");
    assert!(script.contains("${SECONDS_EACH:-60}"), "{script}");
}

#[test]
fn make_runs_what_cargo_has_built_wherever_that_is() {
    let shown = |folder: &str| {
        let mut make = Command::new("make");
        make.args(["-n", "run", "demo"]).current_dir(root()).env_remove("MAKEFLAGS");
        let output = make.env("CARGO_TARGET_DIR", folder).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    for (variable, folder) in [("", "target"), ("/some/where", "/some/where")] {
        let lines = shown(variable);
        let run = |program: &str| {
            let line = format!("{folder}/{program}");
            lines.lines().filter(|found| found.split(' ').next() == Some(&line)).count()
        };
        assert_eq!((run("release/glowd"), run("debug/examples/demo")), (1, 1), "{lines}");
    }
}

/// What a release changes together: rpm/RELEASING.md.
#[test]
fn the_spec_file_knows_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    let spec = fs::read_to_string(root().join("rpm/glowd.spec")).unwrap();
    let line = spec.lines().find(|line| line.starts_with("Version:")).unwrap();
    assert_eq!(line.split_whitespace().nth(1), Some(version), "{line}");
    let entry = spec.lines().skip_while(|line| *line != "%changelog").nth(1).unwrap();
    assert!(entry.contains(&format!(" - {version}-")), "{entry}");
}

#[test]
fn the_registry_is_of_the_date_that_is_said() {
    let read = |file: &str| fs::read_to_string(root().join(file)).unwrap();
    let registry: serde_json::Value = serde_json::from_str(&read("data/registry.json")).unwrap();
    // To the second.
    let modified = &registry["modified"].as_str().unwrap()[..19];
    assert!(read("data/README.md").contains(modified), "{modified}");
    let named = |experiment: &serde_json::Value| experiment["expId"].as_u64().is_some();
    assert!(registry["experiments"].as_array().unwrap().iter().all(named));
}
