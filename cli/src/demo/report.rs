//! What the demo promised and saw: a line a step, a table at the end, or the same as JSON.

use san_base::lock;
use san_switch::{ConnectError, Connection, Route};
use serde::Serialize;
use std::io::{self, Write};
use std::sync::Mutex;
use std::time::Duration;

/// The closing report.
#[derive(Debug, Serialize)]
pub(super) struct DemoReport {
    clients: Vec<ClientReport>,
    fd_accept_signals: u64,
    promises: Vec<Promise>,
    passed: bool,
    #[serde(skip)]
    json: bool,
    /// Why a line could not be written.
    #[serde(skip)]
    unwritten: Mutex<Option<io::Error>>,
    #[serde(skip)]
    steps: usize,
}

/// What became of one client.
#[derive(Debug, Serialize)]
pub(super) struct ClientReport {
    client: usize,
    microseconds: u128,
    /// `san`, `tcp`, `refused` or `failed`.
    outcome: &'static str,
    /// The Linux error number, of one that failed.
    errno: Option<i32>,
    detail: String,
}

#[derive(Debug, Serialize)]
struct Promise {
    promise: String,
    seen: bool,
}

impl ClientReport {
    pub(super) fn new(client: usize, took: Duration) -> Self {
        ClientReport {
            client,
            microseconds: took.as_micros(),
            outcome: "failed",
            errno: None,
            detail: String::new(),
        }
    }

    pub(super) fn connected(&mut self, connection: &Connection) {
        match connection.route() {
            Route::San { provider, device } => {
                self.outcome = "san";
                self.detail = format!("{} by {provider}, {device}", connection.local_addr());
            }
            Route::Tcp { why } => {
                self.outcome = "tcp";
                self.detail = why
                    .as_ref()
                    .map_or_else(|| "plain TCP".to_owned(), |why| format!("since {why}"));
            }
        }
    }

    pub(super) fn failed(&mut self, error: &ConnectError) {
        let refused = io::Error::from_raw_os_error(error.errno()).kind()
            == io::ErrorKind::ConnectionRefused
            && matches!(error, ConnectError::San { .. });
        self.outcome = if refused { "refused" } else { "failed" };
        self.errno = Some(error.errno());
        self.detail = match error {
            ConnectError::San { source, .. } => format!(
                "{}: {source}",
                if refused {
                    "ECONNREFUSED"
                } else {
                    source.code().name()
                }
            ),
            error => error.to_string(),
        };
    }

    pub(super) fn is_refused(&self) -> bool {
        self.outcome == "refused"
    }
}

impl DemoReport {
    pub(super) fn new(json: bool) -> Self {
        DemoReport {
            clients: Vec::new(),
            fd_accept_signals: 0,
            promises: Vec::new(),
            passed: false,
            json,
            unwritten: Mutex::new(None),
            steps: 0,
        }
    }

    pub(super) fn step(&mut self, text: impl AsRef<str>) {
        self.steps += 1;
        let number = self.steps;
        self.print(&format!("{number}. {}", text.as_ref()));
    }

    pub(super) fn line(&self, text: impl AsRef<str>) {
        self.print(&format!("   {}", text.as_ref()));
    }

    pub(super) fn client(&mut self, client: ClientReport) {
        let outcome = match client.outcome {
            "san" => "connected over the SAN",
            "tcp" => "connected over TCP",
            "refused" => "refused",
            _ => "failed",
        };
        self.line(format!(
            "client {:>2}: {outcome} after {:>6} us: {}",
            client.client, client.microseconds, client.detail
        ));
        self.clients.push(client);
    }

    pub(super) fn signals(&mut self, signals: u64) {
        self.fd_accept_signals = signals;
    }

    /// Records whether something promised was seen.
    pub(super) fn promise(&mut self, promise: impl Into<String>, seen: bool) {
        self.promises.push(Promise {
            promise: promise.into(),
            seen,
        });
    }

    /// Prints the table, or the JSON, and says whether all promises were kept.
    pub(super) fn finish(&mut self) -> io::Result<bool> {
        self.passed = self.promises.iter().all(|promise| promise.seen);
        if self.json {
            let out = io::stdout();
            serde_json::to_writer_pretty(&out, self)?;
            writeln!(&out)?;
            return Ok(self.passed);
        }
        let width = self
            .promises
            .iter()
            .map(|promise| promise.promise.len())
            .max()
            .unwrap_or(0);
        self.print("");
        self.print(&format!("{:width$}  seen", "promised"));
        self.print(&format!("{:-<width$}  ----", ""));
        for promise in &self.promises {
            let seen = if promise.seen { "yes" } else { "NO" };
            self.print(&format!("{:width$}  {seen}", promise.promise));
        }
        match lock(&self.unwritten).take() {
            Some(error) => Err(error),
            None => Ok(self.passed),
        }
    }

    /// What cannot be written ends nothing: the promises count, and [`DemoReport::finish`] tells it.
    fn print(&self, line: &str) {
        let written = match self.json {
            true => writeln!(io::stderr(), "{line}"),
            false => writeln!(io::stdout(), "{line}"),
        };
        if let Err(error) = written {
            *lock(&self.unwritten) = Some(error);
        }
    }
}
