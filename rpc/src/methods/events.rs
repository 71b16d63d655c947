//! What has happened, and when to be warned.

use serde::{Deserialize, Serialize};

use crate::schema::method;

/// Events in an answer if `max` is left out.
pub const EVENTS_DEFAULT: u32 = 100;

method! {
    /// The events that are kept (the last 1,024 since the daemon started), oldest first: what
    /// engines report, and thresholds of used space that were crossed.
    LaminaGetEvents = "lamina_get_events" -> Events;
    required {}
    optional {
        /// Only those with a higher number; to go on, give the last number seen.
        since: u64,
        /// At most so many; 100 if left out.
        max: u32,
    }
}

method! {
    /// Sets the percentages of used space at which a store raises events. A warning ends when two
    /// percent less are used. Kept over a restart. Answers what holds now.
    LaminaStoreSetWarnings = "lamina_store_set_warnings" -> Vec<u32>;
    required {
        /// Name or UUID of the store.
        name: String,
    }
    optional {
        /// 1 to 100 each, at most eight; empty: none. Left out: those the daemon was started with.
        percents: Vec<u32>,
    }
}

/// Answer of [`LaminaGetEvents`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// Oldest first.
    pub events: Vec<Event>,
    /// Number of the oldest that is kept.
    pub first: u64,
    /// Number of the newest; 0 if there has been none.
    pub last: u64,
}

/// Something that happened.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// 1 for the first since the daemon started; each one more.
    pub seq: u64,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// "info", "warning", "error".
    pub severity: String,
    /// Name of the store; "" for the daemon itself.
    pub store: String,
    /// For people.
    pub text: String,
}
