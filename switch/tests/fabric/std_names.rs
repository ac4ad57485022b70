//! The types with the standard library's names. That their calls give what those of the standard library's
//! own give is `differential.rs`.

#[path = "support.rs"]
#[allow(dead_code, reason = "each test program uses some of it")]
mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use san_switch::net::{TcpListener, TcpStream};
use san_tests::time::{bounded, eventually};

use support::*;

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_read_waits_as_long_as_it_was_told() {
    bounded(|| {
        let switch = switch();
        let listener = TcpListener::from(switch.listen(any(), backlog(4)).unwrap());
        let mut client = TcpStream::from(san_client(&switch, listener.listener()));
        let (mut server, _) = listener.accept().unwrap();
        let wait = Duration::from_millis(150);
        client.set_read_timeout(Some(wait)).unwrap();
        assert_eq!(client.read_timeout().unwrap(), Some(wait));
        let begun = Instant::now();
        let error = client.read(&mut [0; 4]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock);
        assert!(begun.elapsed() >= wait);
        // Nonblocking mode does not forget it.
        client.set_nonblocking(true).unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        assert_eq!(
            client.read(&mut [0; 4]).unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
        client.set_nonblocking(false).unwrap();
        server.write_all(b"late").unwrap();
        let mut bytes = [0; 4];
        client.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"late");
        let zero = client.set_read_timeout(Some(Duration::ZERO)).unwrap_err();
        assert_eq!(zero.kind(), ErrorKind::InvalidInput);
        // The reading half closed: the end, but for what is here.
        client.shutdown(Shutdown::Read).unwrap();
        assert_eq!(client.read(&mut bytes).unwrap(), 0);
    });
}

#[test]
#[ignore = "needs two RDMA devices: ci/rxe"]
fn a_listener_that_does_not_wait_says_so() {
    bounded(|| {
        let switch = switch();
        let listener = TcpListener::from(switch.listen(any(), backlog(4)).unwrap());
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
        let client = TcpStream::from(san_client(&switch, listener.listener()));
        let mut accepted = None;
        eventually("it is accepted", PATIENCE, || {
            accepted = listener.accept().ok();
            accepted.is_some()
        });
        let (server, _) = accepted.unwrap();
        let again = server.try_clone().unwrap();
        drop(server);
        (&again).write_all(b"through the clone").unwrap();
        drop(again);
        let mut text = String::new();
        (&client).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through the clone");
    });
}
