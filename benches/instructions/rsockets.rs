//! The same of rsockets: `rstream`, blocking, one message each way in turn, in runs of two lengths. Of a connect, the
//! calls that make and end a connection are counted alone, in a run with one: it is the first of its process.

use std::net::IpAddr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use san_benches::Result;
use san_instructions::callgrind::Profile;

use crate::Subject;
use crate::watch::{Counted, MESSAGES, callgrind};

/// How long a run may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a pair is started: a client that is there before its server listens fails.
const TRIES: u32 = 5;

/// How long a server is given to listen. Where time is a count of instructions, the part of it in which nobody has
/// anything to do is over at once.
const TO_LISTEN: Duration = Duration::from_secs(5);

/// What a connect consists of, at either end.
const CONNECT: [&str; 5] = ["rsocket", "rbind", "rconnect", "raccept", "rclose"];

/// Counts the subjects.
pub(crate) fn count(subjects: &[Subject], server: IpAddr, folder: &Path) -> Result<Vec<Counted>> {
    let mut counted = Vec::new();
    let mut pair = Pair {
        server,
        folder,
        port: 7500,
    };
    for &subject in subjects {
        let [client, server] = match subject {
            Subject::Message(size) => pair.messages(size)?,
            Subject::Connect => pair.run(64, 1, &CONNECT)?,
        };
        counted.push(Counted {
            subject,
            client,
            server,
        });
    }
    Ok(counted)
}

/// What runs of two programs have in common.
struct Pair<'a> {
    server: IpAddr,
    folder: &'a Path,
    /// A port of its own for each run.
    port: u16,
}

impl Pair<'_> {
    fn messages(&mut self, size: usize) -> Result<[Profile; 2]> {
        let [_, short, long] = MESSAGES;
        let by = f64::from(long - short);
        let [client, server] = self.run(size, short, &[])?;
        let more = self.run(size, long, &[])?;
        Ok([
            more[0].more_than(&client, by),
            more[1].more_than(&server, by),
        ])
    }

    /// What client and server cost; `only`: as far as they are in these functions.
    fn run(&mut self, size: usize, rounds: u32, only: &[&str]) -> Result<[Profile; 2]> {
        let files = ["client", "server"].map(|end| self.folder.join(format!("rstream-{end}")));
        let read = |file: &Path| -> Result<Profile> {
            Ok(Profile::parse(&std::fs::read_to_string(file)?)?)
        };
        for _ in 0..TRIES {
            self.port += 1;
            let start = |file: &Path, role: &str| -> Result<Running> {
                let mut command = callgrind(file);
                command.args(only.iter().map(|name| format!("--toggle-collect={name}")));
                let (address, size) = (self.server.to_string(), size.to_string());
                let (rounds, port) = (rounds.to_string(), self.port.to_string());
                command.args(["rstream", role, &address, "-T", "b", "-C", "1"]);
                command.args(["-p", &port, "-S", &size, "-I", &rounds]);
                let quiet = command.stdin(Stdio::null()).stdout(Stdio::null());
                Ok(Running(quiet.stderr(Stdio::null()).spawn()?))
            };
            let mut server = start(&files[1], "-b")?;
            std::thread::sleep(TO_LISTEN);
            let mut client = start(&files[0], "-s")?;
            if client.ended_well()? && server.ended_well()? {
                return Ok([read(&files[0])?, read(&files[1])?]);
            }
        }
        Err(format!("rstream with {size} bytes fails").into())
    }
}

/// A child; what is left of it is ended.
struct Running(Child);

impl Running {
    fn ended_well(&mut self) -> Result<bool> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status.success());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(false)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
