//! The parsers: whatever comes, no panic; what is read is written back as it was.

use std::net::SocketAddr;

use soft_roce::wire::cm::{CmMessage, CmaHeader};
use soft_roce::wire::{FlowCrc, Packet};

/// A packet, BTH to pad.
pub fn packet(data: &[u8]) {
    let Ok(packet) = Packet::parse(data) else {
        return;
    };
    // Reserved bits are not kept, so the bytes may differ; the meaning may not.
    let again = packet.to_vec();
    assert_eq!(again.len(), packet.wire_len(packet.payload.len()));
    match Packet::parse(&again) {
        Ok(mut same) => {
            same.bth.pad = packet.bth.pad;
            assert_eq!(same, packet);
        }
        Err(why) => panic!("own packet refused: {why}"),
    }
}

/// A management datagram.
pub fn mad(data: &[u8]) {
    let Ok((header, message)) = CmMessage::parse(data) else {
        return;
    };
    let again = message.emit(header.tid);
    let (same_header, same) = CmMessage::parse(&again).expect("own message refused");
    assert_eq!((same_header.tid, same_header.own), (header.tid, true));
    assert_eq!(same, message);
    if let CmMessage::Req(req) = message
        && let Some(head) = req.private_data.first_chunk()
        && let Ok(cma) = CmaHeader::parse(head)
    {
        assert_eq!(CmaHeader::parse(&cma.emit()), Ok(cma));
    }
}

/// A packet with its ICRC.
pub fn icrc(data: &[u8]) {
    let flows: [(&str, &str); 2] = [
        ("10.0.0.1:1000", "10.0.0.2:4791"),
        ("[fe80::1]:1000", "[fe80::2]:4791"),
    ];
    for (src, dst) in flows {
        let parse = |text: &str| -> SocketAddr { text.parse().expect("an address") };
        let flow = FlowCrc::new(parse(src), parse(dst));
        let _ = flow.check(0, data);
        if (16..2000).contains(&data.len()) {
            let mut sealed = data.to_vec();
            flow.seal(7, &mut sealed);
            let found = flow.check(7, &sealed);
            assert_eq!(found, Some(7));
        }
    }
}
