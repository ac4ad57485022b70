//! A neighbour whose hardware address changes. A program of its own, since it disturbs every
//! connection of the machine.

mod support;

use support::{Shape, addr_a, addr_b, pair};
use verbs_shim::Event;

/// The neighbour's hardware address changes under an established connection.
#[test]
#[ignore = "needs an RDMA fabric: ci/test runs them in the guest"]
fn a_peer_whose_hardware_address_changes_is_unreachable() {
    let (client, _server) = pair(Shape::default());
    let (a, b) = (addr_a().to_string(), addr_b().to_string());
    let script = format!(
        "dev=$(ip -o route get {b} from {a} | sed 's/.* dev \\([^ ]*\\).*/\\1/')
         old=$(ip neigh show {b} dev $dev | sed 's/.*lladdr \\([^ ]*\\).*/\\1/')
         ip neigh replace {b} lladdr 02:00:00:00:00:99 dev $dev nud permanent
         sleep 1
         ip neigh replace {b} lladdr $old dev $dev nud permanent"
    );
    let done = std::process::Command::new("sh")
        .args(["-ec", &script])
        .status()
        .unwrap();
    assert!(done.success());
    expect!(&client.channel, Event::Unreachable { id, .. } => assert_eq!(id, client.id.token()));
}
