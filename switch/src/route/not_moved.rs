//! Why a connection that began on TCP is not on the SAN now (the route `upgrade`).

use std::fmt;
use std::net::SocketAddr;

/// Why a connection that began on TCP, and may move, is not on the SAN now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotMoved {
    /// It has carried too little so far.
    Short,
    /// Its move is under way.
    UnderWay,
    /// The peer's library has not taken part: there is none, it has another key, or no answer came in time.
    Unanswered,
    /// The peer's library has taken part, and no move was finished in its time.
    Unfinished,
    /// It was on the SAN, and has come back.
    CameBack,
    /// One end has ended its direction.
    Ended,
    /// Several processes have it.
    Shared,
    /// Bytes went past the library, so that nobody knows the positions.
    Uncounted,
    /// A call, or another process, needed the kernel's socket.
    NeedsTcp,
}

impl NotMoved {
    /// Every one.
    pub const ALL: [NotMoved; 9] = [
        NotMoved::Short,
        NotMoved::UnderWay,
        NotMoved::Unanswered,
        NotMoved::Unfinished,
        NotMoved::CameBack,
        NotMoved::Ended,
        NotMoved::Shared,
        NotMoved::Uncounted,
        NotMoved::NeedsTcp,
    ];

    /// What an operator can type, or do, about a connection with this peer.
    pub(crate) fn remedy(self, peer: SocketAddr) -> String {
        let ip = peer.ip();
        match self {
            NotMoved::Short => {
                "it moves after SAN_UPGRADE_BYTES bytes if the peer's library moves it, too: san config"
                    .to_owned()
            }
            NotMoved::UnderWay => "look again in a moment: san stat PID".to_owned(),
            NotMoved::Unanswered => format!(
                "on the peer: san stat (is its program there?), san config (the same SAN_ROUTE, SAN_FABRIC and \
                 SAN_KEY as here); see whether RDMA answers there: san doctor {ip}"
            ),
            NotMoved::Unfinished => {
                "it moves when the programs have read what TCP still holds: ss -tn shows Recv-Q and Send-Q; \
                 SAN_LOG=debug for both programs shows each step"
                    .to_owned()
            }
            NotMoved::CameBack => {
                "an idle one moves again when it carries bytes; else see what broke: dmesg | tail; rdma link show; \
                 SAN_LOG=debug for both programs"
                    .to_owned()
            }
            NotMoved::Ended => {
                "the programs decide: it moves while both directions are open".to_owned()
            }
            NotMoved::Shared => {
                "the program decides: a connection moves if one process alone uses it".to_owned()
            }
            NotMoved::Uncounted => {
                "have the program read and write by calls of libc: io_uring goes past the library".to_owned()
            }
            NotMoved::NeedsTcp => {
                "the program decides: see which call needed TCP: SAN_LOG=debug; docs/run.md lists such calls"
                    .to_owned()
            }
        }
    }
}

impl fmt::Display for NotMoved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NotMoved::Short => "it began on TCP and has carried too little to move",
            NotMoved::UnderWay => "its move to the SAN is under way",
            NotMoved::Unanswered => "the peer has not taken part in its move to the SAN",
            NotMoved::Unfinished => "its move to the SAN was not finished in time",
            NotMoved::CameBack => "it was on the SAN and came back to TCP",
            NotMoved::Ended => "one end has ended its direction before it moved",
            NotMoved::Shared => "several processes use it",
            NotMoved::Uncounted => "bytes went past the library, or the peer has ended",
            NotMoved::NeedsTcp => "a call or another process needed its TCP socket",
        })
    }
}
