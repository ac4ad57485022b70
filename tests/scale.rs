//! Many idle connections, fewer than the goal, so that a loss of scale is seen: memory, descriptors,
//! threads and wake-ups of a connection. The figures for thousands are in docs/benches.md.

use std::time::Duration;

use san_provider::{NetworkEvents, Socket};
use san_tests::census;
use san_tests::net;
use san_tests::san::{Connector, Listener, San};
use san_tests::time::{holds_within, within};

const LIMIT: Duration = Duration::from_secs(240);

/// Connects under way at a time.
const WAVE: usize = 25;

/// Resident memory for one end of an idle connection, at most, in bytes. On a device its three receives
/// are locked from the beginning, and the queues that the device shares with the process count too.
fn most_memory() -> usize {
    let kib = if net::is_soft() { 16 } else { 48 };
    kib * 1024
}

/// So many connections with both ends here.
fn open(san: &San, listener: &Listener, count: usize) -> Vec<(Socket, Socket)> {
    let mut open = Vec::with_capacity(count);
    while open.len() < count {
        let wave = WAVE.min(count - open.len());
        let connectors: Vec<Connector> = (0..wave).map(|_| san.connect(listener.addr)).collect();
        let accepted: Vec<_> = (0..wave).map(|_| listener.accept().socket).collect();
        for (connector, accepted) in connectors.into_iter().zip(accepted) {
            connector.result().expect("accepted");
            // A selection holds its event object's descriptor.
            let none = connector
                .socket
                .event_select(&connector.event, NetworkEvents::NONE);
            none.expect("open");
            open.push((connector.socket, accepted));
        }
    }
    open
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc").count()
}

/// How often threads of this process have gone to sleep: an idle one wakes seldom.
fn sleeps() -> u64 {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc");
    let of = |task: std::fs::DirEntry| {
        // A thread may end between the listing and the reading.
        let text = std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let mut lines = text.lines();
        let count = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.map_or(0, |count| count.trim().parse().expect("a number"))
    };
    tasks.flatten().map(of).sum()
}

#[test]
fn idle_connections_cost_little_and_storms_leave_nothing() {
    within(LIMIT, || {
        let count = if net::is_soft() { 1000 } else { 300 };
        let san = San::start();
        let listener = san.listen_a(u32::try_from(WAVE).expect("small"));
        // What the first ones need is there for all.
        drop(open(&san, &listener, WAVE));
        let settled = |sockets: u64| {
            let counters = san.counters();
            counters.sockets_opened - counters.sockets_closed == sockets
        };
        assert!(holds_within(LIMIT, || settled(1)));
        let before = (census::resident_bytes(), descriptors(), census::threads());

        let connections = open(&san, &listener, count);
        let memory = census::resident_bytes().saturating_sub(before.0) / (2 * count);
        println!("{count} connections: {memory} bytes for each end");
        assert!(memory <= most_memory(), "{memory} bytes for each end");
        // Lanes have some, for many connections each.
        let more = descriptors().saturating_sub(before.1);
        assert!(
            more < count / 10,
            "{more} descriptors for {count} connections"
        );
        assert_eq!(census::threads(), before.2, "threads");

        // Idle connections are nobody's work: what wakes up does so for all of them together.
        let asleep = sleeps();
        std::thread::sleep(Duration::from_secs(2));
        let woken = sleeps().saturating_sub(asleep);
        assert!(
            woken < count as u64 / 2,
            "{woken} times awake in two idle seconds with {count} connections"
        );

        drop(connections);
        let after_first = descriptors();
        for _ in 0..3 {
            drop(open(&san, &listener, count / 3));
        }
        assert!(holds_within(LIMIT, || settled(1)));
        let live = verbs_shim::live_objects();
        assert_eq!((live.qps, live.ids), (0, 1), "{live:?}");
        assert!(descriptors() <= after_first, "a storm has left descriptors");
        assert_eq!(census::threads(), before.2, "threads");
    });
}
