//! `lamina events`: what has happened, and what happens next.

use std::time::Duration;

use lamina_rpc::methods::{Event, Events, LaminaGetEvents};
use serde_json::json;

use crate::answer::{Answer, write_out};
use crate::failure::Failure;
use crate::human::{plain, time};
use crate::session::Session;

/// Between two questions.
const INTERVAL: Duration = Duration::from_millis(500);
/// Events in one answer.
const PAGE: u32 = 256;

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  lamina events
  lamina events --since 17
  lamina events --follow --json     (a line an event, until interrupted)")]
pub struct Arguments {
    /// Go on printing events as they happen
    #[arg(long, short)]
    follow: bool,
    /// Only events with a higher number
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    since: u64,
    /// End after so many events
    #[arg(long, value_name = "COUNT", requires = "follow")]
    count: Option<u64>,
}

pub fn run(session: &mut Session, arguments: &Arguments) -> Result<Answer, Failure> {
    if arguments.follow {
        follow(session, arguments.since, arguments.count.unwrap_or(u64::MAX))?;
        return Ok(Answer::printed());
    }
    let mut since = arguments.since;
    let mut all: Vec<Event> = Vec::new();
    let mut text = String::new();
    loop {
        let page = ask(session, since)?;
        text.push_str(&lost(since, &page).unwrap_or_default());
        let Some(last) = page.events.last() else { break };
        since = last.seq;
        all.extend(page.events);
        // What happens while we ask is for the next time.
        if since >= page.last {
            break;
        }
    }
    all.iter().for_each(|event| text.push_str(&line(event)));
    if all.is_empty() {
        text.push_str("No events.\n");
    }
    Answer::new(text, all)
}

fn ask(session: &mut Session, since: u64) -> Result<Events, Failure> {
    session.call("reading the events", &LaminaGetEvents { since: Some(since), max: Some(PAGE) })
}

/// A line about events that were not kept long enough.
fn lost(since: u64, page: &Events) -> Option<String> {
    let gap = page.first.checked_sub(since.checked_add(1)?)?;
    (gap > 0 && since > 0).then(|| format!("({gap} events are no longer kept)\n"))
}

fn follow(session: &mut Session, mut since: u64, count: u64) -> Result<(), Failure> {
    let mut left = count;
    while left > 0 {
        let page = ask(session, since)?;
        if page.last < since {
            // Another daemon: it counts from 1 again.
            since = 0;
            continue;
        }
        let full = page.events.len() == PAGE as usize;
        if let Some(lost) = lost(since, &page).filter(|_| !session.json)
            && !write_out(&lost)?
        {
            return Ok(());
        }
        for event in page.events.iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
            since = event.seq;
            left -= 1;
            let line = if session.json { format!("{}\n", json!(event)) } else { line(event) };
            if !write_out(&line)? {
                return Ok(());
            }
        }
        if !full && left > 0 {
            std::thread::sleep(INTERVAL);
        }
    }
    Ok(())
}

/// An event for a person.
fn line(event: &Event) -> String {
    let store = if event.store.is_empty() { "-" } else { &event.store };
    let (time, severity) = (time(event.time_ms / 1000), &event.severity);
    let text = format!("{:>5}  {time}  {severity:<7}  {store}: {}", event.seq, event.text);
    format!("{}\n", plain(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_everything_and_a_gap_is_told() {
        let event = Event {
            seq: 7,
            time_ms: 951_782_400_999,
            severity: "warning".into(),
            store: "pool".into(),
            text: "full\x1b".into(),
        };
        assert_eq!(line(&event), "    7  2000-02-29 00:00:00Z  warning  pool: full?\n");
        let page = |first| Events { events: vec![], first, last: 20 };
        assert_eq!(lost(0, &page(9)), None);
        assert_eq!(lost(8, &page(9)), None);
        assert_eq!(lost(5, &page(9)).as_deref(), Some("(3 events are no longer kept)\n"));
        assert_eq!(lost(u64::MAX, &page(9)), None);
    }
}
