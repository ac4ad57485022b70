//! How a stream ends while the queue pair carries.

use super::Bench;
use crate::frame::Role;
use crate::{Event, Failure, Keep, Message, State};

#[test]
fn what_has_come_is_read_before_a_reset() {
    for role in [Role::Connector, Role::Acceptor] {
        let mut bench = Bench::san(role);
        bench.tell(Event::TcpReset);
        assert_eq!(bench.engine.state(), State::Leaving);
        assert_eq!(bench.engine.data(10), Keep::Deliver);
        // TCP may say it again.
        bench.tell(Event::TcpReset);
        assert_eq!(bench.engine.data(10), Keep::Deliver);
        bench.tell(Event::QpDrained);
        assert_eq!(bench.engine.state(), State::Broken(Failure::Reset));
        assert_eq!(bench.engine.received(), (20, false));
    }
}

#[test]
fn a_reset_after_both_ends_is_none() {
    let mut bench = Bench::san(Role::Acceptor);
    bench.tell(Event::Close);
    bench.flush();
    bench.tell(Event::QpUnacknowledged(0));
    bench.tell(Event::TcpReset);
    // The peer's end was here, and nobody had taken it.
    bench.hear(Message::End);
    bench.tell(Event::QpDrained);
    assert_eq!(bench.engine.state(), State::Ended);
}
