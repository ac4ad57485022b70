//! Statistics of a running process: the report of a switch, and the way to it from outside.
//!
//! A process that has a switch answers on a Unix socket of its own (`sockets.rs` says where). Whoever
//! connects, if it is the same user or root, gets one [`Report`] as JSON and then the end; nothing
//! is asked, so nothing has to be parsed. The thread `san-stat` answers one client at a time, each
//! within a deadline (`server.rs`). [`Report::of_process`] is the other end (`client.rs`), and
//! `san stat` prints what it gives. [`openmetrics()`] makes reports into the text that Prometheus reads,
//! for `san stat --serve` and for programs that have an exporter of their own.
//!
//! Why a socket and not a shared page: the list of connections has no fixed size, the kernel tells
//! who asks and who answers, a dead process answers nobody (a page would lie on), and nothing is
//! written unless somebody asks. Counting costs the same either way.

mod client;
mod openmetrics;
mod report;
mod server;
mod sockets;

pub(crate) use report::{Elsewhere, OfProgram, add_program, program_name};

pub use client::StatError;
pub use openmetrics::{OPENMETRICS_TYPE, openmetrics};
pub use report::{
    CompanionReport, ConnectionReport, DeviceReport, LeftToTcp, ListenerReport, Numbers,
    ProviderReport, Report,
};
pub(crate) use server::StatThread;
