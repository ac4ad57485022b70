//! The states of a queue pair and every way between them (IBTA 10.3.1).
//!
//! What it does: one table, state and request in, state or refusal out.
//! What it does not do: carry a change out; `qp` does, in one place.

/// A queue pair's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QpState {
    /// Fresh, or given back: nothing may be posted.
    Reset,
    /// Receives may be posted; packets are dropped.
    Init,
    /// Ready to receive.
    Rtr,
    /// Ready to send.
    Rts,
    /// The send queue drains: what was begun is finished, nothing new begins.
    Sqd,
    /// Send queue error. Unreliable transports only; a reliable connection
    /// goes to [`QpState::Error`] instead, so nothing here enters it.
    Sqe,
    /// Broken: all posted work has been or is being flushed.
    Error,
}

impl QpState {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Reset,
        Self::Init,
        Self::Rtr,
        Self::Rts,
        Self::Sqd,
        Self::Sqe,
        Self::Error,
    ];

    /// Whether the way from here to `to` exists.
    #[must_use]
    pub fn may_become(self, to: Self) -> bool {
        use QpState::{Error, Init, Reset, Rtr, Rts, Sqd, Sqe};
        match (self, to) {
            (_, Reset | Error)
            | (Reset | Init, Init)
            | (Init, Rtr)
            | (Rtr | Rts | Sqd | Sqe, Rts)
            | (Rts | Sqd, Sqd) => true,
            (Reset | Init | Rtr | Rts | Sqd | Sqe | Error, Init | Rtr | Rts | Sqd | Sqe) => false,
        }
    }

    /// Whether packets of requests are taken.
    #[must_use]
    pub fn receives(self) -> bool {
        matches!(self, Self::Rtr | Self::Rts | Self::Sqd | Self::Sqe)
    }

    /// Whether requests are sent and answers to them taken.
    #[must_use]
    pub fn sends(self) -> bool {
        matches!(self, Self::Rts | Self::Sqd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows: from; columns: to, in the order of `ALL`. A change here is a change
    /// of behaviour.
    #[test]
    fn every_pair_of_states() {
        let table: Vec<String> = QpState::ALL
            .iter()
            .map(|from| {
                let row: String = QpState::ALL
                    .iter()
                    .map(|to| if from.may_become(*to) { 'x' } else { '.' })
                    .collect();
                format!("{from:?} {row}")
            })
            .collect();
        assert_eq!(
            table,
            [
                "Reset xx....x",
                "Init xxx...x",
                "Rtr x..x..x",
                "Rts x..xx.x",
                "Sqd x..xx.x",
                "Sqe x..x..x",
                "Error x.....x",
            ]
        );
    }
}
