//! Without a SAN the streams are TCP's.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};

use san_switch::{FabricChoice, SwitchConfig};
use san_switch_tokio::{ConnectOptions, Switch, TcpListener, TcpStream};
use san_tests::time::bounded;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

mod scenes;

use scenes::{Setup, alone, runtimes};

fn setup() -> Setup {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    Setup {
        switch: Switch::new(SwitchConfig::default().fabric(FabricChoice::Off)).unwrap(),
        listens: loopback,
        reached: loopback,
        options: ConnectOptions::default(),
    }
}

#[test]
fn streams_are_tcps() {
    bounded(|| {
        let setup = setup();
        for runtime in runtimes() {
            runtime.block_on(async {
                let (client, server) = setup.pair().await;
                scenes::both_ways(client, server, 3_000_000).await;
                scenes::many(&setup, 20, 30).await;
                scenes::back_pressure(&setup).await;
                scenes::waits(&setup).await;
                scenes::accepts(&setup).await;
                scenes::http(&setup).await;
            });
        }
        scenes::a_runtime_that_ends(&setup);
    });
}

#[test]
fn the_switch_of_the_process_serves_names() {
    bounded(|| {
        alone().block_on(async {
            let listener = TcpListener::bind("localhost:0").await.unwrap();
            let port = listener.local_addr().port();
            let mut client = TcpStream::connect(("localhost", port)).await.unwrap();
            let (mut server, _) = listener.accept().await.unwrap();
            client.write_all(b"x").await.unwrap();
            assert_eq!(server.read_u8().await.unwrap(), b'x');
            client.finish(None).await.unwrap();
            assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
            assert!(client.take_error().unwrap().is_none());
        });
    });
}

#[test]
fn nobody_listens() {
    bounded(|| {
        let setup = setup();
        alone().block_on(async {
            let listener = setup.listener().await;
            let gone = listener.local_addr();
            drop(listener);
            let refused = TcpStream::connect_with(&setup.switch, gone, ConnectOptions::default());
            let error = refused.await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        });
    });
}
