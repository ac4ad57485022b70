//! What a connect brings along from another process.

use crate::transfer::{Carried, Connection};
use crate::wire::{Hello, Resumption};

/// What a connect that takes a connection up has beyond others.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(super) resumption: Resumption,
    pub(super) messages: Vec<Carried>,
}

impl Arrival {
    /// Puts the right to the connection into its request, and what came before to where it is
    /// received first.
    pub(crate) fn into_request(self, hello: &mut Hello, connection: &Connection) {
        hello.session = self.resumption.session();
        connection.carry(self.messages);
    }
}
