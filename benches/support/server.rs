//! Servers in processes of their own. The client and the server of a measurement share nothing but
//! the fabric, as perftest's do.
//!
//! A server is this program again with other arguments. It says `ready` in a line of its own, takes
//! one-word commands line by line, answers each with a line, and ends when its input does.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use crate::Result;

/// How long a server is waited for, in all and at a time.
const STEPS: u32 = 60_000;
const STEP: Duration = Duration::from_millis(1);

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    name: String,
}

impl Server {
    /// Starts this program with `args` and waits until it is ready; the rest of its line `ready`
    /// is the answer beside it.
    ///
    /// # Errors
    /// When it does not become ready in time.
    pub fn start<S: AsRef<str>>(args: &[S]) -> Result<(Self, String)> {
        let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
        let mut command = Command::new(std::env::current_exe()?);
        command.args(&args);
        Self::start_as(command, args.join(" "))
    }

    /// The same with another command, as this program under a tool that watches it; `name` is for
    /// errors.
    ///
    /// # Errors
    /// When it does not become ready in time.
    pub fn start_as(mut command: Command, name: String) -> Result<(Self, String)> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().ok_or("no output")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output)
                .lines()
                .map_while(std::result::Result::ok)
            {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let input = child.stdin.take();
        let server = Self {
            child,
            input,
            lines,
            name,
        };
        let line = server.line()?;
        match line.strip_prefix("ready") {
            Some(rest) => Ok((server, rest.trim().to_owned())),
            None => Err(format!("{}: {line}", server.name).into()),
        }
    }

    /// Gives a command and takes its answer.
    ///
    /// # Errors
    /// When no answer comes in time.
    pub fn ask(&mut self, command: &str) -> Result<String> {
        let input = self.input.as_mut().ok_or("no input")?;
        writeln!(input, "{command}")?;
        input.flush()?;
        self.line()
    }

    /// Waits in steps, and counts those: where the clock counts instructions it leaps over any time
    /// in which everybody waits, also for a server's program to come from a disk, but no further
    /// than to the next step.
    fn line(&self) -> Result<String> {
        for _ in 0..STEPS {
            match self.lines.recv_timeout(STEP) {
                Ok(line) => return Ok(line),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(format!("{}: it ended", self.name).into());
                }
            }
        }
        Err(format!("{}: no answer in {:?}", self.name, STEP * STEPS).into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.input.take());
        for _ in 0..200 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// In the server's process: says that it is ready.
///
/// # Errors
/// When nobody reads.
pub fn say_ready(rest: &str) -> Result<()> {
    answer(&format!("ready {rest}"))
}

/// In the server's process: answers.
///
/// # Errors
/// When nobody reads.
pub fn answer(line: &str) -> Result<()> {
    let mut output = std::io::stdout().lock();
    writeln!(output, "{line}")?;
    output.flush()?;
    Ok(())
}

/// In the server's process: the commands, until the input ends.
pub fn commands() -> impl Iterator<Item = String> {
    std::io::stdin().lines().map_while(std::result::Result::ok)
}
