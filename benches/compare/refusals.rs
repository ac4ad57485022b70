//! Refusals: from the call of connect to the answer of a server whose backlog is full, beside the
//! kernel's own answer where nobody listens.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use san_benches::Result;
use san_benches::record::Record;
use san_benches::server::Server;
use san_benches::stats::Samples;
use verbs_shim::RejectReason;

use crate::provider::{Answer, hello};
use crate::raw::{Dialled, Dialler};
use crate::{Site, provider, switch};

/// Refusals that are measured.
const REFUSALS: u32 = 200;

/// Refusals before that.
const WARM_UP: u32 = 10;

/// Between refusals.
const PAUSE: Duration = Duration::from_millis(20);

/// The backlog that is full.
const BACKLOG: u32 = 1;

/// A port on which nobody listens: servers take theirs from the ephemeral ones.
const NOBODY: u16 = 9;

pub(crate) fn all(site: &Site, record: &mut Record) -> Result<()> {
    let nobody = SocketAddr::new(site.server, NOBODY);
    let mut dialler = Dialler::new(64)?;
    let samples = latencies(|| rejected(&mut dialler, nobody, RejectReason::InvalidServiceId))?;
    let what = "refusal: raw CM, nobody listens (REJ 8)";
    record.samples("refusal.raw.nobody-listens", what, &samples);

    let client = provider::Client::new()?;
    let samples = latencies(|| match client.attempt(nobody)? {
        Answer::NobodyListens => Ok(()),
        other => Err(format!("nobody listens, but {other}").into()),
    })?;
    let what = "refusal: provider, nobody listens";
    record.samples("refusal.provider.nobody-listens", what, &samples);

    let (_server, full) = start(site.server, "provider-deaf")?;
    let _waiting = client.start(full)?;
    std::thread::sleep(PAUSE);
    let samples = latencies(|| match client.attempt(full)? {
        Answer::BacklogFull => Ok(()),
        other => Err(format!("the backlog is full, but {other}").into()),
    })?;
    let what = "refusal: provider, backlog full (ECONNREFUSED)";
    record.samples("refusal.provider", what, &samples);
    let samples = latencies(|| rejected(&mut dialler, full, RejectReason::ConsumerDefined))?;
    let what = "refusal: raw CM, the provider's backlog full (REJ 28)";
    record.samples("refusal.raw", what, &samples);

    let (_server, full) = start(site.server, "switch-deaf")?;
    let client = switch::Client::new()?;
    let _waiting = client.connect(full)?;
    std::thread::sleep(PAUSE);
    let samples = latencies(|| client.refused(full))?;
    let what = "refusal: switch, backlog full (ECONNREFUSED)";
    record.samples("refusal.switch", what, &samples);
    Ok(())
}

fn rejected(dialler: &mut Dialler, to: SocketAddr, expected: RejectReason) -> Result<()> {
    match dialler.dial(to, &hello())? {
        Dialled::Rejected(reason) if reason == expected => Ok(()),
        Dialled::Rejected(reason) => Err(format!("{to}: {reason}").into()),
        Dialled::Established(_) => Err(format!("{to}: connected").into()),
    }
}

fn latencies(mut refuse: impl FnMut() -> Result<()>) -> Result<Samples> {
    let mut samples = Samples::with_capacity(REFUSALS as usize);
    for n in 0..WARM_UP + REFUSALS {
        let start = Instant::now();
        refuse()?;
        let took = start.elapsed();
        if n >= WARM_UP {
            samples.push(took);
        }
        std::thread::sleep(PAUSE);
    }
    Ok(samples)
}

fn start(server: IpAddr, kind: &str) -> Result<(Server, SocketAddr)> {
    let args = ["serve", kind, &server.to_string(), &BACKLOG.to_string()].map(String::from);
    let (running, port) = Server::start(&args)?;
    Ok((running, SocketAddr::new(server, port.parse()?)))
}
