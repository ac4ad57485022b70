use std::sync::atomic::Ordering;

use super::*;
use crate::testing::bench;

#[test]
fn rights_contain_each_other() {
    assert!(Access::REMOTE_WRITE.contains(Access::LOCAL_WRITE));
    assert!(!Access::REMOTE_READ.contains(Access::LOCAL_WRITE));
    let both = Access::LOCAL_WRITE | Access::REMOTE_READ;
    assert!(both.contains(Access::REMOTE_READ) && !both.contains(Access::REMOTE_WRITE));
    assert!(Access::READ_ONLY.contains(Access::READ_ONLY));
    assert_eq!(Access::default(), Access::READ_ONLY);
}

#[test]
fn a_region_is_zeroed_and_checks_its_bounds() {
    let bench = bench();
    let region = bench.pd.region(100, Access::LOCAL_WRITE).unwrap();
    assert_eq!((region.len(), region.is_empty()), (100, false));
    let mut all = [1; 100];
    region.read_at(0, &mut all).unwrap();
    assert_eq!(all, [0; 100]);
    region.write_at(97, b"end").unwrap();
    region.read_at(90, &mut all[..10]).unwrap();
    assert_eq!(&all[..10], b"\0\0\0\0\0\0\0end");
    assert!(region.write_at(98, b"end").is_err());
    assert!(region.read_at(usize::MAX, &mut all[..2]).is_err());
    assert!(region.slice(100, 0).unwrap().is_empty());
    assert!(region.slice(101, 0).is_err());
    assert!(region.slice(0, 101).is_err());
    assert!(region.slice(usize::MAX, 2).is_err());
    let sge = region.slice(10, 20).unwrap().sge();
    assert_eq!((sge.length, sge.lkey), (20, 11));
    let remote = region.remote(10);
    assert_eq!((remote.addr, remote.rkey), (sge.addr, 22));
}

#[test]
fn a_slice_keeps_its_region() {
    let bench = bench();
    let slice = bench
        .pd
        .region(100, Access::LOCAL_WRITE)
        .unwrap()
        .slice(0, 4)
        .unwrap();
    assert_eq!(bench.notes.registered.load(Ordering::SeqCst), 1);
    slice.region().write_at(0, b"here").unwrap();
    drop(slice);
    assert_eq!(bench.notes.registered.load(Ordering::SeqCst), 0);
}

#[test]
fn the_callers_memory_is_not_copied() {
    let bench = bench();
    let mut memory = vec![7; 64];
    let at = std::ptr::NonNull::new(memory.as_mut_ptr()).unwrap();
    let register = |len| {
        // SAFETY: the memory outlives the region, and nothing writes it.
        #[allow(unsafe_code)]
        let part = unsafe { AppMemory::new(at, len) };
        bench.pd.register(part, Access::READ_ONLY)
    };
    let region = register(64).unwrap();
    assert!(region.read_at(0, &mut [0]).is_err());
    assert!(region.write_at(0, &[0]).is_err());
    assert_eq!(
        region.slice(8, 8).unwrap().sge().addr,
        memory.as_ptr() as u64 + 8
    );
    drop(region);
    assert_eq!(memory, [7; 64]);
    assert_eq!(register(0).unwrap_err().errno(), libc::EINVAL);
}

fn is_mapped(addr: u64) -> bool {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().any(|line| {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let hex = |text| u64::from_str_radix(text, 16).unwrap();
        (hex(from)..hex(to)).contains(&addr)
    })
}

#[test]
fn memory_that_the_device_keeps_stays_mapped() {
    const LEN: usize = 64 << 20; // apart from what the allocator maps and unmaps
    let bench = bench();
    let kept = bench.pd.region(LEN, Access::LOCAL_WRITE).unwrap();
    let gone = bench.pd.region(LEN, Access::LOCAL_WRITE).unwrap();
    let (kept_at, gone_at) = (kept.remote(0).addr, gone.remote(LEN / 2).addr);
    assert!(is_mapped(kept_at) && is_mapped(gone_at));
    drop(gone);
    bench.notes.refuse_destroy.store(true, Ordering::SeqCst);
    drop(kept);
    assert!(is_mapped(kept_at));
    // Another thread's mapping could take the place, of this size hardly.
    assert!(!is_mapped(gone_at));
}

#[test]
fn a_registration_that_fails_maps_nothing() {
    let bench = bench();
    bench.notes.refuse_destroy.store(true, Ordering::SeqCst);
    let error = bench.pd.region(4096, Access::LOCAL_WRITE).unwrap_err();
    assert_eq!(error.errno(), libc::ENOMEM);
}

#[test]
fn a_pool_gives_each_slot_to_one_owner() {
    let bench = bench();
    let pool = BufferPool::new(&bench.pd, 100, 3, Access::LOCAL_WRITE).unwrap();
    let mut buffers: Vec<RegisteredBuffer> = std::iter::from_fn(|| pool.take()).collect();
    assert_eq!((buffers.len(), pool.free()), (3, 0));
    for (n, buffer) in buffers.iter_mut().enumerate() {
        assert!(buffer.is_empty());
        buffer.fill(&[n as u8; 100]);
    }
    for (n, buffer) in buffers.iter().enumerate() {
        assert_eq!(**buffer, [n as u8; 100]);
    }
    buffers[1][0] = 9;
    assert_eq!(buffers[1][..2], [9, 1]);
    drop(buffers.pop());
    assert_eq!(pool.free(), 1);
    assert!(pool.take().is_some());
    assert_eq!(pool.free(), 1);
}

#[test]
fn a_buffer_outlives_its_pool() {
    let bench = bench();
    let pool = BufferPool::new(&bench.pd, 64, 2, Access::LOCAL_WRITE).unwrap();
    let mut buffer = pool.take().unwrap();
    drop(pool);
    buffer.fill(b"still here");
    assert_eq!(&*buffer, b"still here");
    drop(buffer);
    assert_eq!(bench.notes.registered.load(Ordering::SeqCst), 0);
}

#[test]
fn bytes_are_the_slot_itself() {
    let bench = bench();
    let pool = BufferPool::new(&bench.pd, 64, 1, Access::LOCAL_WRITE).unwrap();
    let mut buffer = pool.take().unwrap();
    buffer.fill(b"zero copy");
    let at = buffer.as_ptr();
    let bytes = buffer.into_bytes();
    let part = bytes.slice(5..);
    assert_eq!((&*part, bytes.as_ptr()), (&b"copy"[..], at));
    drop(bytes);
    assert_eq!(pool.free(), 0);
    drop(part);
    assert_eq!(pool.free(), 1);
}

#[test]
#[should_panic(expected = "65 bytes in a slot of 64")]
fn a_length_past_the_slot_is_a_bug() {
    let bench = bench();
    let pool = BufferPool::new(&bench.pd, 64, 1, Access::LOCAL_WRITE).unwrap();
    pool.take().unwrap().set_len(65);
}

#[test]
fn buffers_cannot_be_opened_to_a_peer() {
    let bench = bench();
    let open = BufferPool::new(&bench.pd, 64, 1, Access::REMOTE_WRITE | Access::REMOTE_READ);
    assert_eq!(open.unwrap_err().errno(), libc::EINVAL);
    assert!(BufferPool::new(&bench.pd, 64, 1, Access::REMOTE_READ).is_err());
    // A window over a live buffer would open it just the same.
    let windows = BufferPool::new(&bench.pd, 64, 1, Access::LOCAL_WRITE | Access::WINDOWS);
    assert_eq!(windows.unwrap_err().errno(), libc::EINVAL);
    assert!(BufferPool::new(&bench.pd, 64, 1, Access::LOCAL_WRITE).is_ok());
}

#[test]
fn threads_share_a_pool() {
    let bench = bench();
    let pool = BufferPool::new(&bench.pd, 16, 4, Access::LOCAL_WRITE).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let pool = &pool;
            scope.spawn(move || {
                for _ in 0..2000 {
                    let Some(mut buffer) = pool.take() else {
                        continue;
                    };
                    buffer.fill(&[thread; 16]);
                    std::thread::yield_now();
                    assert_eq!(*buffer, [thread; 16]);
                }
            });
        }
    });
    assert_eq!(pool.free(), 4);
}

#[test]
fn shared_memory_is_registered_and_kept() {
    let bench = bench();
    let memory = SharedMemory::new(5000).unwrap();
    memory.write_at(4990, b"the end").unwrap();
    assert!(memory.write_at(4994, b"the end").is_err());
    assert!(memory.part(1, 5000).is_err());
    let part = memory.part(4990, 7).unwrap();
    let region = bench.pd.register(part, Access::LOCAL_WRITE).unwrap();
    assert_eq!(region.len(), 7);
    drop(memory);
    // The region keeps the mapping: the device may still read it.
    let mut held = [0; 7];
    let from = region.addr().as_ptr();
    // SAFETY: the region keeps its 7 bytes mapped, and nobody writes them.
    #[allow(unsafe_code)]
    unsafe {
        copy_out(from, &mut held);
    }
    assert_eq!(&held, b"the end");
    drop(region);
    assert_eq!(bench.notes.registered.load(Ordering::SeqCst), 0);
}

#[test]
fn memory_that_is_not_there_is_a_fault() {
    let bench = bench();
    let page = rustix::param::page_size();
    let map = |rights| {
        // SAFETY: a new mapping.
        #[allow(unsafe_code)]
        unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                2 * page,
                rights,
                rustix::mm::MapFlags::PRIVATE,
            )
        }
        .unwrap()
    };
    let register = |at: *mut std::ffi::c_void, len, access| {
        let at = std::ptr::NonNull::new(at.cast()).unwrap();
        // SAFETY: nothing reads or writes what is registered here, so it need not be there.
        #[allow(unsafe_code)]
        let memory = unsafe { AppMemory::new(at, len) };
        bench.pd.register(memory, access)
    };
    let read_only = map(rustix::mm::ProtFlags::READ);
    assert!(register(read_only, 2 * page, Access::READ_ONLY).is_ok());
    for access in [Access::LOCAL_WRITE, Access::WINDOWS, Access::REMOTE_WRITE] {
        let refused = register(read_only, 2 * page, access).unwrap_err();
        assert_eq!(refused.errno(), libc::EFAULT, "{access:?}");
    }
    // SAFETY: the second page is ours, and nothing refers to it.
    #[allow(unsafe_code)]
    unsafe { rustix::mm::munmap(read_only.wrapping_byte_add(page), page) }.unwrap();
    assert!(register(read_only, page, Access::READ_ONLY).is_ok());
    let refused = register(read_only, page + 1, Access::READ_ONLY).unwrap_err();
    assert_eq!(refused.errno(), libc::EFAULT);
    let at_the_end = std::ptr::without_provenance_mut(usize::MAX - 10);
    assert!(register(at_the_end, 100, Access::READ_ONLY).is_err());
    assert!(register(read_only, 0, Access::READ_ONLY).is_err());
    // SAFETY: as above.
    #[allow(unsafe_code)]
    unsafe { rustix::mm::munmap(read_only, page) }.unwrap();
}

#[test]
fn a_lease_lasts_as_long_as_its_slice() {
    let bench = bench();
    let region = bench.pd.region(100, Access::LOCAL_WRITE).unwrap();
    let lease = Arc::new(());
    let slice = region.slice(0, 4).unwrap().leased(Arc::clone(&lease));
    let other = slice.clone();
    drop(slice);
    assert_eq!(Arc::strong_count(&lease), 2);
    drop(other);
    assert_eq!(Arc::strong_count(&lease), 1);
}
