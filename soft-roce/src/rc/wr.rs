//! Work requests: what the user posts.
//!
//! What it does: plain descriptions, borrowed for the call, and the reasons why
//! one is refused at once. Everything else that goes wrong with a request is
//! told by its completion.
//! What it does not do: keep them; the queues do, with keys resolved.

use std::sync::Arc;

use super::mr::{Access, MemoryRegion, MrTable, Pd, Span};
use super::state::QpState;

/// Entries of a scatter/gather list.
pub const MAX_SGE: usize = 4;

/// The longest message (IBTA 9.7.3: 2^31 bytes).
pub const MAX_MESSAGE: u32 = 1 << 31;

/// A piece of registered memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sge {
    /// Address, as the region counts.
    pub addr: u64,
    /// Length in bytes.
    pub len: u32,
    /// Key of the region.
    pub lkey: u32,
}

/// Memory of the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Address, as the peer's region counts.
    pub va: u64,
    /// The key that the peer gave.
    pub rkey: u32,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendOp {
    /// SEND.
    Send,
    /// SEND with immediate data.
    SendImm(u32),
    /// SEND that withdraws one of the receiver's windows.
    SendInvalidate(u32),
    /// RDMA WRITE.
    Write(Remote),
    /// RDMA WRITE that also uses up a receive and hands over a number.
    WriteImm(Remote, u32),
    /// RDMA READ.
    Read(Remote),
}

/// The bytes of a request.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// Copied now; the caller's buffer is free when the call returns.
    Inline(&'a [u8]),
    /// Read from there (written to, for RDMA READ) until the completion comes.
    Sges(&'a [Sge]),
}

/// A request for the send queue.
#[derive(Clone, Copy, Debug)]
pub struct SendRequest<'a> {
    /// The user's number.
    pub wr_id: u64,
    /// What is to be done.
    pub op: SendOp,
    /// With which bytes.
    pub payload: Payload<'a>,
    /// Whether success makes a completion. Failure always does.
    pub signaled: bool,
    /// Whether it waits until all RDMA READs before it are complete.
    pub fence: bool,
    /// Whether the receiver's completion is a solicited one.
    pub solicited: bool,
}

/// A request for the receive queue.
#[derive(Clone, Copy, Debug)]
pub struct RecvRequest<'a> {
    /// The user's number.
    pub wr_id: u64,
    /// Where the message is to be placed.
    pub sges: &'a [Sge],
}

/// Why a request was not taken. Nothing of it was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PostError {
    /// The queue pair's state does not allow it.
    #[error("not allowed in state {0:?}")]
    State(QpState),
    /// The queue holds as many requests as it can.
    #[error("queue full")]
    QueueFull,
    /// More pieces than the queue pair was made for.
    #[error("{0} scatter/gather entries are too many")]
    TooManySges(usize),
    /// More inline bytes than the queue pair was made for.
    #[error("{0} bytes are too many to go inline")]
    InlineTooLong(usize),
    /// An RDMA READ has nothing to copy inline.
    #[error("an RDMA READ cannot be inline")]
    InlineRead,
    /// Longer than any message can be.
    #[error("message longer than 2^31 bytes")]
    TooLong,
    /// The queue pair uses a shared receive queue.
    #[error("receives go to the shared receive queue")]
    Shared,
}

/// A scatter/gather list with its keys resolved.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    list: [Option<Piece>; MAX_SGE],
    len: u32,
    /// A key, range or right was wrong: the request fails when its turn comes.
    bad: bool,
}

#[derive(Debug)]
struct Piece {
    region: Arc<MemoryRegion>,
    offset: u64,
    len: u32,
}

/// Memory of a list was withdrawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Withdrawn;

impl Pieces {
    /// Resolves `sges`, of which there are at most `max`.
    pub(crate) fn resolve(
        table: &MrTable,
        pd: Pd,
        sges: &[Sge],
        max: usize,
        right: Access,
    ) -> Result<Self, PostError> {
        if sges.len() > max.min(MAX_SGE) {
            return Err(PostError::TooManySges(sges.len()));
        }
        let mut pieces = Self::default();
        let mut total: u64 = 0;
        for (place, sge) in pieces.list.iter_mut().zip(sges) {
            total += u64::from(sge.len);
            // An empty piece names no memory (IBTA 10.6.3.2).
            if sge.len == 0 {
                continue;
            }
            match table.local(sge.lkey, pd, sge.addr, sge.len.into(), right) {
                Ok(Span { region, offset }) => {
                    *place = Some(Piece {
                        region,
                        offset,
                        len: sge.len,
                    });
                }
                Err(_) => pieces.bad = true,
            }
        }
        pieces.len = match u32::try_from(total) {
            Ok(len) if len <= MAX_MESSAGE => len,
            _ => return Err(PostError::TooLong),
        };
        Ok(pieces)
    }

    /// Bytes in all pieces.
    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    /// Whether every key opened its memory. It may have been withdrawn since;
    /// that shows when it is touched.
    pub(crate) fn is_usable(&self) -> bool {
        !self.bad
    }

    /// Copies from `offset` on, out of as many pieces as it takes. The range is
    /// inside.
    pub(crate) fn gather(&self, offset: u32, mut out: &mut [u8]) -> Result<(), Withdrawn> {
        let mut skip = offset;
        for piece in self.list.iter().flatten() {
            if out.is_empty() {
                break;
            }
            if skip >= piece.len {
                skip -= piece.len;
                continue;
            }
            let n = out.len().min((piece.len - skip) as usize);
            let (now, later) = out.split_at_mut(n);
            piece
                .region
                .read(piece.offset + u64::from(skip), now)
                .map_err(|_| Withdrawn)?;
            out = later;
            skip = 0;
        }
        if out.is_empty() {
            Ok(())
        } else {
            Err(Withdrawn)
        }
    }

    /// Copies `data` to `offset` on, as [`Pieces::gather`] the other way.
    pub(crate) fn scatter(&self, offset: u32, mut data: &[u8]) -> Result<(), Withdrawn> {
        let mut skip = offset;
        for piece in self.list.iter().flatten() {
            if data.is_empty() {
                break;
            }
            if skip >= piece.len {
                skip -= piece.len;
                continue;
            }
            let n = data.len().min((piece.len - skip) as usize);
            let (now, later) = data.split_at(n);
            piece
                .region
                .write(piece.offset + u64::from(skip), now)
                .map_err(|_| Withdrawn)?;
            data = later;
            skip = 0;
        }
        if data.is_empty() {
            Ok(())
        } else {
            Err(Withdrawn)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::HeapMemory;
    use crate::rc::keys::KeySource;
    use proptest::prelude::*;

    const PD: Pd = Pd(0);

    proptest! {
        /// However a list is cut, its bytes are those of one buffer.
        #[test]
        fn a_list_is_one_buffer(lens in prop::collection::vec(0u32..40, 0..=MAX_SGE), cuts in prop::collection::vec(1usize..30, 8)) {
            let table = MrTable::new(8, KeySource::seeded(1));
            let mr = table
                .register(PD, 0, Arc::new(HeapMemory::new(400)), Access::LOCAL_WRITE)
                .unwrap();
            // Pieces lie apart, the last one first.
            let sges: Vec<Sge> = lens
                .iter()
                .enumerate()
                .map(|(i, len)| Sge { addr: 300 - 100 * i as u64, len: *len, lkey: mr.lkey() })
                .collect();
            let pieces = Pieces::resolve(&table, PD, &sges, MAX_SGE, Access::LOCAL_WRITE).unwrap();
            let total = lens.iter().sum::<u32>() as usize;
            prop_assert_eq!(pieces.len() as usize, total);
            let data: Vec<u8> = (0..total).map(|i| i as u8 ^ 0x5a).collect();
            let mut at = 0;
            for cut in cuts.iter().cycle().take_while(|_| total > 0) {
                if at == total { break }
                let end = total.min(at + cut);
                pieces.scatter(at as u32, &data[at..end]).unwrap();
                at = end;
            }
            let mut back = vec![0; total];
            pieces.gather(0, &mut back).unwrap();
            prop_assert_eq!(&back, &data);
            prop_assert_eq!(pieces.scatter(total as u32, &[1]), Err(Withdrawn));
        }
    }

    #[test]
    fn wrong_keys_wait_for_their_turn() {
        let table = MrTable::new(8, KeySource::seeded(1));
        let bad = [Sge {
            addr: 0,
            len: 1,
            lkey: 77,
        }];
        let pieces = Pieces::resolve(&table, PD, &bad, 1, Access::NONE).unwrap();
        assert!(!pieces.is_usable());
        let empty = [Sge {
            addr: 0,
            len: 0,
            lkey: 77,
        }];
        assert!(
            Pieces::resolve(&table, PD, &empty, 1, Access::NONE)
                .unwrap()
                .is_usable()
        );
        assert_eq!(
            Pieces::resolve(&table, PD, &[Sge::default(); 2], 1, Access::NONE).err(),
            Some(PostError::TooManySges(2))
        );
        let huge = [Sge {
            addr: 0,
            len: MAX_MESSAGE,
            lkey: 0,
        }; 2];
        assert_eq!(
            Pieces::resolve(&table, PD, &huge, 2, Access::NONE).err(),
            Some(PostError::TooLong)
        );
    }
}
