use proptest::prelude::*;

use super::*;

fn contents(local: &str, peer: &str) -> Contents {
    Contents {
        source: Process { pid: 7, start: 8 },
        number: 9,
        target: Process { pid: 10, start: 11 },
        options: Options {
            reuse_addr: true,
            v6_only: false,
            tos: Some(32),
            rdma_threshold: Some(65_536),
        },
        local: local.parse().unwrap(),
        peer: peer.parse().unwrap(),
        resumption: Resumption {
            port: 12,
            session_id: 13,
            secret: [0x5e; 16],
        },
        messages: vec![
            Carried {
                kind: 0,
                bytes: Box::from(*b"first"),
            },
            Carried {
                kind: 255,
                bytes: Box::from([]),
            },
        ],
    }
}

#[test]
fn what_is_written_is_read() {
    for (local, peer) in [
        ("10.0.7.1:80", "10.0.7.2:40000"),
        ("[fd00:7::1]:80", "[fd00:7::2]:40000"),
        ("[fe80::1%3]:80", "[fe80::2%3]:40000"),
    ] {
        let written = Duplicate::of(contents(local, peer));
        let read = Duplicate::from_bytes(written.as_bytes()).unwrap();
        assert!(read.contents == written.contents);
        assert_eq!((read.id(), read.target()), ((7, 8, 9), 10));
        assert_eq!(read.as_bytes(), written.as_bytes());
    }
}

#[test]
fn every_truncation_and_every_addition_is_refused() {
    let bytes = contents("10.0.7.1:80", "10.0.7.2:40000").emit();
    for length in 0..bytes.len() {
        assert!(Duplicate::from_bytes(&bytes[..length]).is_err(), "{length}");
        // The length inside is made to fit, too.
        let mut short = bytes[..length].to_vec();
        if length >= 12 {
            short[8..12].copy_from_slice(&length_of(length).to_be_bytes());
        }
        assert!(Duplicate::from_bytes(&short).is_err(), "{length}");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(Duplicate::from_bytes(&longer).is_err());
}

#[test]
fn bytes_that_mean_nothing_are_refused() {
    let bytes = contents("10.0.7.1:80", "10.0.7.2:40000").emit();
    let bad = |at: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = value;
        Duplicate::from_bytes(&bytes).unwrap_err()
    };
    assert_eq!(bad(0, b'T'), BadDuplicate::Magic);
    assert_eq!(bad(4, 2), BadDuplicate::Version(2));
    assert_eq!(bad(5, 1), BadDuplicate::Field("reserved"));
    assert_eq!(bad(11, 0), BadDuplicate::Field("length"));
    assert_eq!(bad(13, 1), BadDuplicate::Field("messages"));
    assert_eq!(bad(48, 16), BadDuplicate::Field("options"));
    assert_eq!(bad(57, 5), BadDuplicate::Field("address"));
    assert_eq!(bad(64, 224), BadDuplicate::Field("address"));
    assert_eq!(bad(81, 6), BadDuplicate::Field("family"));
    assert!(matches!(bad(104, 0), BadDuplicate::Resumption(_)));
    assert_eq!(bad(145, 1), BadDuplicate::Field("length of a message"));
}

#[test]
fn the_secret_is_not_shown() {
    let shown = format!("{:?}", Duplicate::of(contents("10.0.7.1:80", "10.0.7.2:4")));
    assert!(!shown.contains("94") && !shown.contains("5e"), "{shown}");
}

proptest! {
    #[test]
    fn flipped_bytes_never_panic(at in 0_usize..160, flip in 1_u8..=255) {
        let mut bytes = contents("10.0.7.1:80", "10.0.7.2:40000").emit();
        let at = at % bytes.len();
        bytes[at] ^= flip;
        // What is still a duplicate says the same again.
        if let Ok(read) = Duplicate::from_bytes(&bytes) {
            prop_assert_eq!(read.contents.emit(), bytes);
        }
    }

    #[test]
    fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Duplicate::from_bytes(&bytes);
    }
}

#[test]
fn wsd_117_a_process_is_itself_and_no_other() {
    let this = Process::this().unwrap();
    assert_eq!(this.pid, std::process::id());
    assert_eq!(Process::with_pid(this.pid), Some(this));
    assert_ne!(Process::with_pid(1), Some(this));
    assert_eq!(Process::with_pid(u32::MAX), None);
}
