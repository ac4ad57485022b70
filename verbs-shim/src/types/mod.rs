//! The values that handles and backends have in common. They know neither.

mod access;
mod cm;
mod completion;
mod device;
mod epoch;
mod fabric;
mod qp;
mod queue_id;
mod status;

pub use self::access::Access;
pub use self::cm::{ConnParams, ConnectionDetails, PrivateData, RejectReason};
pub(crate) use self::cm::{Event, Request};
pub use self::completion::{BATCH, Completion, CompletionBatch};
pub(crate) use self::completion::{RECEIVED_BY_WRITE, SUCCESS, WITH_IMM};
pub use self::device::{DeviceLimits, Gid, LinkLayer, PortAttr, PortState, Transport};
pub(crate) use self::epoch::Epoch;
pub use self::fabric::{FabricKind, Woken};
pub use self::qp::{MAX_PIECES, QpCaps, RemoteMemory, SendFlags, Verb};
pub(crate) use self::queue_id::{Generation, Kind, MAX_SLOTS, QueueId};
pub use self::status::WcStatus;
