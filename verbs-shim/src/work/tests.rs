use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;
use crate::memory::BufferPool;
use crate::testing::bench;
use crate::types::Access;

#[derive(Debug, Clone)]
enum Step {
    Push {
        signaled: bool,
    },
    Pop,
    /// Of those outstanding the one with this number, modulo.
    Claim {
        nth: usize,
        success: bool,
    },
    /// Any slot whatever.
    Stray {
        slot: u16,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        5 => any::<bool>().prop_map(|signaled| Step::Push { signaled }),
        1 => Just(Step::Pop),
        4 => (0..8_usize, any::<bool>()).prop_map(|(nth, success)| Step::Claim { nth, success }),
        1 => (0..10_u16).prop_map(|slot| Step::Stray { slot }),
    ];
    proptest::collection::vec(step, 1..80)
}

proptest! {
    /// The ring against a plain list of what is outstanding.
    #[test]
    fn the_ring_owns_what_is_outstanding(steps in steps()) {
        const CAPACITY: u32 = 5;
        let bench = bench();
        let pool = BufferPool::new(&bench.pd, 8, 16, Access::LOCAL_WRITE).unwrap();
        let mut table = SendTable::new(CAPACITY);
        // (slot, first byte, signaled), oldest first; the claimed ones in between stay as None.
        let mut model: VecDeque<Option<(u16, u8, bool)>> = VecDeque::new();
        let mut next = 0_u8;
        for step in steps {
            match step {
                Step::Push { signaled } => {
                    let mut buffer = pool.take().unwrap();
                    buffer.fill(&[next]);
                    let mut pieces = Pieces::new();
                    pieces.push(buffer.into());
                    match table.push_pieces(&mut pieces, signaled) {
                        Some(slot) => model.push_back(Some((slot, next, signaled))),
                        None => {
                            prop_assert_eq!(model.len(), CAPACITY as usize);
                            prop_assert_eq!(pieces.len(), 1);
                        }
                    }
                    next = next.wrapping_add(1);
                }
                Step::Pop => {
                    let popped = table.pop();
                    let expected = model.pop_back();
                    prop_assert_eq!(popped.is_some(), matches!(expected, Some(Some(_))));
                }
                Step::Claim { nth, success } => {
                    let live: Vec<usize> = (0..model.len()).filter(|&n| model[n].is_some()).collect();
                    if live.is_empty() {
                        continue;
                    }
                    let at = live[nth % live.len()];
                    let (slot, byte, _) = model[at].take().unwrap();
                    let room = table.room();
                    let (pieces, freed) = table.claim(slot, success).unwrap();
                    prop_assert_eq!(table.room(), room + freed);
                    let buffer = pieces.into_iter().next().unwrap().into_buffer().unwrap();
                    prop_assert_eq!(buffer[0], byte);
                    prop_assert!(table.claim(slot, success).is_none());
                    if success {
                        for before in model.iter_mut().take(at) {
                            if matches!(before, Some((_, _, false))) {
                                *before = None;
                            }
                        }
                    }
                    while matches!(model.front(), Some(None)) {
                        model.pop_front();
                    }
                }
                Step::Stray { slot } => {
                    let known = model.iter().flatten().any(|&(s, _, _)| s == slot);
                    if !known {
                        prop_assert!(table.claim(slot, true).is_none());
                    }
                }
            }
            prop_assert_eq!(table.room() as usize, CAPACITY as usize - model.len());
            prop_assert_eq!(table.is_empty(), model.is_empty());
            prop_assert_eq!(pool.free(), 16 - model.iter().flatten().count());
        }
    }

    /// The slab, likewise; it keeps what is spent.
    #[test]
    fn the_slab_owns_what_is_posted(steps in proptest::collection::vec((0..4_u8, 0..8_u16), 1..80)) {
        let bench = bench();
        let pool = BufferPool::new(&bench.pd, 8, 16, Access::LOCAL_WRITE).unwrap();
        let mut table = RecvTable::new(6);
        let mut model = std::collections::HashMap::new();
        let mut spent = Vec::new();
        for (n, (step, slot)) in steps.into_iter().enumerate() {
            match step {
                0 => {
                    let mut buffer = pool.take().unwrap();
                    buffer.fill(&[n as u8]);
                    match table.push(buffer) {
                        Ok(slot) => prop_assert_eq!(model.insert(slot, n as u8), None),
                        Err(_) => prop_assert_eq!(model.len() + spent.len(), 6),
                    }
                }
                1 => {
                    let taken = table.take(slot).map(|buffer| buffer[0]);
                    prop_assert_eq!(taken, model.remove(&slot));
                }
                2 => {
                    let spends = table.spend(slot);
                    prop_assert_eq!(spends, model.contains_key(&slot));
                    spent.extend(model.remove_entry(&slot));
                }
                _ => {
                    let posted = table.post_spent().map(|(slot, _)| slot);
                    let expected = spent.pop();
                    prop_assert_eq!(posted, expected.map(|(slot, _)| slot));
                    model.extend(expected);
                }
            }
            prop_assert_eq!(table.room(), 6 - model.len());
            prop_assert_eq!(table.is_empty(), model.is_empty() && spent.is_empty());
            prop_assert_eq!(pool.free(), 16 - model.len() - spent.len());
        }
    }
}

#[test]
fn tables_of_no_size_take_nothing() {
    let mut sends = SendTable::new(0);
    assert!(sends.push_inline(true).is_none());
    assert!(sends.claim(0, true).is_none());
    assert!(sends.pop().is_none());
    assert!(RecvTable::new(0).take(0).is_none());
}
