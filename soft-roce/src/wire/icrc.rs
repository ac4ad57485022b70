//! Invariant CRC (IBTA 9.7.8 and annex A17.9.1), the last 4 bytes of a packet.
//!
//! What it does: CRC-32 over eight bytes of ones, the IP and UDP headers and the
//! packet, with every field that changes on the way masked by ones. It goes on
//! the wire little-endian, alone among all fields.
//!
//! The IPv4 identification is covered, yet a UDP socket does not show it. CRCs
//! are linear, so the identification is solved from the difference between the
//! CRC that came and the one computed for a guess: 16 of the 32 bits then find
//! the identification and 16 remain as the check. A right guess (0 for a lone
//! datagram of this crate, the index for a segment of a GSO batch) leaves all 32.
//!
//! What it does not do: fragments and IPv4 options. Packets go out with DF set.

use std::net::{IpAddr, SocketAddr};

use super::Bth;

/// CRC-32 (IEEE 802.3), reflected.
const POLY: u32 = 0xedb8_8320;

/// Eight bytes of ones, a 40-byte IPv6 header, UDP, BTH.
const MAX_PREFIX: usize = 8 + 40 + UDP_LEN + Bth::LEN;
const UDP_LEN: usize = 8;
const IPV4_LEN: usize = 20;
const IPV6_LEN: usize = 40;
const PROTO_UDP: u8 = 17;

/// In the pseudo header in front of the IP header, eight bytes of ones.
const IP_AT: usize = 8;
const IDENT_AT: usize = IP_AT + 4;

/// The addresses and ports that the ICRCs of one direction of one flow cover.
#[derive(Clone, Debug)]
pub struct FlowCrc {
    /// All up to the end of the UDP header, lengths and identification zero.
    template: [u8; MAX_PREFIX],
    /// Where the UDP header begins.
    udp_at: usize,
}

impl FlowCrc {
    /// For datagrams from `src` to `dst`. An IPv4 address written as IPv6
    /// counts as IPv4, as on the wire.
    #[must_use]
    pub fn new(src: SocketAddr, dst: SocketAddr) -> Self {
        let mut t = [0xff; MAX_PREFIX];
        let udp_at = match (src.ip().to_canonical(), dst.ip().to_canonical()) {
            (IpAddr::V4(s), IpAddr::V4(d)) => {
                let ip = &mut t[IP_AT..IP_AT + IPV4_LEN];
                ip[0] = 0x45; // version 4, five words
                ip[4..6].fill(0); // identification
                ip[6..8].copy_from_slice(&[0x40, 0]); // do not fragment
                ip[9] = PROTO_UDP;
                ip[12..16].copy_from_slice(&s.octets());
                ip[16..20].copy_from_slice(&d.octets());
                IP_AT + IPV4_LEN
            }
            (s, d) => {
                let ip = &mut t[IP_AT..IP_AT + IPV6_LEN];
                ip[0] = 0x6f; // version 6; class and flow label masked
                ip[6] = PROTO_UDP;
                ip[8..24].copy_from_slice(&v6_octets(s));
                ip[24..40].copy_from_slice(&v6_octets(d));
                IP_AT + IPV6_LEN
            }
        };
        t[udp_at..udp_at + 2].copy_from_slice(&src.port().to_be_bytes());
        t[udp_at + 2..udp_at + 4].copy_from_slice(&dst.port().to_be_bytes());
        Self {
            template: t,
            udp_at,
        }
    }

    /// The ICRC of `packet` (BTH to pad) in a datagram of identification
    /// `ident`, which IPv6 has none of and ignores.
    ///
    /// # Panics
    /// If `packet` is shorter than a BTH or longer than a datagram can be.
    #[must_use]
    pub fn compute(&self, ident: u16, packet: &[u8]) -> u32 {
        let mut prefix = self.template;
        let udp_len = u16::try_from(UDP_LEN + packet.len() + super::ICRC_LEN)
            .expect("a packet fits a datagram")
            .to_be_bytes();
        if self.is_v4() {
            let total = u16::try_from(IPV4_LEN + UDP_LEN + packet.len() + super::ICRC_LEN)
                .expect("a packet fits a datagram");
            prefix[IP_AT + 2..IP_AT + 4].copy_from_slice(&total.to_be_bytes());
            prefix[IDENT_AT..IDENT_AT + 2].copy_from_slice(&ident.to_be_bytes());
        } else {
            prefix[IP_AT + 4..IP_AT + 6].copy_from_slice(&udp_len);
        }
        let udp = self.udp_at;
        prefix[udp + 4..udp + 6].copy_from_slice(&udp_len);
        let (bth, rest) = packet.split_at(Bth::LEN);
        let bth_at = udp + UDP_LEN;
        let end = bth_at + Bth::LEN;
        prefix[bth_at..end].copy_from_slice(bth);
        prefix[bth_at + 4] = 0xff; // the reserved byte with FECN and BECN
        let mut crc = crc32fast::Hasher::new();
        crc.update(&prefix[..end]);
        crc.update(rest);
        crc.finalize()
    }

    /// Computes the ICRC of all but the last four bytes of `packet` and writes
    /// it there.
    ///
    /// # Panics
    /// As [`FlowCrc::compute`].
    pub fn seal(&self, ident: u16, packet: &mut [u8]) {
        let at = packet.len() - super::ICRC_LEN;
        let (body, icrc) = packet.split_at_mut(at);
        icrc.copy_from_slice(&self.compute(ident, body).to_le_bytes());
    }

    /// Checks `packet`, ICRC and all, and tells the identification it was sent
    /// with (`guess` itself for IPv6). `None`: the ICRC is wrong, or there are
    /// too few or too many bytes for a packet.
    #[must_use]
    pub fn check(&self, guess: u16, packet: &[u8]) -> Option<u16> {
        let (body, icrc) = packet.split_last_chunk()?;
        if body.len() < Bth::LEN || packet.len() > MAX_PACKET {
            return None;
        }
        let difference = self.compute(guess, body) ^ u32::from_le_bytes(*icrc);
        if difference == 0 {
            return Some(guess);
        }
        if !self.is_v4() {
            return None;
        }
        // From the identification to the end of what is covered.
        let covered = IPV4_LEN - 4 + UDP_LEN + body.len();
        let change = multiply(difference, inverse_shift(covered));
        // The CRC register takes bytes in at its low end, the first lowest.
        let change = u16::try_from(change).ok()?.swap_bytes();
        Some(guess ^ change)
    }

    fn is_v4(&self) -> bool {
        self.udp_at == IP_AT + IPV4_LEN
    }
}

/// The longest packet, ICRC included, that fits an IPv4 datagram.
const MAX_PACKET: usize = u16::MAX as usize - IPV4_LEN - UDP_LEN;

fn v6_octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

/// The product of two polynomials modulo [`POLY`], both reflected.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 1 << 31;
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = (b >> 1) ^ (POLY * (b & 1));
        bit >>= 1;
    }
    product
}

/// x to the power of -8 * 2^i: undoes 2^i bytes of zeros.
const INVERSE_SHIFTS: [u32; 16] = {
    let mut v: u32 = 1 << 31; // x^0
    let mut step = 0;
    while step < 8 {
        // POLY has its top bit set, so that bit tells whether it was added.
        v = if v >> 31 == 1 {
            ((v ^ POLY) << 1) | 1
        } else {
            v << 1
        };
        step += 1;
    }
    let mut table = [0; 16];
    let mut i = 0;
    while i < 16 {
        table[i] = v;
        v = multiply(v, v);
        i += 1;
    }
    table
};

/// What takes a CRC register back by `bytes` (below 2^16) bytes of zeros.
fn inverse_shift(bytes: usize) -> u32 {
    INVERSE_SHIFTS
        .iter()
        .enumerate()
        .filter(|(i, _)| bytes >> i & 1 == 1)
        .fold(1 << 31, |product, (_, factor)| multiply(product, *factor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{Opcode, Packet};
    use proptest::prelude::*;

    fn flow(v6: bool) -> FlowCrc {
        if v6 {
            FlowCrc::new(
                "[fe80::1]:50000".parse().unwrap(),
                "[fe80::2]:4791".parse().unwrap(),
            )
        } else {
            FlowCrc::new(
                "10.0.7.2:50000".parse().unwrap(),
                "10.0.7.1:4791".parse().unwrap(),
            )
        }
    }

    fn packet(payload: &[u8]) -> Vec<u8> {
        let mut bytes = Packet {
            payload,
            ..Packet::new(Bth::new(Opcode::SendOnly, 17, 5))
        }
        .to_vec();
        bytes.extend([0; 4]);
        bytes
    }

    /// The bytes that the rule names, put together by hand.
    #[test]
    fn covers_what_the_annex_says() {
        let mut sent = packet(&[7; 8]);
        flow(false).seal(0x1234, &mut sent);
        let mut covered = vec![0xff; 8];
        covered.extend([0x45, 0xff, 0, 52, 0x12, 0x34, 0x40, 0, 0xff, 17, 0xff, 0xff]);
        covered.extend([10, 0, 7, 2, 10, 0, 7, 1]);
        covered.extend([0xc3, 0x50, 0x12, 0xb7, 0, 32, 0xff, 0xff]);
        covered.extend([4, 0x40, 0xff, 0xff, 0xff, 0, 0, 17, 0, 0, 0, 5]);
        covered.extend([7; 8]);
        assert_eq!(sent[20..], crc32fast::hash(&covered).to_le_bytes());
    }

    proptest! {
        #[test]
        fn every_identification_is_found(ident: u16, guess: u16, payload: Vec<u8>) {
            let mut sent = packet(&payload);
            flow(false).seal(ident, &mut sent);
            prop_assert_eq!(flow(false).check(guess, &sent), Some(ident));
        }

        #[test]
        fn ipv6_has_a_full_check(payload: Vec<u8>, flip: prop::sample::Index, bit in 0..8u8) {
            let mut sent = packet(&payload);
            flow(true).seal(0, &mut sent);
            prop_assert_eq!(flow(true).check(0, &sent), Some(0));
            let at = flip.index(sent.len());
            // Byte 4 of the BTH is masked.
            prop_assume!(at != 4);
            sent[at] ^= 1 << bit;
            prop_assert_eq!(flow(true).check(0, &sent), None);
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>, v6: bool) {
            let _ = flow(v6).check(0, &bytes);
        }
    }

    /// One corrupt packet in 65,536 passes the check that is left after the
    /// identification was solved; not one in a few thousand.
    #[test]
    fn corruption_rarely_passes_for_an_identification() {
        let mut sent = packet(&[0x5a; 256]);
        flow(false).seal(9, &mut sent);
        let mut passed = 0;
        for at in (0..sent.len()).filter(|at| *at != 4) {
            for bit in 0..8 {
                sent[at] ^= 1 << bit;
                passed += usize::from(flow(false).check(0, &sent).is_some());
                sent[at] ^= 1 << bit;
            }
        }
        assert!(
            passed <= 1,
            "{passed} of {} corrupt packets passed",
            sent.len() * 8
        );
    }

    #[test]
    fn too_long_is_no_packet() {
        assert_eq!(flow(false).check(0, &vec![0; MAX_PACKET + 1]), None);
        assert_eq!(flow(false).check(0, &[0; 15]), None);
    }
}
