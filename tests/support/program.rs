//! Other programs: run, watched, ended, with what they said.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// A program that runs, and that is killed when this is dropped.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl Program {
    /// Starts it; its input and output are ours.
    ///
    /// # Panics
    /// When it cannot be started: the package that has it is missing.
    #[must_use]
    pub fn start(program: impl AsRef<Path>, args: &[&str]) -> Self {
        let program = program.as_ref();
        let name = program.display().to_string();
        let mut child = Command::new(program)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name} cannot be started: {error}"));
        let (sender, lines) = mpsc::channel();
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        pump(stdout.expect("piped"), sender.clone());
        pump(stderr.expect("piped"), sender);
        let input = child.stdin.take();
        Self {
            name,
            child,
            input,
            lines,
            said: Vec::new(),
        }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives it a line.
    ///
    /// # Panics
    /// When it does not read any more.
    pub fn tell(&mut self, line: &str) {
        let input = self.input.as_mut().expect("its input is open");
        let told = writeln!(input, "{line}").and_then(|()| input.flush());
        told.unwrap_or_else(|error| {
            panic!(
                "{} does not listen: {error}; it said {:?}",
                self.name, self.said
            )
        });
    }

    /// Waits for a line that starts with `start` and returns the rest of it.
    ///
    /// # Panics
    /// When none comes in time, with what came instead.
    pub fn expect(&mut self, start: &str, limit: Duration) -> String {
        let deadline = Instant::now() + limit;
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => {
                    self.said.push(line.clone());
                    if let Some(rest) = line.strip_prefix(start) {
                        return rest.trim().to_owned();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!(
                        "{} did not say '{start}' in {limit:?}, but {:?}",
                        self.name, self.said
                    )
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!(
                        "{} ended without saying '{start}', it said {:?}",
                        self.name, self.said
                    )
                }
            }
        }
    }

    /// Kills it at once, as a crash would.
    ///
    /// # Panics
    /// When the system does not let us.
    pub fn kill(&mut self) {
        self.child.kill().expect("our own child can be killed");
        self.child.wait().expect("our own child can be waited for");
    }

    /// Waits for its end; gives its status and all it said.
    ///
    /// # Panics
    /// When it does not end in time.
    pub fn finish(mut self, limit: Duration) -> (ExitStatus, String) {
        self.input = None;
        let deadline = Instant::now() + limit;
        loop {
            match self
                .lines
                .recv_timeout(deadline.saturating_duration_since(Instant::now()))
            {
                Ok(line) => self.said.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    panic!(
                        "{} does not end in {limit:?}; it said {:?}",
                        self.name, self.said
                    )
                }
            }
        }
        // Its output is closed, so it ends now or never.
        let mut status = None;
        crate::time::eventually("the program has ended", limit, || {
            status = self.child.try_wait().expect("our own child");
            status.is_some()
        });
        (status.expect("it ended"), self.said.join("\n"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a short program says on its output; None if it is not there or fails.
#[must_use]
pub fn output_of(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a short program that must do its work.
///
/// # Panics
/// When it does not, with what it said.
pub fn must(program: &str, args: &[&str]) {
    let output = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .output();
    let output = output.unwrap_or_else(|error| panic!("{program} cannot be started: {error}"));
    assert!(
        output.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn pump(from: impl Read + Send + 'static, to: mpsc::Sender<String>) {
    thread::Builder::new()
        .name("pump".into())
        .spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                if to.send(line).is_err() {
                    break;
                }
            }
        })
        .expect("a thread for a program's output");
}
