//! What a host says of its own enforcement, when it cannot be true; and changes that somebody moved, doubled or left out.

use super::*;
use crate::change::{Change, ChangedBy};
use crate::testing::{at, enforcement_on as on};

impl World {
    /// Minutes after ten o'clock, by the host's clock.
    fn clock(&mut self, minute: u32) {
        self.at = at(minute);
    }

    fn says(&mut self, minute: u32, event: Lifecycle) -> u64 {
        self.clock(minute);
        self.lifecycle(event);
        self.log.len() as u64 - 1
    }
}

fn off(last_on: Option<u32>) -> Lifecycle {
    Lifecycle::EnforcementOff {
        why: "the programs were removed".to_owned(),
        last_on: last_on.map(at),
    }
}

fn away(from: u32, to: u32) -> Lifecycle {
    Lifecycle::AgentAway {
        from: at(from),
        to: at(to),
    }
}

fn enforcing(since: u32, allowed: u64) -> Lifecycle {
    Lifecycle::Enforcing {
        since: at(since),
        stopping: false,
        counters: KernelCounters {
            allowed_while_away: allowed,
            ..KernelCounters::default()
        },
    }
}

#[test]
fn a_day_as_it_is_told() {
    let mut world = World::new();
    world.says(1, on());
    world.says(1, enforcing(1, 0));
    world.says(9, away(5, 9));
    world.says(9, on());
    // The start is read from another clock each time; the count goes on.
    world.clock(9);
    world.lifecycle(Lifecycle::Enforcing {
        since: "2026-11-21T10:00:59.999Z".to_owned(),
        stopping: false,
        counters: KernelCounters {
            allowed_while_away: 3,
            ..KernelCounters::default()
        },
    });
    world.says(19, enforcing(1, 3));
    world.says(21, off(Some(20)));
    world.says(30, on());
    world.says(30, enforcing(30, 1));
    let report = world.report();
    assert_eq!(report.status, Status::Valid, "{report:#?}");
    let told = &report.enforcement[HOST];
    let on: Vec<_> = told.on.iter().map(|i| (i.from.as_str(), i.to.as_deref())).collect();
    assert_eq!(
        on,
        [(at(1).as_str(), Some(at(20).as_str())), (at(30).as_str(), None)],
        "{told:#?}"
    );
    assert_eq!(told.gaps.len(), 1);
    assert_eq!(
        (told.gaps[0].from.as_str(), told.gaps[0].to.as_deref()),
        (at(20).as_str(), Some(at(30).as_str()))
    );
    assert_eq!(told.away.len(), 1);
    assert_eq!(told.let_through, 4, "each action counts once: {told:#?}");
}

#[test]
fn what_a_host_says_of_itself_must_fit() {
    type Story = (&'static [fn(&mut World) -> u64], fn(&mut World) -> u64, &'static str);
    let stories: [Story; 9] = [
        (
            &[|w| w.says(1, on()), |w| w.says(10, off(None)), |w| w.says(20, on())],
            |w| w.says(30, enforcing(1, 0)),
            "has been on since 2026-11-21T10:01:00.000Z, but earlier records know of none until 2026-11-21T10:20",
        ),
        (
            &[|w| w.says(1, on()), |w| w.says(10, off(None))],
            |w| w.says(30, enforcing(5, 0)),
            "earlier records know of none until 2026-11-21T10:10",
        ),
        (
            &[|w| w.says(1, on())],
            |w| w.says(5, enforcing(9, 0)),
            "which had not come yet",
        ),
        (
            &[|w| w.says(1, on()), |w| w.says(10, off(None))],
            |w| w.says(30, away(5, 30)),
            "but it was off since 2026-11-21T10:10",
        ),
        (
            &[|w| w.says(1, on()), |w| w.says(20, enforcing(1, 0))],
            |w| w.says(30, away(5, 30)),
            "but there was an agent at 2026-11-21T10:20",
        ),
        (&[|w| w.says(1, on())], |w| w.says(30, away(20, 10)), "which cannot be"),
        (&[|w| w.says(1, on())], |w| w.says(30, away(20, 40)), "which cannot be"),
        (
            &[|w| w.says(10, on())],
            |w| w.says(30, off(Some(5))),
            "was last on at 2026-11-21T10:05:00.000Z, which cannot be",
        ),
        (
            &[|w| w.says(10, on())],
            |w| {
                w.clock(20);
                w.lifecycle(Lifecycle::AgentAway {
                    from: "yester\u{202e}day".to_owned(),
                    to: at(20),
                });
                w.log.len() as u64 - 1
            },
            "from yester⟨U+202E⟩day to",
        ),
    ];
    for (before, last, words) in stories {
        let mut world = World::new();
        for step in before {
            step(&mut world);
        }
        let index = last(&mut world);
        world.wrong(Status::Incomplete, "enforcement", words, index);
        let told = &world.report().enforcement[HOST];
        // No time counts twice, whatever the host says.
        let ends: Vec<_> = told
            .on
            .iter()
            .flat_map(|i| [Some(&i.from), i.to.as_ref()])
            .flatten()
            .collect();
        assert!(ends.is_sorted(), "{words}: {told:#?}");
    }
}

#[test]
fn a_clock_that_is_set_back_is_said() {
    let mut world = World::new();
    world.says(30, on());
    let index = world.says(10, Lifecycle::EventsLost { count: 1 });
    world.wrong(Status::Valid, "sequence", "its clock was set back by 1200 s", index);
}

#[test]
fn changes_that_were_moved_doubled_or_left_out_are_named() {
    let made = || {
        let mut world = World::new();
        world.change(
            ChangedBy::SetupLink,
            Change::SetUpFinished {
                user: people::user("admin", &["administrator"], &[]),
            },
        );
        for name in ["ann", "bob", "cid"] {
            let user = people::user(name, &["approver"], &[]);
            world.change(people::by("admin"), Change::UserCreated { user });
        }
        world
    };
    assert_eq!(made().report().status, Status::Valid);
    // 0 is the host's, 1 the set-up, 2 to 4 are people.
    let mut world = made();
    world.log.swap(2, 3);
    // Seen from either side: one comes too early, the other again.
    world.wrong(Status::Invalid, "sequence", "comes again", 3);
    let mut world = made();
    let again = world.log[2].clone();
    world.log.push(again);
    world.wrong(Status::Invalid, "sequence", "comes again", 5);
    let mut world = made();
    world.log.remove(3);
    world.wrong(Status::Incomplete, "sequence", "1 records missing (epoch 1, seq 3)", 3);
    // The last one can only be missed by the checkpoint.
    let world = made();
    let dir = tempfile::tempdir().unwrap();
    let path = world.write(dir.path(), Filter::default(), |index| index != 4);
    let bundle = Bundle::open(&path).unwrap();
    let report = verify(&bundle, &world.trust(), TrustSource::Given, Asked::WholeLog);
    assert_eq!(report.status, Status::Incomplete, "{report:#?}");
    // Another change in the place of one, signed by the console: the next one names the one that was.
    let mut world = made();
    let mut forged = World {
        console_chain: crate::chain::Chain::begin(format!("console:{CONSOLE}"), 1),
        ..World::new()
    };
    forged.change(
        ChangedBy::SetupLink,
        Change::SetUpFinished {
            user: people::user("mallory", &["administrator"], &[]),
        },
    );
    world.log[1] = forged.log[1].clone();
    world.wrong(Status::Invalid, "sequence", "names another record before it", 2);
}
