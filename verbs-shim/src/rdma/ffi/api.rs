//! The functions of libibverbs and librdmacm, found at run time.
//!
//! The libraries are loaded once a process and never unloaded: they keep state, and pointers into
//! them live in every object.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::{Mutex, PoisonError};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::types::*;
use crate::error::OpenError;

const LIBIBVERBS: &str = "libibverbs.so.1";
const LIBRDMACM: &str = "librdmacm.so.1";

struct Libraries {
    libibverbs: (&'static str, Library),
    librdmacm: (&'static str, Library),
}

/// `_ibv_query_gid_table`: context, room for entries, how many, flags, the size of one.
pub type QueryGidTable =
    unsafe extern "C" fn(*mut ibv_context, *mut ibv_gid_entry, usize, u32, usize) -> isize;

macro_rules! api {
    ($($library:ident { $(fn $name:ident($($arg:ty),*) $(-> $ret:ty)?;)* })*) => {
        /// Every function that this crate calls, by its C name.
        pub struct Api {
            $($(pub $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*)*
            /// Since rdma-core 33.
            pub ibv_query_gid_table: Option<QueryGidTable>,
        }

        impl Api {
            fn load(
                ibverbs: &'static str,
                rdmacm: &'static str,
            ) -> Result<Self, OpenError> {
                // librdmacm needs libibverbs, so its absence is found first where it belongs.
                let libraries = Libraries {
                    libibverbs: (ibverbs, open(ibverbs)?),
                    librdmacm: (rdmacm, open(rdmacm)?),
                };
                // SAFETY: the type is the function's C prototype, and None stands for a symbol without an
                // address.
                let query_gid_table = unsafe {
                    libraries.libibverbs.1.get::<Option<QueryGidTable>>(b"_ibv_query_gid_table\0")
                };
                let api = Self {
                    ibv_query_gid_table: query_gid_table.ok().and_then(|symbol| *symbol),
                    $($($name: {
                        let (file, library) = &libraries.$library;
                        // SAFETY: the type is the function's C prototype, and None stands for a symbol
                        // without an address.
                        let symbol = unsafe {
                            library.get::<Option<unsafe extern "C" fn($($arg),*) $(-> $ret)?>>(
                                concat!(stringify!($name), "\0").as_bytes(),
                            )
                        };
                        symbol.ok().and_then(|symbol| *symbol).ok_or(OpenError::SymbolMissing {
                            library: file,
                            symbol: stringify!($name),
                        })?
                    },)*)*
                };
                // What was found points into them.
                std::mem::forget(libraries);
                Ok(api)
            }
        }
    };
}

api! {
    libibverbs {
        fn ibv_get_device_list(*mut c_int) -> *mut *mut ibv_device;
        fn ibv_free_device_list(*mut *mut ibv_device);
        fn ibv_query_device(*mut ibv_context, *mut ibv_device_attr) -> c_int;
        fn ibv_query_port(*mut ibv_context, u8, *mut ibv_port_attr) -> c_int;
        fn ibv_alloc_pd(*mut ibv_context) -> *mut ibv_pd;
        fn ibv_dealloc_pd(*mut ibv_pd) -> c_int;
        fn ibv_reg_mr(*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr;
        fn ibv_dereg_mr(*mut ibv_mr) -> c_int;
        fn ibv_create_comp_channel(*mut ibv_context) -> *mut ibv_comp_channel;
        fn ibv_destroy_comp_channel(*mut ibv_comp_channel) -> c_int;
        fn ibv_create_cq(*mut ibv_context, c_int, *mut c_void, *mut ibv_comp_channel, c_int) -> *mut ibv_cq;
        fn ibv_destroy_cq(*mut ibv_cq) -> c_int;
        fn ibv_get_cq_event(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;
        fn ibv_ack_cq_events(*mut ibv_cq, c_uint);
        fn ibv_create_srq(*mut ibv_pd, *mut ibv_srq_init_attr) -> *mut ibv_srq;
        fn ibv_destroy_srq(*mut ibv_srq) -> c_int;
        fn ibv_create_qp(*mut ibv_pd, *mut ibv_qp_init_attr) -> *mut ibv_qp;
        fn ibv_modify_qp(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
        fn ibv_destroy_qp(*mut ibv_qp) -> c_int;
    }
    librdmacm {
        fn rdma_get_devices(*mut c_int) -> *mut *mut ibv_context;
        fn rdma_free_devices(*mut *mut ibv_context);
        fn rdma_create_event_channel() -> *mut rdma_event_channel;
        fn rdma_destroy_event_channel(*mut rdma_event_channel);
        fn rdma_get_cm_event(*mut rdma_event_channel, *mut *mut rdma_cm_event) -> c_int;
        fn rdma_ack_cm_event(*mut rdma_cm_event) -> c_int;
        fn rdma_create_id(*mut rdma_event_channel, *mut *mut rdma_cm_id, *mut c_void, c_uint) -> c_int;
        fn rdma_destroy_id(*mut rdma_cm_id) -> c_int;
        fn rdma_bind_addr(*mut rdma_cm_id, *mut libc::sockaddr) -> c_int;
        fn rdma_listen(*mut rdma_cm_id, c_int) -> c_int;
        fn rdma_resolve_addr(*mut rdma_cm_id, *mut libc::sockaddr, *mut libc::sockaddr, c_int) -> c_int;
        fn rdma_resolve_route(*mut rdma_cm_id, c_int) -> c_int;
        fn rdma_create_qp(*mut rdma_cm_id, *mut ibv_pd, *mut ibv_qp_init_attr) -> c_int;
        fn rdma_connect(*mut rdma_cm_id, *mut rdma_conn_param) -> c_int;
        fn rdma_accept(*mut rdma_cm_id, *mut rdma_conn_param) -> c_int;
        fn rdma_reject(*mut rdma_cm_id, *const c_void, u8) -> c_int;
        fn rdma_disconnect(*mut rdma_cm_id) -> c_int;
        fn rdma_migrate_id(*mut rdma_cm_id, *mut rdma_event_channel) -> c_int;
        fn rdma_init_qp_attr(*mut rdma_cm_id, *mut ibv_qp_attr, *mut c_int) -> c_int;
        fn rdma_set_option(*mut rdma_cm_id, c_int, c_int, *mut c_void, usize) -> c_int;
    }
}

/// The functions; loaded with the first call that succeeds.
pub fn api() -> Result<&'static Api, OpenError> {
    static LOADED: Mutex<Option<&'static Api>> = Mutex::new(None);
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(api) = *loaded {
        return Ok(api);
    }
    let api: &'static Api = Box::leak(Box::new(Api::load(LIBIBVERBS, LIBRDMACM)?));
    *loaded = Some(api);
    Ok(api)
}

fn open(library: &'static str) -> Result<Library, OpenError> {
    // SAFETY: what runs in loading are these libraries' own constructors, which set up tables of their
    // own and nothing else. The library is never closed, so its destructors run at the process's end.
    let opened = unsafe { Library::open(Some(library), RTLD_NOW | RTLD_LOCAL) };
    opened.map_err(|e| OpenError::LibraryMissing {
        library,
        detail: e.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_that_is_not_there_is_named() {
        match Api::load("libnothing-of-the-kind.so.1", LIBRDMACM) {
            Err(e @ OpenError::LibraryMissing { library, .. }) => {
                assert_eq!(library, "libnothing-of-the-kind.so.1");
                assert!(e.to_string().contains("install rdma-core"), "{e}");
            }
            Err(e) => panic!("{e}"),
            Ok(_) => panic!("loaded"),
        }
    }

    #[test]
    fn a_function_that_is_not_there_is_named() {
        match Api::load("libc.so.6", "libc.so.6") {
            Err(e @ OpenError::SymbolMissing { library, symbol }) => {
                assert_eq!((library, symbol), ("libc.so.6", "ibv_get_device_list"));
                assert!(e.to_string().contains("rdma-core 23"), "{e}");
            }
            Err(e) => panic!("{e}"),
            Ok(_) => panic!("loaded"),
        }
    }
}
