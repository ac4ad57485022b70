//! What all connections of one device have in common: a protection domain, and lanes.
//!
//! A lane is made when the first connection needs it. One that has no connection any more, and that nobody
//! else knows of, goes after a while, and its buffers with it. The first connections are spread over a few
//! lanes, so that threads which wait on different connections need not poll for each other; further lanes
//! come when those are full. A connection with a hint gets a lane of those of that hint: one for each thread or event loop, so that they
//! share nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use verbs_shim::{Device, ProtectionDomain, VerbsError};

use crate::config::ProviderConfig;
use crate::progress::Progress;
use crate::sync::lock;
use crate::transfer::Lane;

/// The devices in use.
#[derive(Default)]
pub(crate) struct DeviceTable {
    contexts: Mutex<HashMap<Device, Arc<DeviceContext>>>,
}

/// One device in use.
pub(crate) struct DeviceContext {
    device: Device,
    pd: ProtectionDomain,
    lanes: Mutex<Vec<Known>>,
    /// How many there were.
    made: AtomicUsize,
}

/// A lane of a device.
struct Known {
    /// The hint that it was made for.
    hint: Option<u32>,
    lane: Arc<Lane>,
    /// Nobody used it at the last looks, so many of them.
    idle_looks: u32,
}

/// A lane that was not used at so many looks in a row goes.
const IDLE_LOOKS: u32 = 20;

/// Hints beyond so many lanes are not heeded.
const MOST_HINTED: usize = 256;

impl DeviceTable {
    /// A lane of `device` with a place taken for one more connection.
    pub(crate) fn lane(
        &self,
        device: &Device,
        config: &ProviderConfig,
        progress: &Arc<Progress>,
        hint: Option<u32>,
    ) -> Result<Arc<Lane>, VerbsError> {
        self.context(device)?.lane(config, progress, hint)
    }

    /// The device is gone: nothing new is made on it.
    pub(crate) fn forget(&self, device: &Device) {
        lock(&self.contexts).remove(device);
    }

    /// A look, two a second: takes lanes out that nobody has used for long.
    pub(crate) fn take_unused(&self) -> Vec<Arc<Lane>> {
        let contexts: Vec<_> = lock(&self.contexts).values().cloned().collect();
        let unused = contexts.iter().flat_map(|context| context.take_unused());
        unused.collect()
    }

    /// Lets go of everything that no connection uses.
    pub(crate) fn clear(&self) {
        lock(&self.contexts).clear();
    }

    fn context(&self, device: &Device) -> Result<Arc<DeviceContext>, VerbsError> {
        let mut contexts = lock(&self.contexts);
        if let Some(context) = contexts.get(device) {
            return Ok(Arc::clone(context));
        }
        let context = Arc::new(DeviceContext {
            device: device.clone(),
            pd: device.alloc_pd()?,
            lanes: Mutex::new(Vec::new()),
            made: AtomicUsize::new(0),
        });
        tracing::debug!(device = device.name(), "device in use");
        contexts.insert(device.clone(), Arc::clone(&context));
        Ok(context)
    }
}

impl DeviceContext {
    fn lane(
        &self,
        config: &ProviderConfig,
        progress: &Arc<Progress>,
        hint: Option<u32>,
    ) -> Result<Arc<Lane>, VerbsError> {
        let mut lanes = lock(&self.lanes);
        let hint = hint.filter(|hint| {
            let is_known = lanes.iter().any(|known| known.hint == Some(*hint));
            is_known || lanes.len() < MOST_HINTED
        });
        let spread = match hint {
            Some(_) => 1,
            None => config.spread as usize,
        };
        let fitting = lanes
            .iter()
            .filter(|known| known.hint == hint)
            .map(|known| &known.lane);
        let count = fitting.clone().count();
        let emptiest = fitting
            .filter(|lane| lane.has_place())
            .min_by_key(|lane| lane.connections());
        if let Some(lane) = emptiest
            && (lane.connections() == 0 || count >= spread)
            && lane.join()
        {
            return Ok(Arc::clone(lane));
        }
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let lane = Lane::new(&self.device, &self.pd, config, number, progress)?;
        if !lane.join() {
            return Err(VerbsError::from_errno(
                "lane",
                rustix::io::Errno::NOBUFS.raw_os_error(),
            ));
        }
        progress.add_lane(&lane);
        lanes.push(Known {
            hint,
            lane: Arc::clone(&lane),
            idle_looks: 0,
        });
        Ok(lane)
    }

    fn take_unused(&self) -> Vec<Arc<Lane>> {
        let mut unused = Vec::new();
        lock(&self.lanes).retain_mut(|known| {
            // Whoever would use it comes here for it, under this lock, or has it already.
            let is_idle = Arc::strong_count(&known.lane) == 1 && known.lane.connections() == 0;
            known.idle_looks = if is_idle { known.idle_looks + 1 } else { 0 };
            let stays = known.idle_looks < IDLE_LOOKS;
            if !stays {
                unused.push(Arc::clone(&known.lane));
            }
            stays
        });
        unused
    }
}
