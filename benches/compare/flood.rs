//! A flood of connect requests against a full backlog: every one gets its answer, and nothing is
//! left behind.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use san_benches::Result;
use san_benches::process::kernel_slab_kib;
use san_benches::record::Record;
use san_benches::server::Server;
use san_provider::wire::{Refusal, RefusalReason};
use verbs_shim::{CmId, ConnParams, Event, EventChannel, Fabric, PreparedQp, RejectReason};

use crate::held::Held;
use crate::provider::hello;
use crate::raw::{Shared, unexpected};
use crate::{PATIENCE, Site, wait};

/// The backlog that the flood meets.
const BACKLOG: u32 = 16;

/// Requests under way at a time.
const WINDOW: usize = 128;

/// How long the kernel may take for an address or a route.
const RESOLVE: Duration = Duration::from_secs(20);

/// The flood.
pub(crate) fn all(site: &Site, record: &mut Record) -> Result<()> {
    let args = [
        "serve",
        "provider-deaf",
        &site.server.to_string(),
        &BACKLOG.to_string(),
    ];
    let (mut server, port) = Server::start(&args)?;
    let to = SocketAddr::new(site.server, port.parse()?);
    let channel = Fabric::rdma()?.event_channel()?;

    // The first requests fill the backlog and are never taken; the next warm everything up, so
    // that what grows once has grown.
    let mut flood = Flood::new(&channel, to);
    flood.run(BACKLOG + 2 * u32::try_from(WINDOW)?, BACKLOG as usize)?;
    let waiting = std::mem::take(&mut flood.under_way);
    let before = held(&mut server)?;
    let slab_before = kernel_slab_kib()?;

    let mut flood = Flood::new(&channel, to);
    let start = Instant::now();
    flood.run(site.flood, 0)?;
    let took = start.elapsed();
    let after = held(&mut server)?;
    let slab_after = kernel_slab_kib()?;
    let refused = flood.refused;
    let counted: u64 = server.ask("refused")?.parse()?;

    if refused != site.flood {
        return Err(format!("{refused} of {} requests were refused", site.flood).into());
    }
    let per_second = f64::from(refused) / took.as_secs_f64();
    record.figure(
        "flood.requests",
        "flood: requests, all at a backlog of 16",
        "",
        site.flood.into(),
    );
    record.figure(
        "flood.refused",
        "flood: refused with 'backlog full'",
        "",
        refused.into(),
    );
    record.figure(
        "flood.counted",
        "flood: refusals that the provider counted, warm-up included",
        "",
        counted as f64,
    );
    record.figure(
        "flood.rate",
        "flood: refusals per second, both ends on one processor",
        "1/s",
        per_second,
    );
    for (key, what, unit, of) in [
        (
            "memory",
            "resident memory of the server",
            "KiB",
            (|h: &Held| h.process.resident_kib) as fn(&Held) -> u64,
        ),
        ("descriptors", "descriptors of the server", "", |h| {
            h.process.descriptors
        }),
        ("cm-ids", "CM ids of the server", "", |h| h.cm_ids as u64),
        ("queue-pairs", "queue pairs of the server", "", |h| {
            h.queue_pairs as u64
        }),
    ] {
        for (when, held) in [("before", &before), ("after", &after)] {
            let what = format!("flood: {what}, {when}");
            record.figure(&format!("flood.{key}.{when}"), &what, unit, of(held) as f64);
        }
    }
    for (when, slab) in [("before", slab_before), ("after", slab_after)] {
        let what = format!("flood: kernel slabs of the machine, {when}");
        record.figure(&format!("flood.slab.{when}"), &what, "KiB", slab as f64);
    }

    let accepted = accept_waiting(&mut server, &channel, waiting)?;
    let what = "flood: requests queued before it and accepted after it";
    record.figure("flood.accepted", what, "", accepted as f64);
    Ok(())
}

/// What waited in the backlog all the time is accepted now.
fn accept_waiting(
    server: &mut Server,
    channel: &EventChannel,
    mut waiting: HashMap<u64, Request>,
) -> Result<usize> {
    let accepted: usize = server.ask("accept")?.parse()?;
    let mut established = 0;
    while established < waiting.len() {
        wait::readable(channel, PATIENCE)?;
        while let Some(event) = channel.next()? {
            match event {
                Event::Established { id, .. } if waiting.contains_key(&id) => established += 1,
                Event::TimewaitExit { .. } => {}
                other => return Err(unexpected(&other)),
            }
        }
    }
    for request in waiting.values() {
        request.id.disconnect()?;
    }
    waiting.clear();
    server.ask("close")?;
    match accepted == established && accepted == BACKLOG as usize {
        true => Ok(accepted),
        false => Err(format!("{accepted} accepted, {established} established").into()),
    }
}

fn held(server: &mut Server) -> Result<Held> {
    Ok(serde_json::from_str(&server.ask("holdings")?)?)
}

/// Connect requests by the hundred, from raw CM ids.
struct Flood<'a> {
    channel: &'a EventChannel,
    to: SocketAddr,
    shared: Option<Shared>,
    under_way: HashMap<u64, Request>,
    refused: u32,
}

struct Request {
    id: CmId,
    /// Made when the route is known.
    qp: Option<PreparedQp>,
}

impl<'a> Flood<'a> {
    fn new(channel: &'a EventChannel, to: SocketAddr) -> Self {
        Self {
            channel,
            to,
            shared: None,
            under_way: HashMap::new(),
            refused: 0,
        }
    }

    /// Sends `requests` and takes the answers, until only `unanswered` are without one.
    fn run(&mut self, requests: u32, unanswered: usize) -> Result<()> {
        let mut sent = 0;
        loop {
            while sent < requests && self.under_way.len() < WINDOW {
                self.start()?;
                sent += 1;
            }
            if sent == requests && self.under_way.len() <= unanswered {
                return Ok(());
            }
            wait::readable(self.channel, PATIENCE)?;
            while let Some(event) = self.channel.next()? {
                self.handle(event)?;
            }
        }
    }

    fn start(&mut self) -> Result<()> {
        let id = CmId::new(self.channel)?;
        id.resolve_addr(None, self.to, RESOLVE)?;
        self.under_way.insert(id.token(), Request { id, qp: None });
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Result<()> {
        let Some(request) = self.under_way.get_mut(&event.id()) else {
            return Ok(());
        };
        match event {
            Event::AddrResolved { .. } => request.id.resolve_route(RESOLVE)?,
            Event::RouteResolved { .. } => {
                let shared = match &mut self.shared {
                    Some(shared) => shared,
                    none => {
                        let device = request.id.device().ok_or("an address without a device")?;
                        none.insert(Shared::new(&device, 64)?)
                    }
                };
                request.qp = Some(shared.queue_pair(&request.id)?);
                request.id.connect(&ConnParams {
                    private_data: &hello(),
                    ..ConnParams::default()
                })?;
            }
            Event::Rejected {
                id,
                reason,
                private_data,
            } => {
                let refusal =
                    Refusal::parse(&private_data).map_err(|e| format!("{reason}: {e}"))?;
                if reason != RejectReason::ConsumerDefined
                    || refusal.reason != RefusalReason::BacklogFull
                    || refusal.backlog != BACKLOG
                {
                    return Err(format!("refused otherwise: {reason}, {refusal:?}").into());
                }
                self.refused += 1;
                self.under_way.remove(&id);
            }
            other => return Err(unexpected(&other)),
        }
        Ok(())
    }
}
