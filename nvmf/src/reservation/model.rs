//! Reservations against a model: the specification's table of who may do what, and the rules of
//! each command written once more, in another way. Random hosts do random things; after each the
//! two must agree, and the saved bytes must give the same reservations back.

use std::collections::BTreeMap;

use lamina_bdev::Uuid;

use super::{
    Access, HostId, IMAGE_BYTES_MAX, ImageFault, Kind, NoticeKind, REGISTRANTS_MAX, Refusal,
    Register, RegisterAction, Reservations,
};

const NAMESPACE: Uuid = Uuid([7; 16]);

/// Base 2.1, figure "Command Behavior in the Presence of a Reservation": for types 1 to 6, what a
/// holder, another registrant and a stranger may do: r(ead), w(rite).
const TABLE: [[&str; 3]; 6] = [
    ["rw", "r", "r"],
    ["rw", "", ""],
    ["rw", "rw", "r"],
    ["rw", "rw", ""],
    ["rw", "rw", "r"],
    ["rw", "rw", ""],
];

const ALL: [Kind; 6] = [
    Kind::WriteExclusive,
    Kind::ExclusiveAccess,
    Kind::WriteExclusiveRegistrants,
    Kind::ExclusiveAccessRegistrants,
    Kind::WriteExclusiveAll,
    Kind::ExclusiveAccessAll,
];

fn host(number: u8) -> HostId {
    [number; 16]
}

fn new(key: u64) -> Register {
    let action = RegisterAction::Register;
    Register { action, ignore_key: false, persist: None, current: 0, new: key }
}

/// The same rules, kept as plain data: keys by host, and (type, holder).
#[derive(Clone, Default)]
struct Model {
    keys: BTreeMap<u8, u64>,
    /// Type code and holder; 0 stands for "all registrants".
    held: Option<(u8, u8)>,
}

impl Model {
    fn all(kind: u8) -> bool {
        kind >= 5
    }

    fn is_holder(&self, who: u8) -> bool {
        match self.held {
            Some((kind, _)) if Model::all(kind) => self.keys.contains_key(&who),
            Some((_, holder)) => holder == who,
            None => false,
        }
    }

    fn access(&self, who: u8) -> Access {
        let Some((kind, _)) = self.held else { return Access { read: true, write: true } };
        let column = match (self.is_holder(who), self.keys.contains_key(&who)) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => 2,
        };
        let allowed = TABLE[usize::from(kind) - 1][column];
        Access { read: allowed.contains('r'), write: allowed.contains('w') }
    }

    /// Somebody is no longer registered.
    fn leave(&mut self, who: u8) {
        let held_it = !self.held.is_some_and(|(kind, _)| Model::all(kind)) && self.is_holder(who);
        self.keys.remove(&who);
        if held_it || self.keys.is_empty() {
            self.held = None;
        }
    }

    fn register(&mut self, who: u8, what: Register) -> Result<(), Refusal> {
        let key = self.keys.get(&who).copied();
        match what.action {
            RegisterAction::Register => match key {
                Some(key) if key == what.new => Ok(()),
                Some(_) => Err(Refusal::Conflict),
                None if what.new == 0 => Err(Refusal::Invalid),
                None => {
                    self.keys.insert(who, what.new);
                    Ok(())
                }
            },
            RegisterAction::Unregister => match key {
                Some(key) if what.ignore_key || key == what.current => {
                    self.leave(who);
                    Ok(())
                }
                _ => Err(Refusal::Conflict),
            },
            RegisterAction::Replace if what.new == 0 => Err(Refusal::Invalid),
            RegisterAction::Replace => match key {
                Some(key) if what.ignore_key || key == what.current => {
                    self.keys.insert(who, what.new);
                    Ok(())
                }
                None if what.ignore_key => {
                    self.keys.insert(who, what.new);
                    Ok(())
                }
                _ => Err(Refusal::Conflict),
            },
        }
    }

    fn hold(&mut self, who: u8, kind: u8) {
        self.held = Some((kind, if Model::all(kind) { 0 } else { who }));
    }

    fn acquire(&mut self, who: u8, key: u64, kind: u8) -> Result<(), Refusal> {
        if self.keys.get(&who) != Some(&key) {
            return Err(Refusal::Conflict);
        }
        match self.held {
            None => self.hold(who, kind),
            Some((same, _)) if same == kind && self.is_holder(who) => {}
            Some(_) => return Err(Refusal::Conflict),
        }
        Ok(())
    }

    fn preempt(&mut self, who: u8, key: u64, victims: u64, kind: u8) -> Result<(), Refusal> {
        if self.keys.get(&who) != Some(&key) {
            return Err(Refusal::Conflict);
        }
        let others: Vec<u8> = self
            .keys
            .iter()
            .filter(|(h, k)| **h != who && **k == victims)
            .map(|(h, _)| *h)
            .collect();
        match self.held {
            Some((held, _)) if Model::all(held) && victims == 0 => {
                self.keys.retain(|h, _| *h == who);
                self.hold(who, kind);
                return Ok(());
            }
            Some((held, holder)) if !Model::all(held) => {
                let holders = self.keys[&holder];
                if holders == victims {
                    self.keys.retain(|h, _| !others.contains(h));
                    self.hold(who, kind);
                    return Ok(());
                }
                if victims == 0 {
                    return Err(Refusal::Invalid);
                }
            }
            _ => {}
        }
        if others.is_empty() {
            return Err(Refusal::Conflict);
        }
        self.keys.retain(|h, _| !others.contains(h));
        Ok(())
    }

    fn release(&mut self, who: u8, key: u64, kind: u8) -> Result<(), Refusal> {
        if self.keys.get(&who) != Some(&key) {
            return Err(Refusal::Conflict);
        }
        if self.is_holder(who) {
            if self.held.is_some_and(|(held, _)| held != kind) {
                return Err(Refusal::Invalid);
            }
            self.held = None;
        }
        Ok(())
    }

    fn clear(&mut self, who: u8, key: u64) -> Result<(), Refusal> {
        if self.keys.get(&who) != Some(&key) {
            return Err(Refusal::Conflict);
        }
        *self = Model::default();
        Ok(())
    }
}

/// What the two must agree on.
fn agree(real: &Reservations, model: &Model) {
    let keys: BTreeMap<u8, u64> = real.registrants().iter().map(|r| (r.host[0], r.key)).collect();
    assert_eq!(keys, model.keys);
    let held = real.held().map(|h| (h.kind as u8, h.holder.map_or(0, |host| host[0])));
    assert_eq!(held, model.held);
    for who in 1..=9 {
        assert_eq!(real.access(&host(who)), model.access(who), "host {who}, {held:?}, {keys:?}");
    }
    let saved = real.to_bytes(NAMESPACE);
    assert!(saved.len() <= IMAGE_BYTES_MAX);
    assert_eq!(Reservations::from_bytes(&saved, NAMESPACE).as_ref(), Ok(real));
    assert_eq!(real.report().len(), 64 * (1 + keys.len()));
}

#[test]
fn random_histories_agree_with_the_model() {
    let mut seed = 42u64;
    let mut random = move |n: u64| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) % n
    };
    for _ in 0..2_000 {
        let (mut real, mut model) = (Reservations::default(), Model::default());
        for _ in 0..60 {
            let who = 1 + random(8) as u8;
            // Mostly the key the host has, so that things happen.
            let own = model.keys.get(&who).copied().unwrap_or(0);
            let key = if random(8) == 0 { random(4) } else { own };
            let (other, kind) = (random(4), ALL[random(6) as usize]);
            let (done, expected) = match random(8) {
                0..=2 => {
                    let action = match random(6) {
                        0 => RegisterAction::Unregister,
                        1 => RegisterAction::Replace,
                        _ => RegisterAction::Register,
                    };
                    let ignore_key = random(6) == 0;
                    let persist = [None, Some(true), Some(false)][random(3) as usize];
                    let what = Register { action, ignore_key, persist, current: key, new: other };
                    (real.register(host(who), what).map(drop), model.register(who, what))
                }
                3 | 4 => (real.acquire(host(who), key, kind), model.acquire(who, key, kind as u8)),
                5 => (
                    real.preempt(host(who), key, other, kind).map(drop),
                    model.preempt(who, key, other, kind as u8),
                ),
                6 => {
                    let kind = real.held().filter(|_| random(4) > 0).map_or(kind, |h| h.kind);
                    (
                        real.release(host(who), key, kind).map(drop),
                        model.release(who, key, kind as u8),
                    )
                }
                _ if random(4) > 0 => continue,
                _ => (real.clear(host(who), key).map(drop), model.clear(who, key)),
            };
            assert_eq!(done, expected);
            agree(&real, &model);
        }
    }
}

#[test]
fn every_type_gives_the_access_of_the_specifications_table() {
    for (row, kind) in TABLE.iter().zip(ALL) {
        let mut reservations = Reservations::default();
        for who in [1, 2] {
            reservations.register(host(who), new(u64::from(who))).expect("registers");
        }
        reservations.acquire(host(1), 1, kind).expect("acquires");
        for (column, who) in [(0, 1), (1, 2), (2, 3)] {
            let access = reservations.access(&host(who));
            assert_eq!(access.read, row[column].contains('r'), "{kind:?} host {who}");
            assert_eq!(access.write, row[column].contains('w'), "{kind:?} host {who}");
        }
    }
}

#[test]
fn the_generation_counts_what_the_specification_says() {
    let mut reservations = Reservations::default();
    reservations.register(host(1), new(1)).expect("registers");
    reservations.register(host(2), new(2)).expect("registers");
    assert_eq!(reservations.generation(), 2);
    reservations.acquire(host(1), 1, Kind::WriteExclusive).expect("acquires");
    reservations.release(host(1), 1, Kind::WriteExclusive).expect("releases");
    assert_eq!(reservations.generation(), 2, "acquire and release do not count");
    reservations.preempt(host(1), 1, 2, Kind::WriteExclusive).expect("preempts");
    assert_eq!(reservations.generation(), 3);
    reservations.clear(host(1), 1).expect("clears");
    assert_eq!(reservations.generation(), 4);
    assert_eq!(reservations.release(host(1), 1, Kind::WriteExclusive), Err(Refusal::Conflict));
    assert_eq!(reservations.generation(), 4, "a refusal does not");
}

#[test]
fn everybody_concerned_is_told_and_nobody_else() {
    let three = || {
        let mut reservations = Reservations::default();
        for who in 1..=3 {
            reservations.register(host(who), new(u64::from(who))).expect("registers");
        }
        reservations
    };
    let told = |notices: Vec<super::Notice>| -> Vec<(u8, NoticeKind)> {
        notices.iter().map(|n| (n.host[0], n.kind)).collect()
    };
    let mut reservations = three();
    reservations.acquire(host(1), 1, Kind::WriteExclusive).expect("acquires");
    let notices = reservations.release(host(1), 1, Kind::WriteExclusive).expect("releases");
    assert_eq!(told(notices), [], "nobody relied on it");
    reservations.acquire(host(1), 1, Kind::WriteExclusiveRegistrants).expect("acquires");
    let kind = Kind::WriteExclusiveRegistrants;
    let notices = reservations.release(host(1), 1, kind).expect("releases");
    let released = NoticeKind::ReservationReleased;
    assert_eq!(told(notices), [(2, released), (3, released)]);
    reservations.acquire(host(1), 1, Kind::ExclusiveAccess).expect("acquires");
    let notices = reservations.preempt(host(2), 2, 1, Kind::WriteExclusive).expect("preempts");
    let expelled = NoticeKind::RegistrationPreempted;
    assert_eq!(told(notices), [(1, expelled), (3, released)], "the type has changed too");
    let notices = reservations.preempt(host(2), 2, 3, Kind::WriteExclusive).expect("preempts");
    assert_eq!(told(notices), [(3, NoticeKind::RegistrationPreempted)]);
    let notices = three().clear(host(2), 2).expect("clears");
    let preempted = NoticeKind::ReservationPreempted;
    assert_eq!(told(notices), [(1, preempted), (3, preempted)]);
}

#[test]
fn registrants_are_bounded_and_all_of_them_survive() {
    let mut reservations = Reservations::default();
    let many = |number: u32| {
        let mut host = [0; 16];
        host[..4].copy_from_slice(&(number + 1).to_le_bytes());
        host
    };
    for number in 0..REGISTRANTS_MAX as u32 {
        reservations.register(many(number), new(u64::from(number) + 1)).expect("fits");
        let saved = reservations.to_bytes(NAMESPACE);
        assert_eq!(Reservations::from_bytes(&saved, NAMESPACE).as_ref(), Ok(&reservations));
    }
    let one_more = reservations.register(many(1000), new(5));
    assert_eq!(one_more, Err(Refusal::Full));
    assert_eq!(reservations.to_bytes(NAMESPACE).len(), IMAGE_BYTES_MAX);
}

#[test]
fn damaged_foreign_and_contradictory_images_are_refused() {
    let mut reservations = Reservations::default();
    for who in 1..=3 {
        reservations.register(host(who), new(u64::from(who))).expect("registers");
    }
    reservations.acquire(host(2), 2, Kind::ExclusiveAccess).expect("acquires");
    let saved = reservations.to_bytes(NAMESPACE);
    for end in 0..saved.len() {
        assert!(Reservations::from_bytes(&saved[..end], NAMESPACE).is_err(), "cut at {end}");
    }
    for bit in 0..saved.len() * 8 {
        let mut flipped = saved.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Reservations::from_bytes(&flipped, NAMESPACE).is_err(), "bit {bit}");
    }
    let foreign = Reservations::from_bytes(&saved, Uuid([8; 16]));
    assert_eq!(foreign, Err(ImageFault::Foreign));
    let sealed = |at: usize, value: u8| {
        let mut bytes = saved.clone();
        bytes[at] = value;
        let end = bytes.len() - 4;
        let crc = lamina_bdev::crc32c::crc32c(&bytes[..end]).to_le_bytes();
        bytes[end..].copy_from_slice(&crc);
        Reservations::from_bytes(&bytes, NAMESPACE)
    };
    let cases = [
        (4, 2, ImageFault::Version),
        (6, 2, ImageFault::Content),
        (7, 7, ImageFault::Content),
        (7, 0, ImageFault::Content),
        (7, 5, ImageFault::Content),
        (8, 4, ImageFault::Shape),
        (10, 3, ImageFault::Content),
        (11, 0xff, ImageFault::Content),
    ];
    for (at, value, fault) in cases {
        assert_eq!(sealed(at, value), Err(fault), "byte {at} = {value}");
    }
    let mut twice = saved.clone();
    twice.copy_within(32..48, 56);
    let end = twice.len() - 4;
    let crc = lamina_bdev::crc32c::crc32c(&twice[..end]).to_le_bytes();
    twice[end..].copy_from_slice(&crc);
    assert_eq!(Reservations::from_bytes(&twice, NAMESPACE), Err(ImageFault::Content));
}
