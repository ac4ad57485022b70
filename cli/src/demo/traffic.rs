//! The demo's bytes: a pattern that is sent, sent back, and compared.

use san_switch::Connection;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Long enough to need several messages.
pub(super) const PATTERN_LEN: usize = 64 * 1024;

/// Bytes whose order shows: no two neighbouring blocks are alike.
pub(super) fn pattern() -> Vec<u8> {
    (0..PATTERN_LEN as u32)
        .map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect()
}

/// Sends the pattern, ends the stream, reads it back, and says how long that took.
pub(super) fn ask_for_echo(connection: &Connection) -> io::Result<Duration> {
    let sent = pattern();
    let begin = Instant::now();
    let mut stream = connection;
    // Both ways at once: neither side has room for all of it.
    let back = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut back = Vec::new();
            let mut stream = connection;
            stream.read_to_end(&mut back).map(|_| back)
        });
        stream.write_all(&sent)?;
        connection.shutdown_write()?;
        reader.join().expect("reading does not panic")
    })?;
    compare(&sent, &back)?;
    Ok(begin.elapsed())
}

/// The server's part, on a connection of the switch.
pub(super) fn echo_once(connection: &Connection) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    let mut stream = connection;
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            n => stream.write_all(&buffer[..n])?,
        }
    }
    connection.shutdown_write()?;
    // The client closes when it has read everything.
    Ok(())
}

/// The server's part, on a TCP socket of std.
pub(super) fn tcp_echo_once(mut stream: &TcpStream) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.shutdown(std::net::Shutdown::Write),
            n => stream.write_all(&buffer[..n])?,
        }
    }
}

/// Whether what came back is what was sent.
pub(super) fn compare(sent: &[u8], back: &[u8]) -> io::Result<()> {
    if sent == back {
        return Ok(());
    }
    let at = sent.iter().zip(back).take_while(|(a, b)| a == b).count();
    Err(io::Error::new(
        ErrorKind::InvalidData,
        format!(
            "{} bytes came back of {}, the first {at} of them right",
            back.len(),
            sent.len()
        ),
    ))
}
