//! Small programs over the SAN. Each is the program that one would write with `std::net`, with one
//! `use` line changed: `san_switch::net` in place of `std::net`. Over which fabric it runs is a
//! setting (`SAN_FABRIC`); without a fabric all of it is TCP.
//!
//! - `chat`: a room of any number of connections with one thread, by [`san_switch::Poller`]; it has its own
//!   switch.
//! - `echo`: a server with a thread for each connection, and its client.
//! - `file-transfer`: a file sent with its length before it, with progress.
//! - `http-server`: a folder by HTTP/1.1, for `curl`.
//! - `tokio-echo`: the echo server on tokio (`san_switch_tokio` in place of `tokio::net`).
//!
//! This library has nothing but what all of them would write again.

#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Runs a program's main part and says on standard error what went wrong.
pub fn run(
    name: &str,
    usage: &str,
    main: impl FnOnce(&[String]) -> Option<std::io::Result<()>>,
) -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match main(&arguments) {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
        None => {
            eprintln!("usage: {usage}");
            ExitCode::from(2)
        }
    }
}
