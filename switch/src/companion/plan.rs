//! Which companions a listener should have, and how far those it has are.
//!
//! A plan, not the doing: given where the listener is bound and the table of SAN subnets, it says
//! which companion sockets must be made and which taken out (duties 7, 8, 14, 24). Making them
//! calls the provider, so the listener does it without holding the lock around this book;
//! a slot marked `Making` keeps two threads from making the same companion.

use crate::route::table::SanTable;
use crate::san::failure::StepFailure;
use san_provider::WsaCode;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// A companion a listener should have: a provider, and the address to bind there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Wanted {
    pub(crate) provider: usize,
    pub(crate) address: SocketAddr,
}

/// How a companion stands.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CompanionState {
    /// It is being made at this moment.
    Making,
    /// It listens.
    Listening,
    /// It could not be made; TCP goes on without it. Tried again after the next change of
    /// addresses.
    Failed {
        /// The step that failed: `make a socket`, `bind`, ...
        step: &'static str,
        /// The provider's error code.
        code: WsaCode,
        /// What the provider said.
        reason: String,
    },
}

/// A listener's presence on one provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompanionStatus {
    /// The provider's name.
    pub provider: String,
    /// Where the companion is, or was to be, bound.
    pub address: SocketAddr,
    /// How it stands.
    pub state: CompanionState,
}

/// The companions a listener bound to `address` should have.
pub(crate) fn wanted(
    table: &SanTable,
    providers: usize,
    address: SocketAddr,
    only_v6: bool,
) -> Vec<Wanted> {
    let port = address.port();
    let ip = address.ip().to_canonical();
    if !ip.is_unspecified() {
        // Duty 14: fully qualified, and only on a SAN NIC's own address.
        return table
            .own(ip)
            .map(|entry| Wanted {
                provider: entry.provider,
                address: canonical(address),
            })
            .into_iter()
            .collect();
    }
    let mut places = Vec::new();
    for provider in 0..providers {
        let mut found = Vec::new();
        if ip.is_ipv6() {
            found.extend(table.wildcard_of(provider, true));
        }
        // An IPv6 wildcard takes IPv4 too, unless told otherwise, as on TCP.
        if ip.is_ipv4() || !only_v6 {
            found.extend(table.wildcard_of(provider, false));
        }
        places.extend(found.into_iter().map(|mut address| {
            address.set_port(port);
            Wanted { provider, address }
        }));
    }
    places
}

/// The companions a listener has. `C` is the companion itself.
#[derive(Debug)]
pub(crate) struct Companions<C> {
    slots: Vec<Slot<C>>,
    closed: bool,
}

#[derive(Debug)]
struct Slot<C> {
    place: Wanted,
    state: SlotState<C>,
}

#[derive(Debug)]
enum SlotState<C> {
    Making,
    Listening(C),
    Failed(StepFailure),
}

/// What is to be done now.
#[derive(Debug)]
pub(crate) struct Plan<C> {
    /// Make these, and report each with [`Companions::made`].
    pub(crate) make: Vec<Wanted>,
    /// Close these; they are out of the book already.
    pub(crate) close: Vec<C>,
}

impl<C> Default for Companions<C> {
    fn default() -> Self {
        Companions {
            slots: Vec::new(),
            closed: false,
        }
    }
}

impl<C> Companions<C> {
    /// What brings the companions in line with `wanted`. Places that failed are tried again only
    /// if `retry`.
    pub(crate) fn plan(&mut self, wanted: &[Wanted], retry: bool) -> Plan<C> {
        let mut plan = Plan {
            make: Vec::new(),
            close: Vec::new(),
        };
        if self.closed {
            return plan;
        }
        for slot in std::mem::take(&mut self.slots) {
            let is_wanted = wanted.contains(&slot.place);
            match slot.state {
                SlotState::Listening(companion) if !is_wanted => plan.close.push(companion),
                SlotState::Failed(_) if !is_wanted || retry => {}
                // One that is being made is judged by who makes it, when it reports.
                _ => self.slots.push(slot),
            }
        }
        for place in wanted {
            if self.slots.iter().all(|slot| slot.place != *place) {
                plan.make.push(*place);
                self.slots.push(Slot {
                    place: *place,
                    state: SlotState::Making,
                });
            }
        }
        plan
    }

    /// Reports the outcome for a place of a plan. Gives the companion back, to be closed, when
    /// the listener was closed meanwhile.
    pub(crate) fn made(&mut self, place: Wanted, outcome: Result<C, StepFailure>) -> Option<C> {
        let slot = self.slots.iter_mut().find(|slot| slot.place == place);
        match (slot, outcome) {
            (Some(slot), Ok(companion)) => {
                slot.state = SlotState::Listening(companion);
                None
            }
            (Some(slot), Err(failure)) => {
                slot.state = SlotState::Failed(failure);
                None
            }
            (None, Ok(companion)) => Some(companion),
            (None, Err(_)) => None,
        }
    }

    /// Closes the book and gives all companions out, to be closed.
    pub(crate) fn close(&mut self) -> Vec<C> {
        self.closed = true;
        self.slots
            .drain(..)
            .filter_map(|slot| match slot.state {
                SlotState::Listening(companion) => Some(companion),
                SlotState::Making | SlotState::Failed(_) => None,
            })
            .collect()
    }

    /// How each companion stands.
    pub(crate) fn status(&self, provider_name: impl Fn(usize) -> String) -> Vec<CompanionStatus> {
        let slots = self.slots.iter();
        slots.map(|slot| slot.status(&provider_name)).collect()
    }

    /// How each companion stands, with those that listen.
    pub(crate) fn each(
        &self,
        provider_name: impl Fn(usize) -> String,
    ) -> Vec<(CompanionStatus, Option<C>)>
    where
        C: Clone,
    {
        let companion = |slot: &Slot<C>| match &slot.state {
            SlotState::Listening(companion) => Some(companion.clone()),
            SlotState::Making | SlotState::Failed(_) => None,
        };
        let slots = self.slots.iter();
        slots
            .map(|slot| (slot.status(&provider_name), companion(slot)))
            .collect()
    }
}

impl<C> Slot<C> {
    fn status(&self, provider_name: impl Fn(usize) -> String) -> CompanionStatus {
        CompanionStatus {
            provider: provider_name(self.place.provider),
            address: self.place.address,
            state: match &self.state {
                SlotState::Making => CompanionState::Making,
                SlotState::Listening(_) => CompanionState::Listening,
                SlotState::Failed(failure) => CompanionState::Failed {
                    step: failure.step,
                    code: failure.code,
                    reason: failure.source.to_string(),
                },
            },
        }
    }
}

impl fmt::Display for CompanionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CompanionStatus {
            provider, address, ..
        } = self;
        match &self.state {
            CompanionState::Making => write!(f, "{provider}: {address} being made"),
            CompanionState::Listening => write!(f, "{provider}: listens on {address}"),
            CompanionState::Failed { step, reason, .. } => {
                write!(f, "{provider}: {address} cannot {step}: {reason}")
            }
        }
    }
}

/// The address with an IPv4-mapped IP turned into IPv4, and a scope kept.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), address.port()),
        IpAddr::V6(_) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::table::SanEntry;
    use std::sync::Arc;

    fn entry(provider: usize, ip: &str) -> SanEntry {
        SanEntry {
            provider,
            ip: ip.parse().unwrap(),
            prefix_len: 24,
            device: "dev".into(),
            ifindex: 1,
        }
    }

    fn places(table: &SanTable, address: &str, only_v6: bool) -> Vec<(usize, String)> {
        wanted(table, 2, address.parse().unwrap(), only_v6)
            .iter()
            .map(|place| (place.provider, place.address.to_string()))
            .collect()
    }

    #[test]
    fn wsd_024_a_companion_only_on_a_san_address_or_the_wildcard() {
        let table = SanTable::new([entry(0, "10.0.7.1"), entry(1, "fd00::1")], false);
        assert_eq!(
            places(&table, "10.0.7.1:80", false),
            [(0, "10.0.7.1:80".into())]
        );
        // In the subnet, but not a SAN NIC's own; a NIC without RDMA; loopback.
        for elsewhere in ["10.0.7.9:80", "192.0.2.1:80", "127.0.0.1:80", "[::1]:80"] {
            assert_eq!(places(&table, elsewhere, false), [], "{elsewhere}");
        }
        assert_eq!(
            places(&table, "0.0.0.0:80", false),
            [(0, "0.0.0.0:80".into())]
        );
        assert_eq!(
            places(&table, "[::]:80", false),
            [(0, "0.0.0.0:80".into()), (1, "[::]:80".into())]
        );
        assert_eq!(places(&table, "[::]:80", true), [(1, "[::]:80".into())]);
        assert_eq!(
            places(&table, "[::ffff:10.0.7.1]:80", false),
            [(0, "10.0.7.1:80".into())]
        );
    }

    #[test]
    fn beside_a_device_that_cannot_be_used_the_wildcard_is_each_address() {
        let entries = [
            entry(0, "10.0.7.1"),
            entry(0, "fe80::1"),
            entry(1, "10.0.9.1"),
        ];
        let table = SanTable::new(entries, false).without_wildcard(vec![0]);
        let one = |provider, address: &str| (provider, address.to_owned());
        assert_eq!(
            places(&table, "0.0.0.0:80", false),
            [one(0, "10.0.7.1:80"), one(1, "0.0.0.0:80")]
        );
        assert_eq!(
            places(&table, "[::]:80", false),
            [
                one(0, "[fe80::1%1]:80"),
                one(0, "10.0.7.1:80"),
                one(1, "0.0.0.0:80")
            ]
        );
        assert_eq!(places(&table, "[::]:80", true), [one(0, "[fe80::1%1]:80")]);
    }

    #[test]
    fn wsd_007_a_wildcard_listener_gains_what_comes_later_and_loses_what_goes() {
        let mut companions = Companions::default();
        let address = "0.0.0.0:80".parse().unwrap();
        let plan = companions.plan(&wanted(&SanTable::default(), 1, address, false), true);
        assert!(plan.make.is_empty());
        let table = SanTable::new([entry(0, "10.0.7.1")], false);
        let plan = companions.plan(&wanted(&table, 1, address, false), true);
        assert_eq!(plan.make.len(), 1);
        assert!(companions.made(plan.make[0], Ok("first")).is_none());
        let both = SanTable::new([entry(0, "10.0.7.1"), entry(1, "10.0.8.1")], false);
        let plan = companions.plan(&wanted(&both, 2, address, false), true);
        assert_eq!(plan.make.len(), 1);
        assert_eq!(plan.make[0].provider, 1);
        assert!(companions.made(plan.make[0], Ok("second")).is_none());
        let plan = companions.plan(&wanted(&table, 2, address, false), true);
        assert_eq!(plan.close, ["second"]);
        assert_eq!(companions.status(|_| String::new()).len(), 1);
    }

    #[test]
    fn a_companion_in_the_making_is_not_made_twice() {
        let table = SanTable::new([entry(0, "10.0.7.1")], false);
        let places = wanted(&table, 1, "0.0.0.0:80".parse().unwrap(), false);
        let mut companions = Companions::<u32>::default();
        assert_eq!(companions.plan(&places, true).make.len(), 1);
        assert!(companions.plan(&places, true).make.is_empty());
    }

    #[test]
    fn wsd_016_a_failure_is_kept_and_tried_again_after_a_change_only() {
        let table = SanTable::new([entry(0, "10.0.7.1")], false);
        let places = wanted(&table, 1, "0.0.0.0:80".parse().unwrap(), false);
        let mut companions = Companions::<u32>::default();
        let place = companions.plan(&places, true).make[0];
        let failure = StepFailure {
            step: "bind",
            code: WsaCode::AddrNotAvailable,
            source: Arc::new(std::io::Error::other("the port is taken")),
        };
        assert!(companions.made(place, Err(failure)).is_none());
        let status = companions.status(|_| "rdma".into());
        assert_eq!(
            status[0].to_string(),
            "rdma: 0.0.0.0:80 cannot bind: the port is taken"
        );
        assert!(companions.plan(&places, false).make.is_empty());
        assert_eq!(companions.plan(&places, true).make, [place]);
    }

    #[test]
    fn a_listener_closed_meanwhile_takes_no_companion() {
        let table = SanTable::new([entry(0, "10.0.7.1")], false);
        let places = wanted(&table, 1, "0.0.0.0:80".parse().unwrap(), false);
        let mut companions = Companions::default();
        let place = companions.plan(&places, true).make[0];
        assert!(companions.close().is_empty());
        assert_eq!(companions.made(place, Ok(7)), Some(7));
        assert!(companions.plan(&places, true).make.is_empty());
    }
}
