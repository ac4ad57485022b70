//! Where an engine puts the packets it wants sent.
//!
//! What it does: names the contract between an engine and the driver. The
//! engine writes each packet, payload and all, straight into the buffer it will
//! be sent from, so a payload is copied once.
//! What it does not do: addresses, ICRC and segmentation offload; the driver's
//! sink adds them.

/// Takes packets for one destination, in order.
pub trait PacketSink {
    /// Room for one packet of exactly `len` bytes: BTH, extension headers,
    /// payload and pad, without the ICRC. The bytes hold leftovers: write every
    /// one of them before the next call.
    ///
    /// `None` means that nothing more goes out now (socket full, budget spent):
    /// leave the state as if the packet had not been asked for, and ask again
    /// when next polled.
    fn packet(&mut self, len: usize) -> Option<&mut [u8]>;
}

/// Collects packets in memory, for tests and simulations.
#[derive(Debug, Default)]
pub struct VecSink {
    /// What was asked for so far, oldest first.
    pub packets: Vec<Vec<u8>>,
    /// How many more packets are accepted; `None` is any number.
    pub room: Option<usize>,
}

impl PacketSink for VecSink {
    fn packet(&mut self, len: usize) -> Option<&mut [u8]> {
        if let Some(room) = &mut self.room {
            *room = room.checked_sub(1)?;
        }
        self.packets.push(vec![0; len]);
        self.packets.last_mut().map(Vec::as_mut_slice)
    }
}
