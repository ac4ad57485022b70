//! What all connections of one device have in common: a protection domain, and lanes.
//!
//! A lane is made when the first connection needs it and kept until the provider goes down. The
//! first connections are spread over a few lanes, so that threads which wait on different
//! connections need not poll for each other; further lanes come when those are full. A connection
//! with a hint gets a lane of those of that hint: one for each thread or event loop, so that they
//! share nothing.

use std::collections::HashMap;
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
    /// With the hint that each was made for.
    lanes: Mutex<Vec<(Option<u32>, Arc<Lane>)>>,
}

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
            let is_known = lanes.iter().any(|(other, _)| *other == Some(*hint));
            is_known || lanes.len() < MOST_HINTED
        });
        let spread = match hint {
            Some(_) => 1,
            None => config.spread as usize,
        };
        let fitting = lanes
            .iter()
            .filter(|(other, _)| *other == hint)
            .map(|(_, lane)| lane);
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
        let lane = Lane::new(&self.device, &self.pd, config, lanes.len(), progress)?;
        if !lane.join() {
            return Err(VerbsError::from_errno(
                "lane",
                rustix::io::Errno::NOBUFS.raw_os_error(),
            ));
        }
        progress.add_lane(&lane);
        lanes.push((hint, Arc::clone(&lane)));
        Ok(lane)
    }
}
