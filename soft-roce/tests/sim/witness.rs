//! Looks at every packet as one does who takes answers by the letter: an ACK
//! says that what has its PSN is complete, so none may have the PSN of an RDMA
//! READ, which is complete when its bytes have come (IBTA 9.7.5.1.2). Our
//! requester knows better than to believe such an ACK; others do not.

use std::collections::HashMap;

use soft_roce::wire::{Packet, PacketKind, Syndrome};

/// What a PSN was used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    /// A packet of a SEND or an RDMA WRITE.
    Data,
    /// A packet of an RDMA READ's response.
    Read,
}

/// A stream of requests: who sends them, on which connection.
type Stream = (usize, u32);

#[derive(Default)]
pub struct Witness {
    /// Bytes of a packet, by connection.
    mtus: HashMap<u32, u32>,
    requests: HashMap<(Stream, u32), Request>,
    /// Answers that were looked at.
    pub answers: u64,
}

impl Witness {
    pub fn connected(&mut self, number: u32, mtu: u32) {
        self.mtus.insert(number, mtu);
    }

    /// `host` sends this on connection `number`.
    pub fn sees(&mut self, host: usize, number: u32, packet: &Packet<'_>) {
        let psn = packet.bth.psn;
        match packet.bth.opcode.packet_kind() {
            PacketKind::Send | PacketKind::Write => {
                self.request((host, number), psn, Request::Data);
            }
            PacketKind::ReadRequest => {
                let len = packet.reth.unwrap().len;
                for i in 0..len.div_ceil(self.mtus[&number]).max(1) {
                    self.request((host, number), (psn + i) & 0xff_ffff, Request::Read);
                }
            }
            PacketKind::ReadResponse => self.answer((1 - host, number), psn, Request::Read),
            PacketKind::Ack => match packet.aeth.unwrap().syndrome {
                Syndrome::Ack(_) | Syndrome::Rnr(_) => {
                    self.answer((1 - host, number), psn, Request::Data);
                }
                Syndrome::Nak(_) => {}
            },
            PacketKind::Atomic | PacketKind::Datagram => panic!("{packet:?}"),
        }
    }

    fn request(&mut self, stream: Stream, psn: u32, request: Request) {
        let before = self.requests.insert((stream, psn), request);
        assert!(
            before.is_none_or(|b| b == request),
            "PSN {psn:#x} was {before:?}, is {request:?}"
        );
    }

    fn answer(&mut self, stream: Stream, psn: u32, request: Request) {
        self.answers += 1;
        assert_eq!(
            self.requests.get(&(stream, psn)),
            Some(&request),
            "what the answer with PSN {psn:#x} answers"
        );
    }
}
