//! Copies between private bytes and memory that others may touch at the same time.
//!
//! On the rdma fabric "others" is the NIC, which is no part of Rust's memory model. On the soft
//! fabric it is another thread of this process that works for the peer, and a plain copy beside it
//! would be undefined behaviour. So a copy is, for the model, one relaxed atomic access **to each
//! byte**, in no order: what a reader gets while a writer is at it is a mixture of old and new, as
//! with a NIC, and nothing worse.
//!
//! Bytes, since the model has no conflicting atomic accesses of different sizes: a store of one
//! byte beside a load of the word around it would be undefined, and regions overlap and begin
//! anywhere, so no cut into words is the same for all. Single accesses to all
//! bytes would be slow, though, since compilers do not join atomic ones. So the copies are written
//! as assembly, of which the compiler knows only that memory is read and written, with wide moves
//! where they fit. A wide move does one of the things that relaxed accesses to its bytes may do,
//! namely several of them at once; so the program does nothing that the one with single accesses
//! could not do. Under Miri, and for processors without assembly here, there are single accesses.
//!
//! Words are aligned by the address of the shared side. So a word that lies aligned and is copied
//! as a whole does not come out torn on these processors, but nobody is promised that.
//!
//! It checks no bounds; that is for the callers.

#![allow(unsafe_code)]

/// Copies `out.len()` bytes from `from`.
///
/// # Safety
/// `from` is valid for reading that many bytes, and whoever writes any of them at the same time
/// does so with [`copy_in`], by other atomic operations on single bytes, or is a device.
pub(crate) unsafe fn copy_out(from: *const u8, out: &mut [u8]) {
    // SAFETY: the caller's promise.
    unsafe { bytes::copy_out(from, out) };
}

/// Copies `bytes` to `to`.
///
/// # Safety
/// `to` is valid for writing that many bytes, and whoever reads or writes any of them at the same
/// time does so with [`copy_out`] or [`copy_in`], by other atomic operations on single bytes, or is
/// a device.
pub(crate) unsafe fn copy_in(to: *mut u8, bytes: &[u8]) {
    // SAFETY: the caller's promise.
    unsafe { bytes::copy_in(to, bytes) };
}

/// Assembly.
#[cfg(all(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    target_pointer_width = "64",
    not(miri)
))]
mod bytes {
    use std::arch::asm;

    pub(super) unsafe fn copy_out(from: *const u8, out: &mut [u8]) {
        let cut = Cut::new(from, out.len());
        // SAFETY: the caller vouches for `from`, and `out` is lent to us alone.
        unsafe { copy(out.as_mut_ptr(), from, cut) };
    }

    pub(super) unsafe fn copy_in(to: *mut u8, bytes: &[u8]) {
        let cut = Cut::new(to, bytes.len());
        // SAFETY: the caller vouches for `to`, and nobody writes `bytes`.
        unsafe { copy(to, bytes.as_ptr(), cut) };
    }

    /// Bytes before the first aligned word, whole words, bytes behind them.
    #[derive(Clone, Copy)]
    struct Cut {
        head: usize,
        words: usize,
        tail: usize,
    }

    impl Cut {
        fn new(shared: *const u8, len: usize) -> Self {
            const WORD: usize = size_of::<u64>();
            let head = shared.align_offset(WORD).min(len);
            Self {
                head,
                words: (len - head) / WORD,
                tail: (len - head) % WORD,
            }
        }
    }

    /// # Safety
    /// `from` is valid for reading as many bytes as were cut and `to` for writing them; both are
    /// shared as the callers of the copies say, or private.
    #[cfg(target_arch = "x86_64")]
    unsafe fn copy(to: *mut u8, from: *const u8, cut: Cut) {
        // SAFETY: it reads and writes what the caller vouches for and nothing else, by moves, which
        // on this processor are atomic for each byte; it leaves the stack alone.
        unsafe {
            asm!(
                "test {head}, {head}",
                "jz 3f",
                "2:",
                "movzx {word:e}, byte ptr [{from}]",
                "mov byte ptr [{to}], {word:l}",
                "inc {from}",
                "inc {to}",
                "dec {head}",
                "jnz 2b",
                "3:",
                "sub {words}, 8",
                "jb 5f",
                "4:",
                "movups {a}, [{from}]",
                "movups {b}, [{from} + 16]",
                "movups {c}, [{from} + 32]",
                "movups {d}, [{from} + 48]",
                "movups [{to}], {a}",
                "movups [{to} + 16], {b}",
                "movups [{to} + 32], {c}",
                "movups [{to} + 48], {d}",
                "add {from}, 64",
                "add {to}, 64",
                "sub {words}, 8",
                "jae 4b",
                "5:",
                "add {words}, 8",
                "jz 7f",
                "6:",
                "mov {word}, [{from}]",
                "mov [{to}], {word}",
                "add {from}, 8",
                "add {to}, 8",
                "dec {words}",
                "jnz 6b",
                "7:",
                "test {tail}, {tail}",
                "jz 9f",
                "8:",
                "movzx {word:e}, byte ptr [{from}]",
                "mov byte ptr [{to}], {word:l}",
                "inc {from}",
                "inc {to}",
                "dec {tail}",
                "jnz 8b",
                "9:",
                from = inout(reg) from => _,
                to = inout(reg) to => _,
                head = inout(reg) cut.head => _,
                words = inout(reg) cut.words => _,
                tail = inout(reg) cut.tail => _,
                word = out(reg) _,
                a = out(xmm_reg) _,
                b = out(xmm_reg) _,
                c = out(xmm_reg) _,
                d = out(xmm_reg) _,
                options(nostack),
            );
        }
    }

    /// # Safety
    /// `from` is valid for reading as many bytes as were cut and `to` for writing them; both are
    /// shared as the callers of the copies say, or private.
    #[cfg(target_arch = "aarch64")]
    unsafe fn copy(to: *mut u8, from: *const u8, cut: Cut) {
        // SAFETY: it reads and writes what the caller vouches for and nothing else, by loads and
        // stores, which on this processor are atomic for each byte; it leaves the stack alone.
        unsafe {
            asm!(
                "cbz {head}, 3f",
                "2:",
                "ldrb {a:w}, [{from}], #1",
                "strb {a:w}, [{to}], #1",
                "subs {head}, {head}, #1",
                "b.ne 2b",
                "3:",
                "subs {words}, {words}, #4",
                "b.lo 5f",
                "4:",
                "ldp {a}, {b}, [{from}], #16",
                "ldp {c}, {d}, [{from}], #16",
                "stp {a}, {b}, [{to}], #16",
                "stp {c}, {d}, [{to}], #16",
                "subs {words}, {words}, #4",
                "b.hs 4b",
                "5:",
                "adds {words}, {words}, #4",
                "b.eq 7f",
                "6:",
                "ldr {a}, [{from}], #8",
                "str {a}, [{to}], #8",
                "subs {words}, {words}, #1",
                "b.ne 6b",
                "7:",
                "cbz {tail}, 9f",
                "8:",
                "ldrb {a:w}, [{from}], #1",
                "strb {a:w}, [{to}], #1",
                "subs {tail}, {tail}, #1",
                "b.ne 8b",
                "9:",
                from = inout(reg) from => _,
                to = inout(reg) to => _,
                head = inout(reg) cut.head => _,
                words = inout(reg) cut.words => _,
                tail = inout(reg) cut.tail => _,
                a = out(reg) _,
                b = out(reg) _,
                c = out(reg) _,
                d = out(reg) _,
                options(nostack),
            );
        }
    }
}

/// Single accesses.
#[cfg(not(all(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    target_pointer_width = "64",
    not(miri)
)))]
mod bytes {
    use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

    pub(super) unsafe fn copy_out(from: *const u8, out: &mut [u8]) {
        for (n, byte) in out.iter_mut().enumerate() {
            let at = from.cast_mut().wrapping_add(n);
            // SAFETY: inside the range that the caller vouches for; it is only loaded.
            *byte = unsafe { AtomicU8::from_ptr(at) }.load(Relaxed);
        }
    }

    pub(super) unsafe fn copy_in(to: *mut u8, bytes: &[u8]) {
        for (n, byte) in bytes.iter().enumerate() {
            // SAFETY: inside the range that the caller vouches for.
            unsafe { AtomicU8::from_ptr(to.wrapping_add(n)) }.store(*byte, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU8;

    use super::*;

    #[test]
    fn every_alignment_and_length_arrives_whole() {
        let source: Vec<u8> = (1..=200).collect();
        for start in 0..9 {
            for len in 0..200 {
                let mut memory = [0u8; 256];
                // SAFETY: start + len is less than 256, and nobody else knows the memory.
                unsafe { copy_in(memory.as_mut_ptr().wrapping_add(start), &source[..len]) };
                assert_eq!(&memory[start..start + len], &source[..len], "{start}+{len}");
                assert!(
                    memory[..start].iter().all(|b| *b == 0),
                    "before {start}+{len}"
                );
                assert!(
                    memory[start + len..].iter().all(|b| *b == 0),
                    "behind {start}+{len}"
                );
                let mut out = vec![0; len];
                // SAFETY: as above.
                unsafe { copy_out(memory.as_mut_ptr().wrapping_add(start), &mut out) };
                assert_eq!(out, &source[..len], "{start}+{len}");
            }
        }
    }

    /// Threads write bytes of the same words and read them whole: nobody loses what he wrote, and
    /// the bytes between stay as they were. Miri would tell if it were a race.
    #[test]
    fn neighbours_in_a_word_do_not_disturb_each_other() {
        const ROUNDS: u32 = if cfg!(miri) { 20 } else { 20_000 };
        static MEMORY: [AtomicU8; 16] = [const { AtomicU8::new(0xEE) }; 16];
        let place = |offset| MEMORY.as_ptr().cast_mut().cast::<u8>().wrapping_add(offset);
        let write = |offset, len: usize| {
            for round in 0..ROUNDS {
                let bytes = vec![round as u8; len];
                // SAFETY: inside the array, which others reach in the same way.
                unsafe { copy_in(place(offset), &bytes) };
                let mut back = vec![0; len];
                // SAFETY: as above.
                unsafe { copy_out(place(offset), &mut back) };
                assert_eq!(back, bytes, "{len} bytes at {offset}, round {round}");
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| write(1, 1));
            scope.spawn(|| write(4, 11));
            let mut all = [0; 16];
            for _ in 0..ROUNDS {
                // SAFETY: as above.
                unsafe { copy_out(place(0), &mut all) };
                for untouched in [0, 2, 3, 15] {
                    assert_eq!(all[untouched], 0xEE, "byte {untouched}");
                }
            }
        });
    }
}
