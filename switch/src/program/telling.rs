//! What a program tells of itself in the report of its switch ([`Report`](crate::Report)).
//!
//! Nothing is kept for it while the program runs, but for the last connects that were left to TCP. The thread
//! `san-stat` looks at the library's table when somebody asks.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;

use super::stays::Why;
use super::{Held, PROGRAM, Program};
use crate::route::not_moved::NotMoved;
use crate::stat::{Elsewhere, LeftToTcp};

fn program() -> Option<&'static Program> {
    PROGRAM.get()?.as_ref()
}

/// Why connections of this process's program have stayed on TCP, by name; empty without the upgrade route.
pub(super) fn why_on_tcp() -> Vec<(&'static str, u64)> {
    let Some(program) = program() else {
        return Vec::new();
    };
    let rows = program.stats().rows();
    let is_reason = |(name, _): &(&str, u64)| name.starts_with("stayed_");
    rows.into_iter()
        .filter(|row| program.is_upgrading() && is_reason(row))
        .collect()
}

/// The connections that began on TCP and that the kernel has. A stream that was on the SAN once is in the
/// switch's own list.
pub(super) fn on_tcp(tell: &mut dyn FnMut(Elsewhere)) {
    let Some(program) = program() else {
        return;
    };
    // Numbers that dup has made are the same stream.
    let mut told = HashSet::new();
    program.kernel.each(&mut |number, held| {
        let Held::Stream(stream) = held else {
            return;
        };
        let state = stream.state();
        let Some(upgrading) = &state.upgrading else {
            return;
        };
        if upgrading.moving().is_some() || !told.insert(Arc::as_ptr(state)) {
            return;
        }
        let Some(fd) = program.kernel.borrow(number) else {
            return;
        };
        // One that is not connected any more, or is another file by now, is none.
        let ends = || {
            let local = SocketAddr::try_from(rustix::net::getsockname(fd).ok()?).ok()?;
            let peer = SocketAddr::try_from(rustix::net::getpeername(fd).ok()??).ok()?;
            Some((local, peer))
        };
        if let Some((local, peer)) = ends() {
            let (sent, received) = upgrading.carried();
            tell(Elsewhere {
                local,
                peer,
                since: upgrading.since(),
                why: not_moved(upgrading.why_on_tcp()),
                sent,
                received,
            });
        }
    });
}

/// `None`: the SAN has no way to the peer.
fn not_moved(why: Why) -> Option<NotMoved> {
    Some(match why {
        Why::Short => NotMoved::Short,
        Why::Shared => NotMoved::Shared,
        Why::Uncounted => NotMoved::Uncounted,
        Why::NoWay => return None,
        Why::Unanswered => NotMoved::Unanswered,
        Why::Unfinished => NotMoved::Unfinished,
        Why::KernelCall => NotMoved::NeedsTcp,
    })
}

/// The last connects that were left to TCP.
pub(super) fn left_to_tcp() -> Vec<LeftToTcp> {
    program().map_or_else(Vec::new, |program| program.tally.left())
}
