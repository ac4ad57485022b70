//! The fabric that the settings ask for: its devices, and a switch on it.

use crate::doctor::facts::{
    AddressFacts, DeviceFacts, FabricFacts, GidFacts, OpenFailure, PortFacts, SoftPortFacts,
    SoftPortState, TransportFacts,
};
use rustix::fs::{FlockOperation, flock};
use san_switch::{FabricChoice, NegativeCacheConfig, RouteChoice, Switch, SwitchConfig};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;
use verbs_shim::{Device, Fabric, OpenError, SoftConfig, Transport};

/// The UDP port of RoCEv2.
pub(super) const ROCE_PORT: u16 = 4791;
/// What a connect of the doctor's waits for the SAN.
const SAN_PATIENCE: Duration = Duration::from_secs(3);

/// Opens the fabric. The switch is one that tells `san stat` nothing, and that forgets failures.
pub(super) fn gather(config: &SwitchConfig) -> (FabricFacts, Option<Switch>) {
    let mut facts = FabricFacts {
        failure: None,
        devices: Vec::new(),
        table: Vec::new(),
        switch: None,
        soft_ports: Vec::new(),
    };
    let fabric = match config.fabric {
        FabricChoice::Off => None,
        FabricChoice::Soft => Some(Fabric::soft(&SoftConfig {
            addresses: config.soft_addresses.clone(),
            ..SoftConfig::default()
        })),
        FabricChoice::Auto | FabricChoice::Rdma => Some(Fabric::rdma()),
    };
    match fabric {
        Some(Ok(fabric)) => match fabric.devices() {
            Ok(devices) if devices.is_empty() => facts.failure = Some(OpenFailure::NoDevice),
            Ok(devices) => facts.devices = devices.iter().map(device).collect(),
            Err(error) => facts.failure = Some(OpenFailure::Other(error.to_string())),
        },
        Some(Err(error)) => facts.failure = Some(failure(error)),
        None => {}
    }
    if config.fabric == FabricChoice::Soft {
        facts.soft_ports = soft_ports(&facts.devices);
    }
    let patience = config.fabric_connect_timeout.min(SAN_PATIENCE);
    // What the machine could do: a switch that takes TCP by its settings opens no fabric.
    let own = config
        .clone()
        .route(RouteChoice::Direct)
        .stat(false)
        .negative_cache(NegativeCacheConfig::new(0, Duration::ZERO))
        .fabric_connect_timeout(patience);
    match Switch::new(own) {
        Ok(switch) => {
            let entries = switch.san_addresses();
            facts.table = entries.iter().map(ToString::to_string).collect();
            (facts, Some(switch))
        }
        Err(error) => {
            facts.switch = Some(error.to_string());
            // TCP is there whatever the settings demand, and a peer can be asked over it.
            let plain = SwitchConfig::default()
                .stat(false)
                .fabric(FabricChoice::Off);
            (facts, Switch::new(plain).ok())
        }
    }
}

fn failure(error: OpenError) -> OpenFailure {
    let text = error.to_string();
    match error {
        OpenError::LibraryMissing { library, .. } | OpenError::SymbolMissing { library, .. } => {
            OpenFailure::Library {
                library: library.to_owned(),
                text,
            }
        }
        OpenError::NoKernelSupport { source } => OpenFailure::Kernel(source.to_string()),
        OpenError::NoDevice => OpenFailure::NoDevice,
        OpenError::ConnectionManager { source } => {
            OpenFailure::ConnectionManager(source.to_string())
        }
        OpenError::Soft { .. } => OpenFailure::Soft(text),
        _ => OpenFailure::Other(text),
    }
}

fn device(device: &Device) -> DeviceFacts {
    let limits = device.limits().ok();
    let ports = limits.as_ref().map_or(1, |limits| limits.ports);
    let addresses = device.addresses().unwrap_or_default();
    DeviceFacts {
        name: device.name().to_owned(),
        transport: match device.transport() {
            Transport::Infiniband => TransportFacts::Infiniband,
            Transport::Iwarp => TransportFacts::Iwarp,
            Transport::Unknown(_) => TransportFacts::Unknown,
        },
        ports: (1..=ports).filter_map(|n| port(device, n)).collect(),
        addresses: addresses
            .into_iter()
            .map(|address| AddressFacts {
                ip: address.ip,
                prefix_len: address.prefix_len,
                netdev: address.netdev,
            })
            .collect(),
        windows: limits.map(|limits| limits.max_windows),
    }
}

fn port(device: &Device, number: u8) -> Option<PortFacts> {
    let port = device.port(number).ok()?;
    let gids = device.gids(number).unwrap_or_default();
    Some(PortFacts {
        number,
        state: format!("{:?}", port.state).to_lowercase(),
        link_layer: format!("{:?}", port.link_layer).to_lowercase(),
        max_mtu: port.max_mtu,
        active_mtu: port.active_mtu,
        gids: gids
            .into_iter()
            .map(|gid| GidFacts {
                index: gid.index,
                gid: gid.gid.to_string(),
                kind: gid.kind,
                netdev: gid.netdev,
            })
            .collect(),
    })
}

/// Who has UDP port 4791 of the addresses that the soft fabric serves. The kernel's list is read, and
/// nothing bound: a program that starts at this moment must find the port free.
fn soft_ports(devices: &[DeviceFacts]) -> Vec<SoftPortFacts> {
    let lists = ["/proc/net/udp", "/proc/net/udp6"].map(std::fs::read_to_string);
    let taken: Vec<IpAddr> = lists
        .iter()
        .flatten()
        .flat_map(|list| bound(list, ROCE_PORT))
        .collect();
    let addresses = devices.iter().flat_map(|device| &device.addresses);
    let port = |address: &AddressFacts| SoftPortFacts {
        ip: address.ip,
        state: soft_port(address.ip, &taken),
    };
    addresses.map(port).collect()
}

fn soft_port(ip: IpAddr, taken: &[IpAddr]) -> SoftPortState {
    let is_free = !taken.iter().any(|one| {
        let is_same_family = one.is_ipv4() == ip.is_ipv4();
        *one == ip || one.is_unspecified() && (is_same_family || one.is_ipv6())
    });
    match is_free {
        true => SoftPortState::Free,
        false if is_of_own_endpoint(ip) => SoftPortState::Shared,
        false if Path::new("/sys/module/rdma_rxe").exists() => SoftPortState::Kernel,
        false => SoftPortState::Taken,
    }
}

/// The addresses at which a port is bound, by the kernel's list of sockets: a line each, the second
/// word of which is `ADDRESS:PORT` in hexadecimal digits, the address in words of the machine's order.
fn bound(list: &str, port: u16) -> Vec<IpAddr> {
    let lines = list.lines().skip(1);
    let places = lines.filter_map(|line| line.split_whitespace().nth(1)?.split_once(':'));
    places
        .filter(|(_, at)| u16::from_str_radix(at, 16) == Ok(port))
        .filter_map(|(address, _)| {
            let words = (0..address.len()).step_by(8).map(|at| {
                let word = address.get(at..at + 8)?;
                Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
            });
            let words: Vec<[u8; 4]> = words.collect::<Option<_>>()?;
            match words[..] {
                [ip] => Some(ip.into()),
                [a, b, c, d] => {
                    let bytes: [u8; 16] = [a, b, c, d].concat().try_into().ok()?;
                    Some(IpAddr::from(bytes).to_canonical())
                }
                _ => None,
            }
        })
        .collect()
}

/// Whether a soft endpoint of this user says that it has the port: it holds a lock while it lives.
fn is_of_own_endpoint(ip: IpAddr) -> bool {
    san_base::runtime_dir::own("soft-roce")
        .iter()
        .map(|directory| directory.join(format!("{}-public", ip.to_canonical())))
        .filter_map(|path| std::fs::File::open(path).ok())
        .any(|file| flock(&file, FlockOperation::NonBlockingLockShared).is_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list_of_sockets_is_read() {
        let of_ipv4 = "  sl  local_address rem_address   st\n\
                       1: 0100007F:12B7 00000000:0000 07 00000000:00000000\n\
                       2: 00000000:12B7 00000000:0000 07\n\
                       3: 0100007F:12B8 00000000:0000 07\n\
                       4: zz:12B7 odd\n\
                       5:\n";
        if cfg!(target_endian = "little") {
            let wanted: [IpAddr; 2] = ["127.0.0.1".parse().unwrap(), "0.0.0.0".parse().unwrap()];
            assert_eq!(bound(of_ipv4, 4791), wanted);
            let of_ipv6 = "head\n 1: 00000000000000000000000001000000:12B7 x\n";
            assert_eq!(bound(of_ipv6, 4791), ["::1".parse::<IpAddr>().unwrap()]);
        }
        assert!(bound("", 4791).is_empty());
    }

    #[test]
    fn a_wildcard_has_the_port_of_every_address() {
        let [own, other, every, every6] =
            ["10.0.7.1", "10.0.7.2", "0.0.0.0", "::"].map(|ip| ip.parse::<IpAddr>().unwrap());
        assert_eq!(soft_port(own, &[other]), SoftPortState::Free);
        for taken in [own, every, every6] {
            assert_ne!(soft_port(own, &[taken]), SoftPortState::Free, "{taken}");
        }
        assert_eq!(
            soft_port("::1".parse().unwrap(), &[every]),
            SoftPortState::Free
        );
    }
}
