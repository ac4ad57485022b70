//! What one side of a connection does: a list of operations that a seed
//! determines.

use crate::rng::Rng;

/// An operation of the send queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Send,
    SendImm(u32),
    SendInvalidate,
    Write,
    WriteImm(u32),
    Read,
}

#[derive(Clone, Copy, Debug)]
pub struct Op {
    pub kind: Kind,
    /// Where its bytes are: in the source region, for a WRITE at the same place
    /// of the peer's target region, for a READ in the sink region.
    pub at: usize,
    pub len: usize,
    /// Where an RDMA READ reads in the peer's source region.
    pub from: usize,
    pub inline: bool,
    /// Into how many pieces the bytes are cut.
    pub pieces: usize,
    pub fence: bool,
    pub signaled: bool,
}

impl Op {
    /// Whether it uses up a receive.
    pub fn consumes(&self) -> bool {
        !matches!(self.kind, Kind::Write | Kind::Read)
    }
}

#[derive(Clone, Debug)]
pub struct Script {
    pub ops: Vec<Op>,
    /// Length of the source, the target and the sink region.
    pub len: usize,
}

/// Inline bytes of the simulated queue pairs.
pub const INLINE: usize = 96;

impl Script {
    /// Anything that a queue pair can do, `n` operations of it, in packets of
    /// `mtu` bytes, reading from a region of `peer_len` bytes at most.
    pub fn random(rng: &mut Rng, n: usize, mtu: usize, reads: bool) -> Self {
        let mut ops = Vec::with_capacity(n);
        let mut at = 0;
        for _ in 0..n {
            let len = match rng.below(8) {
                0 => 0,
                1 | 2 => rng.range(1, 64) as usize,
                3 => mtu * rng.range(1, 6) as usize,
                4 => mtu * rng.range(1, 6) as usize + rng.range(0, 2) as usize - 1,
                5 => rng.range(1, 20 * mtu as u64) as usize,
                _ => rng.range(1, 3 * mtu as u64) as usize,
            };
            let imm = rng.next() as u32;
            let kind = match rng.below(if reads { 10 } else { 7 }) {
                0..=2 => Kind::Send,
                3 => Kind::SendImm(imm),
                4 => Kind::SendInvalidate,
                5 => Kind::Write,
                6 => Kind::WriteImm(imm),
                _ => Kind::Read,
            };
            ops.push(Op {
                kind,
                at,
                len,
                from: 0,
                inline: kind != Kind::Read && len <= INLINE && rng.one_in(2),
                pieces: rng.range(1, 4) as usize,
                fence: rng.one_in(6),
                signaled: !rng.one_in(4),
            });
            at += len;
        }
        // The end tells the user that all is done.
        if let Some(last) = ops.last_mut() {
            last.signaled = true;
        }
        Self { ops, len: at }
    }

    /// SENDs of one size.
    pub fn uniform(n: usize, kind: Kind, len: usize) -> Self {
        let op = |i| Op {
            kind,
            at: i * len,
            len,
            from: i * len,
            inline: false,
            pieces: 1,
            fence: false,
            signaled: true,
        };
        Self {
            ops: (0..n).map(op).collect(),
            len: n * len,
        }
    }

    /// Chooses where RDMA READs read in a region of `len` bytes.
    pub fn aim(&mut self, rng: &mut Rng, len: usize) {
        for op in &mut self.ops {
            if op.kind == Kind::Read {
                op.len = op.len.min(len);
                op.from = rng.below((len - op.len) as u64 + 1) as usize;
            }
        }
    }
}
