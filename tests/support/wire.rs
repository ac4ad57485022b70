//! The wire between the two addresses, to lose packets on: of a guest or a namespace of our own only.

use std::path::Path;

use crate::net;
use crate::program::{must, output_of};

/// Whose wire it has to be.
pub const OUR_OWN: &str = "a wire of our own: ci/rxe, or ci/soft in a namespace";

/// The wire between the two addresses. Mended when dropped.
#[derive(Debug)]
pub enum Wire {
    /// The pair of links between the guest's devices.
    Guest,
    /// The link of our own namespace that carries it.
    Namespace(String),
}

impl Wire {
    /// Where this is the guest of `ci/rxe` or a namespace of `ci/soft`: nobody else's links are touched.
    #[must_use]
    pub fn here() -> Option<Self> {
        if net::is_soft() {
            return std::env::var("SAN_TEST_LINK").ok().map(Self::Namespace);
        }
        let is_ours = |netdev: &str, end: char| {
            let path = format!("/sys/class/net/{netdev}/address");
            let address = std::fs::read_to_string(Path::new(&path)).unwrap_or_default();
            address.trim() == format!("02:00:0a:00:07:0{end}")
        };
        (is_ours("v0", '1') && is_ours("v1", '2')).then_some(Self::Guest)
    }

    /// From now on it loses all packets, at least those of the end that connects, and nobody is told.
    pub fn lose(&self) {
        match self {
            // The routes have to stay: without one, soft-RoCE breaks the connection at once.
            Self::Guest => run("tc", "qdisc add dev v1 root netem loss 100%"),
            Self::Namespace(_) => self.set_down(),
        }
    }

    /// From now on it loses some packets: one of a hundred, or on the loopback, which has no such means here, what is
    /// too much for a slow wire with a short queue.
    pub fn lose_some(&self) {
        match self {
            Self::Guest => ["v0", "v1"]
                .iter()
                .for_each(|link| run("tc", &format!("qdisc add dev {link} root netem loss 1%"))),
            Self::Namespace(link) => run(
                "tc",
                &format!("qdisc add dev {link} root tbf rate 200mbit burst 70kb limit 75kb"),
            ),
        }
    }

    /// How many packets it has lost since.
    ///
    /// # Panics
    /// When `tc` does not say.
    #[must_use]
    pub fn lost(&self) -> u64 {
        let text = output_of("tc", &["-s", "qdisc", "show", "dev", self.link()]).expect("tc");
        let dropped = text.split("(dropped ").nth(1).unwrap_or_default();
        let digits = dropped.split(',').next().unwrap_or_default();
        digits.parse().unwrap_or_else(|_| panic!("of {text}"))
    }

    /// Sets it down: both ends hear of it.
    ///
    /// In the guest each end has a queue then. Without one, as a veth link is made, the kernel's soft-RoCE (Linux 6.1)
    /// may hang for good: to send fails while the link is going down, `rxe_requester` tries again within the system
    /// call that posts, without an end, and the link waits for that call.
    pub fn set_down(&self) {
        if matches!(self, Self::Guest) {
            for link in ["v0", "v1"] {
                run(
                    "tc",
                    &format!("qdisc replace dev {link} root pfifo limit 1000"),
                );
            }
        }
        run("ip", &format!("link set {} down", self.link()));
    }

    fn link(&self) -> &str {
        match self {
            Self::Guest => "v1",
            Self::Namespace(link) => link,
        }
    }

    /// As `ci/guest/fabric.sh` and `ci/soft` make it, but for what a link that was down has lost for good.
    pub fn mend(&self) {
        let up = format!("ip link set {} up", self.link());
        let quick = format!("tc qdisc del dev {} root", self.link());
        let guest = [
            "tc qdisc del dev v0 root",
            "ip neigh replace 10.0.7.1 lladdr 02:00:0a:00:07:01 dev v1 nud permanent",
            "ip neigh replace 10.0.7.2 lladdr 02:00:0a:00:07:02 dev v0 nud permanent",
        ];
        let lines = match self {
            Self::Guest => &guest[..],
            Self::Namespace(_) => &[],
        };
        for line in [&*up, &*quick].into_iter().chain(lines.iter().copied()) {
            let words: Vec<_> = line.split(' ').collect();
            // What is as it was says so. A failure shows in what comes next.
            let _ = output_of(words[0], &words[1..]);
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.mend();
    }
}

/// Runs a program that must succeed; `line` has its arguments.
///
/// # Panics
/// When it fails.
pub fn run(program: &str, line: &str) {
    must(program, &line.split(' ').collect::<Vec<_>>());
}
