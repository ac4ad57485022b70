//! The one switch of the process, for the types with the standard library's names.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use san_base::lock;

use crate::config::SwitchConfig;
use crate::switch::Switch;

static SWITCH: Mutex<Option<Switch>> = Mutex::new(None);
/// Streams and listeners that the program holds.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// The switch that [`TcpStream`](super::TcpStream) and [`TcpListener`](super::TcpListener) use, with the settings of the
/// environment. It is made on first use and lives as long as the process. A call that failed is tried
/// again by the next.
///
/// # Errors
/// A setting that is wrong, or a fabric that was asked for and is not there.
pub fn process_switch() -> io::Result<Switch> {
    let mut switch = lock(&SWITCH);
    if let Some(switch) = &*switch {
        return Ok(switch.clone());
    }
    let config = SwitchConfig::from_env()
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let made = Switch::new(config)?;
    Ok(switch.insert(made).clone())
}

/// One stream or listener that is counted.
#[derive(Debug)]
pub(super) struct Open(());

impl Open {
    pub(super) fn new() -> Self {
        OPEN.fetch_add(1, Ordering::AcqRel);
        Self(())
    }

    /// Whether there is no other: the program is likely to end now.
    pub(super) fn is_last(&self) -> bool {
        OPEN.load(Ordering::Acquire) == 1
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::AcqRel);
    }
}
