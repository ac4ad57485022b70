//! Golden bytes laid out by hand from the specification's offsets, round trips,
//! and no panic on any bytes.

use super::*;
use proptest::prelude::*;

#[test]
fn bth_golden() {
    let bth = Bth {
        opcode: Opcode::SendOnlyImm,
        solicited: true,
        pad: 3,
        pkey: 0xffff,
        dest_qpn: 0x01_02_03,
        ack_req: true,
        psn: 0xfa_fb_fc,
    };
    let bytes = [0x05, 0xf0, 0xff, 0xff, 0, 1, 2, 3, 0x80, 0xfa, 0xfb, 0xfc];
    let mut out = [0xaa; 12];
    bth.emit(&mut out);
    assert_eq!(out, bytes);
    assert_eq!(Bth::parse(&bytes), Ok(bth));
    assert_eq!(Bth::peek_dest_qpn(&bytes), Ok(0x01_02_03));
}

#[test]
fn write_only_imm_golden() {
    // BTH, RETH, ImmDt, two bytes of payload, two of pad.
    let mut bth = Bth::new(Opcode::WriteOnlyImm, 0x11, 0x22);
    bth.pad = 2;
    let packet = Packet {
        reth: Some(Reth {
            va: 0x0102_0304_0506_0708,
            rkey: 0x090a_0b0c,
            len: 2,
        }),
        imm: Some(ImmDt(0xdead_beef)),
        payload: &[0x61, 0x62],
        ..Packet::new(bth)
    };
    let bytes = [
        0x0b, 0x60, 0xff, 0xff, 0, 0, 0, 0x11, 0, 0, 0, 0x22, // BTH
        1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 0, 2, // RETH
        0xde, 0xad, 0xbe, 0xef, 0x61, 0x62, 0, 0,
    ];
    assert_eq!(packet.to_vec(), bytes);
    assert_eq!(Packet::parse(&bytes), Ok(packet));
}

#[test]
fn syndromes_of_the_specification() {
    for (byte, syndrome) in [
        (0x1f, Syndrome::Ack(Syndrome::NO_CREDITS)),
        (0x2e, Syndrome::Rnr(14)),
        (0x60, Syndrome::Nak(NakCode::SequenceError)),
        (0x61, Syndrome::Nak(NakCode::InvalidRequest)),
        (0x62, Syndrome::Nak(NakCode::RemoteAccess)),
        (0x63, Syndrome::Nak(NakCode::RemoteOperation)),
    ] {
        assert_eq!(Syndrome::from_byte(byte), Ok(syndrome));
        assert_eq!(syndrome.to_byte(), byte);
    }
    assert_eq!(Syndrome::from_byte(0x40), Err(ParseError::Syndrome(0x40)));
    assert_eq!(Syndrome::from_byte(0x65), Err(ParseError::Syndrome(0x65)));
}

#[test]
fn rnr_times_of_the_specification() {
    assert_eq!(aeth::rnr_nanos(0), 655_360_000);
    assert_eq!(aeth::rnr_nanos(1), 10_000);
    assert_eq!(aeth::rnr_nanos(14), 1_280_000);
    assert_eq!(aeth::rnr_nanos(31), 491_520_000);
}

#[test]
fn every_byte_is_an_opcode_or_refused() {
    for byte in 0..=u8::MAX {
        match Opcode::from_byte(byte) {
            Ok(op) => assert_eq!(op as u8, byte),
            Err(why) => {
                assert_eq!(why, ParseError::Opcode(byte));
                assert!(Opcode::ALL.iter().all(|op| *op as u8 != byte));
            }
        }
    }
}

#[test]
fn refusals_say_why() {
    let mut bytes = Packet::new(Bth::new(Opcode::Ack, 1, 2)).to_vec();
    assert_eq!(
        Packet::parse(&bytes[..12]),
        Err(ParseError::Truncated {
            what: "AETH",
            need: 4,
            have: 0
        })
    );
    assert_eq!(Packet::parse(&bytes[..15]), Err(ParseError::Unaligned(15)));
    bytes[1] |= 0x30;
    assert_eq!(
        Packet::parse(&bytes),
        Err(ParseError::Pad { pad: 3, have: 0 })
    );
    bytes[1] = 0x41;
    assert_eq!(Packet::parse(&bytes), Err(ParseError::TransportVersion(1)));
}

prop_compose! {
    fn any_packet()(
        op in 0..Opcode::ALL.len(), solicited: bool, pkey: u16, dest_qpn in 0..=MAX_24,
        ack_req: bool, psn in 0..=MAX_24, va: u64, key: u32, len: u32, imm: u32,
        src_qpn in 0..=MAX_24, credits in 0..32u8, msn in 0..=MAX_24,
    ) -> Packet<'static> {
        let opcode = Opcode::ALL[op];
        let bth = Bth { opcode, solicited, pad: 0, pkey, dest_qpn, ack_req, psn };
        Packet {
            bth,
            deth: opcode.has_deth().then_some(Deth { qkey: key, src_qpn }),
            reth: opcode.has_reth().then_some(Reth { va, rkey: key, len }),
            aeth: opcode.has_aeth().then_some(Aeth { syndrome: Syndrome::Ack(credits), msn }),
            imm: opcode.has_imm().then_some(ImmDt(imm)),
            ieth: opcode.has_ieth().then_some(Ieth(key)),
            payload: &[],
        }
    }
}

proptest! {
    #[test]
    fn packets_come_back(mut packet in any_packet(), payload: Vec<u8>) {
        packet.bth.pad = pad_of(payload.len());
        let packet = Packet { payload: &payload, ..packet };
        let bytes = packet.to_vec();
        prop_assert_eq!(bytes.len() % 4, 0);
        prop_assert_eq!(Packet::parse(&bytes), Ok(packet));
    }

    #[test]
    fn no_bytes_panic(bytes: Vec<u8>, op in 0..Opcode::ALL.len(), with_op: bool) {
        let mut bytes = bytes;
        if with_op && bytes.len() > 1 {
            bytes[0] = Opcode::ALL[op] as u8;
            bytes[1] &= 0xf0;
        }
        let _ = Packet::parse(&bytes);
    }
}
