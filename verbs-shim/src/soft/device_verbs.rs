//! What can be asked of the soft backend's device, and what is made on it: above all that holds the
//! device.

use std::net::IpAddr;
use std::sync::Arc;

use super::cq::{SoftCompletionChannel, SoftCq};
use super::device::{SoftDevice, narrow};
use super::memory::SoftPd;
use crate::address::InterfaceAddress;
use crate::backend::{self, same_fabric};
use crate::error::{Result, VerbsError};
use crate::types::{DeviceLimits, Gid, LinkLayer, PortAttr, PortState, Transport};

const NAME: &str = "soft0";
/// Payload bytes of a packet at most. What a connection uses follows from the way it takes.
const MTU: u32 = 4096;

impl backend::Device for SoftDevice {
    fn key(&self) -> u64 {
        self.endpoint.guid()
    }

    fn name(&self) -> &str {
        NAME
    }

    fn guid(&self) -> u64 {
        self.endpoint.guid()
    }

    fn transport(&self) -> Transport {
        Transport::Infiniband
    }

    fn limits(&self) -> Result<DeviceLimits> {
        let limits = self.endpoint.limits();
        Ok(DeviceLimits {
            max_qp: narrow(limits.max_qp),
            max_qp_wr: limits.max_qp_wr,
            max_sge: narrow(limits.max_sge),
            max_inline: narrow(limits.max_inline),
            max_cq: u32::MAX,
            max_cqe: narrow(limits.max_cqe),
            max_mr: narrow(limits.max_mr),
            max_mr_size: u64::MAX,
            max_windows: narrow(limits.max_mr),
            max_pd: u32::MAX,
            max_srq: u32::MAX,
            max_srq_wr: narrow(limits.max_srq_wr),
            max_qp_rd_atom: u32::from(limits.max_reads),
            max_qp_init_rd_atom: u32::from(limits.max_reads),
            ports: 1,
        })
    }

    fn port(&self, port: u8) -> Result<PortAttr> {
        if port != 1 {
            return Err(VerbsError::invalid(
                "ibv_query_port",
                "there is port 1 only",
            ));
        }
        let gids = self.current()?.len();
        Ok(PortAttr {
            state: PortState::Active,
            link_layer: LinkLayer::Ethernet,
            max_mtu: MTU,
            active_mtu: MTU,
            max_message_size: self.endpoint.limits().max_message,
            gid_table_len: narrow(gids),
        })
    }

    fn gids(&self, port: u8) -> Result<Vec<Gid>> {
        if port != 1 {
            return Err(VerbsError::invalid("ibv_query_gid", "there is port 1 only"));
        }
        let gid = |(index, address): (usize, InterfaceAddress)| Gid {
            index: narrow(index),
            gid: match address.ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            },
            kind: "RoCE v2".to_owned(),
            netdev: Some(address.netdev),
        };
        Ok(self.current()?.into_iter().enumerate().map(gid).collect())
    }

    fn addresses(&self) -> Result<Vec<InterfaceAddress>> {
        self.current()
    }

    fn counters(&self) -> Vec<(String, u64)> {
        let all = self.endpoint.counters();
        let packets = [
            ("sent_packets", all.sent_packets),
            ("send_dropped", all.send_dropped),
            ("received_packets", all.received_packets),
            ("bad_icrc", all.bad_icrc),
            ("malformed", all.malformed),
            ("unknown_qp", all.unknown_qp),
            ("foreign_source", all.foreign_source),
        ];
        let named = |(name, value): (&str, u64)| (name.to_owned(), value);
        let rows = packets.into_iter().chain(all.transport.rows());
        rows.map(named).collect()
    }

    fn alloc_pd(self: Arc<Self>) -> Result<Arc<dyn backend::ProtectionDomain>> {
        Ok(Arc::new(SoftPd::new(self)))
    }

    fn completion_channel(self: Arc<Self>) -> Result<Arc<dyn backend::CompletionChannel>> {
        Ok(Arc::new(SoftCompletionChannel::new(&self)?))
    }

    fn create_cq(
        self: Arc<Self>,
        depth: u32,
        channel: Option<Arc<dyn backend::CompletionChannel>>,
    ) -> Result<Arc<dyn backend::CompletionQueue>> {
        const CALL: &str = "ibv_create_cq";
        let limit = self.endpoint.limits().max_cqe;
        if depth == 0 || depth as usize > limit {
            return Err(VerbsError::invalid(
                CALL,
                format!("depth {depth}, 1 to {limit}"),
            ));
        }
        let channel = channel
            .map(|channel| same_fabric::<SoftCompletionChannel>(CALL, channel.into_any()))
            .transpose()?;
        Ok(Arc::new(SoftCq::new(&self, depth, channel)?))
    }
}
