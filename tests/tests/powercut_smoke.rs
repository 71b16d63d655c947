//! Power cuts in small: all one-letter workloads in two settings hold, and names lead back to their
//! workloads.

use lamina_tests::powercut::{Options, Setting, Thorough, Workload, run};

#[test]
fn one_letter_workloads_hold() {
    let options = Options {
        thorough: Thorough { subsets: 6, random: 8 },
        nested: 16,
        kills: 4,
        all: 4,
        ..Options::default()
    };
    let mut states = 0;
    for workload in Workload::all(1) {
        let Setting { volatile, atomic, patient } = workload.setting;
        if !volatile || atomic != patient {
            continue;
        }
        let outcome = run(&workload, &options);
        assert_eq!(outcome.violations, [], "{}", workload.name());
        assert!(outcome.states > 0, "{} has no states", workload.name());
        states += outcome.states;
    }
    assert!(states > 2_000, "only {states} states");
}

#[test]
fn a_workload_is_the_same_each_time_and_has_a_name() {
    let workload = Workload::parse("cache-torn-burst:span+snapshot").expect("a lawful name");
    assert_eq!(workload.name(), "cache-torn-burst:span+snapshot");
    let options = Options { nested: 4, ..Options::default() };
    assert_eq!(run(&workload, &options), run(&workload, &options));
    for workload in Workload::all(2).into_iter().step_by(7) {
        assert_eq!(Workload::parse(&workload.name()), Some(workload));
    }
    assert_eq!(Workload::parse("cache-torn-burst:span+nonsense"), None);
}
