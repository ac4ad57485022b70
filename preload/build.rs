//! Builds the programs that the tests run with the library.

use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=tests/programs");
    let out = std::env::var("OUT_DIR").expect("cargo sets it");
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    for name in [
        "calls",
        "forked",
        "numbers",
        "processes",
        "reasons",
        "signals",
    ] {
        let program = Path::new(&out).join(name);
        let built = Command::new(&compiler)
            .args([
                "-O2",
                "-Wall",
                "-Werror",
                "-D_GNU_SOURCE",
                "-D_FORTIFY_SOURCE=2",
                "-pthread",
                "-o",
            ])
            .arg(&program)
            .arg(format!("tests/programs/{name}.c"))
            .status();
        let is_built = built.is_ok_and(|status| status.success());
        assert!(is_built, "{compiler} did not build tests/programs/{name}.c");
    }
}
