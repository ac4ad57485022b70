//! Network events: which are selected, which were recorded since the last look, and when the event
//! object is set and reset (duties 81 to 83, 88).
//!
//! It decides nothing about requests and connects. It does no waiting; the only thing it does
//! outside memory is to set and reset an event object, which never blocks.

use std::ops::BitOr;

use crate::error::ConnectError;
use crate::event::EventObject;

/// A set of network events: those of the SPI that go to a provider (duty 44).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct NetworkEvents {
    accept: bool,
    connect: bool,
}

impl NetworkEvents {
    /// No event: cancels a selection.
    pub const NONE: Self = Self {
        accept: false,
        connect: false,
    };
    /// A request to connect waits.
    #[doc(alias = "FD_ACCEPT")]
    pub const ACCEPT: Self = Self {
        accept: true,
        connect: false,
    };
    /// A connect ended.
    #[doc(alias = "FD_CONNECT")]
    pub const CONNECT: Self = Self {
        accept: false,
        connect: true,
    };
}

impl BitOr for NetworkEvents {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self {
            accept: self.accept | other.accept,
            connect: self.connect | other.connect,
        }
    }
}

/// What happened since the last look.
#[derive(Debug, Clone, Default)]
pub struct NetworkEventRecord {
    /// A request to connect waits, or did.
    pub accept: bool,
    /// A connect ended, and how.
    pub connect: Option<Result<(), ConnectError>>,
}

/// The events of one socket.
#[derive(Debug, Default)]
pub(crate) struct EventRecorder {
    selected: Option<(EventObject, NetworkEvents)>,
    record: NetworkEventRecord,
}

impl EventRecorder {
    /// Selects `events`; what was true before is signalled at once.
    pub(crate) fn select(&mut self, event: &EventObject, events: NetworkEvents, queued: bool) {
        if events == NetworkEvents::NONE {
            self.selected = None;
            return;
        }
        self.selected = Some((event.clone(), events));
        let connect = events.connect && self.record.connect.is_some();
        if (events.accept && queued) || connect {
            self.record.accept |= queued;
            event.set();
        }
    }

    /// A request was queued (duty 81). Whether the event was set for it.
    pub(crate) fn request_queued(&mut self) -> bool {
        self.record.accept = true;
        self.signal(|events| events.accept)
    }

    /// A connect ended (duty 72). Whether the event was set for it.
    pub(crate) fn connect_ended(&mut self, result: Result<(), ConnectError>) -> bool {
        self.record.connect = Some(result);
        self.signal(|events| events.connect)
    }

    /// An accept is about to return: reset, and set again if requests are still queued (duty 88).
    pub(crate) fn accept_returns(&mut self, queued: bool) {
        if let Some((event, events)) = &self.selected
            && events.accept
        {
            event.reset();
            // One event object may stand for a connect too.
            if queued || (events.connect && self.record.connect.is_some()) {
                event.set();
            }
        }
        self.record.accept |= queued;
    }

    /// What was recorded of the selected events since the last call (duty 83). `event` is reset.
    pub(crate) fn take(&mut self, event: Option<&EventObject>) -> NetworkEventRecord {
        if let Some(event) = event {
            event.reset();
        }
        let Some((_, events)) = &self.selected else {
            return NetworkEventRecord::default();
        };
        NetworkEventRecord {
            accept: events.accept && std::mem::take(&mut self.record.accept),
            connect: if events.connect {
                self.record.connect.take()
            } else {
                None
            },
        }
    }

    fn signal(&self, wanted: impl Fn(&NetworkEvents) -> bool) -> bool {
        match &self.selected {
            Some((event, events)) if wanted(events) => {
                event.set();
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ConnectFailure;

    fn selected(events: NetworkEvents) -> (EventRecorder, EventObject) {
        let event = EventObject::new().unwrap();
        let mut recorder = EventRecorder::default();
        recorder.select(&event, events, false);
        (recorder, event)
    }

    #[test]
    fn wsd_081_each_request_sets_the_event() {
        let (mut recorder, event) = selected(NetworkEvents::ACCEPT);
        assert!(!event.is_set());
        assert!(recorder.request_queued());
        assert!(event.is_set());
        event.reset();
        assert!(recorder.request_queued());
        assert!(event.is_set());
    }

    #[test]
    fn wsd_082_either_event_or_both() {
        let both = NetworkEvents::ACCEPT | NetworkEvents::CONNECT;
        for (events, accept, connect) in [
            (NetworkEvents::ACCEPT, true, false),
            (NetworkEvents::CONNECT, false, true),
            (both, true, true),
        ] {
            let (mut recorder, event) = selected(events);
            assert_eq!(recorder.request_queued(), accept);
            assert_eq!(recorder.connect_ended(Ok(())), connect);
            assert!(event.is_set());
            let record = recorder.take(Some(&event));
            assert_eq!((record.accept, record.connect.is_some()), (accept, connect));
        }
    }

    #[test]
    fn wsd_083_enum_reports_once_and_resets() {
        let (mut recorder, event) = selected(NetworkEvents::ACCEPT);
        recorder.request_queued();
        recorder.request_queued();
        assert!(recorder.take(Some(&event)).accept);
        assert!(!event.is_set());
        assert!(!recorder.take(Some(&event)).accept);
        recorder.request_queued();
        assert!(recorder.take(None).accept);
        assert!(event.is_set(), "without an event object none is reset");
    }

    #[test]
    fn wsd_088_set_again_while_requests_wait() {
        let (mut recorder, event) = selected(NetworkEvents::ACCEPT);
        recorder.request_queued();
        recorder.request_queued();
        recorder.take(Some(&event));
        recorder.accept_returns(true);
        assert!(event.is_set());
        assert!(recorder.take(Some(&event)).accept);
        recorder.accept_returns(false);
        assert!(!event.is_set());
        assert!(!recorder.take(None).accept);
    }

    #[test]
    fn an_event_that_stands_for_a_connect_too_stays_set_for_it() {
        let (mut recorder, event) = selected(NetworkEvents::ACCEPT | NetworkEvents::CONNECT);
        recorder.connect_ended(Err(ConnectFailure::TimedOut.into()));
        recorder.accept_returns(false);
        assert!(event.is_set());
    }

    #[test]
    fn selecting_late_misses_nothing() {
        let event = EventObject::new().unwrap();
        let mut recorder = EventRecorder::default();
        assert!(
            !recorder.request_queued(),
            "nothing selected, nothing signalled"
        );
        recorder.select(&event, NetworkEvents::ACCEPT, true);
        assert!(event.is_set());
        assert!(recorder.take(Some(&event)).accept);

        assert!(!recorder.connect_ended(Ok(())));
        recorder.select(&event, NetworkEvents::CONNECT, false);
        assert!(event.is_set());
        assert!(matches!(recorder.take(Some(&event)).connect, Some(Ok(()))));
    }

    #[test]
    fn a_cancelled_selection_signals_nothing() {
        let (mut recorder, event) = selected(NetworkEvents::ACCEPT);
        recorder.select(&event, NetworkEvents::NONE, true);
        assert!(!recorder.request_queued());
        assert!(!event.is_set());
        assert!(!recorder.take(None).accept);
    }
}
