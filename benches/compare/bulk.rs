//! Bulk: how many bytes a second a stream carries one way, by writes of some size, through the switch,
//! rsockets and kernel TCP. Raw verbs' part is in `tools.rs`.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use san_benches::Result;
use san_benches::record::Record;
use san_benches::server::Server;

use crate::rdma::mebibytes;
use crate::{Site, switch, tools};

/// Bytes of a write.
pub(crate) const WRITES: [usize; 4] = [64, 4096, 1 << 16, 1 << 20];

/// How often such a write is made for one figure.
pub(crate) fn rounds(size: usize) -> usize {
    match size {
        0..=1024 => 5000,
        1025..=65_535 => 2000,
        65_536..=1_048_575 => 160,
        _ => 10,
    }
}

/// The switch, and rsockets and kernel TCP by `rstream`.
pub(crate) fn all(site: &Site, record: &mut Record) -> Result<()> {
    for size in WRITES {
        let mut figure = |who: &str, name: &str, rate| {
            let what = format!("bulk by writes of {size} B: {name}");
            record.figure(&format!("bulk.{size}.{who}"), &what, "MiB/s", rate);
        };
        figure("switch", "switch", through_the_switch(site.server, size)?);
        for (who, name, option) in [
            ("rsockets", "rsockets (rstream)", None),
            ("tcp", "kernel TCP (rstream)", Some("s")),
        ] {
            let rate = tools::rstream_rate(site.server, size, rounds(size), option)?;
            figure(who, name, rate);
        }
    }
    Ok(())
}

/// Two rounds, of which the second one counts: windows and rings come to be in the first.
fn through_the_switch(server: IpAddr, size: usize) -> Result<f64> {
    let bytes = size * rounds(size);
    let args = [
        "serve",
        "switch-drain",
        &server.to_string(),
        &bytes.to_string(),
    ]
    .map(String::from);
    let (_server, port) = Server::start(&args)?;
    let client = switch::Client::new()?;
    let connection = client.connect(SocketAddr::new(server, port.parse()?))?;
    let text = vec![b'x'; size];
    let mut last = 0.0;
    for _ in 0..2 {
        let began = Instant::now();
        for _ in 0..rounds(size) {
            switch::send_all(&connection, &text)?;
        }
        if !switch::receive_all(&connection, &mut [0])? {
            return Err("the peer ended its stream".into());
        }
        last = mebibytes(bytes, began.elapsed());
    }
    Ok(last)
}
