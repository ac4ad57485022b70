//! The states of a socket, and the one place where they change.
//!
//! [`Phase::after`] is the whole machine: an input moves a phase to the next, and anything else is an
//! [`InvalidTransition`], never a crash. It does nothing itself; the data that belongs to a phase is
//! in `shared.rs`.

use std::fmt;

/// Where a socket is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// Made, nothing more.
    Open,
    /// Has a local address.
    Bound,
    /// Takes requests.
    Listening,
    /// A connect waits for the neighbour's address.
    ResolvingAddress,
    /// A connect waits for the path to it.
    ResolvingRoute,
    /// A connect waits for the listener's answer.
    Requested,
    /// Made by accept: the reply is out, its receipt not known yet.
    Accepted,
    /// Connected.
    Connected,
    /// A connect failed. Only close makes sense.
    Failed,
    /// The connection ended or broke. Only close makes sense.
    Ended,
    /// Closed.
    Closed,
}

/// What happens to a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Input {
    Bind,
    Listen,
    Connect,
    AddressResolved,
    RouteResolved,
    /// A socket is made for an accepted request.
    Accept,
    /// Both sides know of the connection.
    Established,
    ConnectFailed,
    /// The peer has moved to another process, and takes the connection up from there.
    Resume,
    /// The peer ended the connection, it broke, or it was handed to another process.
    PeerEnded,
    Close,
}

/// Why something does not fit the phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum InvalidTransition {
    Closed,
    NotBound,
    Bound,
    Listening,
    Connecting,
    Connected,
    /// An earlier connect failed, or the connection ended.
    Over,
    /// An event that came too late, or that no correct peer causes: to be ignored.
    Stray,
}

impl Phase {
    /// The phase after `input`.
    pub(crate) fn after(self, input: Input) -> Result<Self, InvalidTransition> {
        use Input as I;
        use Phase as P;
        Ok(match (self, input) {
            (P::Closed, _) => return Err(InvalidTransition::Closed),
            (_, I::Close) => P::Closed,

            (P::Open, I::Bind) => P::Bound,
            (P::Bound, I::Listen) | (P::Listening, I::Listen) => P::Listening,
            (P::Open | P::Bound, I::Connect) => P::ResolvingAddress,
            (P::ResolvingAddress, I::AddressResolved) => P::ResolvingRoute,
            (P::ResolvingRoute, I::RouteResolved) => P::Requested,
            (P::Open, I::Accept) => P::Accepted,
            (P::Requested | P::Accepted, I::Established) => P::Connected,
            (P::ResolvingAddress | P::ResolvingRoute | P::Requested, I::ConnectFailed) => P::Failed,
            (P::Accepted | P::Connected, I::Resume) => P::Accepted,
            (P::Accepted | P::Connected, I::PeerEnded) => P::Ended,

            (P::Open, I::Listen) => return Err(InvalidTransition::NotBound),
            (P::Listening, I::Connect) => return Err(InvalidTransition::Listening),
            (_, I::Bind) => return Err(InvalidTransition::Bound),
            (P::Failed | P::Ended, I::Listen | I::Connect) => return Err(InvalidTransition::Over),
            (P::Accepted | P::Connected, I::Listen | I::Connect) => {
                return Err(InvalidTransition::Connected);
            }
            (_, I::Listen | I::Connect) => return Err(InvalidTransition::Connecting),
            _ => return Err(InvalidTransition::Stray),
        })
    }

    /// A connect is under way.
    pub(crate) fn is_connecting(self) -> bool {
        matches!(
            self,
            Self::ResolvingAddress | Self::ResolvingRoute | Self::Requested
        )
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Bound => "bound",
            Self::Listening => "listening",
            Self::ResolvingAddress => "resolving address",
            Self::ResolvingRoute => "resolving route",
            Self::Requested => "requested",
            Self::Accepted => "accepted",
            Self::Connected => "connected",
            Self::Failed => "failed",
            Self::Ended => "ended",
            Self::Closed => "closed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PHASES: [Phase; 11] = [
        Phase::Open,
        Phase::Bound,
        Phase::Listening,
        Phase::ResolvingAddress,
        Phase::ResolvingRoute,
        Phase::Requested,
        Phase::Accepted,
        Phase::Connected,
        Phase::Failed,
        Phase::Ended,
        Phase::Closed,
    ];

    // Every phase x input. Any change of behaviour is a change of this text.
    const MACHINE: &str = include_str!("state.snapshot");

    const INPUTS: [Input; 11] = [
        Input::Bind,
        Input::Listen,
        Input::Connect,
        Input::AddressResolved,
        Input::RouteResolved,
        Input::Accept,
        Input::Established,
        Input::ConnectFailed,
        Input::Resume,
        Input::PeerEnded,
        Input::Close,
    ];

    #[test]
    fn the_whole_machine() {
        let mut found = String::new();
        for phase in PHASES {
            for input in INPUTS {
                let line = match phase.after(input) {
                    Ok(next) => format!("{phase:?} + {input:?} -> {next:?}\n"),
                    Err(invalid) => format!("{phase:?} + {input:?} : {invalid:?}\n"),
                };
                found.push_str(&line);
            }
        }
        assert!(found == MACHINE, "the machine is now:\n{found}");
    }

    #[test]
    fn every_phase_can_be_closed_and_stays_so() {
        for phase in PHASES {
            if phase != Phase::Closed {
                assert_eq!(phase.after(Input::Close), Ok(Phase::Closed));
            }
        }
        for input in INPUTS {
            assert_eq!(Phase::Closed.after(input), Err(InvalidTransition::Closed));
        }
    }

    #[test]
    fn wsd_075_a_second_connect_is_seen() {
        for phase in PHASES.into_iter().filter(|p| p.is_connecting()) {
            assert_eq!(
                phase.after(Input::Connect),
                Err(InvalidTransition::Connecting)
            );
        }
        assert_eq!(
            Phase::Connected.after(Input::Connect),
            Err(InvalidTransition::Connected)
        );
    }
}
