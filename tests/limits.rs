//! What the system allows this process: locked memory, descriptors.

use san_tests::net;
use san_tests::program::{Program, output_of};
use san_tests::san::San;
use san_tests::time::{STEP, bounded};

/// A peer that may lock so many KiB. Root may lock anything until it gives that right away.
fn limited(kib: &str, args: &[&str]) -> Program {
    let shell = "ulimit -l \"$1\" && shift && exec \"$@\"";
    let mut all = vec!["sh", "-c", shell, "sh", kib];
    all.push(env!("CARGO_BIN_EXE_san-test-peer"));
    all.extend_from_slice(args);
    if output_of("id", &["-u"]).as_deref() == Some("0\n") {
        let rights = ["--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"];
        return Program::start("setpriv", &[&rights[..], &all].concat());
    }
    Program::start(all[0], &all[1..])
}

#[test]
fn too_little_lockable_memory_is_enobufs_and_says_what_to_raise() {
    bounded(|| {
        if net::is_soft() {
            // Nothing is locked there.
            return;
        }
        let san = San::start();
        let listener = san.listen_a(1);
        let (own, other) = (net::at_b().to_string(), listener.addr.to_string());
        let mut poor = limited("64", &["try", &own, &other]);
        let said = [poor.expect("listen", STEP), poor.expect("connect", STEP)];
        for said in said {
            assert!(said.starts_with("WSAENOBUFS"), "{said}");
            let what = "only 64 KiB may be locked in memory";
            assert!(said.contains(what), "{said}");
            assert!(said.contains("ulimit -l") && said.contains("LimitMEMLOCK="));
        }
        assert_eq!(san.counters().requests, 0);

        // With enough it is no hindrance, rights or not.
        let mut rich = limited("65536", &["try", &own, &other]);
        assert_eq!(rich.expect("listen", STEP), "fine");
        let accepted = listener.accept();
        assert_eq!(rich.expect("connect", STEP), "fine");
        drop(accepted);
    });
}

#[test]
fn without_descriptors_the_addresses_stay() {
    bounded(|| {
        let peer = env!("CARGO_BIN_EXE_san-test-peer");
        let shell = "ulimit -n 64 && exec \"$0\" crowded";
        let mut crowded = Program::start("sh", &["-c", shell, peer]);
        assert_eq!(crowded.expect("addresses", STEP), "are the same");
    });
}
