//! The errors of this crate, and the one place where the libraries' three ways of reporting a
//! failure become one.
//!
//! It does not judge: whether an error is worth a retry, or another route, is for the caller.

use std::io;

/// A call into the verbs layer that failed.
#[derive(Debug, thiserror::Error)]
#[error("{call}: {source}")]
pub struct VerbsError {
    /// The call, by its name in the libraries' manual pages.
    pub call: &'static str,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

impl VerbsError {
    /// An error with the given `errno`.
    #[must_use]
    pub fn from_errno(call: &'static str, errno: i32) -> Self {
        Self {
            call,
            source: io::Error::from_raw_os_error(errno),
        }
    }

    /// The system's error number; `EINVAL` for an argument that was refused here, before the
    /// system was asked.
    #[must_use]
    pub fn errno(&self) -> i32 {
        self.source.raw_os_error().unwrap_or(libc::EINVAL)
    }

    /// An argument that this crate refuses itself; `why` names the limit.
    pub(crate) fn invalid(call: &'static str, why: impl Into<String>) -> Self {
        Self {
            call,
            source: io::Error::new(io::ErrorKind::InvalidInput, why.into()),
        }
    }

    /// The failure that `errno` holds now.
    pub(crate) fn last(call: &'static str) -> Self {
        Self {
            call,
            source: io::Error::last_os_error(),
        }
    }
}

/// The result of a verbs call.
pub type Result<T> = std::result::Result<T, VerbsError>;

/// Why a fabric could not be opened. The text of each says what an operator can do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A shared library is not installed.
    #[error(
        "{library} cannot be loaded ({detail}); install rdma-core (Debian: librdmacm1 and ibverbs-providers)"
    )]
    LibraryMissing {
        /// The library's file name.
        library: &'static str,
        /// What the dynamic linker said.
        detail: String,
    },
    /// A shared library is there, but lacks a function: rdma-core is too old.
    #[error("{library} has no function {symbol}; rdma-core 23 or later is needed")]
    SymbolMissing {
        /// The library's file name.
        library: &'static str,
        /// The function that is missing.
        symbol: &'static str,
    },
    /// The kernel has no RDMA subsystem, or its modules are not loaded.
    #[error("this kernel offers no RDMA ({source}); load the modules ib_uverbs and rdma_ucm")]
    NoKernelSupport {
        /// What the system said.
        source: io::Error,
    },
    /// The kernel supports RDMA, but there is no device.
    #[error(
        "no RDMA device; plug one in, load its driver, or add a soft one: rdma link add rxe0 type rxe netdev NAME"
    )]
    NoDevice,
    /// The soft fabric could not be opened.
    #[error("the soft fabric cannot be opened: {detail}")]
    Soft {
        /// Why.
        detail: String,
    },
    /// The RDMA CM could not be opened although a device is there.
    #[error(
        "the RDMA connection manager cannot be opened ({source}); load rdma_ucm and check the rights of /dev/infiniband/rdma_cm"
    )]
    ConnectionManager {
        /// What the system said.
        source: io::Error,
    },
}

/// The convention of `rdma_*`: 0, or -1 with `errno`.
pub(crate) fn check_rdma(call: &'static str, ret: i32) -> Result<()> {
    match ret {
        0 => Ok(()),
        // Some paths of librdmacm hand through a negative errno instead of -1.
        r if r < -1 => Err(VerbsError::from_errno(call, -r)),
        _ => Err(VerbsError::last(call)),
    }
}

/// The convention of `ibv_*`: 0, or a positive errno; some providers return -1 with `errno`, a
/// few a negative errno.
pub(crate) fn check_ibv(call: &'static str, ret: i32) -> Result<()> {
    match ret {
        0 => Ok(()),
        -1 => Err(VerbsError::last(call)),
        r => Err(VerbsError::from_errno(call, r.saturating_abs())),
    }
}

/// The convention of calls that return a pointer: NULL with `errno`.
pub(crate) fn check_ptr<T>(call: &'static str, ptr: *mut T) -> Result<std::ptr::NonNull<T>> {
    std::ptr::NonNull::new(ptr).ok_or_else(|| VerbsError::last(call))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_errno(n: i32) {
        // SAFETY: no arguments.
        #[allow(unsafe_code)]
        let errno = unsafe { libc::__errno_location() };
        // SAFETY: it always points at this thread's errno.
        #[allow(unsafe_code)]
        unsafe {
            *errno = n;
        }
    }

    #[test]
    fn rdma_calls_use_errno() {
        assert!(check_rdma("x", 0).is_ok());
        set_errno(libc::EADDRINUSE);
        assert_eq!(check_rdma("x", -1).unwrap_err().errno(), libc::EADDRINUSE);
        assert_eq!(
            check_rdma("x", -libc::ENODEV).unwrap_err().errno(),
            libc::ENODEV
        );
    }

    #[test]
    fn ibv_calls_return_it() {
        assert!(check_ibv("x", 0).is_ok());
        set_errno(libc::EPERM);
        assert_eq!(
            check_ibv("x", libc::ENOMEM).unwrap_err().errno(),
            libc::ENOMEM
        );
        assert_eq!(
            check_ibv("x", -libc::ENOMEM).unwrap_err().errno(),
            libc::ENOMEM
        );
        assert_eq!(check_ibv("x", -1).unwrap_err().errno(), libc::EPERM);
        assert_eq!(check_ibv("x", i32::MIN).unwrap_err().errno(), i32::MAX);
    }

    #[test]
    fn pointers_use_errno() {
        set_errno(libc::ENOSYS);
        let null: *mut u8 = std::ptr::null_mut();
        assert_eq!(check_ptr("x", null).unwrap_err().errno(), libc::ENOSYS);
        let mut value = 1u8;
        assert!(check_ptr("x", &raw mut value).is_ok());
    }

    #[test]
    fn refused_arguments_count_as_einval() {
        let e = VerbsError::invalid("rdma_connect", "57 bytes, at most 56");
        assert_eq!(e.errno(), libc::EINVAL);
        assert_eq!(e.to_string(), "rdma_connect: 57 bytes, at most 56");
    }
}
