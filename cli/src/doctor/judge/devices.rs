//! The fabric: whether it opens, its devices, their ports and addresses.

use crate::doctor::facts::{
    DeviceFacts, Facts, MeetingPlaceFacts, OpenFailure, PortFacts, Purpose, SoftPortState,
    TransportFacts,
};
use crate::doctor::line::Line;
use san_switch::FabricChoice;

/// The RoCE headers beside the payload: Ethernet's type, IPv6, UDP, BTH, RETH, immediate, ICRC.
const ROCE_OVERHEAD: u32 = 96;
/// The RDMA MTU at which a small message is one packet.
const WHOLE_MTU: u32 = 4096;

pub(super) fn opened(facts: &Facts) -> Vec<Line> {
    let mut lines = Vec::new();
    match &facts.fabric.failure {
        None if facts.settings.fabric == FabricChoice::Soft => {}
        None => lines.push(Line::ok("library", "librdmacm and libibverbs are loaded")),
        Some(OpenFailure::Library { text, .. }) => lines.push(Line::fail(
            "library",
            text,
            "as root: apt-get install librdmacm1 libibverbs1 ibverbs-providers \
             (or: dnf install rdma-core); without RDMA: export SAN_FABRIC=soft",
        )),
        Some(OpenFailure::Kernel(why)) => lines.push(Line::fail(
            "library",
            format!("librdmacm is there, but the kernel offers it no RDMA: {why}"),
            "as root: modprobe -a ib_uverbs rdma_ucm; without RDMA: export SAN_FABRIC=soft",
        )),
        Some(OpenFailure::NoDevice) => lines.push(Line::fail(
            "device",
            "there is no RDMA device",
            "see what there is: lspci | grep -i -e mellanox -e infiniband; a device in software, \
             as root: modprobe rdma_rxe && rdma link add rxe0 type rxe netdev eth0; or without \
             the kernel: export SAN_FABRIC=soft",
        )),
        Some(OpenFailure::ConnectionManager(why)) => lines.push(Line::fail(
            "library",
            format!("librdmacm cannot open the RDMA connection manager: {why}"),
            "as root: modprobe rdma_ucm && chmod a+rw /dev/infiniband/rdma_cm",
        )),
        // The line of the meeting places says it, and what mends it.
        Some(OpenFailure::Soft(_)) if facts.meeting_places.iter().any(is_broken) => {}
        Some(OpenFailure::Soft(text)) => lines.push(Line::fail(
            "device",
            text,
            "let SAN_SOFT_ADDRESSES name addresses of this host (ip -br address), or: \
             unset SAN_SOFT_ADDRESSES",
        )),
        Some(OpenFailure::Other(text)) => lines.push(Line::fail(
            "library",
            text,
            "see more: SAN_LOG=debug san devices",
        )),
    }
    if let (Some(why), None) = (&facts.fabric.switch, &facts.fabric.failure) {
        lines.push(Line::fail(
            "switch",
            format!("no program can start a switch: {why}"),
            match super::host::has_few_descriptors(facts) {
                true => "raise the limit of descriptors: see the line descriptors",
                false => "see more: SAN_LOG=debug san devices",
            },
        ));
    }
    lines
}

fn is_broken(place: &MeetingPlaceFacts) -> bool {
    place.purpose == Purpose::SoftFabric && place.problem.is_some()
}

pub(super) fn soft_ports(facts: &Facts) -> Vec<Line> {
    let ports = &facts.fabric.soft_ports;
    let is_ours =
        |state: &SoftPortState| matches!(state, SoftPortState::Free | SoftPortState::Shared);
    // Where there is another address, the soft fabric is of use there.
    let line = match ports.iter().any(|port| is_ours(&port.state)) {
        true => Line::warn::<String, &str>,
        false => Line::fail::<String, &str>,
    };
    let mut lines = Vec::new();
    for port in ports {
        let ip = port.ip;
        lines.push(match &port.state {
            SoftPortState::Free | SoftPortState::Shared => continue,
            SoftPortState::Kernel => line(
                "port 4791",
                format!(
                    "the kernel's soft-RoCE has UDP port 4791 of {ip}: programs on the soft fabric \
                     cannot listen there"
                ),
                "use the kernel's: export SAN_FABRIC=rdma; or take it away, as root: \
                 rdma link show; rdma link delete NAME",
            ),
            SoftPortState::Taken => line(
                "port 4791",
                format!(
                    "another process has UDP port 4791 of {ip}, of another user or with another \
                     XDG_RUNTIME_DIR: this one's programs on the soft fabric cannot listen there"
                ),
                "see which, as root: ss -uanp 'sport = :4791'; give all the same XDG_RUNTIME_DIR, \
                 or each an address of its own: export SAN_SOFT_ADDRESSES=ADDRESS",
            ),
        });
    }
    if lines.is_empty() && !ports.is_empty() {
        let shared = ports
            .iter()
            .filter(|port| port.state == SoftPortState::Shared)
            .count();
        let text = match shared {
            0 => "UDP port 4791 is free".to_owned(),
            _ => "UDP port 4791 belongs to this user's endpoints, which share it".to_owned(),
        };
        lines.push(Line::ok("port 4791", text));
    }
    lines
}

pub(super) fn devices(facts: &Facts) -> Vec<Line> {
    let mut lines = Vec::new();
    for one in &facts.fabric.devices {
        lines.extend(device(one, facts));
    }
    if !facts.fabric.devices.is_empty() && facts.fabric.switch.is_none() {
        lines.push(table(facts));
    }
    lines
}

fn device(device: &DeviceFacts, facts: &Facts) -> Vec<Line> {
    let name = &device.name;
    let mut lines = Vec::new();
    let speaks = match device.transport {
        TransportFacts::Infiniband => None,
        TransportFacts::Iwarp => Some("iWARP, which has no immediate data"),
        TransportFacts::Unknown => Some("neither InfiniBand nor RoCE"),
    };
    // What follows is of no use where the device is not used.
    if let Some(speaks) = speaks {
        lines.push(Line::warn(
            "device",
            format!("{name} speaks {speaks}: San Direct does not use it"),
            "use a RoCE or InfiniBand device; see which there are: san devices",
        ));
        return lines;
    }
    if device.ports.is_empty() {
        lines.push(Line::fail(
            "device",
            format!("{name} tells nothing of its ports"),
            "see what the kernel says: dmesg | grep -i -e infiniband -e rdma; and: ibv_devinfo",
        ));
    }
    for port in &device.ports {
        lines.extend(self::port(device, port, facts));
    }
    if lines.is_empty() {
        lines.push(Line::ok(
            "device",
            format!("{name}: {}", in_words(device, facts)),
        ));
    }
    if device.windows == Some(0) {
        lines.push(Line::warn(
            "device",
            format!(
                "{name} has no memory windows of type 2: no RDMA READ or WRITE between sockets"
            ),
            "nothing to do; messages and streams work",
        ));
    }
    lines.extend(interfaces(device, facts));
    lines
}

/// A device that is well: its ports, and the interfaces of its addresses.
fn in_words(device: &DeviceFacts, facts: &Facts) -> String {
    let ports = device.ports.iter().map(|port| {
        let gids = port.gids.len();
        format!(
            "port {} {}, {}, MTU {}, {gids} GIDs",
            port.number, port.state, port.link_layer, port.active_mtu
        )
    });
    let interfaces = facts.interfaces.iter().filter_map(|interface| {
        let addresses = device.addresses.iter();
        let is_here = addresses
            .map(|one| &one.netdev)
            .any(|name| *name == interface.name);
        let mtu = interface.mtu.filter(|_| is_here)?;
        Some(format!("{} MTU {mtu}", interface.name))
    });
    ports.chain(interfaces).collect::<Vec<_>>().join("; ")
}

fn port(device: &DeviceFacts, port: &PortFacts, facts: &Facts) -> Vec<Line> {
    let name = &device.name;
    let (number, state) = (port.number, &port.state);
    let mut lines = Vec::new();
    let netdev = netdev(device);
    if state != "active" {
        let remedy = match (port.link_layer.as_str(), state.as_str()) {
            ("infiniband", "init") => {
                "no subnet manager has configured it; start one: systemctl start opensm; watch: \
                 ibstat"
                    .to_owned()
            }
            ("infiniband", _) => "check the cable and the switch's port; watch: ibstat".to_owned(),
            _ => format!("as root: ip link set {netdev} up; then: rdma link show"),
        };
        lines.push(Line::fail(
            "port",
            format!("port {number} of {name} is {state}, not active"),
            remedy,
        ));
    }
    if port.gids.is_empty() && port.link_layer != "infiniband" {
        lines.push(Line::fail(
            "gids",
            format!("port {number} of {name} has no GID in use: it has no address to speak from"),
            format!("as root: ip link set {netdev} up; ip address add ADDRESS/LENGTH dev {netdev}"),
        ));
    } else if port.link_layer == "ethernet" && !port.gids.iter().any(|gid| is_version_2(&gid.kind))
    {
        lines.push(Line::fail(
            "gids",
            format!("port {number} of {name} has no GID of RoCE v2, but RoCE v1 alone"),
            "switch RoCE v2 on at the adapter (mlx5, as root: devlink dev param set pci/ADDRESS \
             name enable_roce value true cmode driverinit); see the GIDs: san devices",
        ));
    }
    if port.active_mtu != 0 && port.active_mtu < port.max_mtu && port.active_mtu < WHOLE_MTU {
        lines.push(small_mtu(device, port, facts));
    }
    lines
}

fn small_mtu(device: &DeviceFacts, port: &PortFacts, facts: &Facts) -> Line {
    let netdev = netdev(device);
    let interface = facts.interfaces.iter().find(|one| one.name == netdev);
    let text = format!(
        "the RDMA MTU of {} is {}, and it could do {}: messages of {WHOLE_MTU} bytes take several \
         packets",
        device.name, port.active_mtu, port.max_mtu
    );
    let text = match interface.and_then(|interface| interface.mtu) {
        Some(mtu) => format!("{text} ({netdev} has an MTU of {mtu})"),
        None => text,
    };
    let remedy = match port.link_layer.as_str() {
        "infiniband" => "let the subnet manager give the partition a larger MTU: mtu=5 in \
                         partitions.conf of opensm"
            .to_owned(),
        _ => format!(
            "as root, on both hosts and the switch between them: ip link set {netdev} mtu {}",
            port.max_mtu.min(WHOLE_MTU) + ROCE_OVERHEAD
        ),
    };
    Line::warn("mtu", text, remedy)
}

/// The addresses, and the interfaces that they are on.
fn interfaces(device: &DeviceFacts, facts: &Facts) -> Vec<Line> {
    let name = &device.name;
    if device.addresses.is_empty() {
        let netdev = netdev(device);
        return vec![Line::fail(
            "addresses",
            format!("{name} has no IP address, and peers are found by one"),
            format!("as root: ip address add ADDRESS/LENGTH dev {netdev}"),
        )];
    }
    let mine = facts.interfaces.iter().filter(|interface| {
        device
            .addresses
            .iter()
            .any(|address| address.netdev == interface.name)
    });
    let mut lines = Vec::new();
    for interface in mine {
        let netdev = &interface.name;
        if interface.state == "down" || interface.state == "lowerlayerdown" {
            lines.push(Line::fail(
                "interface",
                format!("{netdev} (of {name}) is {}", interface.state),
                format!("as root: ip link set {netdev} up; check the cable: ethtool {netdev}"),
            ));
        }
    }
    lines
}

fn table(facts: &Facts) -> Line {
    let table = &facts.fabric.table;
    let mut devices = facts.fabric.devices.iter();
    if devices.all(|device| device.transport != TransportFacts::Infiniband) {
        return Line::fail(
            "addresses",
            "no device of this host's can be used: every connection takes TCP",
            "use a RoCE or InfiniBand device; or one in software, as root: modprobe rdma_rxe && rdma \
             link add rxe0 type rxe netdev eth0; or without the kernel: export SAN_FABRIC=soft",
        );
    }
    if table.is_empty() {
        return Line::fail(
            "addresses",
            "no address of this host's is on the SAN: every connection takes TCP",
            "give the device's interface an address, as root: ip address add ADDRESS/LENGTH dev \
             NAME; for the loopback: export SAN_LOOPBACK=1",
        );
    }
    Line::ok("addresses", table.join(", "))
}

/// The interface of a device, for a command; a word in capitals where it is not known.
fn netdev(device: &DeviceFacts) -> String {
    let gids = device.ports.iter().flat_map(|port| &port.gids);
    let of_gids = gids.filter_map(|gid| gid.netdev.clone());
    let of_addresses = device.addresses.iter().map(|one| one.netdev.clone());
    let mut all = of_gids.chain(of_addresses).filter(|name| !name.is_empty());
    all.next().unwrap_or_else(|| "NETDEV".to_owned())
}

fn is_version_2(kind: &str) -> bool {
    // Where the kernel says nothing, nothing can be wrong with it.
    kind.is_empty() || kind.to_lowercase().contains("v2")
}
