//! How far a run is: a bar with the last figure and the time left, on a terminal only.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

/// How often the time left is drawn anew.
const TICK: Duration = Duration::from_millis(250);
/// Columns below which there is no room for a bar.
const NARROW: usize = 60;

/// A bar on standard error. Nothing is drawn where there is no terminal, and none with `NO_COLOR`.
#[derive(Debug)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn new(steps: usize, width: usize) -> Self {
        let is_plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let target = match is_plain {
            true => ProgressDrawTarget::hidden(),
            // Hidden by itself where standard error is no terminal.
            false => ProgressDrawTarget::stderr(),
        };
        let bar = ProgressBar::with_draw_target(Some(steps as u64), target);
        let template = match width < NARROW {
            true => "{pos}/{len} {eta} left",
            false => "{bar:24} {pos}/{len}, {eta} left; {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        if !bar.is_hidden() {
            bar.enable_steady_tick(TICK);
        }
        Self(bar)
    }

    /// One step is done, and gave this.
    pub(crate) fn done(&self, figure: String) {
        self.0.set_message(figure);
        self.0.inc(1);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
