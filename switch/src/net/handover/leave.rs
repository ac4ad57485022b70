//! What leaves, in the process that has it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use san_base::Deadline;

use super::offers::Leaves;
use super::package::{Gone, Head, Package, WaitTimes, What};
use super::ticket::Duplicate;
use crate::carrier::Carrier;
use crate::carrier::gate::Gate;
use crate::carrier::san::moves::RecordBytes;
use crate::net::connection::{Carried, Connection};
use crate::net::listener::Listener;
use crate::route::fallback::Route;

impl Connection {
    /// Offers the connection to another process, or to this one. Until that uses the offer the connection goes
    /// on as it is, and stays open, whether it is dropped here or not; then it is of no use here, and
    /// calls say ENOTCONN. What was read ahead, staged, and not read goes along; the peer sees a
    /// pause. A connection that may move goes to TCP first, and stays there.
    ///
    /// The other process asks for it when it uses the offer. It gets it between two calls of this one: a
    /// call that waits has it wait, ten seconds at most. Of several offers of a connection the first that is
    /// used gets it.
    ///
    /// # Errors
    /// ESRCH: no such process. ENOTCONN: the connection is over, or another process's. EOPNOTSUPP: the
    /// peer's version cannot wait for it. ENOBUFS: too many offers are open.
    #[doc(alias = "WSADuplicateSocket")]
    pub fn duplicate(self: &Arc<Self>, target: u32) -> io::Result<Duplicate> {
        let what = Arc::clone(self) as Arc<dyn Leaves>;
        self.lease.offers.offer(target, what)
    }

    fn leave_tcp(&self, deadline: Deadline) -> io::Result<Package> {
        shut(&self.gate, deadline)?;
        self.package_tcp(deadline).inspect_err(|_| self.gate.open())
    }

    fn package_tcp(&self, deadline: Deadline) -> io::Result<Package> {
        // Before anything changes.
        let fd = self.companion_fd().try_clone_to_owned()?;
        let mut bytes = RecordBytes::default();
        let (has_ended, waits) = match &self.carrier {
            Carried::Tcp(carrier) => (carrier.has_ended(), None),
            Carried::Moving(stream) => {
                bytes.peeked = stream.leave(deadline)?;
                let (is_nonblocking, receive, send) = stream.wait_times();
                let waits = WaitTimes {
                    is_nonblocking,
                    receive,
                    send,
                };
                (stream.has_ended(), Some(waits))
            }
            Carried::San(_) => return Err(Errno::OPNOTSUPP.into()),
        };
        Ok(Package {
            head: Head {
                local: self.local_addr(),
                what: What::Tcp {
                    peer: self.peer_addr(),
                    has_ended,
                    waits,
                },
            },
            bytes,
            fd,
        })
    }
}

impl Leaves for Connection {
    fn may_leave(&self) -> io::Result<()> {
        match &self.carrier {
            Carried::San(carrier) => carrier.check_depart(),
            _ if self.gate.is_shut() => Err(Errno::NOTCONN.into()),
            _ => Ok(()),
        }
    }

    fn leave(&self, target: u32, deadline: Deadline) -> io::Result<Gone> {
        let Carried::San(carrier) = &self.carrier else {
            let package = self.leave_tcp(deadline)?;
            return Ok(Gone { package });
        };
        let Route::San { provider, device } = self.route() else {
            return Err(Errno::NOTCONN.into());
        };
        // Before anything changes.
        let fd: OwnedFd = carrier.tcp_socket().try_clone_to_owned()?;
        let (record, bytes) = carrier.depart(target, deadline)?;
        let head = Head {
            local: self.local_addr(),
            what: What::San {
                peer: self.peer_addr(),
                provider: provider.clone(),
                device: device.clone(),
                closes_in_background: self.closes_in_background(),
                record: Box::new(record),
            },
        };
        let package = Package { head, bytes, fd };
        Ok(Gone { package })
    }
}

impl Listener {
    /// Offers the listener to another process: as [`Connection::duplicate`]. It goes when no accept waits here.
    /// Connections over the SAN that were taken before stay here, and accept still gives them; then it
    /// says that the listener is closed. Those that wait on TCP go along. A condition function stays behind.
    ///
    /// # Errors
    /// ESRCH: no such process. ENOTCONN: it is closed, or another process's. ENOBUFS: too many offers are
    /// open.
    #[doc(alias = "WSADuplicateSocket")]
    pub fn duplicate(self: &Arc<Self>, target: u32) -> io::Result<Duplicate> {
        let what = Arc::clone(self) as Arc<dyn Leaves>;
        self.lease.offers.offer(target, what)
    }
}

impl Leaves for Listener {
    fn may_leave(&self) -> io::Result<()> {
        match self.shared.is_closed() || self.gate.is_shut() {
            true => Err(Errno::NOTCONN.into()),
            false => Ok(()),
        }
    }

    fn leave(&self, _target: u32, deadline: Deadline) -> io::Result<Gone> {
        self.may_leave()?;
        shut(&self.gate, deadline)?;
        let fd = self
            .shared
            .tcp
            .try_clone()
            .inspect_err(|_| self.gate.open());
        let fd = OwnedFd::from(fd?);
        // The other process makes companions at the same addresses.
        self.lease.companions.leave(&self.shared);
        let head = Head {
            local: self.shared.address,
            what: What::Listener {
                backlog: self.shared.backlog,
                route: self.route.to_string(),
                send_buffer: self.buffers.send,
                receive_buffer: self.buffers.receive,
            },
        };
        let bytes = RecordBytes::default();
        let package = Package { head, bytes, fd };
        Ok(Gone { package })
    }
}

/// Waits for the calls that are under way, and lets no other one begin.
fn shut(gate: &Gate, deadline: Deadline) -> io::Result<()> {
    if gate.shut(deadline) {
        return Ok(());
    }
    Err(match gate.is_shut() {
        true => Errno::NOTCONN.into(),
        false => Errno::TIMEDOUT.into(),
    })
}
