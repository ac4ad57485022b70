//! The fabric under test and its two addresses.
//!
//! Everything a test needs to know of where it runs comes from here, so that the same tests run on
//! another fabric. `ci/rxe` and `ci/soft` set the variables. Without them, as in a plain `cargo test`,
//! the tests run on the fabric in user space and on this host's loopback.

use std::env;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};

use san_switch::{FabricChoice, SwitchConfig};
use verbs_shim::{Fabric, SoftConfig};

/// The fabric under test: rdma, or with `SAN_FABRIC=soft` or without addresses the one in user
/// space, on the tests' addresses. One for the whole process, as the machine's RDMA is.
///
/// # Panics
/// Where there is none.
#[must_use]
pub fn fabric() -> Fabric {
    static FABRIC: OnceLock<Fabric> = OnceLock::new();
    let open = || {
        if !is_soft() {
            return Fabric::rdma();
        }
        Fabric::soft(&SoftConfig {
            addresses: addresses(),
            ..SoftConfig::default()
        })
    };
    FABRIC
        .get_or_init(|| {
            open().unwrap_or_else(|error| {
                panic!("no RDMA ({error}): run these tests with ci/rxe or ci/test")
            })
        })
        .clone()
}

/// The addresses of both NICs, those of IPv6 where there are any.
#[must_use]
pub fn addresses() -> Vec<IpAddr> {
    let v6 = ["SAN_TEST_ADDR6_A", "SAN_TEST_ADDR6_B"];
    let v6 = v6.into_iter().filter(|name| env::var(name).is_ok());
    [addr_a(), addr_b()]
        .into_iter()
        .chain(v6.map(address))
        .collect()
}

/// Settings of a switch on the fabric under test.
#[must_use]
pub fn switch_config() -> SwitchConfig {
    let (fabric, soft_addresses) = match is_soft() {
        true => (FabricChoice::Soft, addresses()),
        false => (FabricChoice::Rdma, Vec::new()),
    };
    SwitchConfig::default()
        .fabric(fabric)
        .soft_addresses(soft_addresses)
}

/// Whether the fabric under test is the one in user space.
#[must_use]
pub fn is_soft() -> bool {
    is_loopback() || env::var("SAN_FABRIC").is_ok_and(|fabric| fabric == "soft")
}

/// Whether nobody has prepared a fabric: the tests have the loopback to themselves.
fn is_loopback() -> bool {
    env::var_os("SAN_TEST_ADDR_A").is_none() && env::var_os("SAN_TEST_ADDR_B").is_none()
}

/// Address of the first NIC.
///
/// # Panics
/// When it is none.
#[must_use]
pub fn addr_a() -> IpAddr {
    if is_loopback() {
        return Ipv4Addr::new(127, 0, 0, 1).into();
    }
    address("SAN_TEST_ADDR_A")
}

/// Address of the second NIC.
///
/// # Panics
/// When it is none.
#[must_use]
pub fn addr_b() -> IpAddr {
    if is_loopback() {
        return Ipv4Addr::new(127, 0, 0, 2).into();
    }
    address("SAN_TEST_ADDR_B")
}

/// IPv6 address of the first NIC.
///
/// # Panics
/// Outside `ci/rxe`.
#[must_use]
pub fn addr6_a() -> IpAddr {
    address("SAN_TEST_ADDR6_A")
}

/// IPv6 address of the second NIC.
///
/// # Panics
/// Outside `ci/rxe`.
#[must_use]
pub fn addr6_b() -> IpAddr {
    address("SAN_TEST_ADDR6_B")
}

/// A port that no test of this process had before. A refused port is not asked for again, and an id
/// that the kernel is still about to destroy holds its port for a moment.
#[must_use]
pub fn port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = 20_000 + u16::try_from(std::process::id() % 64).expect("small") * 200;
    start + NEXT.fetch_add(1, Ordering::Relaxed) % 200
}

/// A fresh port on the first NIC.
#[must_use]
pub fn at_a() -> SocketAddr {
    SocketAddr::new(addr_a(), port())
}

/// A fresh port on the second NIC.
#[must_use]
pub fn at_b() -> SocketAddr {
    SocketAddr::new(addr_b(), port())
}

fn address(variable: &str) -> IpAddr {
    let Ok(value) = env::var(variable) else {
        panic!(
            "{variable} is not set: these tests need two RDMA devices; run them with ci/rxe or ci/test"
        );
    };
    value
        .parse()
        .unwrap_or_else(|_| panic!("{variable}={value} is not an IP address"))
}
