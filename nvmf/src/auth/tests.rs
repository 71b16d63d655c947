//! Both sides of an authentication against each other, and what an attacker may try.

use super::*;
use crypto_bigint::BoxedUint;

const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:4c4c4544-0042-4210-8038-b4c04f503434";
const SUBSYSTEM: &str = "nqn.2016-06.io.lamina:cnode1";

/// Bytes that look random and come again with every run.
fn random() -> impl FnMut(&mut [u8]) {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    move |out: &mut [u8]| {
        for byte in out {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = state as u8;
        }
    }
}

fn credentials(host: &AuthKey, controller: Option<&AuthKey>) -> Credentials {
    Credentials {
        host_key: host.clone(),
        controller_key: controller.cloned(),
        hashes: HashId::ALL.to_vec(),
        groups: Group::ALL.to_vec(),
    }
}

/// Has a message taken, work and all.
fn send(target: &mut Authentication, message: &[u8], random: Random<'_>) {
    if let Some(work) = target.send(message, random) {
        assert_eq!((target.stage(), target.due()), (Stage::Busy, None));
        target.resume(work.run());
    }
}

/// Runs both sides; what the host says of it, and where the target ends.
fn talk(
    target: &mut Authentication,
    host: &mut HostSide,
    hashes: &[HashId],
    groups: &[Group],
) -> (Result<(), String>, Stage) {
    let mut random = random();
    let mut next = Some(host.negotiate(hashes, groups));
    let mut said = Ok(());
    while let Some(message) = next.take() {
        assert_eq!(target.stage(), Stage::Host);
        send(target, &message, &mut random);
        let Some(answer) = target.receive() else { break };
        assert!(answer.len() <= MESSAGE_BYTES_MAX);
        match host.take(&answer, &mut random) {
            Ok(message) => next = message,
            Err(why) => said = Err(why),
        }
    }
    (said, target.stage())
}

/// Both ends here share the code, so what the other end's authors read is written down as bytes.
#[test]
fn failures_have_the_identifiers_that_other_hosts_know() {
    let key = AuthKey::generate(HashId::Sha256, &mut random());
    let fresh = || Authentication::new(HOST, SUBSYSTEM, credentials(&key, None));
    let mut target = fresh();
    send(&mut target, &[9; 64], &mut random());
    let failure1 = target.receive().expect("a refusal");
    assert_eq!(failure1, [0, 0xf1, 0, 0, 0, 0, 1, 7], "AUTH_Failure1: incorrect message");
    assert_eq!(target.stage(), Stage::Failed);
    let mut target = fresh();
    let host = HostSide::new(HOST, SUBSYSTEM, key.clone(), None, 3);
    send(&mut target, &host.negotiate(&HashId::ALL, &[Group::Null]), &mut random());
    target.receive().expect("a challenge");
    // AUTH_Failure2 ends it, and is not answered.
    send(&mut target, &[0, 0xf0, 0, 0, 3, 0, 1, 1], &mut random());
    assert_eq!((target.stage(), target.receive()), (Stage::Failed, None));
}

#[test]
fn primes_are_those_of_rfc_7919() {
    let hex = |prime: &BoxedUint| {
        prime.to_be_bytes().iter().map(|byte| format!("{byte:02X}")).collect::<String>()
    };
    let begin = "FFFFFFFFFFFFFFFFADF85458A2BB4A9AAFDC5620273D3CF1D8B9C583CE2D3695";
    for (group, end) in [
        (Group::Ffdhe2048, "886B423861285C97FFFFFFFFFFFFFFFF"),
        (Group::Ffdhe3072, "25E41D2B66C62E37FFFFFFFFFFFFFFFF"),
        (Group::Ffdhe4096, "C68A007E5E655F6AFFFFFFFFFFFFFFFF"),
        (Group::Ffdhe6144, "A41D570D7938DAD4A40E329CD0E40E65FFFFFFFFFFFFFFFF"),
        (Group::Ffdhe8192, "D68C8BB7C5C6424CFFFFFFFFFFFFFFFF"),
    ] {
        let prime = hex(&group.prime());
        assert_eq!(prime.len(), 2 * group.bytes());
        assert!(prime.starts_with(begin) && prime.ends_with(end), "{group:?} {prime}");
    }
}

#[test]
fn every_hash_and_group_authenticates_in_both_directions() {
    for hash in HashId::ALL {
        for group in Group::ALL {
            let mut random = random();
            let key = AuthKey::generate(hash, &mut random);
            let own = AuthKey::generate(HashId::Sha256, &mut random);
            for controller in [None, Some(&own)] {
                let credentials = credentials(&key, controller);
                let mut target = Authentication::new(HOST, SUBSYSTEM, credentials);
                let mut host = HostSide::new(HOST, SUBSYSTEM, key.clone(), controller.cloned(), 7);
                let (said, stage) = talk(&mut target, &mut host, &[hash], &[group]);
                assert_eq!((said, stage), (Ok(()), Stage::Done), "{hash:?} {group:?}");
            }
        }
    }
}

#[test]
fn a_wrong_key_on_either_side_is_found_out() {
    let mut random = random();
    let [key, other, own] = [(); 3].map(|()| AuthKey::generate(HashId::Sha256, &mut random));
    let mut target = Authentication::new(HOST, SUBSYSTEM, credentials(&key, None));
    let mut host = HostSide::new(HOST, SUBSYSTEM, other.clone(), None, 1);
    let (said, stage) = talk(&mut target, &mut host, &HashId::ALL, &[Group::Ffdhe2048]);
    assert!(said.unwrap_err().ends_with("explanation 1"));
    assert_eq!(stage, Stage::Failed);

    // The target does not know what the host wants to hear.
    let mut target = Authentication::new(HOST, SUBSYSTEM, credentials(&key, Some(&other)));
    let mut host = HostSide::new(HOST, SUBSYSTEM, key.clone(), Some(own), 1);
    let (said, stage) = talk(&mut target, &mut host, &HashId::ALL, &[Group::Null]);
    assert_eq!(said.unwrap_err(), "the target could not prove who it is");
    assert_eq!(stage, Stage::Host);

    // The right key of another host.
    let mut target = Authentication::new("nqn.x:other", SUBSYSTEM, credentials(&key, None));
    let mut host = HostSide::new(HOST, SUBSYSTEM, key, None, 1);
    assert_eq!(talk(&mut target, &mut host, &HashId::ALL, &[Group::Null]).1, Stage::Failed);
}

#[test]
fn nothing_in_common_is_said_so() {
    let key = AuthKey::generate(HashId::Sha384, &mut random());
    let ask = |hashes: &[HashId], groups: &[Group]| {
        let mut credentials = credentials(&key, None);
        credentials.hashes.retain(|hash| *hash != HashId::Sha256);
        credentials.groups.retain(|group| *group != Group::Null);
        let mut target = Authentication::new(HOST, SUBSYSTEM, credentials);
        let mut host = HostSide::new(HOST, SUBSYSTEM, key.clone(), None, 1);
        let (said, stage) = talk(&mut target, &mut host, hashes, groups);
        assert_eq!(stage, Stage::Failed);
        said.unwrap_err()
    };
    assert!(ask(&[HashId::Sha256], &Group::ALL).ends_with("explanation 4"));
    assert!(ask(&HashId::ALL, &[Group::Null]).ends_with("explanation 5"));
}

#[test]
fn a_target_that_is_asked_to_answer_itself_refuses() {
    let key = AuthKey::generate(HashId::Sha256, &mut random());
    let mut random = random();
    let mut target = Authentication::new(HOST, SUBSYSTEM, credentials(&key, Some(&key)));
    let mut host = HostSide::new(HOST, SUBSYSTEM, key.clone(), Some(key.clone()), 1);
    send(&mut target, &host.negotiate(&[HashId::Sha256], &[Group::Null]), &mut random);
    let challenge = target.receive().unwrap();
    let mut reply = host.take(&challenge, &mut random).unwrap().unwrap();
    // The host's challenge becomes a copy of the target's.
    reply[16 + 32..16 + 64].copy_from_slice(&challenge[16..16 + 32]);
    send(&mut target, &reply, &mut random);
    assert_eq!(target.receive().unwrap()[7], Failure::Failed as u8);
    assert_eq!(target.stage(), Stage::Failed);
}

#[test]
fn broken_messages_end_in_a_failure_and_never_in_success() {
    let key = AuthKey::generate(HashId::Sha256, &mut random());
    let groups = [Group::Ffdhe2048];
    let begin = || {
        let mut random = random();
        let mut target = Authentication::new(HOST, SUBSYSTEM, credentials(&key, None));
        let mut host = HostSide::new(HOST, SUBSYSTEM, key.clone(), None, 9);
        let negotiate = host.negotiate(&[HashId::Sha256], &groups);
        send(&mut target, &negotiate, &mut random);
        let challenge = target.receive().unwrap();
        let reply = host.take(&challenge, &mut random).unwrap().unwrap();
        (target, negotiate, reply)
    };
    let (_, negotiate, reply) = begin();
    for cut in 0..reply.len() {
        let (mut target, ..) = begin();
        send(&mut target, &reply[..cut], &mut random());
        assert!(target.receive().is_some());
        assert_eq!(target.stage(), Stage::Failed, "cut at {cut}");
    }
    for cut in 0..negotiate.len() {
        let mut target = Authentication::new(HOST, SUBSYSTEM, credentials(&key, None));
        send(&mut target, &negotiate[..cut], &mut random());
        assert!(target.receive().is_some());
        assert_eq!(target.stage(), Stage::Failed, "cut at {cut}");
    }
    // One bit wrong anywhere that counts: never success. Bytes 2, 3, 7 and 9 are reserved; the
    // sequence number and second challenge count only if the host asks for a proof.
    for at in (0..reply.len()).filter(|at| !matches!(at, 2 | 3 | 7 | 9 | 12..16 | 48..80)) {
        let (mut target, ..) = begin();
        let mut wrong = reply.clone();
        wrong[at] ^= 0x10;
        send(&mut target, &wrong, &mut random());
        assert!(target.receive().is_some());
        assert_ne!(target.stage(), Stage::Done, "byte {at}");
    }
    // Public values that would give the secret away.
    for value in [0u8, 1] {
        let (mut target, ..) = begin();
        let mut wrong = reply.clone();
        let at = wrong.len() - groups[0].bytes();
        wrong[at..].fill(0);
        *wrong.last_mut().unwrap() = value;
        send(&mut target, &wrong, &mut random());
        assert_eq!(target.receive().unwrap()[7], Failure::IncorrectPayload as u8);
    }
}

#[test]
fn a_reply_before_negotiation_or_a_second_one_is_refused() {
    let key = AuthKey::generate(HashId::Sha256, &mut random());
    let mut random = random();
    let mut target = Authentication::new(HOST, SUBSYSTEM, credentials(&key, None));
    let mut host = HostSide::new(HOST, SUBSYSTEM, key.clone(), None, 9);
    let negotiate = host.negotiate(&[HashId::Sha256], &[Group::Null]);
    send(&mut target, &negotiate, &mut random);
    let challenge = target.receive().unwrap();
    assert_eq!(target.receive(), None);
    let reply = host.take(&challenge, &mut random).unwrap().unwrap();
    let mut early = Authentication::new(HOST, SUBSYSTEM, credentials(&key, None));
    send(&mut early, &reply, &mut random);
    assert_eq!(early.receive().unwrap()[7], Failure::IncorrectMessage as u8);
    send(&mut target, &negotiate, &mut random);
    assert_eq!(target.receive().unwrap()[7], Failure::IncorrectMessage as u8);
    assert_eq!(target.stage(), Stage::Failed);
}

#[test]
fn keys_round_trip_and_a_typing_error_is_noticed() {
    let mut random = random();
    for hash in HashId::ALL {
        let key = AuthKey::generate(hash, &mut random);
        let text = key.to_text();
        assert_eq!(AuthKey::parse(&text).as_ref(), Ok(&key));
        assert_eq!(AuthKey::parse(&format!("{text}\n")), Ok(key));
        for at in 0..text.len() {
            let mut wrong = text.clone().into_bytes();
            wrong[at] = if wrong[at] == b'A' { b'B' } else { b'A' };
            assert!(AuthKey::parse(&String::from_utf8(wrong).unwrap()).is_err());
        }
    }
    // From the documentation of nvme-cli: a key without transformation.
    assert!(AuthKey::parse("DHHC-1:00:ia6zGodOr4SEG0Zzaw398rpY0wqipUWj4jWjUh4HWUz6aQ2n:").is_ok());
}
