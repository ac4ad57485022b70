//! `san top`: the processes that have a switch, live: their connections, carriers and rates, what was
//! refused, and why TCP was taken.
//!
//! A thread asks the processes, so that one that does not answer holds up no key. `model.rs` makes a
//! picture of the reports, `view.rs` draws it; here is the loop between them and the terminal.

mod model;
#[cfg(test)]
mod tests;
mod view;

use crate::args::TopArguments;
use crate::problem::Problem;
use crate::reports::{self, Reports};
use model::{Model, Order, Picture};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};
use view::Choice;

/// How long a key is waited for at a time: as long until new numbers are seen.
const TICK: Duration = Duration::from_millis(100);

/// Shows it until the user has seen enough.
pub(crate) fn run(arguments: &TopArguments) -> Result<ExitCode, Problem> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        return Err(
            Problem::new("san top needs a terminal").with_remedy(format!(
                "without one: san stat --watch {}, or san stat --openmetrics",
                arguments.interval
            )),
        );
    }
    let choice = Choice {
        order: Order::Rate,
        pid: None,
        is_paused: false,
        seconds: arguments.interval,
        colors: std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
    };
    // A terminal that is left as it is would be of no use: whoever ends this ends it in order.
    let ended = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGHUP, SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&ended))?;
    }
    let (stop, stopped) = sync_channel(1);
    let news = ask(Duration::from_secs(arguments.interval), stopped)?;
    let mut terminal = ratatui::try_init()
        .map_err(|error| Problem::new(format!("cannot use this terminal: {error}")))?;
    let outcome = watch(&mut terminal, choice, &news, &ended);
    ratatui::restore();
    drop(stop);
    outcome.map_err(Problem::from)?;
    Ok(ExitCode::SUCCESS)
}

/// Asks the processes again and again, in a thread that ends when the other end of `stopped` is gone.
fn ask(interval: Duration, stopped: Receiver<()>) -> io::Result<Receiver<Reports>> {
    let (tell, news): (SyncSender<Reports>, _) = sync_channel(1);
    std::thread::Builder::new()
        .name("san-top".to_owned())
        .spawn(move || {
            loop {
                let began = Instant::now();
                if tell.send(reports::of_all()).is_err() {
                    return;
                }
                let left = interval.saturating_sub(began.elapsed());
                if stopped.recv_timeout(left) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
            }
        })?;
    Ok(news)
}

fn watch(
    terminal: &mut DefaultTerminal,
    mut choice: Choice,
    news: &Receiver<Reports>,
    ended: &AtomicBool,
) -> io::Result<()> {
    let mut model = Model::default();
    let mut picture = Picture::default();
    while !ended.load(Ordering::Relaxed) {
        match news.try_recv() {
            // While it is paused the numbers stand still, and are up to date afterwards.
            Ok(found) => {
                let next = model.take(&found, Instant::now());
                if !choice.is_paused {
                    picture = next;
                    picture.sort(choice.order);
                }
            }
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
        terminal.draw(|frame| view::draw(frame, &picture, &choice))?;
        if !event::poll(TICK)? {
            continue;
        }
        if let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
            && !act(key, &mut choice, &mut picture)
        {
            return Ok(());
        }
    }
    Ok(())
}

/// What a key does; `false`: it is enough.
fn act(key: KeyEvent, choice: &mut Choice, picture: &mut Picture) -> bool {
    let at = view::shown(picture, choice).unwrap_or(0);
    let mut choose = |at: usize| {
        if let Some(process) = picture.processes.get(at) {
            choice.pid = Some(process.pid);
        }
    };
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => return false,
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => return false,
        KeyCode::Up | KeyCode::Char('k') => choose(at.saturating_sub(1)),
        KeyCode::Down | KeyCode::Char('j') => choose(at + 1),
        KeyCode::Char(' ') => choice.is_paused = !choice.is_paused,
        KeyCode::Char('s') => {
            choice.order = choice.order.next();
            picture.sort(choice.order);
        }
        _ => {}
    }
    true
}
