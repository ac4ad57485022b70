//! The states of a socket, and the one place where they change.
//!
//! [`Phase::after`] is the whole machine: what happened moves a phase to the next, and anything
//! else is a [`Misfit`], never a crash. It does nothing itself; the data that belongs to a phase
//! is in `shared.rs`.

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
pub(crate) enum Happening {
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
pub(crate) enum Misfit {
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
    /// The phase after `happening`.
    pub(crate) fn after(self, happening: Happening) -> Result<Self, Misfit> {
        use Happening as H;
        use Phase as P;
        Ok(match (self, happening) {
            (P::Closed, _) => return Err(Misfit::Closed),
            (_, H::Close) => P::Closed,

            (P::Open, H::Bind) => P::Bound,
            (P::Bound, H::Listen) | (P::Listening, H::Listen) => P::Listening,
            (P::Open | P::Bound, H::Connect) => P::ResolvingAddress,
            (P::ResolvingAddress, H::AddressResolved) => P::ResolvingRoute,
            (P::ResolvingRoute, H::RouteResolved) => P::Requested,
            (P::Open, H::Accept) => P::Accepted,
            (P::Requested | P::Accepted, H::Established) => P::Connected,
            (P::ResolvingAddress | P::ResolvingRoute | P::Requested, H::ConnectFailed) => P::Failed,
            (P::Accepted | P::Connected, H::Resume) => P::Accepted,
            (P::Accepted | P::Connected, H::PeerEnded) => P::Ended,

            (P::Open, H::Listen) => return Err(Misfit::NotBound),
            (P::Listening, H::Connect) => return Err(Misfit::Listening),
            (_, H::Bind) => return Err(Misfit::Bound),
            (P::Failed | P::Ended, H::Listen | H::Connect) => return Err(Misfit::Over),
            (P::Accepted | P::Connected, H::Listen | H::Connect) => return Err(Misfit::Connected),
            (_, H::Listen | H::Connect) => return Err(Misfit::Connecting),
            _ => return Err(Misfit::Stray),
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

    // Every phase x happening. Any change of behaviour is a change of this text.
    const MACHINE: &str = include_str!("state.snapshot");

    const HAPPENINGS: [Happening; 11] = [
        Happening::Bind,
        Happening::Listen,
        Happening::Connect,
        Happening::AddressResolved,
        Happening::RouteResolved,
        Happening::Accept,
        Happening::Established,
        Happening::ConnectFailed,
        Happening::Resume,
        Happening::PeerEnded,
        Happening::Close,
    ];

    #[test]
    fn the_whole_machine() {
        let mut found = String::new();
        for phase in PHASES {
            for happening in HAPPENINGS {
                let line = match phase.after(happening) {
                    Ok(next) => format!("{phase:?} + {happening:?} -> {next:?}\n"),
                    Err(misfit) => format!("{phase:?} + {happening:?} : {misfit:?}\n"),
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
                assert_eq!(phase.after(Happening::Close), Ok(Phase::Closed));
            }
        }
        for happening in HAPPENINGS {
            assert_eq!(Phase::Closed.after(happening), Err(Misfit::Closed));
        }
    }

    #[test]
    fn wsd_075_a_second_connect_is_seen() {
        for phase in PHASES.into_iter().filter(|p| p.is_connecting()) {
            assert_eq!(phase.after(Happening::Connect), Err(Misfit::Connecting));
        }
        assert_eq!(
            Phase::Connected.after(Happening::Connect),
            Err(Misfit::Connected)
        );
    }
}
