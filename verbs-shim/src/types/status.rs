//! How a work request ended, by IBTA's numbers.

use std::fmt;

macro_rules! wc_status {
    ($($(#[$doc:meta])* $name:ident = $n:literal,)*) => {
        /// How a work request ended: IBTA's completion types (volume 1, 11.6.2) by verbs' numbers.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum WcStatus {
            $($(#[$doc])* $name,)*
            /// A number that this crate does not know.
            Unknown(u32),
        }

        impl WcStatus {
            /// The status with this number.
            #[must_use]
            pub fn from_raw(n: u32) -> Self {
                match n {
                    $($n => Self::$name,)*
                    n => Self::Unknown(n),
                }
            }

            /// Its number.
            #[must_use]
            pub fn raw(self) -> u32 {
                match self {
                    $(Self::$name => $n,)*
                    Self::Unknown(n) => n,
                }
            }
        }
    };
}

wc_status! {
    /// Done.
    Success = 0,
    /// The message was longer than the buffer posted for it, or longer than the port can send.
    LocalLength = 1,
    /// The queue pair could not do it.
    LocalQpOperation = 2,
    /// End-to-end context error (reliable datagram).
    LocalEecOperation = 3,
    /// A local key or range was wrong.
    LocalProtection = 4,
    /// The queue pair went to the error state first.
    WrFlushed = 5,
    /// Binding a memory window failed.
    MwBind = 6,
    /// The peer answered with something unexpected.
    BadResponse = 7,
    /// The local buffer did not allow what the peer asked for.
    LocalAccess = 8,
    /// The peer did not take the message: too long, or an operation it does not support.
    RemoteInvalidRequest = 9,
    /// The peer's memory does not allow it.
    RemoteAccess = 10,
    /// The peer could not finish it.
    RemoteOperation = 11,
    /// No answer after all retries.
    RetryExceeded = 12,
    /// The peer had no receive posted, after all retries.
    RnrRetryExceeded = 13,
    /// Reliable datagram domain.
    LocalRddViolation = 14,
    /// Reliable datagram request.
    RemoteInvalidRdRequest = 15,
    /// The peer aborted it.
    RemoteAborted = 16,
    /// End-to-end context number.
    InvalidEecNumber = 17,
    /// End-to-end context state.
    InvalidEecState = 18,
    /// The device is in a fatal state.
    Fatal = 19,
    /// No response in time.
    ResponseTimeout = 20,
    /// Anything else.
    General = 21,
}

impl WcStatus {
    /// Whether it is [`WcStatus::Success`].
    #[must_use]
    pub fn is_success(self) -> bool {
        self == Self::Success
    }
}

impl fmt::Display for WcStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(n) => write!(f, "completion status {n}"),
            known => write!(f, "{known:?} (completion status {})", known.raw()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_keeps_its_number() {
        for n in (0..100).chain([u32::MAX]) {
            assert_eq!(WcStatus::from_raw(n).raw(), n);
        }
        assert_eq!(WcStatus::from_raw(5), WcStatus::WrFlushed);
        assert_eq!(WcStatus::from_raw(12), WcStatus::RetryExceeded);
        assert_eq!(WcStatus::from_raw(22), WcStatus::Unknown(22));
        assert_eq!(WcStatus::Unknown(99).to_string(), "completion status 99");
        assert!(WcStatus::Success.is_success() && !WcStatus::General.is_success());
    }
}
