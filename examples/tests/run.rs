//! Each example as its documentation has it, on the soft fabric.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

/// A server, killed at the end.
struct Server {
    child: Child,
    address: String,
    _said: BufReader<std::process::ChildStdout>,
}

fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("SAN_FABRIC", "soft")
        .env("SAN_STAT", "off");
    command
}

impl Server {
    fn start(program: &str, arguments: &[&str]) -> Self {
        let mut child = command(program, arguments)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let address = line.strip_prefix("listening on ").expect(&line);
        Self {
            address: address.trim().to_owned(),
            child,
            _said: said,
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn output(program: &str, arguments: &[&str]) -> Output {
    let output = command(program, arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output
}

/// A folder of this test's own.
fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("san-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

#[test]
fn echo() {
    says_it_back(env!("CARGO_BIN_EXE_echo"));
}

#[test]
fn tokio_echo() {
    says_it_back(env!("CARGO_BIN_EXE_tokio-echo"));
}

fn says_it_back(echo: &str) {
    let server = Server::start(echo, &["serve", "127.0.0.1:0"]);
    let output = output(echo, &["say", &server.address, "hello there"]);
    assert_eq!(output.stdout, b"hello there\n");
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(told.contains("SAN"), "{told}");
}

#[test]
fn chat() {
    let chat = env!("CARGO_BIN_EXE_chat");
    let server = Server::start(chat, &["serve", "127.0.0.1:0"]);
    let join = || {
        let mut guest = command(chat, &["join", &server.address]);
        guest.stdin(Stdio::piped()).stdout(Stdio::piped());
        guest.stderr(Stdio::piped());
        guest.spawn().unwrap()
    };
    let (mut one, mut other) = (join(), join());
    for guest in [&mut one, &mut other] {
        let mut route = String::new();
        let mut told = BufReader::new(guest.stderr.take().unwrap());
        told.read_line(&mut route).unwrap();
        assert!(route.contains("SAN"), "{route}");
    }
    // Who has not been let in yet would miss it: the first one says it until the other has heard.
    let mut speaks = one.stdin.take().unwrap();
    let speaker = std::thread::spawn(move || {
        while speaks.write_all(b"hello\nall\n").is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    });
    let mut hears = BufReader::new(other.stdout.take().unwrap()).lines();
    let hears = hears.by_ref().map(Result::unwrap);
    // It may have come in between the two lines.
    let hears = hears.skip_while(|line| !line.ends_with(": hello"));
    let heard: Vec<_> = hears.take(2).collect();
    let (number, _) = heard[0].split_once(": ").unwrap();
    assert_eq!(
        heard,
        [format!("{number}: hello"), format!("{number}: all")]
    );
    for mut guest in [one, other] {
        guest.kill().unwrap();
        guest.wait().unwrap();
    }
    speaker.join().unwrap();
}

#[test]
fn file_transfer() {
    let program = env!("CARGO_BIN_EXE_file-transfer");
    let folder = folder("file-transfer");
    let (from, to) = (folder.join("from"), folder.join("to"));
    let bytes: Vec<u8> = (0..3_000_000).map(|at| (at * 7 + at / 997) as u8).collect();
    std::fs::write(&from, &bytes).unwrap();
    let mut receiver = Server::start(program, &["receive", "127.0.0.1:0", to.to_str().unwrap()]);
    let told = output(
        program,
        &["send", from.to_str().unwrap(), &receiver.address],
    );
    let told = String::from_utf8(told.stdout).unwrap();
    assert!(told.contains("SAN"), "{told}");
    assert!(receiver.child.wait().unwrap().success());
    assert!(std::fs::read(&to).unwrap() == bytes, "another file");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn http_server() {
    let program = env!("CARGO_BIN_EXE_http-server");
    let folder = folder("http-server");
    std::fs::write(folder.join("page"), "by any carrier").unwrap();
    let server = Server::start(program, &["127.0.0.1:0", folder.to_str().unwrap()]);
    // A client that knows nothing of a SAN.
    let mut client = TcpStream::connect(&server.address).unwrap();
    client
        .write_all(
            b"GET /page HTTP/1.1\r\nHost: x\r\n\r\nGET /../secret HTTP/1.1\r\n\r\nnonsense\r\n\r\n",
        )
        .unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    let wanted = "HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\nby any carrier\
                  HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n\
                  HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    assert_eq!(answer, wanted);
    std::fs::remove_dir_all(folder).unwrap();
}
