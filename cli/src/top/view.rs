//! Drawing a picture into a frame of any size. Columns that have no room are left out, the least
//! telling first; colours are left out where they are not wanted.

use super::model::{Connection, Order, Picture, Process};
use crate::stat::age;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Block, Borders, Cell, Paragraph, Row, Table, TableState, Wrap};

/// What the user has chosen.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    pub(super) order: Order,
    /// The process whose connections are shown.
    pub(super) pid: Option<u32>,
    pub(super) is_paused: bool,
    pub(super) seconds: u64,
    pub(super) colors: bool,
}

/// A column: its head, its width, and how much it tells (the lowest goes last).
struct Column<T> {
    head: &'static str,
    width: u16,
    rank: u8,
    cell: fn(&T) -> String,
}

const fn column<T>(head: &'static str, width: u16, rank: u8, cell: fn(&T) -> String) -> Column<T> {
    Column {
        head,
        width,
        rank,
        cell,
    }
}

const PROCESSES: [Column<Process>; 11] = [
    column("PID", 8, 0, |one| one.pid.to_string()),
    column("PROGRAM", 15, 1, |one| one.program.clone()),
    column("ON SAN", 6, 2, |one| one.on_san.to_string()),
    column("ON TCP", 6, 3, |one| one.on_tcp.to_string()),
    column("OUT/s", 9, 4, |one| bytes(one.rates.sent)),
    column("IN/s", 9, 5, |one| bytes(one.rates.received)),
    column("FALL-BACKS", 10, 6, |one| one.fallbacks.to_string()),
    column("REFUSED", 7, 7, |one| one.refused.to_string()),
    column("WAITING", 7, 9, |one| one.waiting.to_string()),
    column("UP", 7, 8, |one| age(one.uptime_ms)),
    column("SAN", 20, 10, |one| one.san.clone()),
];

const CONNECTIONS: [Column<Connection>; 6] = [
    column("PEER", 21, 0, |one| one.peer.to_string()),
    column("ROUTE", 30, 1, |one| one.route.clone()),
    column("OUT/s", 9, 2, |one| bytes(one.sent)),
    column("IN/s", 9, 3, |one| bytes(one.received)),
    column("AGE", 7, 4, |one| age(one.age_ms)),
    column("LOCAL", 21, 5, |one| one.local.to_string()),
];

/// Draws all of it.
pub(super) fn draw(frame: &mut Frame<'_>, picture: &Picture, choice: &Choice) {
    let area = frame.area();
    let reasons = match picture.reasons.is_empty() || area.height < 16 {
        true => 0,
        false => u16::try_from(picture.reasons.len()).unwrap_or(4).min(4) + 1,
    };
    let head = if area.width < 60 || area.height < 8 {
        1
    } else {
        2
    };
    let foot = u16::from(area.height >= 6);
    let connections = match area.height {
        0..12 => 0,
        height => (height - head - foot - reasons) / 2,
    };
    let [top, processes, below, why, keys] = Layout::vertical([
        Constraint::Length(head),
        Constraint::Min(1),
        Constraint::Length(connections),
        Constraint::Length(reasons),
        Constraint::Length(foot),
    ])
    .areas(area);
    summary(frame, top, picture);
    let shown = shown(picture, choice);
    self::processes(frame, processes, picture, shown, choice);
    if let Some(process) = shown.and_then(|at| picture.processes.get(at)) {
        self::connections(frame, below, process, choice);
    }
    self::reasons(frame, why, picture, choice);
    self::keys(frame, keys, choice);
}

/// Which process is the chosen one; the first where that is gone.
pub(super) fn shown(picture: &Picture, choice: &Choice) -> Option<usize> {
    let chosen = picture
        .processes
        .iter()
        .position(|process| Some(process.pid) == choice.pid);
    chosen.or((!picture.processes.is_empty()).then_some(0))
}

fn summary(frame: &mut Frame<'_>, area: Rect, picture: &Picture) {
    let processes = picture.processes.len();
    let unanswered = match picture.unanswered {
        0 => String::new(),
        n => format!(", {n} silent"),
    };
    let first = format!(
        "{processes} processes{unanswered}: {} on SAN, {} on TCP",
        picture.on_san, picture.on_tcp
    );
    let total = picture.total;
    let second = format!(
        "out {}/s, in {}/s; a second: {:.1} connects, {:.1} fall-backs, {:.1} refused",
        bytes(total.sent),
        bytes(total.received),
        total.connects,
        total.fallbacks,
        total.refused
    );
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let lines = vec![Line::styled(first, bold), Line::from(second)];
    frame.render_widget(Paragraph::new(lines), area);
}

fn processes(
    frame: &mut Frame<'_>,
    area: Rect,
    picture: &Picture,
    shown: Option<usize>,
    choice: &Choice,
) {
    if picture.processes.is_empty() {
        let none = "no process of this user has a switch";
        let lines = Paragraph::new(none).wrap(Wrap { trim: true });
        frame.render_widget(lines, area);
        return;
    }
    let style = |process: &Process| match (choice.colors, process.on_tcp, process.on_san) {
        (true, 1.., 0) => Style::new().fg(Color::Yellow),
        (true, _, 1..) => Style::new().fg(Color::Green),
        _ => Style::new(),
    };
    let (table, mut state) = table(&PROCESSES, area.width, &picture.processes, style);
    state.select(shown);
    frame.render_stateful_widget(table, area, &mut state);
}

fn connections(frame: &mut Frame<'_>, area: Rect, process: &Process, choice: &Choice) {
    if area.height == 0 {
        return;
    }
    let title = format!(
        " {} connections of {} ({}) ",
        process.connections.len(),
        process.pid,
        process.program
    );
    let block = Block::new().borders(Borders::TOP).title(title);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let style = |one: &Connection| match (choice.colors, one.is_san) {
        (true, true) => Style::new().fg(Color::Green),
        (true, false) if one.route != "tcp" => Style::new().fg(Color::Yellow),
        _ => Style::new(),
    };
    let room = usize::from(inner.height.saturating_sub(1));
    let first = &process.connections[..process.connections.len().min(room)];
    let (table, _) = table(&CONNECTIONS, inner.width, first, style);
    frame.render_widget(table, inner);
}

fn reasons(frame: &mut Frame<'_>, area: Rect, picture: &Picture, choice: &Choice) {
    let title = " why TCP, of the connections that are open ";
    let block = Block::new().borders(Borders::TOP).title(title);
    let style = match choice.colors {
        true => Style::new().fg(Color::Yellow),
        false => Style::new(),
    };
    let lines: Vec<Line<'_>> = picture
        .reasons
        .iter()
        .map(|(why, count)| Line::styled(format!("{count:>6}  {why}"), style))
        .collect();
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

fn keys(frame: &mut Frame<'_>, area: Rect, choice: &Choice) {
    let paused = if choice.is_paused { ", paused" } else { "" };
    let text = format!(
        "q quit  up/down choose  s sort ({})  space pause  every {} s{paused}",
        choice.order.word(),
        choice.seconds
    );
    let dim = Style::new().add_modifier(Modifier::DIM);
    frame.render_widget(Paragraph::new(Line::styled(text, dim)), area);
}

fn table<'a, T>(
    columns: &[Column<T>],
    width: u16,
    rows: &[T],
    style: impl Fn(&T) -> Style,
) -> (Table<'a>, TableState) {
    let fitting = fitting(columns, width);
    let heads = fitting.iter().map(|column| Cell::from(column.head));
    let heads = Row::new(heads).style(Style::new().add_modifier(Modifier::BOLD));
    let widths: Vec<Constraint> = fitting
        .iter()
        .enumerate()
        .map(|(at, column)| match at + 1 == fitting.len() {
            // What is left is the last one's.
            true => Constraint::Min(column.width),
            false => Constraint::Length(column.width),
        })
        .collect();
    let rows = rows.iter().map(|one| {
        let cells = fitting.iter().map(|column| Cell::from((column.cell)(one)));
        Row::new(cells).style(style(one))
    });
    let table = Table::new(rows, widths)
        .header(heads)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    (table, TableState::default())
}

/// The most telling columns that fit, in the order in which they stand.
fn fitting<T>(columns: &[Column<T>], width: u16) -> Vec<&Column<T>> {
    let mut by_rank: Vec<usize> = (0..columns.len()).collect();
    by_rank.sort_by_key(|at| columns[*at].rank);
    let mut taken = Vec::new();
    let mut used = 0;
    for at in by_rank {
        let more = columns[at].width + u16::from(!taken.is_empty());
        if used + more > width && !taken.is_empty() {
            break;
        }
        used += more;
        taken.push(at);
    }
    taken.sort_unstable();
    taken.into_iter().map(|at| &columns[at]).collect()
}

/// Bytes with the unit that fits, in at most nine characters.
fn bytes(count: f64) -> String {
    match count {
        ..1e3 => format!("{count:.0} B"),
        ..1e6 => format!("{:.1} kB", count / 1e3),
        ..1e9 => format!("{:.1} MB", count / 1e6),
        _ => format!("{:.1} GB", count / 1e9),
    }
}
