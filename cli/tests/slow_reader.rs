//! `san listen <file` to a reader that pauses: all of the file arrives, and both ends say so.

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SAN: &str = env!("CARGO_BIN_EXE_san");
const LENGTH: usize = 600_000;

/// A `san` on the soft fabric, killed when the test fails.
struct San(Child);

impl San {
    fn start(ip: &str, arguments: &[&str], input: Stdio) -> Self {
        let child = Command::new(SAN)
            .args(arguments)
            .env("SAN_FABRIC", "soft")
            .env("SAN_SOFT_ADDRESSES", ip)
            .env("SAN_STAT", "off")
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        San(child.unwrap())
    }

    /// What follows `start` in a line of its log.
    fn line(log: &mut impl BufRead, start: &str) -> String {
        let mut line = String::new();
        while log.read_line(&mut line).unwrap() > 0 {
            if let Some(rest) = line.strip_prefix(start) {
                return rest.trim().to_owned();
            }
            line.clear();
        }
        panic!("it ended without saying '{start}'");
    }
}

impl Drop for San {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_reader_that_pauses_gets_all_of_it() {
    let bytes: Vec<u8> = (0..LENGTH).map(|at| (at * 31 + at / 4096) as u8).collect();
    let path = std::env::temp_dir().join(format!("san-slow-reader-{}", std::process::id()));
    File::create(&path).unwrap().write_all(&bytes).unwrap();
    let file = File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();

    let ip = common::own_address();
    let mut listener = San::start(&ip, &["listen", &format!("{ip}:0")], file.into());
    let mut said = BufReader::new(listener.0.stderr.take().unwrap());
    let address = San::line(&mut said, "san: listening on ");
    let address = address.split(',').next().unwrap().to_owned();
    let mut reader = San::start(&ip, &["connect", &address], Stdio::null());
    let mut reader_said = BufReader::new(reader.0.stderr.take().unwrap());
    let route = San::line(&mut reader_said, "san: connected: ");
    assert!(route.contains("over the SAN"), "{route}");
    let mut output = reader.0.stdout.take().unwrap();
    let mut got = vec![0; 100_000];
    output.read_exact(&mut got).unwrap();
    // The pause is what is tested: longer than any close may wait for progress at the least.
    std::thread::sleep(Duration::from_secs(3));
    output.read_to_end(&mut got).unwrap();
    assert!(got == bytes, "{} bytes of {LENGTH}", got.len());
    for (end, said) in [
        (&mut reader, &mut reader_said as &mut dyn Read),
        (&mut listener, &mut said),
    ] {
        let status = end.0.wait().unwrap();
        let mut log = String::new();
        said.read_to_string(&mut log).unwrap();
        assert!(status.success(), "{status}: {log}");
    }
}
