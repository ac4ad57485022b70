//! The endpoint from outside: two devices on the loopback, real sockets.

mod util;

mod bulk;
mod connect;
mod hosts;
mod namespace;
