//! Streams of messages: how many a second go from one end to the other, many under way at a time.
//! perftest's part is in `tools.rs`.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use san_benches::Result;
use san_benches::record::Record;
use san_benches::server::Server;
use san_provider::{DataPath, Notification, Operation, RegisteredBuffer, Socket};

use crate::pings::SIZES;
use crate::provider::{Client, WITHOUT_END};
use crate::rdma::mebibytes;
use crate::{Site, provider};

/// Messages of a stream.
pub(crate) const MESSAGES: usize = 5000;

/// Sends under way at a time.
const DEPTH: usize = 48;

/// How a message gets into registered memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    /// `send` copies it.
    Copied,
    /// `send_registered`: it is there.
    Registered,
    /// `try_send` copies it, and no operation stands for it.
    Tried,
    /// The same by `DataPath`, and the peer reads bytes instead of taking messages.
    DataPath,
}

impl From {
    /// Who takes them in.
    fn sink(self) -> &'static str {
        match self {
            Self::DataPath => "provider-sink-bytes",
            _ => "provider-sink",
        }
    }
}

/// The provider, one way.
pub(crate) fn provider(site: &Site, record: &mut Record) -> Result<()> {
    for size in SIZES {
        for (from, key, what) in [
            (From::Copied, "provider", "provider"),
            (
                From::Registered,
                "provider-buffers",
                "provider, from registered buffers",
            ),
            (From::Tried, "provider-tried", "provider, no operations"),
            (
                From::DataPath,
                "provider-data-path",
                "provider, by its data path",
            ),
        ] {
            let rate = stream(site.server, size, from)?;
            let what = format!("messages of {size} B, streaming: {what}");
            record.figure(&format!("stream.{size}.{key}"), &what, "MiB/s", rate);
        }
    }
    Ok(())
}

fn stream(server: IpAddr, size: usize, from: From) -> Result<f64> {
    let args = ["serve", from.sink(), &server.to_string()].map(String::from);
    let (_server, port) = Server::start(&args)?;
    let client = Client::new()?;
    let connection = client.connect(SocketAddr::new(server, port.parse()?))?;
    let mut sender = Sender {
        socket: connection.socket(),
        data: connection.socket().data_path()?,
        text: vec![b'x'; size],
        from,
        under_way: VecDeque::with_capacity(DEPTH),
    };
    // The window of a connection grows with use, and buffers come to be.
    sender.send(MESSAGES / 5)?;
    let began = Instant::now();
    sender.send(MESSAGES)?;
    Ok(mebibytes(size * MESSAGES, began.elapsed()))
}

struct Sender<'a> {
    socket: &'a Socket,
    data: DataPath,
    text: Vec<u8>,
    from: From,
    under_way: VecDeque<Operation>,
}

impl Sender<'_> {
    fn send(&mut self, count: usize) -> Result<()> {
        for _ in 0..count {
            if self.under_way.len() == DEPTH {
                self.finish()?;
            }
            let operation = match self.from {
                // What cannot go out at once goes as an operation, and is waited for.
                From::Tried if self.socket.try_send(&self.text, 0).is_ok() => continue,
                From::DataPath if self.data.try_send(&self.text, 0).is_ok() => continue,
                From::Tried | From::DataPath | From::Copied => {
                    self.socket.send(&self.text, 0, Notification::Poll)?
                }
                From::Registered => {
                    let buffer = self.buffer()?;
                    self.socket.send_registered(buffer, 0, Notification::Poll)?
                }
            };
            self.under_way.push_back(operation);
            if matches!(self.from, From::Tried | From::DataPath) {
                self.finish()?;
            }
        }
        while !self.under_way.is_empty() {
            self.finish()?;
        }
        Ok(())
    }

    fn buffer(&self) -> Result<RegisteredBuffer> {
        let mut buffer = self.socket.buffer()?;
        buffer.set_len(self.text.len());
        Ok(buffer)
    }

    fn finish(&mut self) -> Result<()> {
        let operation = self.under_way.pop_front().ok_or("nothing is under way")?;
        let result = self
            .socket
            .get_overlapped_result(operation, Some(WITHOUT_END))?;
        result.outcome?;
        Ok(())
    }
}

/// A server that takes messages in.
pub(crate) fn sink(address: IpAddr) -> Result<()> {
    let provider = provider::started()?;
    provider::end_with_its_client();
    let accepted = provider::accept_one(&provider, address)?;
    while accepted.receive_within(WITHOUT_END).is_ok() {}
    Ok(())
}

/// A server that reads bytes.
pub(crate) fn sink_bytes(address: IpAddr) -> Result<()> {
    let provider = provider::started()?;
    provider::end_with_its_client();
    let accepted = provider::accept_one(&provider, address)?;
    let data = accepted.data_path()?;
    let mut text = vec![0; 64 << 10];
    let mut buffers = [IoSliceMut::new(&mut text)];
    while data.receive_into(&mut buffers, Duration::MAX).is_ok() {}
    Ok(())
}
