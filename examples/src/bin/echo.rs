//! An echo server and its client.
//!
//! `SAN_FABRIC=soft cargo run --bin echo -- serve 127.0.0.1:7000`, and in another terminal
//! `SAN_FABRIC=soft cargo run --bin echo -- say 127.0.0.1:7000 hello`.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::process::ExitCode;
use std::thread;

// With std::net in its place this is the same program over TCP.
use san_switch::net::{TcpListener, TcpStream};

fn main() -> ExitCode {
    let usage = "echo serve ADDRESS | echo say ADDRESS TEXT";
    san_examples::run("echo", usage, |arguments| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match arguments[..] {
            ["serve", address] => Some(serve(address)),
            ["say", address, text] => Some(say(address, text)),
            _ => None,
        }
    })
}

fn serve(address: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("listening on {}", listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || {
            if let Err(error) = io::copy(&mut &stream, &mut &stream) {
                eprintln!("echo: {:?}: {error}", stream.peer_addr());
            }
        });
    }
    Ok(())
}

fn say(address: &str, text: &str) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(text.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    println!("{answer}");
    // What std::net has no name for: which way the bytes went.
    eprintln!("by {}", stream.route());
    Ok(())
}
