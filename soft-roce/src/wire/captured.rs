//! Packets that the kernel's `rdma_rxe` sent: every ICRC is right under the IP
//! header they really had, every field is where this crate reads it, and what
//! this crate writes for the same content is the same.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::cm::{CMA_AT, CmMessage, CmaHeader, RejReason, Rejected, service_of_port};
use super::mad::{MadHeader, emit_packet};
use super::{FlowCrc, Opcode, Packet, Syndrome};

/// A packet and what is around it.
struct Captured {
    src: SocketAddr,
    dst: SocketAddr,
    /// 0 for IPv6.
    ident: u16,
    /// BTH to ICRC.
    packet: Vec<u8>,
}

fn captured(name: &str) -> Captured {
    let file = include_str!("../../testdata/rxe.txt");
    let line = file
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    let hex = line.unwrap_or_else(|| panic!("no {name}")).as_bytes();
    let digit = |d: u8| char::from(d).to_digit(16).expect("hex") as u8;
    let bytes: Vec<u8> = hex
        .chunks(2)
        .map(|d| digit(d[0]) << 4 | digit(d[1]))
        .collect();
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let (src, dst, udp): (IpAddr, IpAddr, usize) = if bytes[0] >> 4 == 4 {
        let ip = |at: usize| -> [u8; 4] { bytes[at..at + 4].try_into().unwrap() };
        (
            Ipv4Addr::from(ip(12)).into(),
            Ipv4Addr::from(ip(16)).into(),
            20,
        )
    } else {
        let ip = |at: usize| -> [u8; 16] { bytes[at..at + 16].try_into().unwrap() };
        (
            Ipv6Addr::from(ip(8)).into(),
            Ipv6Addr::from(ip(24)).into(),
            40,
        )
    };
    Captured {
        src: SocketAddr::new(src, port(udp)),
        dst: SocketAddr::new(dst, port(udp + 2)),
        ident: if udp == 20 { port(4) } else { 0 },
        packet: bytes[udp + 8..].to_vec(),
    }
}

const ALL: [&str; 13] = [
    "REQ",
    "RTU",
    "SEND only",
    "READ response only",
    "ACK",
    "DREQ",
    "REP",
    "READ request",
    "WRITE only",
    "DREP",
    "REJ",
    "IPv6 REQ",
    "IPv6 SEND only",
];

#[test]
fn every_icrc_is_right_and_every_identification_found() {
    for name in ALL {
        let c = captured(name);
        let crc = FlowCrc::new(c.src, c.dst);
        assert_eq!(crc.check(0, &c.packet), Some(c.ident), "{name}");
        let mut again = c.packet.clone();
        crc.seal(c.ident, &mut again);
        assert_eq!(again, c.packet, "{name}");
    }
}

#[test]
fn packets_are_written_as_rxe_writes_them() {
    for name in ALL {
        let c = captured(name);
        let body = &c.packet[..c.packet.len() - 4];
        let packet = Packet::parse(body).unwrap();
        let mut again = packet.to_vec();
        // rxe leaves MigReq clear on some packets; adapters set it.
        again[1] = again[1] & !0x40 | body[1] & 0x40;
        assert_eq!(again, body, "{name}");
    }
}

#[test]
fn data_packets_say_what_rping_did() {
    let parse = |name: &str| captured(name);
    let c = parse("READ request");
    let packet = Packet::parse(&c.packet[..c.packet.len() - 4]).unwrap();
    assert_eq!(packet.bth.opcode, Opcode::ReadRequest);
    assert_eq!(packet.reth.unwrap().len, 100);
    let c = parse("READ response only");
    let packet = Packet::parse(&c.packet[..c.packet.len() - 4]).unwrap();
    assert!(packet.payload.starts_with(b"rdma-ping-0: "));
    assert_eq!(packet.payload.len(), 100);
    let c = parse("ACK");
    let packet = Packet::parse(&c.packet[..c.packet.len() - 4]).unwrap();
    assert_eq!(
        packet.aeth.unwrap().syndrome,
        Syndrome::Ack(Syndrome::NO_CREDITS)
    );
}

fn message(name: &str) -> (MadHeader, CmMessage, Vec<u8>) {
    let c = captured(name);
    let packet = Packet::parse(&c.packet[..c.packet.len() - 4]).unwrap();
    let (header, message) = CmMessage::parse(packet.payload).unwrap();
    assert!(!header.own, "{name}");
    (header, message, packet.payload.to_vec())
}

#[test]
fn the_request_of_rdma_cm() {
    for (name, src, dst) in [
        ("REQ", "10.0.8.1", "10.0.8.2"),
        ("IPv6 REQ", "fd00:8::1", "fd00:8::2"),
    ] {
        let (_, message, mad) = message(name);
        let CmMessage::Req(req) = message else {
            panic!("{name} is {message:?}");
        };
        // rping's port; the path MTU of a 9,000-byte link.
        assert_eq!((req.service_id, req.mtu), (service_of_port(7174), 5));
        assert_eq!(
            (req.retry_count, req.rnr_retry_count, req.pkey),
            (7, 7, 0xffff)
        );
        let cma = CmaHeader::parse(mad[CMA_AT..].first_chunk().unwrap()).unwrap();
        assert_eq!(
            (cma.src.ip().to_string(), cma.dst.to_string()),
            (src.into(), dst.into())
        );
    }
}

#[test]
fn the_rest_of_a_connection() {
    let (_, reply, _) = message("REP");
    assert!(matches!(reply, CmMessage::Rep(rep) if rep.qpn > 1 && rep.remote_comm_id != 0));
    let (_, refusal, _) = message("REJ");
    let CmMessage::Rej(rej) = refusal else {
        panic!("{refusal:?}");
    };
    assert_eq!(
        (rej.reason, rej.rejected),
        (RejReason::INVALID_SERVICE_ID, Rejected::Req)
    );
    assert!(matches!(message("RTU").1, CmMessage::Rtu(_)));
    assert!(matches!(message("DREQ").1, CmMessage::Dreq(dreq) if dreq.remote_qpn > 1));
    assert!(matches!(message("DREP").1, CmMessage::Drep(_)));
}

/// What this crate would have sent, but for its mark and for fields that say
/// nothing over Ethernet.
#[test]
fn messages_are_written_as_rdma_cm_writes_them() {
    for name in ["REQ", "REP", "REJ", "RTU", "DREQ", "DREP"] {
        let (header, message, mad) = message(name);
        let mut ours = message.emit(header.tid);
        ours[18..20].fill(0);
        let differ: Vec<usize> = (0..ours.len()).filter(|i| ours[*i] != mad[*i]).collect();
        let known: &[usize] = match name {
            // The flow label, which nobody needs.
            "REQ" => &[112, 113, 114],
            // End-to-end flow control and fail-over are not offered.
            "REP" => &[50],
            _ => &[],
        };
        assert!(
            differ.iter().all(|i| known.contains(i)),
            "{name}: {differ:?}"
        );
        let mut packet = vec![0; super::mad::MAD_PACKET_LEN];
        let c = captured(name);
        let psn = Packet::parse(&c.packet[..c.packet.len() - 4])
            .unwrap()
            .bth
            .psn;
        emit_packet(psn, mad[..].try_into().unwrap(), &mut packet);
        // rxe asks for acknowledgements even of datagrams.
        packet[1] = c.packet[1];
        packet[8] = c.packet[8];
        assert_eq!(packet, c.packet[..c.packet.len() - 4], "{name}");
    }
}
