//! The library in programs that know nothing of it.

mod direct;
mod exports;
mod reasons;
mod support;
mod tcp_alone;
mod upgrade;
