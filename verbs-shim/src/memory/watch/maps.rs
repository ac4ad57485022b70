//! What kind of memory lies at an address, and beside it.
//!
//! From Linux 6.11 on the kernel answers for one address (`PROCMAP_QUERY`); before that the list
//! `/proc/self/maps` is read, up to the range. Nothing here allocates: a caller may hold a lock
//! that the reader of a userfaultfd needs.

use std::fs::File;
use std::ops::{ControlFlow, Range};
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

use super::AtRim;

/// `PROCMAP_QUERY_VMA_SHARED`; the bits below are the rights to read, write and execute.
const SHARED: u64 = 8;
/// `PROCMAP_QUERY_COVERING_OR_NEXT_VMA`.
const OR_NEXT: u64 = 16;

/// `struct procmap_query` of `linux/fs.h`.
#[repr(C)]
#[derive(Default)]
struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

const _: () = assert!(size_of::<ProcmapQuery>() == 104);

const PROCMAP_QUERY: Opcode = opcode::read_write::<ProcmapQuery>(b'f', 17);

/// One mapping, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) range: Range<usize>,
    pub(super) private_anonymous: bool,
    /// As `PROCMAP_QUERY` numbers them.
    rights: u64,
}

/// What a range of pages is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Survey {
    /// Private anonymous memory is mapped at every address of it.
    pub(super) private_anonymous: bool,
    pub(super) at_rim: AtRim,
}

/// `maps` is `/proc/self/maps`, open; so everywhere here.
pub(super) fn survey(maps: &File, range: &Range<usize>) -> Result<Survey, Errno> {
    survey_by(visit, maps, range)
}

fn survey_by(visit: Visit, maps: &File, range: &Range<usize>) -> Result<Survey, Errno> {
    let mut reached = range.start;
    let mut all = true;
    // Where nothing comes up there is nothing.
    let mut at_rim = AtRim {
        before: true,
        behind: true,
    };
    visit(maps, range.start.saturating_sub(1), &mut |mapping| {
        let Range { start, end } = mapping.range;
        at_rim.before &= start >= range.start;
        if start < range.end && end > range.start {
            all &= mapping.private_anonymous && start <= reached;
            reached = end;
        }
        at_rim.behind &= start > range.end || range.end >= end;
        match end > range.end {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })?;
    Ok(Survey {
        private_anonymous: all && reached >= range.end,
        at_rim,
    })
}

/// Whether two mappings meet at this address that are alike as far as can be seen: private
/// anonymous memory with the same rights, which the kernel could have joined.
pub(super) fn is_seam(maps: &File, at: usize) -> Result<bool, Errno> {
    is_seam_by(visit, maps, at)
}

fn is_seam_by(visit: Visit, maps: &File, at: usize) -> Result<bool, Errno> {
    let mut before: Option<Mapping> = None;
    let mut alike = false;
    visit(maps, at.saturating_sub(1), &mut |mapping| {
        let Some(before) = &before else {
            let ends_here = mapping.range.start < at && mapping.range.end == at;
            before = Some(mapping);
            return match ends_here {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            };
        };
        alike = mapping.range.start == at
            && mapping.private_anonymous
            && before.private_anonymous
            && mapping.rights == before.rights;
        ControlFlow::Break(())
    })?;
    Ok(alike)
}

type Visit = fn(&File, usize, &mut dyn FnMut(Mapping) -> ControlFlow<()>) -> Result<(), Errno>;

/// Shows the mappings in order, from the one that contains the address or else the next one.
fn visit(
    maps: &File,
    from: usize,
    each: &mut dyn FnMut(Mapping) -> ControlFlow<()>,
) -> Result<(), Errno> {
    let mut at = from;
    loop {
        match query(maps, at) {
            Ok(mapping) => {
                at = mapping.range.end;
                if each(mapping).is_break() {
                    return Ok(());
                }
            }
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTTY | Errno::INVAL) => return visit_list(maps, at, each),
            Err(errno) => return Err(errno),
        }
    }
}

fn query(maps: &File, address: usize) -> Result<Mapping, Errno> {
    let mut query = ProcmapQuery {
        size: size_of::<ProcmapQuery>() as u64,
        query_flags: OR_NEXT,
        query_addr: address as u64,
        ..ProcmapQuery::default()
    };
    // SAFETY: the kernel reads and writes a procmap_query for this number, of the size checked;
    // it writes no name and no build id, since there is no room for them.
    let request = unsafe { Updater::<PROCMAP_QUERY, _>::new(&mut query) };
    // SAFETY: as above; `query` lives through the call.
    unsafe { ioctl(maps.as_fd(), request) }?;
    let is_file = query.inode != 0 || query.dev_major != 0 || query.dev_minor != 0;
    let address = |n: u64| usize::try_from(n).map_err(|_| Errno::OVERFLOW);
    Ok(Mapping {
        range: address(query.vma_start)?..address(query.vma_end)?,
        private_anonymous: !is_file && query.vma_flags & SHARED == 0,
        rights: query.vma_flags & (SHARED - 1),
    })
}

/// The same from the list of all mappings.
fn visit_list(
    maps: &File,
    from: usize,
    each: &mut dyn FnMut(Mapping) -> ControlFlow<()>,
) -> Result<(), Errno> {
    let mut buffer = [0; 8192];
    let (mut kept, mut offset) = (0, 0);
    loop {
        let read = match rustix::io::pread(maps, &mut buffer[kept..], offset) {
            Err(Errno::INTR) => continue,
            read => read?,
        };
        if read == 0 {
            return Ok(());
        }
        offset += read as u64;
        let filled = kept + read;
        let mut begin = 0;
        while let Some(len) = buffer[begin..filled].iter().position(|&b| b == b'\n') {
            let line = &buffer[begin..begin + len];
            begin += len + 1;
            let mapping = parse(line).ok_or(Errno::ILSEQ)?;
            if mapping.range.end > from && each(mapping).is_break() {
                return Ok(());
            }
        }
        // A line is at most 4,096 bytes of path longer than its beginning, so room is left.
        buffer.copy_within(begin..filled, 0);
        kept = filled - begin;
        if kept == buffer.len() {
            return Err(Errno::NAMETOOLONG);
        }
    }
}

/// One line: `7f0000000000-7f0000021000 rw-p 00000000 00:00 0   name`.
pub(super) fn parse(line: &[u8]) -> Option<Mapping> {
    let mut fields = line.split(|&b| b == b' ').filter(|f| !f.is_empty());
    let addresses = std::str::from_utf8(fields.next()?).ok()?;
    let rights = fields.next()?;
    let _offset = fields.next()?;
    let device = fields.next()?;
    let inode = fields.next()?;
    let (start, end) = addresses.split_once('-')?;
    let hex = |text: &str| usize::from_str_radix(text, 16).ok();
    let no_file = inode == b"0" && device.iter().all(|b| matches!(b, b'0' | b':'));
    let right = |place: usize, letter: u8| u64::from(rights.get(place) == Some(&letter)) << place;
    Some(Mapping {
        range: hex(start)?..hex(end)?,
        private_anonymous: no_file && rights.get(3) == Some(&b'p'),
        rights: right(0, b'r') | right(1, b'w') | right(2, b'x'),
    })
}

/// The answers by the list alone, which kernels before 6.11 give.
#[cfg(test)]
pub(super) mod by_list {
    use super::*;

    pub(in super::super) fn survey(maps: &File, range: &Range<usize>) -> Result<Survey, Errno> {
        survey_by(visit_list, maps, range)
    }

    pub(in super::super) fn is_seam(maps: &File, at: usize) -> Result<bool, Errno> {
        is_seam_by(visit_list, maps, at)
    }
}
