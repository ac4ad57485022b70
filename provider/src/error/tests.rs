use std::collections::HashSet;

use super::*;

#[test]
fn every_row_is_its_own() {
    let mut numbers = HashSet::new();
    let mut names = HashSet::new();
    for code in WsaCode::ALL {
        assert!(numbers.insert(code.number()), "{code}: number twice");
        assert!(names.insert(code.name()), "{code}: name twice");
        assert!(code.errno() > 0);
        assert!(!code.text().ends_with('.'));
        assert_eq!(WsaCode::from_number(code.number()), Some(*code));
    }
    assert_eq!(WsaCode::from_number(0), None);
    assert!(
        WsaCode::ALL
            .windows(2)
            .all(|w| w[0].number() < w[1].number())
    );
}

// The numbers of winsock2.h and of Linux, written down a second time.
#[test]
fn the_numbers_are_those_of_the_systems() {
    let known = [
        (WsaCode::OperationAborted, 995, 125),
        (WsaCode::IoIncomplete, 996, 11),
        (WsaCode::IoPending, 997, 115),
        (WsaCode::Fault, 10014, 14),
        (WsaCode::Invalid, 10022, 22),
        (WsaCode::TooManySockets, 10024, 24),
        (WsaCode::WouldBlock, 10035, 11),
        (WsaCode::Already, 10037, 114),
        (WsaCode::NotSocket, 10038, 88),
        (WsaCode::MessageSize, 10040, 90),
        (WsaCode::OpNotSupported, 10045, 95),
        (WsaCode::AddrNotAvailable, 10049, 99),
        (WsaCode::NetDown, 10050, 100),
        (WsaCode::ConnReset, 10054, 104),
        (WsaCode::NoBuffers, 10055, 105),
        (WsaCode::IsConnected, 10056, 106),
        (WsaCode::NotConnected, 10057, 107),
        (WsaCode::TimedOut, 10060, 110),
        (WsaCode::ConnRefused, 10061, 111),
        (WsaCode::HostUnreachable, 10065, 113),
        (WsaCode::NotInitialised, 10093, 6),
    ];
    for (code, number, errno) in known {
        assert_eq!((code.number(), code.errno()), (number, errno), "{code}");
    }
}

#[test]
fn system_errors_get_a_code() {
    let errno = |e: Errno| WsaCode::from_errno(e.raw_os_error());
    assert_eq!(errno(Errno::NOMEM), WsaCode::NoBuffers);
    assert_eq!(errno(Errno::AGAIN), WsaCode::WouldBlock);
    assert_eq!(errno(Errno::CONNREFUSED), WsaCode::ConnRefused);
    assert_eq!(errno(Errno::NODEV), WsaCode::NetDown);
    // Duties 69 and 77: neither bind nor listen says EADDRINUSE.
    assert_eq!(errno(Errno::ADDRINUSE), WsaCode::AddrNotAvailable);
    assert_eq!(WsaCode::from_errno(-1), WsaCode::Invalid);
    assert_eq!(WsaCode::from_errno(100_000), WsaCode::Invalid);
}

// Duties 21 and 73.
#[test]
fn only_three_codes_are_final_for_connect() {
    use ConnectFailure as F;
    let refused = [F::BacklogFull { backlog: 4 }, F::RejectedByPeer];
    for failure in refused {
        let error = ConnectError::from(failure);
        assert_eq!(error.code(), WsaCode::ConnRefused);
        assert!(!error.may_try_tcp(), "{error}");
    }
    let maybe = [
        F::ForeignReject { reason: 28 },
        F::NobodyListens { strict: false },
        F::NotOurProtocol,
        F::VersionMismatch {
            lowest: 2,
            highest: 3,
        },
        F::ListenerClosing,
        F::PeerOutOfResources,
        F::TimedOut,
        F::Unreachable,
        F::ForeignReply,
    ];
    for failure in maybe {
        let error = ConnectError::from(failure);
        assert_eq!(error.code(), WsaCode::TimedOut, "{error}");
        assert!(error.may_try_tcp(), "{error}");
    }
    let strict = ConnectError::from(F::NobodyListens { strict: true });
    assert_eq!(strict.code(), WsaCode::ConnReset);
    assert!(!strict.may_try_tcp());
    let no_route = ConnectError::from(F::NoRoute);
    assert_eq!(no_route.code(), WsaCode::HostUnreachable);
    assert!(!no_route.may_try_tcp());
}

// Duties 70 and 77: what these calls never say cannot be written down in their enums.
#[test]
fn operations_keep_to_their_codes() {
    let listen = [
        ListenError::NotInitialised,
        ListenError::NetDown,
        ListenError::NotBound,
        ListenError::BacklogOutOfRange { asked: 5000 },
        ListenError::BacklogFixed { fixed: 4, asked: 5 },
        ListenError::Connected,
        ListenError::NotSocket,
        ListenError::System(
            VerbsError::from_errno("rdma_listen", Errno::ADDRINUSE.raw_os_error()).into(),
        ),
        ListenError::System(
            VerbsError::from_errno("rdma_listen", Errno::MFILE.raw_os_error()).into(),
        ),
    ];
    let allowed = [
        WsaCode::NotInitialised,
        WsaCode::NetDown,
        WsaCode::Invalid,
        WsaCode::IsConnected,
        WsaCode::TooManySockets,
        WsaCode::NoBuffers,
        WsaCode::NotSocket,
    ];
    for error in listen {
        assert!(allowed.contains(&error.code()), "{error}: {}", error.code());
    }
    for errno in 1..134 {
        let error = BindError::System(VerbsError::from_errno("rdma_bind_addr", errno).into());
        let allowed = [
            WsaCode::NetDown,
            WsaCode::AddrNotAvailable,
            WsaCode::Invalid,
            WsaCode::NoBuffers,
        ];
        assert!(
            allowed.contains(&error.code()),
            "errno {errno}: {}",
            error.code()
        );
    }
}

#[test]
fn docs_hold_the_table() {
    let docs = include_str!("../../../docs/errors.md");
    for code in WsaCode::ALL {
        let row = format!(
            "| `{}` | {} | {} |",
            code.name(),
            code.number(),
            code.errno()
        );
        let line = docs
            .lines()
            .find(|l| l.starts_with(&row))
            .unwrap_or_else(|| panic!("docs/errors.md lacks a row that starts with {row}"));
        assert!(
            line.contains(code.text()),
            "{line}\nlacks the text: {}",
            code.text()
        );
    }
}

#[test]
fn a_device_that_is_gone_is_netdown() {
    let errno = Errno::NETDOWN.raw_os_error();
    let gone = ConnectError::of_resources(VerbsError::from_errno("ibv_create_qp", errno));
    assert_eq!(gone.failure(), ConnectFailure::NetDown);
    assert!(gone.may_try_tcp());
    let short = Errno::NOMEM.raw_os_error();
    let short = ConnectError::of_resources(VerbsError::from_errno("ibv_create_qp", short));
    assert_eq!(short.failure(), ConnectFailure::OutOfResources);
}
