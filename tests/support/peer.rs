//! A process of its own for tests that kill one: it listens or connects through a provider.
//!
//! `san-test-peer listen ADDR BACKLOG`, `connect ADDR COUNT`, `talk ADDR`, `stream ADDR`, `crowded`, `register BYTES`,
//! `startup`, `try LISTEN CONNECT`, `puppet` (`puppet.rs`). It says each step on its output, reads commands from its input, and ends when that ends.
#![forbid(unsafe_code)]

use std::io::BufRead;
use std::net::SocketAddr;
use std::sync::Arc;

use san_provider::{
    MemoryAccess, NoUpcalls, Notification, ProviderConfig, SharedMemory, SpiVersion,
};
use san_tests::san::{self, San};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["startup"] => startup(),
        ["listen", addr, backlog] => listen(address(addr), backlog.parse().expect("a backlog")),
        ["connect", addr, count] => connect(address(addr), count.parse().expect("a count")),
        ["talk", addr] => talk(address(addr)),
        ["crowded"] => crowded(),
        ["stream", addr] => stream(address(addr)),
        ["try", listen, connect] => try_both(address(listen), address(connect)),
        ["puppet", deadline] => san_tests::puppet::run(deadline),
        ["register", bytes] => register(bytes.parse().expect("a number")),
        _ => panic!("unknown arguments {args:?}"),
    }
}

/// Says how startup went.
fn startup() {
    let provider = San::stopped(ProviderConfig::default());
    match provider.startup(SpiVersion::CURRENT, false, Arc::new(NoUpcalls)) {
        Ok(_) => println!("started"),
        Err(error) => println!("failed {} {error}", error.code().name()),
    }
}

/// Says how a registration of so much memory went.
fn register(bytes: usize) {
    let san = San::start();
    let (socket, _peer) = san.pair();
    let memory = SharedMemory::new(bytes).expect("memory");
    match socket.register_memory((&memory).into(), MemoryAccess::Read) {
        Ok(_) => println!("registered"),
        Err(error) => println!("failed {} {error}", error.code().name()),
    }
}

/// Listens; accepts when told `accept`, waits for N requests when told `requests N`.
fn listen(addr: SocketAddr, backlog: u32) {
    let san = San::start();
    let listener = san.listen(addr, backlog);
    println!("listening");
    let mut accepted = Vec::new();
    for line in commands() {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["accept"] => {
                accepted.push(listener.accept());
                println!("accepted");
            }
            ["requests", count] => {
                san.wait_requests(count.parse().expect("a count"));
                println!("seen");
            }
            _ => panic!("unknown command {line}"),
        }
    }
}

/// Starts so many connects; tells how they ended when told `results`.
fn connect(addr: SocketAddr, count: usize) {
    let san = San::start();
    let connectors: Vec<_> = (0..count).map(|_| san.connect(addr)).collect();
    println!("connecting");
    for line in commands() {
        assert_eq!(line, "results");
        for connector in &connectors {
            match connector.result() {
                Ok(()) => println!("result connected"),
                Err(error) => println!("result {}", error.code().name()),
            }
        }
    }
}

/// Opens files until there is no descriptor left, and says whether the addresses are the same then.
fn crowded() {
    let san = San::start();
    let before = san.provider.address_list().expect("addresses");
    let files: Vec<_> = std::iter::from_fn(|| std::fs::File::open("/dev/null").ok()).collect();
    let after = san.provider.address_list().expect("addresses");
    drop(files);
    match !before.is_empty() && before == after && san.counters().address_list_changes == 0 {
        true => println!("addresses are the same"),
        false => println!("addresses were {before:?}, are {after:?}"),
    }
}

/// Connects, and sends and receives without an end.
fn stream(addr: SocketAddr) {
    let san = San::start();
    let connector = san.connect(addr);
    connector.result().expect("an accepted connect");
    println!("connected");
    let sender = connector.socket.clone();
    std::thread::spawn(move || {
        while let Ok(sent) = sender.send(&[8; 500], 0, Notification::Poll) {
            if san::wait(&sender, sent).outcome.is_err() {
                break;
            }
        }
    });
    while let Ok(started) = connector.socket.receive(Notification::Poll) {
        if san::wait(&connector.socket, started).outcome.is_err() {
            break;
        }
    }
}

/// Says how listening at one address and connecting to another went.
fn try_both(listen: SocketAddr, connect: SocketAddr) {
    let san = San::start();
    match san.bound(listen).listen(1) {
        Ok(()) => println!("listen fine"),
        Err(error) => println!("listen {} {error}", error.code().name()),
    }
    match san.connect(connect).result() {
        Ok(()) => println!("connect fine"),
        Err(error) => println!("connect {} {error}", error.code().name()),
    }
}

/// Connects, and sends what it receives back.
fn talk(addr: SocketAddr) {
    let san = San::start();
    let connector = san.connect(addr);
    connector.result().expect("an accepted connect");
    println!("connected");
    for line in commands() {
        assert_eq!(line, "echo");
        let message = san::receive(&connector.socket);
        san::send(&connector.socket, &message);
        println!("echoed");
    }
}

fn commands() -> impl Iterator<Item = String> {
    std::io::stdin()
        .lock()
        .lines()
        .map(|line| line.expect("a line"))
}

fn address(text: &str) -> SocketAddr {
    text.parse()
        .unwrap_or_else(|_| panic!("{text} is not an address and port"))
}
