//! Messages: half the round trip of 64 B and of 4 KiB, both ends asleep until something comes.

use std::net::{IpAddr, SocketAddr};

use san_benches::Result;
use san_benches::record::Record;
use san_benches::server::{Server, commands, say_ready};
use san_benches::stats::Samples;
use verbs_shim::{
    CmId, Completion, CompletionBatch, CompletionChannel, CompletionQueue, ConnParams, Event,
    Fabric, QueuePair, RegisteredBuffer, SendRequest, Verb,
};

use crate::pings::{ROUNDS, SIZES, WARM_UP, ping};
use crate::raw::{self, Dialler, Shared};
use crate::{FOR_EVER, PATIENCE, Site, provider, switch, wait};

/// Receives that are kept posted.
const RECEIVES: usize = 16;

/// Every so manieth send is signaled in the lean way.
const SIGNAL_EVERY: usize = 8;

/// How raw verbs are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    /// As `ib_send_lat -e`: every send is signaled, its completion waited for by event; buffers
    /// are registered ones.
    Perftest,
    /// With as few calls as verbs allow: most sends unsignaled, the others seen in passing; small
    /// messages inline; the queue is asked for events only when it is empty.
    Lean,
}

/// Raw verbs through `verbs-shim`, in both ways.
pub(crate) fn raw(site: &Site, record: &mut Record) -> Result<()> {
    for size in SIZES {
        for (style, key, what) in [
            (Style::Perftest, "shim", "verbs-shim, as perftest does it"),
            (Style::Lean, "shim-lean", "verbs-shim, no event per send"),
        ] {
            let samples = raw_round_trips(site.server, size, style)?;
            let what = format!("message {size} B, one way: {what}");
            record.samples(&format!("message.{size}.{key}"), &what, &samples);
        }
    }
    Ok(())
}

/// The provider's send and receive.
pub(crate) fn provider(site: &Site, record: &mut Record) -> Result<()> {
    for size in SIZES {
        for (style, key, what) in [
            (provider::Style::Direct, "provider", "provider"),
            (
                provider::Style::Overlapped,
                "provider-overlapped",
                "provider, overlapped operations",
            ),
        ] {
            let samples = provider::round_trips(site.server, size, style)?;
            let what = format!("message {size} B, one way: {what}");
            record.samples(&format!("message.{size}.{key}"), &what, &samples);
        }
    }
    Ok(())
}

/// Send and receive through the switch.
pub(crate) fn switch(site: &Site, record: &mut Record) -> Result<()> {
    SIZES
        .into_iter()
        .try_for_each(|size| switch_of(site, record, size))
}

pub(crate) fn switch_of(site: &Site, record: &mut Record, size: usize) -> Result<()> {
    let samples = switch::round_trips(site.server, size)?;
    let what = format!("message {size} B, one way: switch");
    record.samples(&format!("message.{size}.switch"), &what, &samples);
    Ok(())
}

fn raw_round_trips(server: IpAddr, size: usize, style: Style) -> Result<Samples> {
    let number = u32::try_from(size)? * 2 + u32::from(style == Style::Lean);
    let args = [
        "serve",
        "raw-echo",
        &server.to_string(),
        &number.to_string(),
    ]
    .map(String::from);
    let (_server, port) = Server::start(&args)?;
    let mut dialler = Dialler::new(size)?;
    let connection = dialler.connect(SocketAddr::new(server, port.parse()?))?;
    let mut end = End::new(&connection.qp, dialler.shared()?, size, style)?;
    let samples = ping(|| {
        end.send()?;
        end.receive()
    })?;
    drop(end);
    connection.close()?;
    Ok(samples)
}

/// A server that sends back what it gets. `number`: twice the size of a message, plus 1 if lean.
pub(crate) fn raw_echo(address: IpAddr, number: u32) -> Result<()> {
    let channel = Fabric::rdma()?.event_channel()?;
    let (_listener, port) = raw::listen(&channel, address)?;
    say_ready(&port.to_string())?;
    std::thread::spawn(|| {
        commands().for_each(drop);
        std::process::exit(0);
    });
    let (size, style) = match number % 2 {
        0 => (number / 2, Style::Perftest),
        _ => (number / 2, Style::Lean),
    };
    let mut requests = (0..).map(|_| event(&channel));
    let Some(Event::ConnectRequest(request)) = requests.next().transpose()? else {
        return Err("something else than a request".into());
    };
    let device = request.id.device().ok_or("a request without a device")?;
    let shared = Shared::new(&device, size as usize)?;
    let qp = shared.queue_pair(&request.id)?;
    for _ in 0..RECEIVES {
        shared
            .srq
            .post(0, shared.pool.take().ok_or("no buffer")?)
            .map_err(|e| e.error)?;
    }
    // Before the first message can come.
    shared.recv_cq.request_notify()?;
    request.id.accept(&ConnParams::default())?;
    match event(&channel)? {
        Event::Established { .. } => {}
        other => return Err(raw::unexpected(&other)),
    }
    let qp = qp.established();
    let mut end = End::new(&qp, &shared, size as usize, style)?;
    for _ in 0..WARM_UP + ROUNDS {
        end.receive()?;
        end.send()?;
    }
    finish(&channel, &request.id)
}

/// Waits until the peer goes.
fn finish(channel: &verbs_shim::EventChannel, id: &CmId) -> Result<()> {
    while !matches!(event(channel)?, Event::Disconnected { .. }) {}
    id.disconnect()?;
    Ok(())
}

pub(crate) fn event(channel: &verbs_shim::EventChannel) -> Result<Event> {
    loop {
        wait::readable(channel, FOR_EVER)?;
        if let Some(event) = channel.next()? {
            return Ok(event);
        }
    }
}

/// One end of a raw connection.
struct End<'a> {
    qp: &'a QueuePair,
    shared: &'a Shared,
    style: Style,
    size: usize,
    /// What is sent, if not inline; away while it is posted.
    outgoing: Option<RegisteredBuffer>,
    text: [u8; 64],
    inline: bool,
    sent: usize,
    batch: CompletionBatch,
}

impl<'a> End<'a> {
    fn new(qp: &'a QueuePair, shared: &'a Shared, size: usize, style: Style) -> Result<Self> {
        while shared.pool.free() > shared.pool.slots() as usize - RECEIVES {
            let buffer = shared.pool.take().ok_or("no buffer")?;
            shared.srq.post(0, buffer).map_err(|e| e.error)?;
        }
        let mut outgoing = shared.pool.take().ok_or("no buffer")?;
        outgoing.set_len(size);
        shared.recv_cq.request_notify()?;
        if style == Style::Perftest {
            shared.send_cq.request_notify()?;
        }
        Ok(Self {
            qp,
            shared,
            style,
            size,
            outgoing: Some(outgoing),
            text: [b'x'; 64],
            inline: style == Style::Lean && size <= qp.caps().inline.min(64) as usize,
            sent: 0,
            batch: CompletionBatch::new(),
        })
    }

    fn send(&mut self) -> Result<()> {
        let text = self.text;
        let request = match self.inline {
            true => SendRequest::inline(0, Verb::Send, &text[..self.size]),
            false => {
                let buffer = self.outgoing.take().ok_or("the buffer is still posted")?;
                SendRequest::piece(0, Verb::Send, buffer)
            }
        };
        self.sent += 1;
        let in_passing = self.inline && !self.sent.is_multiple_of(SIGNAL_EVERY);
        let request = if in_passing {
            request.unsignaled()
        } else {
            request
        };
        self.qp.post(request).map_err(|e| e.error)?;
        if self.style == Style::Perftest {
            self.await_event(&self.shared.send_channel, &self.shared.send_cq)?;
            self.reap()?;
        }
        Ok(())
    }

    /// Takes the buffers of finished sends back.
    fn reap(&mut self) -> Result<()> {
        while self.shared.send_cq.poll(&mut self.batch)? > 0 {
            for completion in &self.batch {
                check(completion)?;
                let claim = self.qp.claim(completion).ok_or("a send of nobody")?;
                if let Some(buffer) = claim.into_buffer() {
                    self.outgoing = Some(buffer);
                }
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<()> {
        match self.style {
            Style::Perftest => {
                self.await_event(&self.shared.recv_channel, &self.shared.recv_cq)?;
                while self.shared.recv_cq.poll(&mut self.batch)? == 0 {
                    self.await_event(&self.shared.recv_channel, &self.shared.recv_cq)?;
                }
            }
            Style::Lean => {
                while self.shared.recv_cq.poll(&mut self.batch)? == 0 {
                    self.shared.recv_cq.request_notify()?;
                    if self.shared.recv_cq.poll(&mut self.batch)? > 0 {
                        break;
                    }
                    wait::readable(&self.shared.recv_channel, PATIENCE)?;
                    self.shared.recv_channel.consume()?;
                }
            }
        }
        if self.batch.len() != 1 {
            return Err(format!("{} messages at once", self.batch.len()).into());
        }
        for completion in &self.batch {
            check(completion)?;
            let buffer = self
                .shared
                .srq
                .claim(completion)
                .ok_or("a receive of nobody")?;
            if buffer.len() != self.size {
                return Err(format!("{} bytes came", buffer.len()).into());
            }
            self.shared.srq.post(0, buffer).map_err(|e| e.error)?;
        }
        // The peer has answered, so it has the message, and our side knows.
        if self.style == Style::Lean && (!self.inline || self.sent.is_multiple_of(SIGNAL_EVERY)) {
            self.reap()?;
        }
        Ok(())
    }

    /// As perftest: waits for the event, asks for the next one, and only then looks.
    fn await_event(&self, channel: &CompletionChannel, cq: &CompletionQueue) -> Result<()> {
        wait::readable(channel, PATIENCE)?;
        channel.consume()?;
        Ok(cq.request_notify()?)
    }
}

pub(crate) fn check(completion: &Completion) -> Result<()> {
    match completion.status().is_success() {
        true => Ok(()),
        false => Err(format!("a work request failed: {}", completion.status()).into()),
    }
}
