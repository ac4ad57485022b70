//! What kind of memory lies at an address.
//!
//! From Linux 6.11 on the kernel answers for one address (`PROCMAP_QUERY`); before that the list
//! `/proc/self/maps` is read, up to the range. Nothing here allocates: a caller may hold a lock
//! that the reader of a userfaultfd needs.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// `PROCMAP_QUERY_VMA_SHARED`.
const SHARED: u64 = 8;

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
}

/// Whether private anonymous memory is mapped at every address of the range. `maps` is
/// `/proc/self/maps`, open.
pub(super) fn private_anonymous(maps: &File, range: &Range<usize>) -> Result<bool, Errno> {
    let mut from = range.start;
    while from < range.end {
        match query(maps, from) {
            Ok(mapping) if mapping.private_anonymous => from = mapping.range.end,
            Ok(_) | Err(Errno::NOENT) => return Ok(false),
            Err(Errno::NOTTY | Errno::INVAL) => return read_list(maps, &(from..range.end)),
            Err(errno) => return Err(errno),
        }
    }
    Ok(true)
}

fn query(maps: &File, address: usize) -> Result<Mapping, Errno> {
    let mut query = ProcmapQuery {
        size: size_of::<ProcmapQuery>() as u64,
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
    })
}

/// The same from the list of all mappings.
pub(super) fn read_list(maps: &File, range: &Range<usize>) -> Result<bool, Errno> {
    let mut buffer = [0; 8192];
    let (mut kept, mut offset) = (0, 0);
    let mut from = range.start;
    loop {
        let read = match rustix::io::pread(maps, &mut buffer[kept..], offset) {
            Err(Errno::INTR) => continue,
            read => read?,
        };
        if read == 0 {
            return Ok(false);
        }
        offset += read as u64;
        let filled = kept + read;
        let mut begin = 0;
        while let Some(len) = buffer[begin..filled].iter().position(|&b| b == b'\n') {
            let line = &buffer[begin..begin + len];
            begin += len + 1;
            let mapping = parse(line).ok_or(Errno::ILSEQ)?;
            if mapping.range.end <= from {
                continue;
            }
            if mapping.range.start > from || !mapping.private_anonymous {
                return Ok(false);
            }
            from = mapping.range.end;
            if from >= range.end {
                return Ok(true);
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
    Some(Mapping {
        range: hex(start)?..hex(end)?,
        private_anonymous: no_file && rights.get(3) == Some(&b'p'),
    })
}
