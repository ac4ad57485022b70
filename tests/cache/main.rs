//! Registrations that are kept stay true: whatever becomes of a mapping, what is found is what is
//! there.

#![allow(unsafe_code)]

mod mapping;
mod sockets;
mod store;
