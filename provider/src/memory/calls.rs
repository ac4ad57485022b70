//! The calls that register and deregister memory.
//!
//! They are system calls inside, and may take long for much memory: none of them belongs on the
//! path of a message.

use rustix::io::Errno;
use verbs_shim::{Access, AppMemory, RemoteMemory, VerbsError};

use super::handle::{MemoryAccess, MemoryHandle};
use super::registration::{Found, Held, Purpose};
use crate::error::RegisterError;
use crate::socket::Socket;
use crate::transfer::Connection;
use crate::wire::Descriptor;

impl Socket {
    /// Registers memory to transfer from or to, with this socket (duties 100, 101). Registering the
    /// same memory for the same access again gives the same handle, which then has to be
    /// deregistered as often.
    ///
    /// The memory has to stay as [`AppMemory::new`] asks until it is deregistered, or the socket is
    /// closed and no other thread is in a call of it.
    ///
    /// # Errors
    /// `WSAEINVAL`: no bytes. `WSAEFAULT`: not mapped, or not writable though it is to be written.
    /// `WSAENOBUFS`: memory, the limit on locked memory, or registrations have run out.
    /// `WSAENOTCONN`, `WSAENOTSOCK`, `WSANOTINITIALISED`.
    #[doc(alias = "WSPRegisterMemory")]
    pub fn register_memory(
        &self,
        memory: AppMemory,
        access: MemoryAccess,
    ) -> Result<MemoryHandle, RegisterError> {
        let connection = self.shared.connected()?;
        let purpose = Purpose::new(&memory, access, false);
        if let Some(found) = connection.begin_registering(&purpose)? {
            return Ok(found.handle);
        }
        let held = connection.hold(memory, access.local())?;
        let found = connection.memory.add(purpose, held, None)?;
        Ok(found.handle)
    }

    /// Ends a registration of [`Socket::register_memory`] (duty 102).
    ///
    /// # Errors
    /// `WSAEINVAL`: no such registration of this socket, or an operation that has not ended uses
    /// it. `WSAENOTCONN`, `WSAENOTSOCK`, `WSANOTINITIALISED`.
    #[doc(alias = "WSPDeregisterMemory")]
    pub fn deregister_memory(&self, handle: MemoryHandle) -> Result<(), RegisterError> {
        let last = self.shared.connected()?.memory.remove(handle, false)?;
        drop(last);
        Ok(())
    }

    /// Registers memory and opens it to the peer, and to nobody else (duties 100, 101, 103 to 105).
    /// Writes the descriptor that the peer needs to the front of `descriptor`, and gives its
    /// length. How it reaches the peer is the caller's affair; when this returns, it is good.
    ///
    /// The kernel pins such memory for writing, also if the peer only reads it. May wait for the
    /// connection to be confirmed, and for a place on the send queue, as long as a connect may
    /// take.
    ///
    /// # Errors
    /// As [`Socket::register_memory`]; `WSAEFAULT` also for too short a buffer, with the length
    /// that is needed. `WSAEOPNOTSUPP`: the device has no memory windows of type 2.
    #[doc(alias = "WSPRegisterRdmaMemory")]
    pub fn register_rdma_memory(
        &self,
        memory: AppMemory,
        access: MemoryAccess,
        descriptor: &mut [u8],
    ) -> Result<(MemoryHandle, usize), RegisterError> {
        let given = descriptor.len();
        let needed = Descriptor::LENGTH;
        let Some(place) = descriptor.get_mut(..needed) else {
            return Err(RegisterError::DescriptorTooShort { given, needed });
        };
        let connection = self.shared.connected()?;
        let purpose = Purpose::new(&memory, access, true);
        let found = match connection.begin_registering(&purpose)? {
            Some(found) => found,
            None => {
                let held = connection.hold(memory, access.opened())?;
                let slice = held.slice(0, purpose.length).map_err(RegisterError::of)?;
                let window = connection.open_window(&slice, access.remote())?;
                drop(slice);
                connection.memory.add(purpose, held, Some(window))?
            }
        };
        let opened = found.opened.ok_or(RegisterError::UnknownHandle)?;
        place.copy_from_slice(&describe(opened, &purpose));
        Ok((found.handle, needed))
    }

    /// Ends a registration of [`Socket::register_rdma_memory`]. When the last one of the same
    /// memory returns, the peer reaches it no more: what it tries ends with a remote access error
    /// (duty 105).
    ///
    /// # Errors
    /// As [`Socket::deregister_memory`].
    #[doc(alias = "WSPDeregisterRdmaMemory")]
    pub fn deregister_rdma_memory(&self, handle: MemoryHandle) -> Result<(), RegisterError> {
        let connection = self.shared.connected()?;
        let Some(last) = connection.memory.remove(handle, true)? else {
            return Ok(());
        };
        if let Err(error) = last.withdraw() {
            connection.memory.put_back(handle, last);
            return Err(RegisterError::of(error));
        }
        Ok(())
    }
}

impl Connection {
    /// What is registered already, counted once more; or whether it may be registered now.
    fn begin_registering(&self, purpose: &Purpose) -> Result<Option<Found>, RegisterError> {
        self.check_open()?;
        if purpose.length == 0 {
            return Err(RegisterError::Empty);
        }
        self.memory.again(purpose)
    }

    /// The one place where the application's memory becomes a region.
    fn hold(&self, memory: AppMemory, access: Access) -> Result<Held, RegisterError> {
        let domain = self.protection_domain();
        Held::of(self.memory.store(), domain, memory, access).map_err(RegisterError::of)
    }
}

impl RegisterError {
    pub(crate) fn of(error: VerbsError) -> Self {
        let is = |errno: Errno| error.errno() == errno.raw_os_error();
        if is(Errno::FAULT) {
            Self::NotThere
        } else if is(Errno::OPNOTSUPP) {
            Self::NoWindows
        } else {
            error.into()
        }
    }
}

fn describe(opened: RemoteMemory, purpose: &Purpose) -> [u8; Descriptor::LENGTH] {
    Descriptor {
        read: purpose.access.reads(),
        write: purpose.access.writes(),
        key: opened.rkey,
        address: opened.addr,
        length: purpose.length as u64,
    }
    .emit()
}
