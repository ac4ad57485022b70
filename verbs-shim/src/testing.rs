//! A fabric that only notes what it is told, for the unit tests: it refuses on demand, as no real
//! one does. What works is tested on a real fabric, in `tests/`.

use std::collections::VecDeque;
use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::backend::{self, PostFailure, PostResult, RawNotifier, RawPoller, RecvWr, SendWr};
use crate::completion::CompletionQueue;
use crate::device::Device;
use crate::error::{Result, VerbsError};
use crate::memory::ProtectionDomain;
use crate::qp::{Parts, PreparedQp};
use crate::srq::SharedReceiveQueue;
use crate::types::{
    Access, Completion, CompletionBatch, DeviceLimits, Gid, PortAttr, QpCaps, Transport,
};

/// What the test steers, and sees.
#[derive(Default)]
pub(crate) struct Notes {
    pub(crate) refuse_destroy: AtomicBool,
    /// How many of a chain are taken before it fails; none: it does not.
    pub(crate) fail_post_after: Mutex<Option<usize>>,
    /// A failing post may have taken all, as far as the backend knows.
    pub(crate) fail_strangely: AtomicBool,
    pub(crate) registered: AtomicUsize,
    pub(crate) windows: AtomicUsize,
    /// What was posted, in order.
    pub(crate) posted: Mutex<Vec<u64>>,
    pub(crate) completions: Mutex<VecDeque<Completion>>,
}

impl Notes {
    fn destroy(&self, call: &'static str) -> Result<()> {
        match self.refuse_destroy.load(Ordering::SeqCst) {
            true => Err(VerbsError::from_errno(call, libc::EBUSY)),
            false => Ok(()),
        }
    }

    fn post(&self, wr_ids: impl Iterator<Item = u64>) -> PostResult {
        let limit = *self.fail_post_after.lock().unwrap();
        let mut posted = self.posted.lock().unwrap();
        for (n, wr_id) in wr_ids.enumerate() {
            if limit == Some(n) {
                let taken = match self.fail_strangely.load(Ordering::SeqCst) {
                    true => usize::MAX,
                    false => n,
                };
                return Err(PostFailure::new(
                    taken,
                    VerbsError::from_errno("post", libc::ENOMEM),
                ));
            }
            posted.push(wr_id);
        }
        Ok(())
    }

    /// Completes the `nth` request that was posted.
    pub(crate) fn complete(&self, nth: usize, qp_num: u32, status: u32) {
        let wr_id = self.posted.lock().unwrap()[nth];
        self.completions.lock().unwrap().push_back(Completion {
            wr_id,
            status,
            byte_len: 3,
            qp_num,
            ..Completion::none()
        });
    }
}

pub(crate) struct Bench {
    pub(crate) notes: Arc<Notes>,
    pub(crate) pd: ProtectionDomain,
    pub(crate) cq: CompletionQueue,
}

pub(crate) fn bench() -> Bench {
    let notes = Arc::new(Notes::default());
    let device = Device::from_backend(Arc::new(FakeDevice(Arc::clone(&notes))));
    let pd = device.alloc_pd().unwrap();
    let cq = device.create_cq(16, None).unwrap();
    Bench { notes, pd, cq }
}

impl Bench {
    pub(crate) fn qp(&self, qp_num: u32, srq: Option<&SharedReceiveQueue>) -> PreparedQp {
        let caps = QpCaps {
            send_wr: 4,
            recv_wr: if srq.is_some() { 0 } else { 4 },
            sge: 2,
            inline: 8,
        };
        let parts = Parts {
            pd: &self.pd,
            send_cq: &self.cq,
            recv_cq: &self.cq,
            srq,
        };
        PreparedQp::new(
            Box::new(FakeQp(Arc::clone(&self.notes), qp_num, caps)),
            &parts,
        )
    }

    pub(crate) fn poll(&self) -> CompletionBatch {
        let mut batch = CompletionBatch::new();
        self.cq.poll(&mut batch).unwrap();
        batch
    }
}

struct FakeDevice(Arc<Notes>);

impl backend::Device for FakeDevice {
    fn key(&self) -> u64 {
        Arc::as_ptr(&self.0) as u64
    }
    fn name(&self) -> &str {
        "fake"
    }
    fn guid(&self) -> u64 {
        0
    }
    fn transport(&self) -> Transport {
        Transport::Unknown(0)
    }
    fn limits(&self) -> Result<DeviceLimits> {
        Err(VerbsError::from_errno("limits", libc::ENODEV))
    }
    fn port(&self, _: u8) -> Result<PortAttr> {
        Err(VerbsError::from_errno("port", libc::ENODEV))
    }
    fn gids(&self, _: u8) -> Result<Vec<Gid>> {
        Ok(Vec::new())
    }
    fn addresses(&self) -> Result<Vec<crate::address::InterfaceAddress>> {
        Ok(Vec::new())
    }
    fn counters(&self) -> Vec<(String, u64)> {
        Vec::new()
    }

    fn alloc_pd(self: Arc<Self>) -> Result<Arc<dyn backend::ProtectionDomain>> {
        Ok(Arc::new(FakePd(Arc::clone(&self.0))))
    }
    fn completion_channel(self: Arc<Self>) -> Result<Arc<dyn backend::CompletionChannel>> {
        Err(VerbsError::from_errno("completion_channel", libc::EMFILE))
    }
    fn create_cq(
        self: Arc<Self>,
        _: u32,
        _: Option<Arc<dyn backend::CompletionChannel>>,
    ) -> Result<Arc<dyn backend::CompletionQueue>> {
        Ok(Arc::new(FakeCq(Arc::clone(&self.0))))
    }
}

struct FakePd(Arc<Notes>);

#[allow(unsafe_code)]
impl backend::ProtectionDomain for FakePd {
    unsafe fn register(
        self: Arc<Self>,
        _: *mut u8,
        _: usize,
        _: Access,
    ) -> Result<Box<dyn backend::MemoryRegion>> {
        if self.0.refuse_destroy.load(Ordering::SeqCst) {
            return Err(VerbsError::from_errno("ibv_reg_mr", libc::ENOMEM));
        }
        self.0.registered.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(FakeMr(Arc::clone(&self.0))))
    }
    fn create_srq(self: Arc<Self>, _: u32, _: u32) -> Result<Arc<dyn backend::SharedReceiveQueue>> {
        Ok(Arc::new(FakeSrq(Arc::clone(&self.0))))
    }
}

struct FakeMr(Arc<Notes>);

impl backend::MemoryRegion for FakeMr {
    fn lkey(&self) -> u32 {
        11
    }
    fn rkey(&self) -> u32 {
        22
    }
    fn deregister(&self) -> Result<()> {
        self.0.destroy("ibv_dereg_mr")?;
        self.0.registered.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

struct FakeWindow(Arc<Notes>);

impl backend::MemoryWindow for FakeWindow {
    fn rkey(&self) -> u32 {
        33
    }
    fn needs_request(&self) -> bool {
        true
    }
    fn withdraw(&self) -> Result<()> {
        self.0.destroy("ibv_dealloc_mw")?;
        self.0.windows.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
    fn as_any(&self) -> &dyn std::any::Any {
        self
    }
}

struct FakeCq(Arc<Notes>);

/// # Safety
/// `queue` are the [`Notes`], and at `entries` there are `room` of them.
#[allow(unsafe_code)]
unsafe extern "C" fn poll(queue: *mut c_void, room: c_int, entries: *mut Completion) -> c_int {
    // SAFETY: the caller says so.
    let notes = unsafe { &*queue.cast_const().cast::<Notes>() };
    // SAFETY: as above.
    let entries = unsafe { std::slice::from_raw_parts_mut(entries, room as usize) };
    let mut waiting = notes.completions.lock().unwrap();
    let count = waiting.len().min(entries.len());
    for (entry, completion) in entries.iter_mut().zip(waiting.drain(..count)) {
        *entry = completion;
    }
    count as c_int
}

#[allow(unsafe_code)]
unsafe extern "C" fn notify(_: *mut c_void, _: c_int) -> c_int {
    0
}

#[allow(unsafe_code)]
impl backend::CompletionQueue for FakeCq {
    fn raw_poller(&self) -> RawPoller {
        // SAFETY: `poll` reads the notes as such, which live as long as this.
        unsafe { RawPoller::new(poll, Arc::as_ptr(&self.0).cast_mut().cast()) }
    }
    fn poll_error(&self) -> VerbsError {
        VerbsError::from_errno("poll", libc::EIO)
    }
    fn raw_notifier(&self) -> RawNotifier {
        // SAFETY: `notify` reads nothing.
        unsafe { RawNotifier::new(notify, std::ptr::null_mut(), None) }
    }
    fn depth(&self) -> u32 {
        16
    }
}

struct FakeSrq(Arc<Notes>);

impl backend::SharedReceiveQueue for FakeSrq {
    fn max_wr(&self) -> u32 {
        4
    }
    fn post_recv(&self, wrs: &mut [RecvWr]) -> PostResult {
        self.0.post(wrs.iter().map(|wr| wr.wr_id))
    }
    fn destroy(&self) -> Result<()> {
        self.0.destroy("ibv_destroy_srq")
    }
}

struct FakeQp(Arc<Notes>, u32, QpCaps);

impl backend::QueuePair for FakeQp {
    fn qp_num(&self) -> u32 {
        self.1
    }
    fn caps(&self) -> QpCaps {
        self.2
    }
    fn post_one_send(&self, wr: &SendWr<'_>) -> PostResult {
        self.0.post(std::iter::once(wr.wr_id))
    }
    fn post_send(&self, wrs: &[SendWr<'_>]) -> PostResult {
        self.0.post(wrs.iter().map(|wr| wr.wr_id))
    }
    fn post_recv(&self, wrs: &mut [RecvWr]) -> PostResult {
        self.0.post(wrs.iter().map(|wr| wr.wr_id))
    }
    fn window(
        &self,
        _: &dyn backend::MemoryRegion,
        _: u64,
        _: u64,
        _: Access,
    ) -> Result<Box<dyn backend::MemoryWindow>> {
        self.0.windows.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(FakeWindow(Arc::clone(&self.0))))
    }
    fn post_bind(&self, _: &dyn backend::MemoryWindow, wr_id: u64) -> PostResult {
        self.0.post(std::iter::once(wr_id))
    }
    fn to_error(&self) -> Result<()> {
        Ok(())
    }
    fn destroy(&self) -> Result<()> {
        self.0.destroy("ibv_destroy_qp")
    }
}
