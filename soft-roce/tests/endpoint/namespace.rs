//! What the host's network does to an endpoint: each test in a network namespace
//! of its own, where interfaces and addresses are the test's to change.
//!
//! A test starts itself there once more. Where the system lets nobody make a
//! namespace it says so and ends.

use std::net::SocketAddr;
use std::process::Command;

use soft_roce::endpoint::{CmEventKind, ConnParams};
use soft_roce::wire::cm::RejReason;

use crate::util::{Node, TempDir, connect};

/// Set in the namespace.
const INSIDE: &str = "SOFT_ROCE_NAMESPACE";

/// Runs `test`, which is the test called `name`, in a namespace with a loopback.
fn in_a_namespace(name: &str, test: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        ip("link set lo up");
        test();
        return;
    }
    if !Command::new("unshare")
        .args(["-rn", "ip", "link"])
        .output()
        .is_ok_and(|out| out.status.success())
    {
        eprintln!("no network namespace can be made here");
        return;
    }
    let program = std::env::current_exe().unwrap();
    let inside = Command::new("unshare")
        .arg("-rn")
        .arg(program)
        .args(["--exact", &format!("namespace::{name}"), "--nocapture"])
        .env(INSIDE, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&inside.stdout);
    assert!(
        inside.status.success() && said.contains("1 passed"),
        "{said}{}",
        String::from_utf8_lossy(&inside.stderr)
    );
}

fn ip(command: &str) {
    let status = Command::new("ip").args(command.split(' ')).status();
    assert!(status.unwrap().success(), "ip {command}");
}

/// Both ends use the size that the request names: what does not fit the way back
/// must not be accepted, or the first large message would be the end.
#[test]
fn packets_too_large_for_the_way_back_are_refused() {
    in_a_namespace("packets_too_large_for_the_way_back_are_refused", || {
        let dir = TempDir::new();
        let (client, server) = (Node::new(dir.config()), Node::new(dir.config()));
        let dst: SocketAddr = "127.0.0.2:7471".parse().unwrap();
        let _listener = server.listen(dst, 4);
        let id = client.resolved(dst);
        let side = client.queue_pair();
        // For 4,096 bytes until now, and for 1,024 from now on.
        ip("link set lo mtu 1500");
        id.connect(&side.qp, &ConnParams::default()).unwrap();
        match client.event().kind {
            CmEventKind::Rejected { reason, .. } => assert_eq!(reason, RejReason::INVALID_MTU),
            other => panic!("{other:?}"),
        }
        assert!(server.events.next().is_none(), "the server hears nothing");
        assert_eq!(server.endpoint.counters().cm.mtu_too_large, 1);
        // Who looks at the route again is welcome.
        connect(&client, &server, dst);
    });
}
