//! What a death may do to a block that is otherwise a linearizable register.
//!
//! ```text
//!   write A  ├─ first ──────────✗     ├─ second ─┤        held by the device that died:
//!   read            ├ A ┤       ✗                         carried out by it, perhaps, and by the
//!   write B            ├──┤     ✗                         next one, surely
//!   read                  ├ B ┤ ✗                ├ A ┤    ◀ A came back after B
//! ```
//!
//! The in-flight log of vhost-user says which requests were taken and not answered, not which were
//! carried out; the next device carries all of them out. So each of them is two operations here:
//! one that may have happened up to the death, one that did happen after it. Whatever was not held
//! at a death is one operation, as ever.

use std::fmt::Write as _;

use crate::contend::Seen;
use crate::register::{self, Action, Operation, Refusal};

/// A device died.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Death {
    /// When it was gone, in the history's time.
    pub at: u64,
    /// Queues and slots of the requests it held.
    pub held: Vec<(usize, u16)>,
}

/// When the request was held by a device that died.
fn deaths_of<'a>(seen: &'a Seen, deaths: &'a [Death]) -> impl Iterator<Item = u64> + 'a {
    let Operation { begin, end, .. } = seen.operation;
    let over = move |at: u64| begin <= at && end.is_none_or(|end| at < end);
    deaths
        .iter()
        .filter(move |death| over(death.at) && death.held.contains(&(seen.client, seen.slot)))
        .map(|death| death.at)
}

/// Adds what can have come of one request.
fn unfold(seen: &Seen, deaths: &[Death], operations: &mut Vec<Operation>) {
    let mut begin = seen.operation.begin;
    for death in deaths_of(seen, deaths) {
        if matches!(seen.operation.action, Action::Write(_)) {
            operations.push(Operation { begin, end: Some(death), sure: false, ..seen.operation });
        }
        begin = death;
    }
    operations.push(Operation { begin, ..seen.operation });
}

/// Checks a block's history. `deaths` are in the order of time, and so are times of one slot. Gives
/// the places in the history of requests that must have been carried out twice to explain it; none:
/// the block was a linearizable register throughout.
///
/// # Errors
/// Not even requests carried out twice explain it: the story of what is wrong.
pub fn check(history: &[Seen], deaths: &[Death]) -> Result<Vec<usize>, String> {
    if let Some((refusal, operations)) = refused(history, deaths, |_| true) {
        return Err(match refusal {
            Refusal::TooMany => "more operations at once than can be followed".to_owned(),
            Refusal::Unexplained { index, before } => {
                story(history, deaths, &operations[index], before)
            }
        });
    }
    Ok(needed(history, deaths))
}

/// The check if those that `twice` picks may be carried out twice; if it is refused, with the
/// operations that were checked.
fn refused(
    history: &[Seen],
    deaths: &[Death],
    twice: impl Fn(usize) -> bool,
) -> Option<(Refusal, Vec<Operation>)> {
    let mut operations = Vec::with_capacity(history.len() + 64);
    for (index, seen) in history.iter().enumerate() {
        if twice(index) {
            unfold(seen, deaths, &mut operations);
        } else {
            operations.push(seen.operation);
        }
    }
    register::check(0, &operations).err().map(|refusal| (refusal, operations))
}

/// Requests that it takes twice, of a history that is explained if each may be.
fn needed(history: &[Seen], deaths: &[Death]) -> Vec<usize> {
    let is_write = |seen: &Seen| matches!(seen.operation.action, Action::Write(_));
    let held: Vec<(usize, u64)> = history
        .iter()
        .enumerate()
        .filter(|(_, seen)| is_write(seen))
        .filter_map(|(index, seen)| Some((index, deaths_of(seen, deaths).next()?)))
        .collect();
    // Those that were held at the last death before the trouble, then at those before.
    let mut needed: Vec<usize> = Vec::new();
    while let Some((refusal, operations)) = refused(history, deaths, |i| needed.contains(&i)) {
        let Refusal::Unexplained { index, .. } = refusal else { break };
        let end = operations[index].end.unwrap_or(u64::MAX);
        let left = |(index, death): &&(usize, u64)| *death < end && !needed.contains(index);
        let Some(death) = held.iter().filter(left).map(|(_, death)| *death).max() else { break };
        let of_it = held.iter().filter(|(_, at)| *at == death).map(|(index, _)| *index);
        needed.extend(of_it);
    }
    // Each that can be one operation is one.
    for index in needed.clone() {
        if refused(history, deaths, |i| i != index && needed.contains(&i)).is_none() {
            needed.retain(|i| *i != index);
        }
    }
    needed
}

/// What happened around an operation that cannot be explained, in the order of begins.
#[must_use]
pub fn story(history: &[Seen], deaths: &[Death], wrong: &Operation, before: u64) -> String {
    let mut text = format!("{wrong:x?} cannot be explained; it may have been {before:#x} before\n");
    let value = |action: Action| match action {
        Action::Write(value) | Action::Read(value) => value,
    };
    let end_of = |seen: &Seen| seen.operation.end.unwrap_or(u64::MAX);
    // From the write of what was read on, if there was one.
    let from = history
        .iter()
        .filter(|seen| seen.operation.action == Action::Write(value(wrong.action)))
        .map(|seen| seen.operation.begin)
        .filter(|begin| *begin <= wrong.begin)
        .max()
        .unwrap_or(wrong.begin);
    let until = wrong.end.unwrap_or(u64::MAX);
    let mut around: Vec<&Seen> = history
        .iter()
        .filter(|seen| end_of(seen) >= from && seen.operation.begin <= until)
        .collect();
    around.sort_unstable_by_key(|seen| seen.operation.begin);
    for seen in around {
        let Operation { begin, action, .. } = seen.operation;
        let (end, last) = (end_of(seen), seen.first + seen.count - 1);
        let (client, slot, first) = (seen.client, seen.slot, seen.first);
        let _ = write!(text, "{begin:>12} to {end:>12}  {action:x?} client {client} slot {slot} ");
        let _ = write!(text, "blocks {first} to {last}");
        for at in deaths_of(seen, deaths) {
            let _ = write!(text, ", held at the death at {at}");
        }
        text.push('\n');
    }
    for death in deaths.iter().filter(|death| (from..=until).contains(&death.at)) {
        let _ = writeln!(text, "{:>12}  a death", death.at);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(client: usize, begin: u64, end: u64, action: Action) -> Seen {
        let operation = Operation { begin, end: Some(end), action, sure: true };
        Seen { operation, client, slot: 0, first: 3, count: 2 }
    }

    /// The picture above.
    fn history() -> Vec<Seen> {
        vec![
            seen(0, 0, 100, Action::Write(1)),
            seen(1, 10, 20, Action::Read(1)),
            seen(2, 30, 40, Action::Write(2)),
            seen(1, 50, 60, Action::Read(2)),
            seen(1, 110, 120, Action::Read(1)),
        ]
    }

    fn death(held: &[(usize, u16)]) -> Vec<Death> {
        vec![Death { at: 80, held: held.to_vec() }]
    }

    #[test]
    fn a_held_request_may_come_back_and_nothing_else() {
        assert_eq!(check(&history(), &death(&[(0, 0)])), Ok(vec![0]));
        for held in [vec![], vec![(1, 0)], vec![(2, 0)], vec![(0, 1)]] {
            let story = check(&history(), &death(&held)).expect_err("it was not held");
            assert!(story.contains("Read(1) client 1 slot 0 blocks 3 to 4"), "{story}");
        }
        assert!(check(&history(), &[]).is_err());
    }

    #[test]
    fn a_held_request_surely_happens_after_the_death() {
        let mut history = history();
        history[4].operation.action = Action::Read(2);
        assert_eq!(
            check(&history, &death(&[(0, 0)])),
            Err(story(&history, &death(&[(0, 0)]), &history[4].operation, 1,))
        );
        history[1].operation.action = Action::Read(0);
        assert_eq!(check(&history, &death(&[])), Ok(vec![]));
    }

    #[test]
    fn what_one_operation_explains_is_no_replay() {
        let mut history = history();
        history[1].operation.action = Action::Read(0);
        assert_eq!(check(&history, &death(&[(0, 0)])), Ok(vec![]));
    }

    #[test]
    fn a_request_answered_before_the_death_does_not_come_back() {
        let mut history = history();
        history[0].operation.end = Some(70);
        assert!(check(&history, &death(&[(0, 0)])).is_err());
    }

    #[test]
    fn a_request_comes_back_after_each_death_that_it_was_held_at() {
        let mut history = history();
        history[0].operation.end = Some(300);
        history.extend([
            seen(2, 130, 140, Action::Write(3)),
            seen(1, 150, 160, Action::Read(3)),
            seen(1, 310, 320, Action::Read(1)),
        ]);
        let mut deaths = death(&[(0, 0)]);
        assert!(check(&history, &deaths).is_err());
        deaths.push(Death { at: 200, held: vec![(0, 0)] });
        assert_eq!(check(&history, &deaths), Ok(vec![0]));
    }
}
