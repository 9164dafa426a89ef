//! Tests of limits of users.

use super::*;

const ANN: &str = "1111111111111111111111111111111111111111 ann";
const ANN_TOO: &str = "2222222222222222222222222222222222222222 ann";
const BOB: &str = "3333333333333333333333333333333333333333 bob";

fn key(user: &str) -> String {
    user[..40].to_owned()
}

fn join(control: &mut Control, number: u64, id: &'static str, user_text: &str, slots: u32) {
    let sender = Sender {
        user: Some(user(user_text)),
        ..from(number, id.as_bytes())
    };
    control.handle_message(&sender, 0, identify(slots, None), at(0));
}

fn free(control: &Control) -> Vec<(String, usize)> {
    let openings = control.openings(at(0)).into_iter();
    let mut free: Vec<_> = openings
        .map(|opening| (opening.worker_id, opening.free))
        .collect();
    free.sort();
    free
}

fn limited(slots: Option<usize>, plugins: Option<&[&str]>) -> UserLimits {
    let names = plugins.map(|names| {
        names
            .iter()
            .map(|name| (*name).to_owned())
            .collect::<Vec<_>>()
    });
    UserLimits {
        slots,
        plugins: names.map(|names| Capabilities::new(&names)),
    }
}

fn pairs(list: &[(&str, usize)]) -> Vec<(String, usize)> {
    list.iter()
        .map(|(id, free)| ((*id).to_owned(), *free))
        .collect()
}

#[test]
fn a_users_slots_are_those_of_all_its_workers_together() {
    let mut control = control();
    control.set_user_limits(BTreeMap::from([
        (key(ANN), limited(Some(3), None)),
        (key(ANN_TOO), limited(Some(3), None)),
    ]));
    join(&mut control, 1, "a", ANN, 2);
    join(&mut control, 2, "b", ANN_TOO, 2);
    join(&mut control, 3, "c", BOB, 9);
    assert_eq!(free(&control), pairs(&[("a", 2), ("b", 1), ("c", 9)]));
    // Running jobs keep their slots, also when another worker of the user would come first.
    let jobs = vec![assignment(1, 1, ""), assignment(2, 1, "")];
    control.handle_claimed(b"a", jobs, at(0));
    control.handle_claimed(b"b", vec![assignment(3, 1, "")], at(0));
    join(&mut control, 4, "A", ANN, 5);
    assert_eq!(free(&control), pairs(&[("c", 9)]));
    // Jobs of a disconnected worker may still run.
    control.handle_disconnected(peer(1), b"a", at(0));
    assert_eq!(free(&control), pairs(&[("c", 9)]));
    control.handle_timeout(at(60));
    commit(&mut control);
    assert_eq!(free(&control), pairs(&[("A", 2), ("c", 9)]));
}

#[test]
fn limits_follow_the_list_of_keys() {
    let mut control = control();
    join(&mut control, 1, "a", ANN, 4);
    let jobs = (1..=3).map(|id| assignment(id, 1, "")).collect();
    control.handle_claimed(b"a", jobs, at(0));
    assert_eq!(free(&control), pairs(&[("a", 1)]));
    let plugins = Some(&["p", "q"][..]);
    control.set_user_limits(BTreeMap::from([(key(ANN), limited(Some(2), plugins))]));
    let changes = control.take_changes();
    assert!(
        changes.iter().any(|change| matches!(change,
            Change::WorkerOnline { slots: 2, capabilities, .. } if *capabilities == ["p", "q"])),
        "{changes:?}"
    );
    assert!(!control.may_run("other") && control.may_run("p"));
    // Running jobs continue. Slots above the limit are not filled again.
    for (id, want) in [(1, &[][..]), (2, &[("a", 1)])] {
        let sender = Sender {
            user: Some(user(ANN)),
            ..from(1, b"a")
        };
        control.handle_message(&sender, id, conclude(None), at(0));
        assert_eq!(free(&control), pairs(want), "{id}");
    }
    control.set_user_limits(BTreeMap::new());
    assert_eq!(free(&control), pairs(&[("a", 3)]));
    assert!(control.may_run("other"));
}

#[test]
fn a_worker_gets_those_of_its_plugins_that_its_key_may_run() {
    let names = |names: &[&str]| {
        Capabilities::new(
            &names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>(),
        )
    };
    for (asked, allowed, want) in [
        (&["*"][..], &["*"][..], &["*"][..]),
        (&["*"], &["a"], &["a"]),
        (&["a", "b"], &["*"], &["a", "b"]),
        (&["a", "b"], &["b", "c"], &["b"]),
        (&["a"], &["c"], &[]),
    ] {
        assert_eq!(names(asked).within(&names(allowed)), names(want));
    }
}
