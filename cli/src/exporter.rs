//! `san stat --serve`: the metrics of every process over HTTP, on a loopback port or a Unix socket.
//!
//! One request a connection, one connection at a time, each within [`PATIENCE`]: a client that does
//! not ask, or does not read, holds the others up no longer than that. There is no password, so no
//! address is served that another host could reach.

use crate::output::tell;
use crate::problem::Problem;
use crate::reports;
use rustix::io::Errno;
use san_switch::stat::{OPENMETRICS_TYPE, openmetrics};
use std::convert::Infallible;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

/// How long a client may take to ask, and again to read.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of a request, at most.
const LONGEST: usize = 8 * 1024;
/// Headers of a request, at most.
const MOST_HEADERS: usize = 64;
/// How long nobody is accepted after the system had no descriptor.
const REST: Duration = Duration::from_millis(100);
/// The path that scrapers ask for by themselves.
const PATH: &str = "/metrics";

/// Where the exporter is to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ExporterAddress {
    Port(SocketAddr),
    Socket(PathBuf),
}

impl FromStr for ExporterAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with('/') || text.starts_with("./") {
            return Ok(ExporterAddress::Socket(text.into()));
        }
        let address: SocketAddr = text.parse().map_err(|_| {
            format!("'{text}' is neither an address, such as 127.0.0.1:9464, nor a path, such as /run/san.sock")
        })?;
        match address.ip().is_loopback() {
            true => Ok(ExporterAddress::Port(address)),
            false => Err(format!(
                "{} can be reached from other hosts, and there is no password; give 127.0.0.1:{} \
                 and put a proxy with one in front",
                address.ip(),
                address.port()
            )),
        }
    }
}

impl fmt::Display for ExporterAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExporterAddress::Port(address) => write!(f, "http://{address}{PATH}"),
            ExporterAddress::Socket(path) => write!(f, "{}", path.display()),
        }
    }
}

/// Serves until it is killed.
pub(crate) fn serve(place: &ExporterAddress) -> Result<Infallible, Problem> {
    match place {
        ExporterAddress::Port(address) => {
            let listener = TcpListener::bind(address).map_err(|error| taken(place, &error))?;
            let address = listener.local_addr()?;
            tell(&ExporterAddress::Port(address));
            accept(|| listener.accept().map(|(stream, _)| stream))
        }
        ExporterAddress::Socket(path) => {
            let listener = bind(path).map_err(|error| taken(place, &error))?;
            tell(place);
            accept(|| listener.accept().map(|(stream, _)| stream))
        }
    }
}

fn tell(place: &ExporterAddress) {
    tell!("san: metrics at {place}");
}

/// A socket for this user alone, in place of one that a dead exporter has left.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let is_left_behind = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket())
        && UnixStream::connect(path)
            .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if is_left_behind {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn taken(place: &ExporterAddress, error: &io::Error) -> Problem {
    let problem = Problem::new(format!("cannot serve metrics at {place}: {error}"));
    match (Errno::from_io_error(error), place) {
        (Some(Errno::ADDRINUSE), ExporterAddress::Port(address)) => problem.with_remedy(format!(
            "another exporter, or another program, has the port; see which: ss -ltnp 'sport = :{}'",
            address.port()
        )),
        (Some(Errno::ADDRINUSE), ExporterAddress::Socket(path)) => problem.with_remedy(format!(
            "another exporter serves there, or a file of that name is there; see: ss -lxp | grep {0}; \
             ls -l {0}",
            path.display()
        )),
        (_, ExporterAddress::Socket(path)) => problem.with_remedy(format!(
            "this user must be able to write the directory: ls -ld {}",
            path.parent().unwrap_or(path).display()
        )),
        _ => problem,
    }
}

/// A client's stream, of either kind.
trait Client: Read + Write {
    fn set_patience(&self, patience: Duration) -> io::Result<()>;
}

impl Client for TcpStream {
    fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(patience))?;
        self.set_write_timeout(Some(patience))
    }
}

impl Client for UnixStream {
    fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(patience))?;
        self.set_write_timeout(Some(patience))
    }
}

fn accept<C: Client>(mut next: impl FnMut() -> io::Result<C>) -> Result<Infallible, Problem> {
    loop {
        match next() {
            Ok(client) => {
                if let Err(error) = answer(client) {
                    tracing::debug!(%error, "a scrape was not answered");
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                std::thread::sleep(REST);
            }
        }
    }
}

fn answer(mut client: impl Client) -> io::Result<()> {
    let (status, kind, body) = match read_request(&mut client)? {
        Request::Metrics => {
            let all = reports::of_all();
            let text = openmetrics(&all.reports, all.unanswered);
            ("200 OK", OPENMETRICS_TYPE, text)
        }
        Request::Other(status) => {
            let text = format!("{status}\nThe metrics are at {PATH}.\n");
            (status, "text/plain; charset=utf-8", text)
        }
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let end = Instant::now() + PATIENCE;
    write_until(&mut client, head.as_bytes(), end)?;
    write_until(&mut client, body.as_bytes(), end)
}

enum Request {
    Metrics,
    Other(&'static str),
}

fn read_request(client: &mut impl Client) -> io::Result<Request> {
    let end = Instant::now() + PATIENCE;
    let mut bytes = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        client.set_patience(left(end)?)?;
        match client.read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => bytes.extend_from_slice(&chunk[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if let Some(request) = parse(&bytes) {
            return Ok(request);
        }
        if bytes.len() > LONGEST {
            return Ok(Request::Other("431 Request Header Fields Too Large"));
        }
    }
}

/// What is asked for; `None` while there is not all of it.
fn parse(bytes: &[u8]) -> Option<Request> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Partial) => None,
        Ok(httparse::Status::Complete(_)) => {
            let path = request.path.unwrap_or_default();
            let path = path.split_once('?').map_or(path, |(path, _)| path);
            Some(match (request.method.unwrap_or_default(), path) {
                ("GET", PATH) => Request::Metrics,
                ("GET", _) => Request::Other("404 Not Found"),
                _ => Request::Other("405 Method Not Allowed"),
            })
        }
        Err(_) => Some(Request::Other("400 Bad Request")),
    }
}

fn write_until(client: &mut impl Client, bytes: &[u8], end: Instant) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        client.set_patience(left(end)?)?;
        match client.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => rest = &rest[n..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn left(end: Instant) -> io::Result<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    match left.is_zero() {
        true => Err(io::ErrorKind::TimedOut.into()),
        false => Ok(left),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_places_of_this_host_are_served() {
        let place = |text: &str| text.parse::<ExporterAddress>();
        assert_eq!(
            place("127.0.0.1:9464"),
            Ok(ExporterAddress::Port("127.0.0.1:9464".parse().unwrap()))
        );
        assert!(matches!(place("[::1]:9464"), Ok(ExporterAddress::Port(_))));
        assert_eq!(
            place("/run/san.sock"),
            Ok(ExporterAddress::Socket("/run/san.sock".into()))
        );
        for open in ["0.0.0.0:9464", "10.0.7.1:9464", "[::]:9464"] {
            let error = place(open).unwrap_err();
            assert!(error.contains("other hosts"), "{error}");
        }
        for bad in ["", "9464", "localhost:9464", "san.sock"] {
            assert!(place(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn requests_are_read_as_far_as_they_came() {
        let status = |text: &str| match parse(text.as_bytes()) {
            None => "more",
            Some(Request::Metrics) => "metrics",
            Some(Request::Other(status)) => status,
        };
        assert_eq!(status("GET /metrics HTTP/1.1\r\nHost: x\r\n"), "more");
        assert_eq!(
            status("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"),
            "metrics"
        );
        assert_eq!(status("GET /metrics?a=b HTTP/1.0\r\n\r\n"), "metrics");
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), "404 Not Found");
        assert_eq!(
            status("POST /metrics HTTP/1.1\r\n\r\n"),
            "405 Method Not Allowed"
        );
        assert_eq!(status("\0\0\0\0"), "400 Bad Request");
    }
}
