//! A group that is closed has answered each request once, whatever it was waiting for.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use afterimage::block::{Export, Refusal, Request};
use afterimage::error::ErrorKind;
use afterimage::format::record::Change;
use afterimage::protect::open;
use afterimage::protect::status::Condition;
use afterimage::units::SectorRange;

use super::stepped::{Stepped, write};
use super::{Harness, Steps, plan, runtime, scratch};

#[test]
fn what_waits_in_a_group_that_is_closed_is_refused() {
    let (_guard, root) = scratch();
    let mut harness = Harness::create(&root);
    let disk = harness.add_disk("root", 4096);
    harness.write(disk, 0, 1, 64);
    harness.stop();

    let runtime = runtime();
    let group = runtime.block_on(open::open(Rc::clone(&runtime), plan(&root))).expect("reopens");
    let mut stepped = Stepped::new(Rc::clone(&runtime), group);
    while !stepped.group.is_serving() {
        stepped.round();
    }
    // One that is visible and not durable, so that a flush has something to wait for.
    let visible = stepped.submit(disk, write(128, 2, 8));
    while !stepped.replies.iter().any(|(ticket, _)| *ticket == visible) {
        stepped.round();
    }
    let range = SectorRange::new(0, 64);
    let waiting = [
        write(64, 3, 8),
        Request::Zero { range, durable: true, keep_allocated: false },
        Request::Flush,
        // The opening left nothing of it in memory.
        Request::Read { range },
        Request::Allocation { range, runs_max: 4096 },
    ];
    let waiting = waiting.map(|request| stepped.submit(disk, request));
    let refused = stepped.submit(Export::Disk(afterimage::units::GroupId(1), unknown()), Request::Flush);
    let Stepped { group, mut replies, .. } = stepped;
    replies.extend(group.close());
    let count = replies.len();
    let replies: BTreeMap<_, _> = replies.into_iter().collect();
    assert_eq!((replies.len(), count), (waiting.len() + 2, waiting.len() + 2), "each once");
    assert!(replies[&visible].is_ok());
    for ticket in waiting.into_iter().chain([refused]) {
        assert_eq!(replies[&ticket].as_ref().unwrap_err(), &Refusal::Shutdown, "{ticket:?}");
    }
    runtime.abandon_tasks();
}

fn unknown() -> afterimage::units::DiskId {
    afterimage::units::DiskId(0)
}

/// Points that were under way when somebody removed the group were told as a vault that refuses them.
#[test]
fn a_point_of_a_group_that_is_removed_is_no_failure_of_its_vault() {
    let (_guard, root) = scratch();
    let mut harness = Harness::create(&root);
    let disk = harness.add_disk("root", 4096);
    harness.write(disk, 0, 1, 64);
    let (vault, runtime) = (Rc::clone(harness.group.vault()), harness.runtime.clone());
    runtime.block_on(async move { vault.manifest().append(Change::GroupRemoved).await }).expect("removed");
    let answer = Rc::new(RefCell::new(None));
    let answered = Rc::clone(&answer);
    harness.group.create_point("late".into(), Box::new(move |made| *answered.borrow_mut() = Some(made)));
    harness.until("an answer", |_| answer.borrow().is_some());
    let refusal = answer.take().expect("waited for").expect_err("there is no group");
    assert_eq!(
        (refusal.kind(), refusal.to_string().as_str()),
        (ErrorKind::NotFound, "the group was removed")
    );
    assert_eq!(harness.group.condition(), Condition::Protected);
}
