//! Any bytes as a sequence of calls and packets: what the fuzz target `engine_calls` runs, and a
//! proptest beside it.
//!
//! Promises: no panic; between two ends that keep the rules everything arrives once and in order,
//! and every operation ends; what is posted stays accounted for, whatever a peer sends and whenever
//! the connection breaks.

use super::{Came, Ending, World};

/// Makes what it can of the bytes, and panics if a promise is broken.
pub(crate) fn run(data: &[u8]) {
    let mut bytes = data.iter().copied();
    let mut next = || bytes.next().unwrap_or(0);
    let (mode, depth) = (next() % 4, u32::from(next()));
    let windows = [next(), next()].map(|byte| 1 + u16::from(byte % 5));
    // A hostile peer can fill the send queue with answers; see the proptest of it.
    let depth = if mode == 3 { 8 } else { 2 + depth % 18 };
    let mut world = World::new(windows, depth);
    if mode == 3 {
        return be_hostile(&mut world, &mut bytes);
    }
    for byte in bytes {
        world.step(usize::from(byte & 1), (byte >> 1) % 14);
    }
    match mode {
        0 => arrive(&mut world),
        mode => end(&mut world, mode == 1),
    }
}

/// All that is under way arrives.
fn arrive(world: &mut World) {
    world.run_dry();
    let sent = [1, 0].map(|from| world.ends[from].sent);
    for (end, sent) in world.ends.iter().zip(sent) {
        assert!(end.received.iter().copied().eq(0..sent), "once, in order");
        assert!(end.sends.is_empty(), "every send has ended");
        assert_eq!(end.broken, None);
    }
}

/// The connection ends here: by a close, or because the transport says so.
pub(super) fn end(world: &mut World, closes: bool) {
    for end in &mut world.ends {
        if closes {
            assert!(end.engine.begin_close());
            end.engine.drop_memory();
            end.engine.end_close();
            assert!(!end.engine.begin_close());
        } else {
            end.engine.finish(Ending::Reset);
            while !end.send_queue.is_empty() {
                // The device flushes everything, also what makes no completion otherwise.
                for (_, signaled) in &mut end.send_queue {
                    *signaled = true;
                }
                end.acknowledged(Some(Ending::Reset));
            }
        }
        while end.engine.is_readable() && !end.engine.inbox.is_empty() {
            end.take(false);
        }
        end.collect();
        assert!(end.sends.is_empty(), "every send has ended");
        assert!(end.receives.is_empty(), "every receive has ended");
        end.check();
        assert!(end.engine.check().is_err());
        assert!(end.engine.next_post().is_none());
    }
}

/// Packets of any kind come to the first end.
fn be_hostile(world: &mut World, bytes: &mut impl Iterator<Item = u8>) {
    while let Some(kind) = bytes.next() {
        let mut word = || std::array::from_fn(|_| bytes.next().unwrap_or(0));
        let immediate = match kind % 4 {
            0 => None,
            1 => Some(u32::from_le_bytes(word())),
            // Nearly right: one of the kinds that there are, with few credits.
            _ => {
                let [what, few, ..] = word();
                Some(u32::from(what % 4) << 28 | u32::from(few & 1) << 16 | u32::from(few % 5) << 8)
            }
        };
        let packet: Vec<u8> = bytes.by_ref().take(usize::from(kind) / 5).collect();
        let end = &mut world.ends[0];
        if end.posted == 0 {
            return;
        }
        end.posted -= 1;
        // Somebody waits for it, now and then.
        let is_awaited = kind & 16 != 0;
        if !(is_awaited && end.read_plainly(immediate, &packet)) {
            match end.engine.message_came(immediate, packet) {
                Some(Came::Credits(_) | Came::Wrong(..)) => end.posted += 1,
                Some(Came::Handover(_) | Came::Control(..)) | None => {}
            }
        }
        if let Some(Ok(arrived)) = end.engine.take_message() {
            end.drop_message(&arrived);
        }
        end.pump(&mut world.wires[0]);
    }
}
