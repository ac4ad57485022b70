//! Completion channels and completion queues of the soft backend.

use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use soft_roce::endpoint::{CompletionChannel, CompletionQueue, Outside};
use soft_roce::rc::{self, Notify, WorkKind};

use super::device::SoftDevice;
use crate::backend::{self, RawNotifier, RawPoller};
use crate::error::{Result, VerbsError};
use crate::live::{Alive, Kind};
use crate::types::{Completion, RECEIVED_BY_WRITE, WITH_IMM, Woken};

/// Completions that are taken at a time.
const CHUNK: usize = 16;
/// How long a wait without an end is in one piece.
const LONG: Duration = Duration::from_secs(3600);

pub(super) struct SoftCompletionChannel {
    channel: CompletionChannel,
    device: Arc<SoftDevice>,
    _alive: Alive,
}

impl SoftCompletionChannel {
    pub(super) fn new(device: &Arc<SoftDevice>) -> Result<Self> {
        let channel = device
            .endpoint
            .completion_channel()
            .map_err(|source| VerbsError {
                call: "ibv_create_comp_channel",
                source,
            })?;
        Ok(Self {
            channel,
            device: Arc::clone(device),
            _alive: Alive::new(Kind::Channel),
        })
    }
}

impl backend::CompletionChannel for SoftCompletionChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    fn consume(&self) -> Result<usize> {
        Ok(usize::try_from(self.channel.consume()).unwrap_or(usize::MAX))
    }

    fn sleeper(self: Arc<Self>, other: OwnedFd) -> Result<Box<dyn backend::Sleeper>> {
        let channel = self;
        Ok(Box::new(SoftSleeper {
            outside: Outside::new(&channel.channel),
            channel,
            other,
        }))
    }
}

struct SoftSleeper {
    channel: Arc<SoftCompletionChannel>,
    other: OwnedFd,
    outside: Outside,
}

impl backend::Sleeper for SoftSleeper {
    fn sleep(&self, timeout: Option<Duration>) -> Woken {
        let channel = &self.channel.channel;
        match channel.wait(Some(self.other.as_fd()), timeout.unwrap_or(LONG)) {
            // Not told apart from the end of the time; looking once more is cheap then.
            Ok(0) => Woken::Other,
            Ok(_) => Woken::Announced,
            Err(source) => Woken::Failed(Box::new(VerbsError {
                call: "ibv_get_cq_event",
                source,
            })),
        }
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        self.outside.fds().into()
    }

    fn before(&self) -> bool {
        self.outside.before()
    }

    fn after(&self) -> Result<usize> {
        Ok(usize::try_from(self.outside.after()).unwrap_or(usize::MAX))
    }
}

pub(super) struct SoftCq {
    pub(super) cq: CompletionQueue,
    pub(super) device: Arc<SoftDevice>,
    _channel: Option<Arc<SoftCompletionChannel>>,
    _alive: Alive,
}

impl SoftCq {
    pub(super) fn new(
        device: &Arc<SoftDevice>,
        depth: u32,
        channel: Option<Arc<SoftCompletionChannel>>,
    ) -> Result<Self> {
        let foreign = |c: &Arc<SoftCompletionChannel>| !Arc::ptr_eq(&c.device, device);
        if channel.as_ref().is_some_and(foreign) {
            return Err(VerbsError::invalid(
                "ibv_create_cq",
                "a channel of another device",
            ));
        }
        let endpoint = &device.endpoint;
        let cq = endpoint.create_cq(depth as usize, channel.as_ref().map(|c| &c.channel));
        Ok(Self {
            cq,
            device: Arc::clone(device),
            _channel: channel,
            _alive: Alive::new(Kind::CompletionQueue),
        })
    }
}

impl SoftCq {
    fn poll(&self, entries: &mut [Completion]) -> c_int {
        let mut polled = 0;
        let mut found = [rc::Completion::default(); CHUNK];
        // Working the sockets again for a second piece would be for others, not for us.
        for piece in entries.chunks_mut(CHUNK) {
            let Ok(count) = self.cq.poll(&mut found[..piece.len()]) else {
                tracing::error!("completions are lost: the queue has overflowed");
                return -1;
            };
            for (entry, completion) in piece.iter_mut().zip(&found[..count]) {
                *entry = translated(completion);
            }
            polled += count;
            if count < piece.len() {
                break;
            }
        }
        polled as c_int
    }
}

/// # Safety
/// `queue` is a [`SoftCq`], and at `entries` there are `room` of them.
#[allow(unsafe_code)]
unsafe extern "C" fn poll(queue: *mut c_void, room: c_int, entries: *mut Completion) -> c_int {
    // SAFETY: the caller says so.
    let cq = unsafe { &*queue.cast_const().cast::<SoftCq>() };
    // SAFETY: as above.
    let entries = unsafe { std::slice::from_raw_parts_mut(entries, room as usize) };
    cq.poll(entries)
}

/// # Safety
/// `queue` is a [`SoftCq`].
#[allow(unsafe_code)]
unsafe extern "C" fn notify(queue: *mut c_void, solicited_only: c_int) -> c_int {
    // SAFETY: the caller says so.
    let cq = unsafe { &*queue.cast_const().cast::<SoftCq>() };
    cq.cq.request_notify(match solicited_only {
        0 => Notify::Next,
        _ => Notify::Solicited,
    });
    0
}

impl backend::CompletionQueue for SoftCq {
    #[allow(unsafe_code)]
    fn raw_poller(&self) -> RawPoller {
        // SAFETY: `poll` reads this object as such, which any thread may, and fills in a slice.
        unsafe { RawPoller::new(poll, (&raw const *self).cast_mut().cast()) }
    }

    fn poll_error(&self) -> VerbsError {
        VerbsError::from_errno("ibv_poll_cq", libc::EOVERFLOW)
    }

    #[allow(unsafe_code)]
    fn raw_notifier(&self) -> RawNotifier {
        // SAFETY: `notify` reads this object as such, which any thread may.
        unsafe { RawNotifier::new(notify, (&raw const *self).cast_mut().cast(), None) }
    }

    fn depth(&self) -> u32 {
        super::device::narrow(self.cq.capacity())
    }
}

fn translated(completion: &rc::Completion) -> Completion {
    Completion {
        wr_id: completion.wr_id,
        status: completion.status.number(),
        opcode: match completion.kind {
            WorkKind::ReceiveWriteImm => RECEIVED_BY_WRITE,
            _ => 0,
        },
        byte_len: completion.byte_len,
        imm: completion.imm.unwrap_or(0).to_be(),
        qp_num: completion.qpn,
        flags: if completion.imm.is_some() {
            WITH_IMM
        } else {
            0
        },
        ..Completion::none()
    }
}
