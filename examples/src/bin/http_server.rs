//! A folder by HTTP/1.1: `http-server ADDRESS FOLDER`, then `curl http://ADDRESS/FILE`. curl comes
//! over TCP; a client that uses `san_switch::net` comes over the SAN, to the same port.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use san_switch::net::{TcpListener, TcpStream};

/// How long a client may say nothing.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest request line and the most header lines.
const LONGEST_LINE: u64 = 8192;
const MOST_LINES: usize = 100;

fn main() -> ExitCode {
    let usage = "http-server ADDRESS FOLDER";
    san_examples::run("http-server", usage, |arguments| match arguments {
        [address, folder] => Some(serve(address, folder)),
        _ => None,
    })
}

fn serve(address: &str, folder: &str) -> io::Result<()> {
    let listener = TcpListener::bind(address)?;
    println!("listening on {}", listener.local_addr()?);
    let folder = Arc::new(PathBuf::from(folder));
    for stream in listener.incoming() {
        let stream = stream?;
        let folder = Arc::clone(&folder);
        thread::spawn(move || {
            if let Err(error) = answer_all(&stream, &folder) {
                eprintln!("http-server: {:?}: {error}", stream.peer_addr());
            }
        });
    }
    Ok(())
}

/// Answers one request after the other, until the client ends.
fn answer_all(stream: &TcpStream, folder: &Path) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    while let Some(request) = line(&mut reader)? {
        let mut lines = 0;
        while line(&mut reader)?.is_some_and(|header| !header.is_empty()) {
            lines += 1;
            if lines > MOST_LINES {
                return refuse(stream, "431 Request Header Fields Too Large");
            }
        }
        let words: Vec<&str> = request.split_ascii_whitespace().collect();
        let ["GET", path, "HTTP/1.1" | "HTTP/1.0"] = words[..] else {
            return refuse(stream, "400 Bad Request");
        };
        let file = inside(folder, path).and_then(|path| File::open(path).ok());
        match file.and_then(|file| Some((file.metadata().ok()?, file))) {
            Some((about, mut file)) if about.is_file() => {
                let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", about.len());
                (&mut &*stream).write_all(head.as_bytes())?;
                io::copy(&mut file, &mut &*stream)?;
            }
            _ => {
                let head = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
                (&mut &*stream).write_all(head.as_bytes())?;
            }
        }
    }
    Ok(())
}

/// One line without its end; nothing after the last.
fn line(reader: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = String::new();
    let mut limited = io::Read::take(reader, LONGEST_LINE);
    match limited.read_line(&mut line)? {
        0 => Ok(None),
        _ if line.ends_with('\n') => Ok(Some(line.trim_end().to_owned())),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a line without end",
        )),
    }
}

fn refuse(mut stream: &TcpStream, status: &str) -> io::Result<()> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes())
}

/// The path within the folder, unless it leads out of it.
fn inside(folder: &Path, path: &str) -> Option<PathBuf> {
    let path = Path::new(path.trim_start_matches('/'));
    let goes_down = |part| matches!(part, Component::Normal(_));
    path.components().all(goes_down).then(|| folder.join(path))
}
