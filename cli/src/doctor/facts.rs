//! What the doctor knows of a machine and of a peer: plain data, without any judgement.
//!
//! `gather/` fills it in and `judge/` reads it, so that each judgement can be tested with facts that
//! a test makes up. Sizes are in bytes, times in the unit that the name tells.

use crate::settings::BadSetting;
use san_provider::ConnectFailure;
use san_switch::FabricChoice;
use serde::{Serialize, Serializer};
use std::net::{IpAddr, SocketAddr};

/// Everything that was found.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Facts {
    pub(super) settings: SettingsFacts,
    pub(super) kernel: KernelFacts,
    pub(super) fabric: FabricFacts,
    pub(super) interfaces: Vec<InterfaceFacts>,
    pub(super) limits: LimitFacts,
    pub(super) userfaultfd: WatchFacts,
    pub(super) clock: ClockFacts,
    /// Where the processes of this user meet.
    pub(super) meeting_places: Vec<MeetingPlaceFacts>,
    pub(super) peer: Option<PeerFacts>,
}

/// The settings, from the environment and from the file that `SAN_CONFIG` names.
#[derive(Debug, Clone, Serialize)]
pub(super) struct SettingsFacts {
    #[serde(serialize_with = "as_text")]
    pub(super) fabric: FabricChoice,
    /// `SAN_ROUTE=off`.
    pub(super) says_tcp: bool,
    /// Those that are set, as `NAME=value`, apart from the bad ones.
    pub(super) set: Vec<String>,
    /// Those that cannot be used.
    pub(super) bad: Vec<BadSetting>,
    /// Variables that begin with `SAN_` and that nothing of San Direct reads.
    pub(super) unknown: Vec<String>,
    /// Why the file that `SAN_CONFIG` names cannot be used.
    pub(super) bad_file: Option<String>,
}

/// What the kernel offers.
#[derive(Debug, Clone, Serialize)]
pub(super) struct KernelFacts {
    pub(super) release: String,
    pub(super) modules: Vec<ModuleFacts>,
    pub(super) nodes: Vec<NodeFacts>,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct ModuleFacts {
    pub(super) name: &'static str,
    /// It is loaded, or what it gives is there (it may be built in).
    pub(super) present: bool,
}

/// A device file.
#[derive(Debug, Clone, Serialize)]
pub(super) struct NodeFacts {
    pub(super) path: String,
    pub(super) access: Access,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Access {
    Usable,
    Denied,
    Missing,
}

/// What opening the fabric gave.
#[derive(Debug, Clone, Serialize)]
pub(super) struct FabricFacts {
    /// Why it could not be opened.
    pub(super) failure: Option<OpenFailure>,
    pub(super) devices: Vec<DeviceFacts>,
    /// The addresses that a switch with these settings serves, as `ADDRESS/LENGTH on DEVICE`.
    pub(super) table: Vec<String>,
    /// Why a switch could not be made.
    pub(super) switch: Option<String>,
    /// UDP port 4791 of each address of the soft fabric, before the doctor used it itself.
    pub(super) soft_ports: Vec<SoftPortFacts>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum OpenFailure {
    Library { library: String, text: String },
    Kernel(String),
    NoDevice,
    ConnectionManager(String),
    Soft(String),
    Other(String),
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct DeviceFacts {
    pub(super) name: String,
    pub(super) transport: TransportFacts,
    pub(super) ports: Vec<PortFacts>,
    /// Those that peers can reach it by.
    pub(super) addresses: Vec<AddressFacts>,
    /// Memory windows that it can have; `None` if it did not answer.
    pub(super) windows: Option<u32>,
}

/// What a device speaks to its peers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum TransportFacts {
    Infiniband,
    Iwarp,
    Unknown,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct PortFacts {
    pub(super) number: u8,
    /// `active`, `down`, ...
    pub(super) state: String,
    /// `ethernet`, `infiniband`, ...
    pub(super) link_layer: String,
    pub(super) max_mtu: u32,
    pub(super) active_mtu: u32,
    pub(super) gids: Vec<GidFacts>,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct GidFacts {
    pub(super) index: u32,
    pub(super) gid: String,
    pub(super) kind: String,
    pub(super) netdev: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct AddressFacts {
    pub(super) ip: IpAddr,
    pub(super) prefix_len: u8,
    pub(super) netdev: String,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct SoftPortFacts {
    pub(super) ip: IpAddr,
    pub(super) state: SoftPortState,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum SoftPortState {
    Free,
    /// Another soft endpoint of this user has it: they share.
    Shared,
    /// The kernel's soft-RoCE has it.
    Kernel,
    /// Some other process has it.
    Taken,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct InterfaceFacts {
    pub(super) name: String,
    pub(super) mtu: Option<u32>,
    /// `up`, `down`, `unknown` (the loopback's), ...
    pub(super) state: String,
}

/// The process's limits; `None` is no limit.
#[derive(Debug, Clone, Serialize)]
pub(super) struct LimitFacts {
    pub(super) memlock: Option<u64>,
    /// Root, or a process with `CAP_IPC_LOCK`: the limit does not count.
    pub(super) memlock_exempt: bool,
    pub(super) descriptors: Option<u64>,
    pub(super) descriptors_hard: Option<u64>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum WatchFacts {
    Usable,
    Denied(String),
    Unsupported(String),
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct ClockFacts {
    /// The kernel's clock source; empty where it does not tell.
    pub(super) source: String,
    pub(super) available: Vec<String>,
    /// What reading the clock once takes.
    pub(super) read_ns: u64,
    /// Seconds since 1970 that the system believes to have passed.
    pub(super) unix_seconds: u64,
}

/// A directory in which the processes of this user meet.
#[derive(Debug, Clone, Serialize)]
pub(super) struct MeetingPlaceFacts {
    pub(super) purpose: Purpose,
    /// The one that is used; the last one that cannot be, where none can.
    pub(super) path: String,
    /// Why none can be used.
    pub(super) problem: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Purpose {
    /// `san stat` finds processes there.
    Statistics,
    /// Endpoints of the soft fabric find each other there.
    SoftFabric,
}

/// The peer, as far as it was asked for.
#[derive(Debug, Clone, Serialize)]
pub(super) struct PeerFacts {
    /// As it was given.
    pub(super) asked: String,
    /// Whether a port was given. Without one, a port that nobody listens on is asked.
    pub(super) has_port: bool,
    /// Why the name has no address.
    pub(super) unresolved: Option<String>,
    pub(super) addresses: Vec<PeerAddressFacts>,
    /// Addresses that were left out.
    pub(super) omitted: usize,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct PeerAddressFacts {
    pub(super) address: SocketAddr,
    /// The address that the kernel would send from.
    pub(super) source: Option<IpAddr>,
    /// The interface of that address.
    pub(super) interface: Option<String>,
    /// Of that interface.
    pub(super) interface_mtu: Option<u32>,
    /// Of the route, as far as the kernel knows it.
    pub(super) path_mtu: Option<u32>,
    /// The RDMA MTU of the device that would be taken.
    pub(super) device_mtu: Option<u32>,
    /// Which of this host's SAN addresses reaches it; `None`: none does.
    pub(super) entry: Option<String>,
    /// What became of a datagram to UDP port 4791.
    pub(super) datagram: Datagram,
    /// What became of a connect as an application makes it; `None` if none was made.
    pub(super) connect: Option<ConnectFacts>,
    /// What became of a connect over TCP alone, to the port that was given.
    pub(super) tcp: Option<TcpFacts>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Datagram {
    /// No answer, which is what a host that takes it in gives, too.
    Silent,
    /// The host says that nobody has the port.
    Refused,
    /// A firewall or a router says no.
    Prohibited(String),
    /// It could not be sent.
    Unsent(String),
    /// It was not tried: the peer is reached without UDP.
    Untried,
}

#[derive(Debug, Clone, Serialize)]
pub(super) struct ConnectFacts {
    pub(super) took_ms: u64,
    pub(super) outcome: ConnectOutcome,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ConnectOutcome {
    San {
        provider: String,
        device: String,
    },
    /// TCP was taken; why, where the SAN was thought of.
    Tcp {
        #[serde(serialize_with = "as_debug")]
        failure: Option<ConnectFailure>,
        why: Option<String>,
    },
    /// There is no connection. `failure` is what the SAN said, if it was asked.
    Failed {
        #[serde(serialize_with = "as_debug")]
        failure: Option<ConnectFailure>,
        why: String,
    },
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TcpFacts {
    Connected { took_ms: u64 },
    Failed { refused: bool, why: String },
}

fn as_text<S: Serializer>(value: &impl ToString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

fn as_debug<S: Serializer>(
    value: &Option<ConnectFailure>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(failure) => serializer.serialize_some(&format!("{failure:?}")),
        None => serializer.serialize_none(),
    }
}
