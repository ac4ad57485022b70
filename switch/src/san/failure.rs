//! Why a step with a provider's socket failed.

use std::error::Error;
use std::io;
use std::sync::Arc;

use san_provider::WsaCode;

/// A step that came to nothing. That costs a listener a companion and a connect the SAN, and
/// nothing else.
#[derive(Debug, Clone)]
pub(crate) struct StepFailure {
    /// The step: `make a socket`, `bind`, ...
    pub(crate) step: &'static str,
    /// The provider's error code.
    pub(crate) code: WsaCode,
    /// What the provider, or the system, said.
    pub(crate) source: Arc<dyn Error + Send + Sync>,
}

impl StepFailure {
    pub(crate) fn new(
        step: &'static str,
        code: WsaCode,
        source: impl Error + Send + Sync + 'static,
    ) -> Self {
        let source = Arc::new(source);
        StepFailure { step, code, source }
    }

    pub(crate) fn system(step: &'static str, error: io::Error) -> Self {
        let code = error
            .raw_os_error()
            .map_or(WsaCode::Invalid, WsaCode::from_errno);
        Self::new(step, code, error)
    }
}
