//! Golden bytes laid out from the offsets of IBTA 12.6, round trips, and no
//! panic on any bytes.

use super::*;
use crate::wire::mad;
use proptest::prelude::*;
use std::net::IpAddr;

fn req() -> Req {
    let cma = CmaHeader {
        src: "10.0.7.2:40000".parse().unwrap(),
        dst: [10, 0, 7, 1].into(),
    };
    let mut private_data = [0; 92];
    private_data[..36].copy_from_slice(&cma.emit());
    private_data[36] = 0x77;
    Req {
        local_comm_id: 0x0102_0304,
        service_id: service_of_port(7471),
        ca_guid: 0x1122_3344_5566_7788,
        extension: 0x0910_1112,
        qpn: 0x00ab_cdef,
        responder_resources: 4,
        initiator_depth: 5,
        remote_response_timeout: 20,
        flow_control: true,
        starting_psn: 0x0012_3456,
        local_response_timeout: 18,
        retry_count: 6,
        pkey: 0xffff,
        mtu: 5,
        rnr_retry_count: 7,
        max_cm_retries: 15,
        srq: true,
        local_gid: Req::gid([10, 0, 7, 2].into()),
        remote_gid: Req::gid([10, 0, 7, 1].into()),
        traffic_class: 0,
        hop_limit: 64,
        ack_timeout: 14,
        private_data,
    }
}

#[test]
fn req_golden() {
    let mut want = [0; MAD_LEN];
    for (at, bytes) in [
        (0, &[1, 7, 2, 3][..]),
        (8, &[0, 0, 0, 0, 0, 0, 0, 9]),
        (16, &[0, 0x10, b'S', b'D']),
        (24, &[1, 2, 3, 4]),
        (32, &[0, 0, 0, 0, 1, 6, 0x1d, 0x2f]),
        (40, &[0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]),
        (48, &[9, 16, 17, 18]),
        (56, &[0xab, 0xcd, 0xef, 4]),
        (63, &[5]),
        (
            67,
            &[20 << 3 | 1, 0x12, 0x34, 0x56, 18 << 3 | 6, 0xff, 0xff],
        ),
        (74, &[0x57, 0xf8, 0xff, 0xff, 0xff, 0xff]),
        (80, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 7, 2]),
        (96, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 7, 1]),
        (117, &[64, 0, 14 << 3]),
        (164, &[0, 0x40, 0x9c, 0x40]),
        (180, &[10, 0, 7, 2]),
        (196, &[10, 0, 7, 1, 0x77]),
    ] {
        want[at..at + bytes.len()].copy_from_slice(bytes);
    }
    assert_eq!(CmMessage::Req(req()).emit(9), want);
    let (header, message) = CmMessage::parse(&want).unwrap();
    assert_eq!(
        header,
        MadHeader {
            tid: 9,
            attribute: 0x10,
            own: true
        }
    );
    assert_eq!(message, CmMessage::Req(req()));
}

#[test]
fn rej_and_mra_golden() {
    let mut rej = Rej::new(0, 7, Rejected::Other, RejReason::CONSUMER_DEFINED);
    rej.private_data[0] = 0x55;
    let bytes = CmMessage::Rej(rej).emit(1);
    assert_eq!(bytes[16..18], [0, 0x12]);
    assert_eq!(bytes[24..36], [0, 0, 0, 0, 0, 0, 0, 7, 0x80, 0, 0, 28]);
    assert_eq!(bytes[108], 0x55);
    let mra = Mra {
        local_comm_id: 1,
        remote_comm_id: 2,
        message: Rejected::Rep,
        service_timeout: 24,
        private_data: [0; 222],
    };
    let bytes = CmMessage::Mra(mra).emit(1);
    assert_eq!(bytes[24..35], [0, 0, 0, 1, 0, 0, 0, 2, 0x40, 24 << 3, 0]);
}

#[test]
fn rep_rtu_dreq_drep_golden() {
    let rep = Rep {
        local_comm_id: 0x0a0b_0c0d,
        remote_comm_id: 0x0102_0304,
        qpn: 0x11,
        extension: 0x0203_0405,
        starting_psn: 0x22,
        responder_resources: 3,
        initiator_depth: 2,
        target_ack_delay: 15,
        flow_control: true,
        rnr_retry_count: 7,
        srq: true,
        ca_guid: 5,
        private_data: padded(&[0xee]),
    };
    let bytes = CmMessage::Rep(rep).emit(1);
    assert_eq!(bytes[16..18], [0, 0x13]);
    assert_eq!(bytes[24..32], [10, 11, 12, 13, 1, 2, 3, 4]);
    assert_eq!(bytes[36..39], [0, 0, 0x11]);
    assert_eq!(
        bytes[40..52],
        [2, 3, 4, 5, 0, 0, 0x22, 0, 3, 2, 15 << 3 | 2 | 1, 0xf0]
    );
    assert_eq!(bytes[59..61], [5, 0xee]);
    let bytes = CmMessage::Rtu(Rtu::new(1, 2)).emit(1);
    assert_eq!(
        (bytes[17], &bytes[24..33]),
        (0x14, &[0, 0, 0, 1, 0, 0, 0, 2, 0][..])
    );
    let dreq = Dreq {
        local_comm_id: 1,
        remote_comm_id: 2,
        remote_qpn: 3,
        private_data: [9; 220],
    };
    let bytes = CmMessage::Dreq(dreq).emit(1);
    assert_eq!((bytes[17], &bytes[32..37]), (0x15, &[0, 0, 3, 0, 9][..]));
    let bytes = CmMessage::Drep(Drep::new(1, 2)).emit(1);
    assert_eq!(
        (bytes[17], &bytes[24..32]),
        (0x16, &[0, 0, 0, 1, 0, 0, 0, 2][..])
    );
}

#[test]
fn refusals_say_why() {
    let mut bytes = CmMessage::Req(req()).emit(1);
    bytes[67] = 2 << 1; // any transport but RC
    let field = |what, field, value| Err(ParseError::Field { what, field, value });
    assert_eq!(CmMessage::parse(&bytes), field("REQ", "transport", 2));
    bytes[67] = 0;
    bytes[74] = 0x60;
    assert_eq!(CmMessage::parse(&bytes), field("REQ", "MTU", 6));
    bytes[17] = 0x17;
    assert_eq!(CmMessage::parse(&bytes), field("MAD", "attribute", 0x17));
    bytes[2] = 1;
    assert_eq!(CmMessage::parse(&bytes), field("MAD", "class version", 1));
    assert_eq!(
        CmMessage::parse(&bytes[..255]),
        Err(ParseError::Truncated {
            what: "MAD",
            need: 256,
            have: 255
        })
    );
    let mut cma = [0; 36];
    assert_eq!(
        CmaHeader::parse(&cma).unwrap_err().to_string(),
        "CMA header: IP version is 0x0"
    );
    cma[0] = 0x10;
    assert_eq!(
        CmaHeader::parse(&cma).unwrap_err().to_string(),
        "CMA header: version is 0x10"
    );
}

#[test]
fn services_of_the_tcp_port_space() {
    assert_eq!(service_of_port(7471), 0x0000_0000_0106_1d2f);
    assert_eq!(port_of_service(0x0106_1d2f), Some(7471));
    assert_eq!(port_of_service(0x0111_1d2f), None);
    assert_eq!(port_of_service(0x1_0106_1d2f), None);
}

proptest! {
    #[test]
    fn cma_comes_back(v6: bool, a: [u8; 16], b: [u8; 16], port: u16) {
        let ip = |x: [u8; 16]| -> IpAddr {
            // First byte set: no IPv4-mapped address by chance.
            if v6 { let mut x = x; x[0] = 0x20; x.into() } else { [x[0], x[1], x[2], x[3]].into() }
        };
        let cma = CmaHeader { src: (ip(a), port).into(), dst: ip(b) };
        prop_assert_eq!(CmaHeader::parse(&cma.emit()), Ok(cma));
    }

    /// What parses is written back to bytes that parse to the same: nothing
    /// that is read is lost.
    #[test]
    fn messages_come_back(bytes in prop::collection::vec(any::<u8>(), MAD_LEN), attr in 0x10..0x17u8) {
        let mut bytes = bytes;
        bytes[..4].copy_from_slice(&[1, 7, 2, 3]);
        bytes[16] = 0;
        bytes[17] = attr;
        if let Ok((header, message)) = CmMessage::parse(&bytes) {
            let again = message.emit(header.tid);
            let header = MadHeader { own: true, ..header };
            prop_assert_eq!(CmMessage::parse(&again), Ok((header, message)));
        } else {
            prop_assert_eq!(attr, 0x10);
        }
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        let _ = CmMessage::parse(&bytes);
    }
}

#[test]
fn a_packet_around_a_mad() {
    let mad = CmMessage::Rtu(Rtu::new(1, 2)).emit(3);
    let mut out = [0; mad::MAD_PACKET_LEN];
    mad::emit_packet(5, &mad, &mut out);
    assert_eq!(
        out[..20],
        [
            0x64, 0x40, 0xff, 0xff, 0, 0, 0, 1, 0, 0, 0, 5, 0x80, 1, 0, 0, 0, 0, 0, 1
        ]
    );
    assert_eq!(out[20..], mad);
}
