//! Why a step with a provider's socket failed.

use std::fmt;
use std::io;

use san_provider::WsaCode;

/// A step that came to nothing. That costs a listener a companion and a connect the SAN, and
/// nothing else.
#[derive(Debug, Clone)]
pub(crate) struct StepFailure {
    /// The step: `make a socket`, `bind`, ...
    pub(crate) step: &'static str,
    /// The provider's error code.
    pub(crate) code: WsaCode,
    /// What the provider said.
    pub(crate) reason: String,
}

impl StepFailure {
    pub(crate) fn new(step: &'static str, code: WsaCode, reason: &dyn fmt::Display) -> Self {
        StepFailure {
            step,
            code,
            reason: reason.to_string(),
        }
    }

    pub(crate) fn system(step: &'static str, error: &io::Error) -> Self {
        let code = error
            .raw_os_error()
            .map_or(WsaCode::Invalid, WsaCode::from_errno);
        Self::new(step, code, error)
    }
}
