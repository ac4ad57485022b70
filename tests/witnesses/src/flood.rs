//! Many connect requests at once, each from an id of its own.
//!
//! What it does: sends requests without queue pairs (the listening side cannot tell) and gathers how
//! each of them ended. What it does not do: go on with those that were accepted.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use rdma_sys::rdma_cm_event_type as cm;

use crate::raw::{Channel, ConnectEnd, Id};

/// The requests of a flood. They end when this is dropped.
#[derive(Debug)]
pub struct Flood {
    ids: Vec<Id>,
    /// How each request ended, and when; in the order in which they did.
    pub ended: Vec<(ConnectEnd, Instant)>,
}

impl Flood {
    /// Sends `count` requests with `private_data` to `target` and gathers answers until `enough` of
    /// them are there or the deadline passes.
    ///
    /// # Errors
    /// What librdmacm says, and events that no request can get.
    pub fn send(
        target: SocketAddr,
        count: usize,
        private_data: &[u8],
        enough: usize,
        deadline: Instant,
    ) -> io::Result<Self> {
        let channel = Channel::open()?;
        let ids: Vec<Id> = (0..count)
            .map(|_| Id::new(&channel))
            .collect::<io::Result<_>>()?;
        let by_key: HashMap<usize, usize> = ids
            .iter()
            .enumerate()
            .map(|(at, id)| (id.key(), at))
            .collect();
        for id in &ids {
            id.resolve_addr(target)?;
        }
        let mut ended = Vec::with_capacity(count);
        while ended.len() < enough {
            let Some(event) = channel.next(deadline)? else {
                break;
            };
            let id = &ids[by_key[&event.key]];
            match event.kind {
                cm::RDMA_CM_EVENT_ADDR_RESOLVED => id.resolve_route()?,
                cm::RDMA_CM_EVENT_ROUTE_RESOLVED => id.connect(private_data)?,
                _ => match ConnectEnd::of(&event) {
                    Some(outcome) => ended.push((outcome, Instant::now())),
                    None => return Err(io::Error::other(format!("{event:?}"))),
                },
            }
        }
        Ok(Self { ids, ended })
    }

    /// How many requests were sent.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether none was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}
