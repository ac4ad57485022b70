//! How long a waiting thread polls before it sleeps: round trips of 64 bytes, and the processor time
//! that they cost, by that time. The peer answers at once, or after a pause in which it sleeps, so
//! that polling is in vain.

use std::time::{Duration, Instant};

use san_benches::Result;
use san_benches::process::cpu_time;
use san_benches::record::{number, table};
use san_benches::server::{answer, commands};
use san_benches::stats::Samples;
use san_provider::{ProviderConfig, Socket};

use crate::ends::{self, Site, WITHOUT_END, message};

/// Microseconds of polling.
const SPINS: [u64; 7] = [0, 5, 10, 20, 50, 100, 200];

/// Microseconds that the peer takes to answer.
const PAUSES: [u64; 2] = [0, 200];

const ROUNDS: usize = 4000;
const SIZE: usize = 64;

/// The two ends stay on processors of their own, as on two hosts, or on the same: left alone, the kernel
/// may put the one that is woken where the other still polls.
pub(crate) fn measure(site: Site, processors: usize) -> Result<()> {
    ends::stay_on(0)?;
    let there = u8::from(processors > 1).to_string();
    let mut rows = Vec::new();
    for micros in SPINS {
        let mut row = vec![micros.to_string()];
        for pause in PAUSES {
            let [micros_arg, pause_arg] = [micros, pause].map(|number| number.to_string());
            let args = ["serve-spin", &micros_arg, &pause_arg, &there].map(String::from);
            let (mut server, _provider, socket) = site.connect(&args, config(micros))?;
            trips(&socket, ROUNDS / 10)?;
            let there = Duration::from_nanos(server.ask("time")?.parse()?);
            let here = cpu_time()?;
            let samples = trips(&socket, ROUNDS)?;
            let here = cpu_time()?.saturating_sub(here);
            let there = Duration::from_nanos(server.ask("time")?.parse()?).saturating_sub(there);
            let summary = samples.summary().ok_or("no samples")?;
            let each = |time: Duration| number(time.as_secs_f64() * 1e6 / ROUNDS as f64);
            row.extend([
                number(summary.median),
                number(summary.mean),
                each(here),
                each(there),
            ]);
        }
        eprintln!("{}", row.join(" "));
        rows.push(row);
    }
    let heads = [
        "Polling, us",
        "Round trip",
        "Mean",
        "CPU here",
        "CPU there",
        "After a pause: round trip",
        "Mean",
        "CPU here",
        "CPU there",
    ];
    println!("{} fabric\n\n{}", site.name(), table(&heads, rows));
    Ok(())
}

fn config(micros: u64) -> ProviderConfig {
    ProviderConfig {
        spin: Duration::from_micros(micros),
        ..ProviderConfig::default()
    }
}

fn trips(socket: &Socket, rounds: usize) -> Result<Samples> {
    let mut samples = Samples::with_capacity(rounds);
    for _ in 0..rounds {
        let began = Instant::now();
        message(socket, &[b'x'; SIZE])?;
        let message = socket.receive_within(WITHOUT_END)?;
        if message.len() != SIZE {
            return Err(format!("{} bytes came", message.len()).into());
        }
        samples.push(began.elapsed());
    }
    Ok(samples)
}

/// Sends back what it gets, and tells its processor time when asked.
pub(crate) fn serve(site: Site, micros: u64, pause: u64, processor: usize) -> Result<()> {
    ends::stay_on(processor)?;
    let (_provider, socket) = site.accept(config(micros))?;
    std::thread::spawn(move || {
        while let Ok(message) = socket.receive_within(WITHOUT_END) {
            if pause > 0 {
                std::thread::sleep(Duration::from_micros(pause));
            }
            if let Err(error) = ends::message(&socket, &message) {
                eprintln!("choices: the other end: {error}");
                return;
            }
        }
    });
    for _ in commands() {
        answer(&cpu_time()?.as_nanos().to_string())?;
    }
    Ok(())
}
