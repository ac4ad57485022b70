//! A process with a provider that does what it is told: the tests that hand connections from one
//! process to another hold the strings.
//!
//! `puppet MILLISECONDS` is its program in `san-test-peer`, the number how long it waits for a peer
//! that moves. It has one socket at a time. Each command is a line, and answered by one.

use std::io::BufRead;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use san_provider::{Duplicate, EventObject, Notification, ProviderConfig, Readiness, Socket};

use crate::program::Program;
use crate::san::{self, Listener, San};
use crate::time::STEP;

/// A puppet, from the side of the test.
#[derive(Debug)]
pub struct Puppet {
    program: Program,
}

impl Puppet {
    /// Starts one: `peer` is the program `san-test-peer`.
    #[must_use]
    pub fn start(peer: impl AsRef<Path>, move_deadline: Duration) -> Self {
        let settings = move_deadline.as_millis().to_string();
        let mut program = Program::start(peer, &["puppet", &settings]);
        program.expect("ready", STEP);
        Self { program }
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// Kills it, as a crash would.
    pub fn kill(&mut self) {
        self.program.kill();
    }

    /// Has it do something and gives its answer, which begins with `answer`.
    pub fn does(&mut self, command: &str, answer: &str) -> String {
        self.program.tell(command);
        self.program.expect(answer, STEP)
    }

    /// Has it begin something; the answer comes later.
    pub fn begins(&mut self, command: &str) {
        self.program.tell(command);
    }

    /// The answer to what it began.
    pub fn answers(&mut self, answer: &str) -> String {
        self.program.expect(answer, STEP)
    }

    /// It hands its connection to the process `target`.
    #[must_use]
    pub fn duplicate(&mut self, target: u32) -> Vec<u8> {
        from_hex(&self.does(&format!("duplicate {target}"), "duplicate"))
    }

    /// It takes a connection up; the names of the socket there.
    pub fn take(&mut self, duplicate: &[u8]) -> String {
        self.does(&format!("take {}", to_hex(duplicate)), "taken")
    }

    /// It tries to take a connection up, and cannot; why.
    pub fn may_not_take(&mut self, duplicate: &[u8]) -> String {
        self.does(&format!("take {}", to_hex(duplicate)), "refused")
    }
}

/// The program.
///
/// # Panics
/// When it is told what it does not understand, or when what it does fails.
pub fn run(move_deadline: &str) {
    let move_deadline = move_deadline.parse().expect("milliseconds");
    let san = San::start_with(ProviderConfig {
        move_deadline: Duration::from_millis(move_deadline),
        ..ProviderConfig::default()
    });
    let mut stage = Stage {
        san,
        listener: None,
        socket: None,
        served: EventObject::new().expect("an event object"),
    };
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("a line");
        let (command, rest) = line.split_once(' ').unwrap_or((&line, ""));
        stage.act(command, rest);
    }
}

struct Stage {
    san: San,
    listener: Option<Listener>,
    socket: Option<Socket>,
    /// Followed, so that somebody serves the socket while it is told nothing.
    served: EventObject,
}

impl Stage {
    fn act(&mut self, command: &str, rest: &str) {
        match command {
            "listen" => {
                self.listener = Some(self.san.listen(address(rest), 4));
                println!("listening");
            }
            "accept" => {
                let accepted = self.listener.as_ref().expect("a listener").accept();
                self.holds(accepted.socket);
                println!("accepted");
            }
            "connect" => {
                let connector = self.san.connect(address(rest));
                connector.result().expect("an accepted connect");
                self.holds(connector.socket);
                println!("connected");
            }
            "send" => {
                san::send(self.socket(), rest.as_bytes());
                println!("sent");
            }
            // Messages with the numbers FROM to TO, as fast as they go.
            "count" => {
                let (from, to) = rest.split_once(' ').expect("two numbers");
                let numbers = from.parse().expect("a number")..to.parse().expect("a number");
                for number in numbers {
                    send_number(self.socket(), number);
                }
                println!("counted");
            }
            "receive" => {
                let message = san::receive(self.socket());
                println!("received {}", String::from_utf8_lossy(&message));
            }
            "number" => println!("number {}", receive_number(self.socket())),
            "threshold" => {
                let option = san_provider::SocketOption::RdmaThresholdSize;
                if !rest.is_empty() {
                    let value = rest.parse().expect("a number");
                    self.socket().set_option(option, value).expect("an option");
                }
                println!("threshold {}", self.socket().option(option).expect("one"));
            }
            "duplicate" => match self.socket().duplicate(rest.parse().expect("a process")) {
                Ok(duplicate) => println!("duplicate {}", to_hex(duplicate.as_bytes())),
                Err(error) => println!("refused {} {error}", error.code().name()),
            },
            "take" => self.take(rest),
            "close" => {
                self.socket.take().expect("a socket").close().expect("open");
                println!("closed");
            }
            "held" => {
                let live = verbs_shim::live_objects();
                println!(
                    "held {} {} {}",
                    live.ids,
                    live.qps,
                    crate::census::threads().len()
                );
            }
            _ => panic!("unknown command {command}"),
        }
    }

    fn take(&mut self, hex: &str) {
        let duplicate = Duplicate::from_bytes(&from_hex(hex)).expect("a duplicate");
        match self.san.provider.socket_from(&duplicate) {
            Ok(socket) => {
                let names = (socket.local_addr(), socket.peer_addr());
                let (Ok(Some(local)), Ok(Some(peer))) = names else {
                    panic!("a socket without names");
                };
                self.holds(socket);
                println!("taken {local} {peer}");
            }
            Err(error) => println!("refused {} {error}", error.code().name()),
        }
    }

    fn holds(&mut self, socket: Socket) {
        socket
            .select_ready(Readiness::Readable, Some(&self.served))
            .expect("a connected socket");
        self.socket = Some(socket);
    }

    fn socket(&self) -> &Socket {
        self.socket.as_ref().expect("a socket")
    }
}

/// Sends a message with a number, larger than what travels in a work request every other time.
///
/// # Panics
/// When it cannot be sent.
pub fn send_number(socket: &Socket, number: u64) {
    let mut message = number.to_be_bytes().to_vec();
    message.resize(8 + usize::try_from(number % 2).unwrap_or(0) * 300, 0);
    let sent = socket
        .send(&message, 0, Notification::Poll)
        .unwrap_or_else(|error| panic!("send {number}: {error}"));
    san::wait(socket, sent)
        .outcome
        .unwrap_or_else(|error| panic!("send {number}: {error}"));
}

/// Receives the next message with a number.
///
/// # Panics
/// When none comes.
#[must_use]
pub fn receive_number(socket: &Socket) -> u64 {
    let message = san::receive(socket);
    let number = message.first_chunk().expect("a number");
    u64::from_be_bytes(*number)
}

fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("memory");
        hex
    })
}

fn from_hex(hex: &str) -> Vec<u8> {
    let digits = |at: usize| hex.get(at..at + 2).expect("two digits");
    let byte = |at| u8::from_str_radix(digits(at), 16).expect("hexadecimal digits");
    (0..hex.len()).step_by(2).map(byte).collect()
}

fn address(text: &str) -> SocketAddr {
    text.parse()
        .unwrap_or_else(|_| panic!("{text} is not an address and port"))
}
