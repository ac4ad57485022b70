//! The soft fabric on this host's loopback: every address of 127.0.0.0/8 is its device's, whichever
//! of them the interface names.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use san_switch::{
    ConnectOptions, Connection, FabricChoice, ListenOptions, Listener, Route, Switch, SwitchConfig,
};

const PATIENCE: Duration = Duration::from_secs(20);

fn switch() -> Switch {
    let config = SwitchConfig::default()
        .fabric(FabricChoice::Soft)
        .connect_timeout(PATIENCE)
        .io_timeout(Some(PATIENCE));
    Switch::new(config).unwrap()
}

fn listen(switch: &Switch, at: &str) -> Listener {
    let at: SocketAddr = at.parse().unwrap();
    switch.listen(at, ListenOptions::default()).unwrap()
}

/// Both ends of a connection, over which a few bytes have gone.
fn joined(switch: &Switch, listener: &Listener, options: &ConnectOptions) -> [Connection; 2] {
    let client = switch.connect(listener.local_addr(), options).unwrap();
    let server = listener.accept_timeout(PATIENCE).unwrap();
    (&client).write_all(b"there").unwrap();
    let mut bytes = [0; 5];
    (&server).read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"there");
    [client, server]
}

#[test]
fn an_address_that_no_interface_names_is_on_the_san() {
    let switch = switch();
    for at in ["127.0.0.1:0", "127.0.0.2:0", "127.9.8.7:0"] {
        let listener = listen(&switch, at);
        let status = listener.san_status();
        assert_eq!(status.len(), 1, "{at} is on the SAN");
        assert_eq!(status[0].address, listener.local_addr());
        for end in joined(&switch, &listener, &ConnectOptions::default()) {
            assert!(
                matches!(end.route(), Route::San { .. }),
                "{:?}",
                end.route()
            );
        }
    }
}

#[test]
fn who_comes_from_such_an_address_comes_over_the_san() {
    let switch = switch();
    let listener = listen(&switch, "127.0.0.2:0");
    let mut options = ConnectOptions::default();
    options.local = Some("127.0.0.3:0".parse().unwrap());
    let [client, server] = joined(&switch, &listener, &options);
    assert!(
        matches!(client.route(), Route::San { .. }),
        "{:?}",
        client.route()
    );
    assert_eq!(client.local_addr().ip().to_string(), "127.0.0.3");
    assert_eq!(server.peer_addr().ip().to_string(), "127.0.0.3");
}
