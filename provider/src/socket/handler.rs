//! A socket as the owner of CM ids: what the thread `san-cm` calls.

use std::sync::Arc;

use verbs_shim::{Event, Request};

use super::shared::SocketShared;
use crate::owners::{CmHandler, Role};
use crate::transfer::Ending;

impl CmHandler for SocketShared {
    fn cm_event(&self, event: &Event) {
        self.follow(event);
    }

    fn request_arrived(self: Arc<Self>, request: Request) {
        self.take_request(request);
    }

    fn request_withdrawn(&self, token: u64) {
        self.withdraw(token);
    }

    fn peer_arrived(self: Arc<Self>, request: Request) {
        self.take_up(request);
    }

    fn peer_moves(self: Arc<Self>) {
        self.wait_for_peer();
    }

    fn broke(&self, ending: Ending) {
        self.ended(ending);
    }

    fn deadline_over(&self, role: Role, token: u64) {
        match role {
            Role::Own => self.connect_timed_out(),
            Role::Move => self.peer_is_late(token),
            Role::Queued => {}
        }
    }
}
