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
    let not_tried = NotTried::ALL.map(FallbackReason::NotTried);
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
            | NotTried::NotMoved => NotTried::ALL.contains(why),
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
