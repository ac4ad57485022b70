//! Sends a file: eight bytes of length, then the bytes. The receiver compares what it got with the
//! length, and answers when it has all of it.
//!
//! `file-transfer receive ADDRESS FILE`, then `file-transfer send FILE ADDRESS`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use san_switch::net::{TcpListener, TcpStream};

/// What the receiver says at the end.
const ALL_HERE: &[u8] = b"all here";
/// A piece that both carriers move well.
const PIECE: usize = 256 * 1024;
/// Between two lines of progress.
const PACE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let usage = "file-transfer receive ADDRESS FILE | file-transfer send FILE ADDRESS";
    san_examples::run("file-transfer", usage, |arguments| {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        match arguments[..] {
            ["receive", address, file] => Some(receive(address, file)),
            ["send", file, address] => Some(send(file, address)),
            _ => None,
        }
    })
}

fn receive(address: &str, file: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("listening on {}", listener.local_addr()?);
    let (mut stream, _) = listener.accept()?;
    let mut length = [0; 8];
    stream.read_exact(&mut length)?;
    let length = u64::from_be_bytes(length);
    copy(&mut stream, &mut File::create(file)?, length)?;
    stream.write_all(ALL_HERE)
}

fn send(file: &str, address: &str) -> io::Result<()> {
    let mut file = File::open(file)?;
    let length = file.metadata()?.len();
    let mut stream = TcpStream::connect(address)?;
    println!("to {} by {}", stream.peer_addr()?, stream.route());
    stream.write_all(&length.to_be_bytes())?;
    copy(&mut file, &mut stream, length)?;
    let mut answer = [0; ALL_HERE.len()];
    stream.read_exact(&mut answer)?;
    if answer != ALL_HERE {
        return Err(io::Error::other("the receiver gave another answer"));
    }
    Ok(())
}

/// Copies exactly so many bytes and tells how far it is.
fn copy(from: &mut impl Read, to: &mut impl Write, length: u64) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    let (begun, mut told) = (Instant::now(), Instant::now());
    let mut done = 0;
    while done < length {
        let wanted = PIECE.min(usize::try_from(length - done).unwrap_or(PIECE));
        let came = from.read(&mut piece[..wanted])?;
        if came == 0 {
            let text = format!("the bytes ended after {done} of {length}");
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        to.write_all(&piece[..came])?;
        done += came as u64;
        if told.elapsed() >= PACE {
            told = Instant::now();
            println!("{done} of {length} bytes");
        }
    }
    let seconds = begun.elapsed().as_secs_f64().max(1e-9);
    println!("{length} bytes, {:.1} MB/s", length as f64 / seconds / 1e6);
    Ok(())
}
