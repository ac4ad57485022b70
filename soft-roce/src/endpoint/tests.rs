//! What an idle connection takes.

use super::shared::cm::Id;
use super::shared::qp::QpShared;

/// The figures of docs/soft-roce.md, "Memory of a connection". Who makes one of
/// these larger changes them.
#[test]
fn a_connection_is_small() {
    let (qp, id) = (size_of::<QpShared>(), size_of::<Id>());
    println!("queue pair {qp}, id {id}");
    assert!(qp <= 1360, "queue pair: {qp} bytes");
    assert!(id <= 256, "id: {id} bytes");
}
