//! An echo server and its client on tokio: any number of connections, two threads.
//!
//! `SAN_FABRIC=soft cargo run --bin tokio-echo -- serve 127.0.0.1:7000`, and in another terminal
//! `SAN_FABRIC=soft cargo run --bin tokio-echo -- say 127.0.0.1:7000 hello`.

use std::io;
use std::process::ExitCode;

// With tokio::net in its place this is the same program over TCP.
use san_switch_tokio::{TcpListener, TcpStream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn main() -> ExitCode {
    let usage = "tokio-echo serve ADDRESS | tokio-echo say ADDRESS TEXT";
    san_examples::run("tokio-echo", usage, |arguments| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match arguments[..] {
            ["serve", address] => Some(block_on(serve(address))),
            ["say", address, text] => Some(block_on(say(address, text))),
            _ => None,
        }
    })
}

fn block_on(main: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(2).enable_all();
    runtime.build()?.block_on(main)
}

async fn serve(address: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr());
    loop {
        let (mut stream, peer) = listener.accept().await?;
        tokio::spawn(async move {
            let (mut read, mut write) = stream.split();
            if let Err(error) = tokio::io::copy(&mut read, &mut write).await {
                eprintln!("tokio-echo: {peer}: {error}");
            }
        });
    }
}

async fn say(address: &str, text: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    println!("{answer}");
    // What tokio has no name for: which way the bytes went.
    eprintln!("by {}", stream.route());
    Ok(())
}
