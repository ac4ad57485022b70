//! Reports that a test makes up, drawn into terminals that are none.

use super::model::{Model, Order, Picture};
use super::view::{self, Choice};
use super::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::style::Color;
use san_switch::Report;
use serde_json::json;

/// A process with a connection over the SAN and one over TCP, which have sent so much.
fn report(pid: u32, sent: u64, fallbacks: u64) -> Report {
    let connection = |route: &str, device: Option<&str>, why: Option<&str>, peer: &str| {
        json!({
            "local": "10.0.7.1:7000", "peer": peer, "route": route, "provider": null,
            "device": device, "why": why, "age_ms": 61_000,
            "counters": { "bytes_sent": sent, "bytes_received": 2 * sent },
        })
    };
    serde_json::from_value(json!({
        "format": 1, "pid": pid, "program": "server\u{1b}[2J", "uptime_ms": 3_600_000,
        "no_san": null,
        "switch": { "fallbacks": fallbacks, "connected_san": 5 },
        "providers": [{
            "name": "soft", "sockets": 2, "devices": [],
            "counters": { "refused_backlog": 3, "refused_condition": 1, "requests": 9 },
        }],
        "listeners": [{
            "address": "10.0.7.1:7000", "backlog": 4, "waiting": 2, "counters": {},
            "companions": [],
        }],
        "connections": [
            connection("san", Some("soft0"), None, "10.0.7.2:1001"),
            connection("tcp", None, Some("no answer before the deadline"), "10.0.7.3:1002"),
        ],
        "omitted": 0,
    }))
    .unwrap()
}

fn found(reports: Vec<Report>) -> Reports {
    Reports {
        reports,
        unanswered: 0,
    }
}

fn choice() -> Choice {
    Choice {
        order: Order::Rate,
        pid: None,
        is_paused: false,
        seconds: 2,
        colors: true,
    }
}

/// After two seconds in which process 77 sent 2,000 bytes on each connection, and 78 nothing.
fn picture() -> Picture {
    let mut model = Model::default();
    let began = Instant::now();
    model.take(&found(vec![report(77, 1000, 1), report(78, 500, 0)]), began);
    let later = began + Duration::from_secs(2);
    model.take(&found(vec![report(77, 3000, 5), report(78, 500, 0)]), later)
}

fn drawn(picture: &Picture, choice: &Choice, width: u16, height: u16) -> (String, Vec<Color>) {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let draw = |frame: &mut ratatui::Frame<'_>| view::draw(frame, picture, choice);
    terminal.draw(draw).unwrap();
    let buffer = terminal.backend().buffer();
    let cells = buffer.content();
    let lines = cells.chunks(usize::from(width)).map(|line| {
        let line: String = line.iter().map(ratatui::buffer::Cell::symbol).collect();
        line.trim_end().to_owned()
    });
    let text = lines.collect::<Vec<_>>().join("\n");
    (text, cells.iter().map(|cell| cell.fg).collect())
}

#[test]
fn rates_are_what_was_added_by_the_time_that_passed() {
    let picture = picture();
    let one = &picture.processes[0];
    assert_eq!((one.rates.sent, one.rates.received), (2000.0, 4000.0));
    assert_eq!(one.rates.fallbacks, 2.0);
    assert_eq!((one.on_san, one.on_tcp, one.waiting), (1, 1, 2));
    assert_eq!((one.fallbacks, one.refused), (5, 4));
    assert_eq!(picture.processes[1].rates.sent, 0.0);
    assert_eq!(picture.total.received, 4000.0);
    assert_eq!((picture.on_san, picture.on_tcp), (2, 2));
    let why = "no answer before the deadline".to_owned();
    assert_eq!(picture.reasons, [(why, 2)]);
}

#[test]
fn the_first_look_and_one_that_began_anew_have_no_rate() {
    let mut model = Model::default();
    let began = Instant::now();
    let first = model.take(&found(vec![report(77, 1000, 1)]), began);
    assert_eq!(first.total, Default::default());
    // A process of the same number that is younger.
    let mut other = report(77, 9000, 9);
    other.uptime_ms = 1;
    for connection in &mut other.connections {
        connection.age_ms = 1;
    }
    let later = began + Duration::from_secs(2);
    let next = model.take(&found(vec![other]), later);
    assert_eq!(next.total, Default::default());
    // The same moment twice divides by nothing.
    let again = model.take(&found(vec![report(77, 1, 1)]), later);
    assert_eq!(again.total, Default::default());
}

#[test]
fn a_terminal_of_twenty_columns_says_in_full_that_there_is_no_process() {
    let empty = Model::default().take(&found(Vec::new()), Instant::now());
    let (text, _) = drawn(&empty, &choice(), 20, 10);
    let words: Vec<_> = text.split_whitespace().collect();
    let said = words.join(" ");
    assert!(
        said.contains("no process of this user has a switch"),
        "{text}"
    );
}

#[test]
fn a_terminal_of_the_usual_size_shows_it_all() {
    let (text, _) = drawn(&picture(), &choice(), 120, 30);
    for words in [
        "2 processes: 2 on SAN, 2 on TCP",
        "out 2.0 kB/s, in 4.0 kB/s; a second: 2.0 connects, 2.0 fall-backs, 0.0 refused",
        "77       server?[2J      1      1      2.0 kB    4.0 kB    5",
        "2 connections of 77",
        "10.0.7.2:1001         san soft0",
        "10.0.7.3:1002         tcp, since no answer before",
        "2  no answer before the deadline",
        "q quit",
    ] {
        assert!(text.contains(words), "{words}\n{text}");
    }
    assert!(!text.contains('\u{1b}'));
}

#[test]
fn every_size_can_be_drawn_and_a_narrow_one_has_what_tells_most() {
    let picture = picture();
    for (width, height) in [(1, 1), (2, 40), (20, 5), (200, 2), (33, 12), (300, 100)] {
        drawn(&picture, &choice(), width, height);
        drawn(&Picture::default(), &choice(), width, height);
    }
    let (text, _) = drawn(&picture, &choice(), 20, 20);
    assert!(text.contains("2 processes: 2 on SA"), "{text}");
    assert!(text.contains("PID") && text.contains("77"), "{text}");
    assert!(text.contains("10.0.7.2:1001"), "{text}");
}

#[test]
fn without_colours_there_are_none() {
    let (_, colors) = drawn(&picture(), &choice(), 100, 30);
    assert!(colors.contains(&Color::Green) && colors.contains(&Color::Yellow));
    let plain = Choice {
        colors: false,
        ..choice()
    };
    let (_, colors) = drawn(&picture(), &plain, 100, 30);
    assert!(colors.iter().all(|color| *color == Color::Reset));
}

#[test]
fn keys_choose_sort_pause_and_end() {
    let mut picture = picture();
    let mut choice = choice();
    let mut press = |code: KeyCode, choice: &mut Choice| {
        act(
            KeyEvent::new(code, KeyModifiers::NONE),
            choice,
            &mut picture,
        )
    };
    assert!(press(KeyCode::Down, &mut choice));
    assert_eq!(choice.pid, Some(78));
    press(KeyCode::Down, &mut choice);
    assert_eq!(choice.pid, Some(78));
    press(KeyCode::Char('k'), &mut choice);
    assert_eq!(choice.pid, Some(77));
    press(KeyCode::Char(' '), &mut choice);
    assert!(choice.is_paused);
    press(KeyCode::Char('s'), &mut choice);
    assert_eq!(choice.order, Order::Connections);
    assert!(!press(KeyCode::Char('q'), &mut choice));
    assert!(!press(KeyCode::Esc, &mut choice));
    let end = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert!(!act(end, &mut choice, &mut Picture::default()));
}

#[test]
fn a_process_that_is_gone_gives_its_place_to_the_first() {
    let picture = picture();
    let gone = Choice {
        pid: Some(4),
        ..choice()
    };
    assert_eq!(view::shown(&picture, &gone), Some(0));
    assert_eq!(view::shown(&Picture::default(), &gone), None);
}
