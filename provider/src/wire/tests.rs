use proptest::prelude::*;

use super::*;

const HELLO: Hello = Hello {
    features: Features {
        rdma_read: true,
        send_with_invalidate: false,
        moving: false,
        layer: 0,
    },
    credits: 2,
    max_message_size: 4096,
    max_rdma_size: 0x0010_0000,
    session: Session::with_id(0x0102_0304_0506_0708).secret([0xa5; 16]),
};

#[rustfmt::skip]
const HELLO_BYTES: [u8; 56] = [
    b'S', b'A', b'N', b'D', 1, 1, 0, 56,
    0, 0, 0, 1, 0, 2, 0, 0,
    0, 0, 0x10, 0, 0, 0x10, 0, 0,
    1, 2, 3, 4, 5, 6, 7, 8,
    0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5,
    0, 0, 0, 0, 0, 0, 0, 0,
];

#[rustfmt::skip]
const REFUSAL_BYTES: [u8; 24] = [
    b'S', b'A', b'N', b'D', 1, 3, 0, 24,
    0, 1, 1, 1, 0, 0, 0x10, 0,
    0, 0, 0, 0, 0, 0, 0, 0,
];

fn padded<const N: usize>(message: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out[..message.len()].copy_from_slice(message);
    out
}

#[test]
fn request_and_reply_are_these_bytes() {
    assert_eq!(HELLO.emit(HelloKind::Request), HELLO_BYTES);
    assert_eq!(Hello::parse(HelloKind::Request, &HELLO_BYTES), Ok(HELLO));
    let mut reply = HELLO_BYTES;
    reply[5] = 2;
    assert_eq!(HELLO.emit(HelloKind::Reply), reply);
    // As it is delivered: padded to the size of the field in the CM message.
    assert_eq!(
        Hello::parse(HelloKind::Reply, &padded::<196>(&reply)),
        Ok(HELLO)
    );
}

#[test]
fn a_session_is_these_bytes() {
    let session = HELLO.session.purpose(1).flags(2).tcp_port(0x1f90);
    let hello = Hello {
        session: session.generation(0x0304),
        ..HELLO
    };
    let mut bytes = HELLO_BYTES;
    bytes[48..].copy_from_slice(&[1, 2, 0x1f, 0x90, 3, 4, 0, 0]);
    assert_eq!(hello.emit(HelloKind::Request), bytes);
    assert_eq!(Hello::parse(HelloKind::Request, &bytes), Ok(hello));
}

#[test]
fn refusals_are_these_bytes() {
    let refusal = Refusal::new(RefusalReason::BacklogFull, 4096);
    assert_eq!(refusal.emit(), REFUSAL_BYTES);
    assert_eq!(Refusal::parse(&padded::<148>(&REFUSAL_BYTES)), Ok(refusal));
}

#[test]
fn a_refusal_of_any_version_is_read() {
    let mut bytes = REFUSAL_BYTES;
    bytes[4] = 9;
    bytes[9] = 4;
    bytes[10] = 7;
    bytes[11] = 9;
    let refusal = Refusal::parse(&bytes).unwrap();
    assert_eq!(refusal.reason, RefusalReason::Version);
    assert_eq!((refusal.lowest_version, refusal.highest_version), (7, 9));
}

#[test]
fn every_reason_has_its_number() {
    for n in 0u16..=11 {
        let mut bytes = REFUSAL_BYTES;
        bytes[8..10].copy_from_slice(&n.to_be_bytes());
        assert_eq!(Refusal::parse(&bytes).unwrap().reason.number(), n);
    }
}

#[test]
fn what_is_wrong_with_a_request_is_said() {
    let parse = |bytes: &[u8]| Hello::parse(HelloKind::Request, bytes).unwrap_err();
    let with = |at: usize, value: u8| {
        let mut bytes = HELLO_BYTES;
        bytes[at] = value;
        parse(&bytes)
    };
    assert_eq!(parse(&[]), Malformed::TooShort(0));
    assert_eq!(parse(&HELLO_BYTES[..7]), Malformed::TooShort(7));
    assert_eq!(parse(&[0; 56]), Malformed::Magic);
    assert_eq!(with(4, 2), Malformed::Version(2));
    assert_eq!(with(5, 2), Malformed::Kind(2));
    assert_eq!(
        with(7, 57),
        Malformed::Length {
            inside: 57,
            delivered: 56
        }
    );
    assert_eq!(
        with(7, 55),
        Malformed::Length {
            inside: 55,
            delivered: 56
        }
    );
    assert_eq!(
        parse(&HELLO_BYTES[..55]),
        Malformed::Length {
            inside: 56,
            delivered: 55
        }
    );
    assert_eq!(with(14, 1), Malformed::Field("reserved"));
    assert_eq!(with(54, 1), Malformed::Field("reserved"));
    assert_eq!(with(55, 1), Malformed::Field("reserved"));
    assert_eq!(with(13, 0), Malformed::Field("receive credits"));
    let mut small = HELLO_BYTES;
    small[16..20].copy_from_slice(&63u32.to_be_bytes());
    assert_eq!(parse(&small), Malformed::Field("max message size"));
}

#[test]
fn unknown_features_are_ignored() {
    let mut bytes = HELLO_BYTES;
    bytes[8..12].copy_from_slice(&0xffff_fffe_u32.to_be_bytes());
    let features = Hello::parse(HelloKind::Request, &bytes).unwrap().features;
    assert_eq!(
        features,
        Features {
            rdma_read: false,
            send_with_invalidate: true,
            moving: true,
            layer: 0xff,
        }
    );
}

#[test]
fn immediate_data_is_these_bits() {
    let data = Immediate {
        message: MessageType::Data,
        credits: 0xabc,
        kind: 0xde,
    };
    assert_eq!(data.emit(), 0x1abc_de00);
    assert_eq!(Immediate::parse(0x1abc_de00), Ok(data));
    let credit = Immediate {
        message: MessageType::Credit,
        credits: 1,
        kind: 0,
    };
    assert_eq!(credit.emit(), 0x2001_0000);
    assert_eq!(Immediate::parse(0x2001_0000), Ok(credit));
}

#[test]
fn what_is_wrong_with_immediate_data_is_said() {
    assert_eq!(Immediate::parse(0), Err(Violation::Type(0)));
    assert_eq!(Immediate::parse(0x4000_0000), Err(Violation::Type(4)));
    assert_eq!(
        Immediate::parse(0x1000_0001),
        Err(Violation::Reserved(0x1000_0001))
    );
    assert_eq!(Immediate::parse(0x2000_0000), Err(Violation::CreditMessage));
    assert_eq!(Immediate::parse(0x2001_0100), Err(Violation::CreditMessage));
    for no_move in [0x3000_0000, 0x3000_0400, 0x3001_0100, 0x3fff_0200] {
        assert_eq!(Immediate::parse(no_move), Err(Violation::Move));
    }
}

#[test]
fn messages_about_moving_are_these_bits() {
    for (kind, bits) in [
        (Immediate::ASK, 0x3000_0100),
        (Immediate::YES, 0x3000_0200),
        (Immediate::NO, 0x3000_0300),
    ] {
        let message = Immediate::about_moving(kind);
        assert_eq!(message.emit(), bits);
        assert_eq!(Immediate::parse(bits), Ok(message));
    }
}

const RESUMPTION: Resumption = Resumption {
    port: 0x1f90,
    session_id: 0x0102_0304_0506_0708,
    secret: [0xa5; 16],
};

#[rustfmt::skip]
const RESUMPTION_BYTES: [u8; 40] = [
    b'S', b'A', b'N', b'D', 1, 5, 0, 40,
    0x1f, 0x90, 0, 0, 0, 0, 0, 0,
    1, 2, 3, 4, 5, 6, 7, 8,
    0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5,
];

#[test]
fn the_answer_to_a_move_is_these_bytes() {
    assert_eq!(RESUMPTION.emit(), RESUMPTION_BYTES);
    assert_eq!(Resumption::parse(&RESUMPTION_BYTES), Ok(RESUMPTION));
    let shown = format!("{RESUMPTION:?}");
    assert!(!shown.contains("165"), "{shown}");
}

#[test]
fn an_answer_that_means_nothing_is_refused() {
    for length in 0..RESUMPTION_BYTES.len() {
        assert!(Resumption::parse(&RESUMPTION_BYTES[..length]).is_err());
    }
    assert!(Resumption::parse(&padded::<41>(&RESUMPTION_BYTES)).is_err());
    let bad = |range: std::ops::Range<usize>, value: u8| {
        let mut bytes = RESUMPTION_BYTES;
        bytes[range].fill(value);
        Resumption::parse(&bytes).unwrap_err()
    };
    assert_eq!(bad(0..1, b'X'), Malformed::Magic);
    assert_eq!(bad(4..5, 2), Malformed::Version(2));
    assert_eq!(bad(5..6, 4), Malformed::Kind(4));
    assert_eq!(bad(8..10, 0), Malformed::Field("port"));
    assert_eq!(bad(15..16, 1), Malformed::Field("reserved"));
    assert_eq!(bad(16..24, 0), Malformed::Field("session id"));
}

#[test]
fn only_the_session_with_its_secret_is_admitted() {
    let Resumption {
        session_id, secret, ..
    } = RESUMPTION;
    let right = RESUMPTION.session();
    assert_eq!(right, Session::with_id(session_id).secret(secret));
    assert!(RESUMPTION.admits(&right));
    assert!(!RESUMPTION.admits(&Session::with_id(session_id + 1).secret(secret)));
    assert!(!RESUMPTION.admits(&right.purpose(1)));
    for at in 0..secret.len() {
        let mut wrong = secret;
        wrong[at] ^= 1;
        assert!(!RESUMPTION.admits(&right.secret(wrong)), "{at}");
    }
}

#[test]
fn a_secret_is_not_printed() {
    assert!(!format!("{HELLO:?}").contains("165"));
}

proptest! {
    #[test]
    fn a_data_message_is_read_in_two_ways(bits in any::<u32>(), nearly in any::<bool>()) {
        let bits = if nearly { bits & 0x0fff_ff01 | 0x1000_0000 } else { bits };
        let data = match Immediate::parse(bits) {
            Ok(Immediate { message: MessageType::Data, credits, kind }) => Some((credits, kind)),
            _ => None,
        };
        prop_assert_eq!(Immediate::parse_data(bits), data);
    }

    #[test]
    fn bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let _ = Hello::parse(HelloKind::Request, &bytes);
        let _ = Hello::parse(HelloKind::Reply, &bytes);
        let _ = Refusal::parse(&bytes);
        let _ = Resumption::parse(&bytes);
    }

    // Random bytes hardly ever get past the head.
    #[test]
    fn bytes_behind_a_good_head_never_panic(
        kind in 0u8..6, length in 0u16..260, tail in proptest::collection::vec(any::<u8>(), 0..248)
    ) {
        let mut bytes = b"SAND\x01".to_vec();
        bytes.push(kind);
        bytes.extend(length.to_be_bytes());
        bytes.extend(tail);
        if let Ok(hello) = Hello::parse(HelloKind::Request, &bytes) {
            prop_assert_eq!(Hello::parse(HelloKind::Request, &hello.emit(HelloKind::Request)), Ok(hello));
        }
        if let Ok(refusal) = Refusal::parse(&bytes) {
            prop_assert_eq!(Refusal::parse(&refusal.emit()), Ok(refusal));
        }
        if let Ok(answer) = Resumption::parse(&bytes) {
            prop_assert_eq!(Resumption::parse(&answer.emit()), Ok(answer));
        }
    }

    #[test]
    fn hellos_come_back(
        read: bool, inval: bool, moving: bool, layer: u8, credits in 1u16.., message in 64u32.., rdma: u32, id: u64, secret: [u8; 16],
        purpose: u8, flags: u8, tcp_port: u16, generation: u16,
    ) {
        let session = Session { id, secret, purpose, flags, tcp_port, generation };
        let hello = Hello {
            features: Features { rdma_read: read, send_with_invalidate: inval, moving, layer },
            credits, max_message_size: message, max_rdma_size: rdma, session,
        };
        prop_assert_eq!(Hello::parse(HelloKind::Reply, &hello.emit(HelloKind::Reply)), Ok(hello));
    }

    #[test]
    fn immediate_data_comes_back(imm: u32) {
        if let Ok(parsed) = Immediate::parse(imm) {
            prop_assert_eq!(parsed.emit(), imm);
        }
    }
}
