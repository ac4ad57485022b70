//! `san devices`: the devices of the fabric that `SAN_FABRIC` asks for, or what is missing for
//! there to be one. With `auto` these are the RDMA devices.

use crate::args::DevicesArguments;
use crate::output::{self, Output, tell};
use crate::problem::{Problem, hindrances};
use san_switch::{FabricChoice, SwitchConfig};
use serde::Serialize;
use std::io::Write;
use std::process::ExitCode;
use verbs_shim::{Device, Fabric, OpenError, SoftConfig, Transport};

#[derive(Debug, Serialize)]
struct DeviceList {
    devices: Vec<DeviceReport>,
    /// What is missing, when there is no device: `library`, `kernel`, `device`, `access`.
    missing: Option<&'static str>,
    /// The same in words.
    reason: Option<String>,
    /// The command that mends it.
    remedy: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct DeviceReport {
    name: String,
    /// Why no connection uses it.
    not_used: Option<&'static str>,
    guid: String,
    ports: Vec<PortReport>,
    addresses: Vec<AddressReport>,
    max_queue_pairs: Option<u32>,
    max_inline: Option<u32>,
}

#[derive(Debug, Serialize)]
struct PortReport {
    port: u8,
    state: String,
    link_layer: String,
    active_mtu: u32,
    gids: Vec<String>,
}

#[derive(Debug, Serialize)]
struct AddressReport {
    address: String,
    interface: String,
}

/// Lists the devices. The exit code is 1 when there is none that can be used.
pub(crate) fn run(arguments: &DevicesArguments) -> Result<ExitCode, Problem> {
    let config = SwitchConfig::from_env()?;
    let fabric = match config.fabric {
        FabricChoice::Off => {
            return Err(Problem::new(
                "SAN_FABRIC=off: the settings say TCP alone, so there is no device to show",
            )
            .with_remedy("see the devices all the same: SAN_FABRIC=auto san devices"));
        }
        FabricChoice::Soft => Fabric::soft(&SoftConfig {
            addresses: config.soft_addresses,
            ..SoftConfig::default()
        }),
        FabricChoice::Auto | FabricChoice::Rdma => Fabric::rdma(),
    };
    let report = match fabric {
        Ok(fabric) => {
            let devices = fabric
                .devices()
                .map_err(|error| Problem::new(format!("cannot list the devices: {error}")))?;
            report_of(&devices)
        }
        Err(error @ OpenError::Soft { .. }) => {
            return Err(Problem::new(error.to_string()).with_remedy(
                "set SAN_SOFT_ADDRESSES to addresses of this host (ip -br address), or unset it",
            ));
        }
        Err(error) => absent(&error),
    };
    let mut out = Output::stdout();
    let written = match arguments.json {
        true => serde_json::to_writer_pretty(&mut out, &report)
            .map_err(std::io::Error::from)
            .and_then(|()| writeln!(out)),
        false => print(&mut out, &report),
    };
    written
        .and_then(|()| out.flush())
        .map_err(output::unwritten)?;
    // Where a library, the kernel or a device is missing, nothing else counts yet.
    let counts = matches!(report.missing, None | Some("access"));
    if !arguments.json && counts && config.fabric != FabricChoice::Soft {
        for hindrance in hindrances() {
            tell!("san: {hindrance}");
        }
    }
    let is_usable = |device: &DeviceReport| device.not_used.is_none();
    Ok(match report.devices.iter().any(is_usable) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn report_of(devices: &[Device]) -> DeviceList {
    if devices.is_empty() {
        return absent(&OpenError::NoDevice);
    }
    DeviceList {
        devices: devices.iter().map(device_report).collect(),
        missing: None,
        reason: None,
        remedy: None,
    }
}

fn device_report(device: &Device) -> DeviceReport {
    let limits = device.limits().ok();
    let ports = limits.as_ref().map_or(1, |limits| limits.ports);
    let guid = device.guid().to_be_bytes();
    let guid: Vec<String> = guid
        .chunks(2)
        .map(|pair| format!("{:02x}{:02x}", pair[0], pair[1]))
        .collect();
    DeviceReport {
        name: device.name().to_owned(),
        not_used: not_used(device.transport()),
        guid: guid.join(":"),
        ports: (1..=ports)
            .filter_map(|number| {
                let port = device.port(number).ok()?;
                let gids = device.gids(number).unwrap_or_default();
                Some(PortReport {
                    port: number,
                    state: format!("{:?}", port.state).to_lowercase(),
                    link_layer: format!("{:?}", port.link_layer).to_lowercase(),
                    active_mtu: port.active_mtu,
                    gids: gids
                        .iter()
                        .map(|gid| format!("{} {} ({})", gid.index, gid.gid, gid.kind))
                        .collect(),
                })
            })
            .collect(),
        addresses: device
            .addresses()
            .unwrap_or_default()
            .iter()
            .map(|address| AddressReport {
                address: format!("{}/{}", address.ip, address.prefix_len),
                interface: address.netdev.clone(),
            })
            .collect(),
        max_queue_pairs: limits.as_ref().map(|limits| limits.max_qp),
        max_inline: limits.as_ref().map(|limits| limits.max_inline),
    }
}

/// Why the provider leaves such a device alone.
fn not_used(transport: Transport) -> Option<&'static str> {
    match transport {
        Transport::Infiniband => None,
        Transport::Iwarp => Some("it speaks iWARP, which has no immediate data"),
        Transport::Unknown(_) => Some("it speaks neither InfiniBand nor RoCE"),
    }
}

/// Which of library, kernel and device is missing, and what mends it.
fn absent(error: &OpenError) -> DeviceList {
    let (missing, remedy) = match error {
        OpenError::LibraryMissing { .. } | OpenError::SymbolMissing { .. } => (
            "library",
            "apt-get install librdmacm1 libibverbs1 ibverbs-providers",
        ),
        OpenError::NoKernelSupport { .. } => ("kernel", "modprobe -a ib_uverbs rdma_ucm"),
        OpenError::NoDevice => (
            "device",
            "modprobe rdma_rxe && rdma link add rxe0 type rxe netdev eth0",
        ),
        _ => ("access", "modprobe rdma_ucm; chmod a+rw /dev/infiniband/*"),
    };
    DeviceList {
        devices: Vec::new(),
        missing: Some(missing),
        reason: Some(error.to_string()),
        remedy: Some(remedy),
    }
}

fn print(out: &mut impl Write, report: &DeviceList) -> std::io::Result<()> {
    for device in &report.devices {
        writeln!(out, "{}  guid {}", device.name, device.guid)?;
        if let Some(why) = device.not_used {
            writeln!(out, "  not used: {why}")?;
        }
        for port in &device.ports {
            writeln!(
                out,
                "  port {}: {}, {}, MTU {}",
                port.port, port.state, port.link_layer, port.active_mtu
            )?;
            for gid in &port.gids {
                writeln!(out, "    gid {gid}")?;
            }
        }
        for address in &device.addresses {
            write!(out, "  address {}", address.address)?;
            match address.interface.as_str() {
                "" => writeln!(out)?,
                interface => writeln!(out, " on {interface}")?,
            }
        }
        if device.addresses.is_empty() {
            writeln!(out, "  no address: ip address add ADDR/LEN dev NETDEV")?;
        }
        if let (Some(queue_pairs), Some(inline)) = (device.max_queue_pairs, device.max_inline) {
            writeln!(
                out,
                "  up to {queue_pairs} queue pairs, {inline} bytes inline"
            )?;
        }
    }
    let width = output::table_width();
    if let Some(reason) = &report.reason {
        writeln!(
            out,
            "{}",
            output::wrap(&format!("no RDMA: {reason}"), width, 0)
        )?;
    }
    if let Some(remedy) = report.remedy {
        for line in [
            format!("-> as root: {remedy}"),
            "-> without RDMA: export SAN_FABRIC=soft; more: san doctor".to_owned(),
        ] {
            writeln!(out, "{}", output::wrap(&line, width, 2))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_the_command_that_mends_it() {
        let library = OpenError::LibraryMissing {
            library: "librdmacm.so.1",
            detail: "not found".into(),
        };
        let kernel = OpenError::NoKernelSupport {
            source: std::io::Error::from_raw_os_error(19),
        };
        for (error, missing, command) in [
            (library, "library", "apt-get"),
            (kernel, "kernel", "modprobe"),
            (OpenError::NoDevice, "device", "rdma link add"),
        ] {
            let report = absent(&error);
            assert_eq!(report.missing, Some(missing));
            let mut text = Vec::new();
            print(&mut text, &report).unwrap();
            let text = String::from_utf8(text).unwrap();
            assert!(
                text.starts_with("no RDMA: ") && text.contains(command),
                "{text}"
            );
            assert!(text.contains("export SAN_FABRIC=soft"), "{text}");
        }
    }
}
