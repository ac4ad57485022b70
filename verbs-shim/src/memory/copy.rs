//! Copies between private bytes and memory that others may touch at the same time.
//!
//! On the rdma fabric "others" is the NIC, which is no part of Rust's memory model. On the soft
//! fabric it is another thread of this process that works for the peer, and a plain copy beside it
//! would be undefined behaviour. So both sides go word by word with relaxed atomics: what a reader
//! gets while a writer is at it is a mixture of old and new, as with a NIC, and nothing worse.
//! Words are aligned by address, so that all copies of one memory cut it in the same way.
//!
//! It checks no bounds; that is for the callers.

#![allow(unsafe_code)]

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

const WORD: usize = size_of::<u64>();

/// Copies `out.len()` bytes from `from`.
///
/// # Safety
/// `from` is valid for reading that many bytes, and whoever writes any of them at the same time
/// does so with [`copy_in`], or is a device.
pub(crate) unsafe fn copy_out(from: *const u8, out: &mut [u8]) {
    let (head, words, _) = cut(from, out.len());
    let (first, rest) = out.split_at_mut(head);
    let (middle, last) = rest.split_at_mut(words * WORD);
    for (n, byte) in first.iter_mut().enumerate() {
        // SAFETY: inside the range that the caller vouches for.
        *byte = unsafe { load_byte(from.wrapping_add(n)) };
    }
    let from = from.wrapping_add(head);
    for (n, word) in middle.chunks_exact_mut(WORD).enumerate() {
        // SAFETY: inside the range, and aligned by the cut.
        let value = unsafe { load_word(from.wrapping_add(n * WORD)) };
        word.copy_from_slice(&value.to_ne_bytes());
    }
    let from = from.wrapping_add(words * WORD);
    for (n, byte) in last.iter_mut().enumerate() {
        // SAFETY: inside the range that the caller vouches for.
        *byte = unsafe { load_byte(from.wrapping_add(n)) };
    }
}

/// Copies `bytes` to `to`.
///
/// # Safety
/// `to` is valid for writing that many bytes, and whoever reads or writes any of them at the same
/// time does so with [`copy_out`] or [`copy_in`], or is a device.
pub(crate) unsafe fn copy_in(to: *mut u8, bytes: &[u8]) {
    let (head, words, _) = cut(to, bytes.len());
    let (first, rest) = bytes.split_at(head);
    let (middle, last) = rest.split_at(words * WORD);
    for (n, byte) in first.iter().enumerate() {
        // SAFETY: inside the range that the caller vouches for.
        unsafe { store_byte(to.wrapping_add(n), *byte) };
    }
    let to = to.wrapping_add(head);
    for (n, word) in middle.chunks_exact(WORD).enumerate() {
        let mut value = [0; WORD];
        value.copy_from_slice(word);
        // SAFETY: inside the range, and aligned by the cut.
        unsafe { store_word(to.wrapping_add(n * WORD), u64::from_ne_bytes(value)) };
    }
    let to = to.wrapping_add(words * WORD);
    for (n, byte) in last.iter().enumerate() {
        // SAFETY: inside the range that the caller vouches for.
        unsafe { store_byte(to.wrapping_add(n), *byte) };
    }
}

/// Bytes before the first aligned word, whole words, bytes behind them.
fn cut(at: *const u8, len: usize) -> (usize, usize, usize) {
    let head = at.align_offset(WORD).min(len);
    let words = (len - head) / WORD;
    (head, words, len - head - words * WORD)
}

/// # Safety
/// `at` is valid for reading, and shared as the callers say.
unsafe fn load_byte(at: *const u8) -> u8 {
    // SAFETY: the caller's promise; a byte is always aligned.
    unsafe { AtomicU8::from_ptr(at.cast_mut()) }.load(Relaxed)
}

/// # Safety
/// `at` is aligned and valid for reading a word, and shared as the callers say.
unsafe fn load_word(at: *const u8) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { AtomicU64::from_ptr(at.cast_mut().cast()) }.load(Relaxed)
}

/// # Safety
/// `at` is valid for writing, and shared as the callers say.
unsafe fn store_byte(at: *mut u8, value: u8) {
    // SAFETY: the caller's promise; a byte is always aligned.
    unsafe { AtomicU8::from_ptr(at) }.store(value, Relaxed);
}

/// # Safety
/// `at` is aligned and valid for writing a word, and shared as the callers say.
unsafe fn store_word(at: *mut u8, value: u64) {
    // SAFETY: the caller's promise.
    unsafe { AtomicU64::from_ptr(at.cast()) }.store(value, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alignment_and_length_arrives_whole() {
        let source: Vec<u8> = (1..=64).collect();
        for start in 0..9 {
            for len in 0..40 {
                let mut memory = [0u8; 64];
                // SAFETY: start + len is less than 64, and nobody else knows the memory.
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
                unsafe { copy_out(memory.as_ptr().wrapping_add(start), &mut out) };
                assert_eq!(out, &source[..len], "{start}+{len}");
            }
        }
    }
}
