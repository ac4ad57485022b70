//! Every reason for TCP, with what mends it: for the page that operators read, and against riddles.

use super::*;
use std::collections::HashSet;
use std::fmt::Write as _;

/// Stands for the peer in the page.
const PEER: &str = "192.0.2.7:7000";

/// Each once. `Companion` and `Remembered` carry another reason; one of each is enough.
fn every_reason() -> Vec<FallbackReason> {
    let failures = ConnectFailure::every();
    let connects = failures.map(|failure| FallbackReason::Connect(failure.into()));
    let companion = FallbackReason::Companion {
        step: "bind",
        source: Arc::new(std::io::Error::other("the port is taken")),
        code: WsaCode::AddrNotAvailable,
    };
    let timed_out = FallbackReason::Connect(ConnectFailure::TimedOut.into());
    let remembered = FallbackReason::Remembered(Box::new(timed_out));
    let not_tried = NotTried::every().map(FallbackReason::NotTried);
    connects
        .chain([companion, remembered])
        .chain(not_tried)
        .collect()
}

/// A place in the list for each kind: a new one does not compile without.
fn is_listed(reason: &FallbackReason) -> bool {
    match reason {
        FallbackReason::Connect(_)
        | FallbackReason::Companion { .. }
        | FallbackReason::Remembered(_) => true,
        FallbackReason::NotTried(why) => match why {
            NotTried::SaidTcp
            | NotTried::FabricOff
            | NotTried::NoSan
            | NotTried::Loopback
            | NotTried::BoundElsewhere
            | NotTried::OtherSubnet
            | NotTried::NotMoved(_) => NotTried::every().any(|one| one == *why),
        },
    }
}

/// Whether a connection can take TCP for it: a call that does not fit its socket never comes to that.
fn is_seen(reason: &FallbackReason) -> bool {
    let FallbackReason::Connect(error) = reason else {
        return true;
    };
    !error
        .failure()
        .remedy(PEER.parse().unwrap())
        .contains("should never see this")
}

#[test]
fn every_reason_has_words_and_a_remedy_of_its_own_kind() {
    let peer: SocketAddr = PEER.parse().unwrap();
    let mut words = HashSet::new();
    for reason in every_reason() {
        assert!(is_listed(&reason));
        let (text, remedy) = (reason.to_string(), reason.remedy(peer));
        assert!(words.insert(text.clone()), "two reasons read alike: {text}");
        assert!(!remedy.is_empty() && !remedy.contains('\n'), "{remedy}");
        // Words for people, and no names of the code.
        for text in [&text, &remedy] {
            assert!(!text.contains("::") && !text.contains("{"), "{text}");
        }
        assert_eq!(
            Route::Tcp {
                why: Some(reason.clone())
            }
            .to_string(),
            format!("TCP, since {text}")
        );
    }
    assert!(words.len() > 30, "{}", words.len());
}

#[test]
fn the_page_for_operators_has_every_reason_with_its_remedy() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/howto/fall-back.md");
    let page = std::fs::read_to_string(page).unwrap();
    let peer: SocketAddr = PEER.parse().unwrap();
    let mut table = String::new();
    for reason in every_reason().iter().filter(|reason| is_seen(reason)) {
        let remedy = reason.remedy(peer).replace('|', "\\|");
        writeln!(table, "| {reason} | {remedy} |").unwrap();
    }
    let rows: Vec<&str> = page
        .lines()
        .skip_while(|line| *line != "| TCP, since ... | what mends it |")
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .collect();
    let wanted: Vec<&str> = table.lines().collect();
    assert_eq!(
        rows, wanted,
        "docs/howto/fall-back.md should have:\n{table}"
    );
}

/// The test that brings a reason about: its file, from the repository's root, and its name. No arm for all
/// others: a new reason does not compile without a test. `None`: a call that the switch never makes.
fn brought_about_by(reason: &FallbackReason) -> Option<(&'static str, &'static str)> {
    use ConnectFailure as F;
    const CONNECT: &str = "tests/connect.rs";
    const SESSIONS: &str = "tests/sessions.rs";
    const REASONS: &str = "switch/tests/reasons.rs";
    const PROVIDER: &str = "provider/src/socket/connect.rs";
    const PROGRAMS: &str = "preload/tests/reasons.rs";
    let refusals = (CONNECT, "wsd_073_what_a_refusal_of_ours_means");
    Some(match reason {
        FallbackReason::Connect(error) => match error.failure() {
            F::NobodyListens { .. } => (REASONS, "where_no_program_listens_tcp_is_taken"),
            F::TimedOut => (REASONS, "silence_is_told_and_remembered"),
            F::Unreachable | F::System => (PROVIDER, "no_route_is_told_from_no_device"),
            F::BacklogFull { .. } => (
                "cli/tests/doctor.rs",
                "a_full_backlog_is_told_with_its_size",
            ),
            F::RejectedByPeer => (
                "tests/accept.rs",
                "wsd_086_rejected_both_ends_get_econnrefused",
            ),
            F::NotNow | F::NoSuchConnection => {
                (SESSIONS, "not_now_and_no_such_connection_leave_tcp")
            }
            F::ListenerClosing | F::PeerOutOfResources | F::VersionMismatch { .. } => refusals,
            F::PathMtu => (
                "tests/mtu.rs",
                "a_listener_that_cannot_take_the_packets_refuses",
            ),
            F::NotOurProtocol => (
                SESSIONS,
                "a_peer_that_knows_no_purposes_refuses_them_and_leaves_tcp",
            ),
            F::ForeignReject { .. } => (CONNECT, "wsd_073_a_reject_without_our_data_is_not_final"),
            F::ForeignReply => (CONNECT, "wsd_073_somebody_elses_server_is_not_connected_to"),
            F::NoRoute => (CONNECT, "wsd_073_without_a_route_it_is_ehostunreach"),
            F::OutOfResources => (
                "tests/limits.rs",
                "too_little_lockable_memory_is_enobufs_and_says_what_to_raise",
            ),
            F::NetDown => (
                "provider/src/error/tests.rs",
                "a_device_that_is_gone_is_netdown",
            ),
            F::BadAddress => (CONNECT, "connect_refuses_what_cannot_be"),
            F::InProgress
            | F::AlreadyConnecting
            | F::AlreadyConnected
            | F::WrongState
            | F::NotSocket
            | F::NotInitialised
            | F::AddressFamily => return None,
            other => panic!("{other:?} has no test"),
        },
        FallbackReason::Companion { .. } => (
            "switch/tests/fabric/companions.rs",
            "wsd_016_a_connect_whose_companion_cannot_be_made_takes_tcp",
        ),
        FallbackReason::Remembered(_) => (REASONS, "silence_is_told_and_remembered"),
        FallbackReason::NotTried(why) => match why {
            NotTried::SaidTcp | NotTried::FabricOff => (REASONS, "who_says_tcp_gets_tcp"),
            NotTried::NoSan => (REASONS, "without_an_address_there_is_no_san"),
            NotTried::Loopback | NotTried::BoundElsewhere => {
                (REASONS, "what_lies_outside_the_san_takes_tcp")
            }
            NotTried::OtherSubnet => (
                "switch/tests/fabric/listen_and_connect.rs",
                "wsd_018_other_subnets_and_loopback_go_to_tcp",
            ),
            NotTried::NotMoved(why) => match why {
                NotMoved::Short | NotMoved::NeedsTcp | NotMoved::Ended => {
                    (REASONS, "a_connection_that_has_not_moved_says_why")
                }
                NotMoved::UnderWay | NotMoved::Unanswered => {
                    (REASONS, "the_accepting_end_says_why_too")
                }
                NotMoved::Unfinished => (
                    REASONS,
                    "a_move_behind_bytes_that_nobody_reads_is_not_finished",
                ),
                NotMoved::CameBack => (REASONS, "a_connection_that_came_back_says_so"),
                NotMoved::Shared | NotMoved::Uncounted => (
                    PROGRAMS,
                    "a_program_says_why_its_connections_have_not_moved",
                ),
            },
        },
    })
}

#[test]
fn each_reason_is_brought_about_by_a_test() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let mut tests = 0;
    for reason in every_reason() {
        let Some((file, name)) = brought_about_by(&reason) else {
            assert!(!is_seen(&reason), "{reason} has no test");
            continue;
        };
        let text = std::fs::read_to_string(format!("{root}/{file}")).expect(file);
        let wanted = format!("fn {name}(");
        assert!(
            text.contains(&wanted),
            "{file} has no {name}, for: {reason}"
        );
        tests += 1;
    }
    assert!(tests > 30, "{tests}");
}
