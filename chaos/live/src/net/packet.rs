//! IPv4 packets, as far as a router looks: addresses, and resets in TCP's name.
//!
//! **Invariants.** Nothing here trusts a length that the packet itself does not have. A reset carries the very numbers that
//! its receiver expects next, so that it is obeyed (RFC 5961).

use std::net::Ipv4Addr;

/// Bytes of a header without options, of IPv4 and of TCP alike.
const HEADER_BYTES: usize = 20;
/// IPv4's number of TCP.
const TCP: u8 = 6;
const FLAG_RST: u8 = 0x04;
const FLAG_ACK: u8 = 0x10;

/// Sender and receiver of an IPv4 packet; `None` for anything else.
pub fn addresses(packet: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    if packet.len() < HEADER_BYTES || packet[0] >> 4 != 4 {
        return None;
    }
    let address = |at: usize| <[u8; 4]>::try_from(&packet[at..at + 4]).ok().map(Ipv4Addr::from);
    Some((address(12)?, address(16)?))
}

/// Resets for both ends of the connection that `packet` belongs to: for its receiver, and for its sender. `None` when it is
/// not TCP, is a reset itself, or acknowledges nothing yet.
pub fn resets(packet: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    addresses(packet)?;
    let header_bytes = usize::from(packet[0] & 0x0f) * 4;
    let tcp = packet.get(header_bytes..header_bytes + HEADER_BYTES)?;
    if packet[9] != TCP || header_bytes < HEADER_BYTES || tcp[13] & FLAG_RST != 0 || tcp[13] & FLAG_ACK == 0 {
        return None;
    }
    let (source, target) = (&packet[12..16], &packet[16..20]);
    let (ports, back) = ([tcp[0], tcp[1], tcp[2], tcp[3]], [tcp[2], tcp[3], tcp[0], tcp[1]]);
    let (sequence, acknowledged) = (&tcp[4..8], &tcp[8..12]);
    Some((
        reset([source, target], ports, [sequence, acknowledged]),
        reset([target, source], back, [acknowledged, sequence]),
    ))
}

/// A TCP reset of one direction.
fn reset(addresses: [&[u8]; 2], ports: [u8; 4], numbers: [&[u8]; 2]) -> Vec<u8> {
    let mut packet = vec![0_u8; 2 * HEADER_BYTES];
    packet[0] = 0x45;
    packet[3] = 40;
    // Time to live, protocol.
    packet[8..10].copy_from_slice(&[64, TCP]);
    packet[12..16].copy_from_slice(addresses[0]);
    packet[16..20].copy_from_slice(addresses[1]);
    let sum = checksum(0, &packet[..HEADER_BYTES]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet[20..24].copy_from_slice(&ports);
    packet[24..28].copy_from_slice(numbers[0]);
    packet[28..32].copy_from_slice(numbers[1]);
    packet[32..34].copy_from_slice(&[0x50, FLAG_RST | FLAG_ACK]);
    // The pseudo header: both addresses, the protocol, TCP's length.
    let pseudo = u32::from(TCP) + 20 + sum_of(&packet[12..20]);
    let sum = checksum(pseudo, &packet[HEADER_BYTES..]);
    packet[36..38].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn sum_of(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0))).sum()
}

/// The internet checksum (RFC 1071) of `bytes` on top of what was summed up `before`.
fn checksum(before: u32, bytes: &[u8]) -> u16 {
    let mut sum = before + sum_of(bytes);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(flags: u8) -> Vec<u8> {
        let mut packet =
            reset([&[10, 77, 1, 1], &[10, 77, 2, 1]], [0x44, 0x00, 0x1d, 0x00], [&[1, 2, 3, 4], &[5, 6, 7, 8]]);
        packet[33] = flags;
        packet
    }

    #[test]
    fn both_ends_get_the_numbers_that_they_expect() {
        let (forth, back) = resets(&segment(FLAG_ACK)).expect("a connection's packet");
        let ends = |packet: &[u8]| addresses(packet).map(|(from, to)| format!("{from} {to}")).expect("IPv4");
        assert_eq!((ends(&forth).as_str(), ends(&back).as_str()), ("10.77.1.1 10.77.2.1", "10.77.2.1 10.77.1.1"));
        assert_eq!((&forth[24..28], &back[24..28]), (&[1, 2, 3, 4][..], &[5, 6, 7, 8][..]));
        assert_eq!((&forth[20..24], &back[20..24]), (&[0x44, 0, 0x1d, 0][..], &[0x1d, 0, 0x44, 0][..]));
        for packet in [&forth, &back] {
            // A sum over what contains its own checksum is zero.
            assert_eq!(checksum(0, &packet[..20]), 0);
            assert_eq!(checksum(u32::from(TCP) + 20 + sum_of(&packet[12..20]), &packet[20..]), 0);
        }
    }

    #[test]
    fn resets_are_not_answered_and_garbage_is_not_read() {
        assert!(resets(&segment(FLAG_RST | FLAG_ACK)).is_none());
        assert!(resets(&segment(0x02)).is_none(), "a SYN acknowledges nothing");
        let whole = segment(FLAG_ACK);
        for length in 0..whole.len() {
            assert!(resets(&whole[..length]).is_none(), "{length}");
        }
        assert!(addresses(&[0x60; 40]).is_none());
    }
}
