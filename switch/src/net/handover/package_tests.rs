//! What goes is what comes, and anything else is refused.

use std::net::TcpListener;

use super::*;

fn package() -> Package {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    Package {
        head: Head {
            local: socket.local_addr().unwrap(),
            what: What::Tcp {
                peer: socket.local_addr().unwrap(),
                has_ended: true,
                waits: None,
            },
        },
        bytes: RecordBytes {
            kept: KeptBytes {
                landed: vec![1; 300_000],
                staged: vec![2; 20],
            },
            peeked: vec![3; 5],
            duplicate: Vec::new(),
        },
        fd: socket.into(),
    }
}

fn sent() -> Vec<u8> {
    let (here, mut there) = UnixStream::pair().unwrap();
    let package = package();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        there.read_to_end(&mut bytes).unwrap();
        bytes
    });
    send(&here, &package).unwrap();
    drop(here);
    reader.join().unwrap()
}

#[test]
fn a_package_arrives_with_its_descriptor() {
    let (here, there) = UnixStream::pair().unwrap();
    let sender = std::thread::spawn(move || send(&here, &package()).unwrap());
    let came = receive(&there).unwrap();
    sender.join().unwrap();
    let listener = TcpListener::from(came.fd);
    assert_eq!(listener.local_addr().unwrap(), came.head.local);
    assert!(matches!(
        came.head.what,
        What::Tcp {
            has_ended: true,
            ..
        }
    ));
    assert_eq!(came.bytes.kept.landed, vec![1; 300_000]);
    assert_eq!(came.bytes.kept.staged, vec![2; 20]);
    assert_eq!(came.bytes.peeked, vec![3; 5]);
}

#[test]
fn a_refusal_is_its_error() {
    let (here, there) = UnixStream::pair().unwrap();
    refuse(&here, Errno::BUSY.raw_os_error()).unwrap();
    let error = receive(&there).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceBusy);
}

/// What comes of these bytes, with a descriptor.
fn comes(bytes: &[u8]) -> io::Result<()> {
    let (mut here, there) = UnixStream::pair().unwrap();
    let fd = OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = [fd.as_fd()];
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let first = [IoSlice::new(&bytes[..1])];
        sendmsg(&here, &first, &mut control, SendFlags::NOSIGNAL).unwrap();
        drop(here.write_all(&bytes[1..]));
    });
    let came = receive(&there).map(drop);
    drop(there);
    writer.join().unwrap();
    came
}

#[test]
fn nothing_else_is_taken() {
    let good = sent();
    comes(&good).unwrap();
    for length in (1..FRONT + 60).chain([good.len() - 1]) {
        assert!(comes(&good[..length]).is_err(), "{length}");
    }
    for at in (0..8).chain(FRONT..FRONT + 60) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x81;
        assert!(comes(&bytes).is_err(), "{at}");
    }
    for at in (8..FRONT).step_by(4) {
        let mut bytes = good.clone();
        bytes[at] = 0x7f;
        assert!(comes(&bytes).is_err(), "a length of gigabytes at {at}");
    }
    // The right bytes without the descriptor.
    let (mut here, there) = UnixStream::pair().unwrap();
    let writer = std::thread::spawn(move || here.write_all(&good));
    assert!(receive(&there).is_err());
    writer.join().unwrap().unwrap();
}
