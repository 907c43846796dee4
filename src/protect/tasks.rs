//! The tasks that work for a group, and end with it: a group that is closed and opened again must not find its own files
//! locked by what the one before left behind.
//!
//! A task that is ended stops at the await where it is, as at a death of the process, and every task is made for that.

use std::cell::Cell;
use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;

use futures::channel::oneshot;
use futures::future::{FutureExt, Shared, select};

use crate::runtime::Runtime;

/// The tasks of one group; dropping it ends them, at the latest when tasks are run next.
pub struct Tasks {
    runtime: Rc<Runtime>,
    /// Set when one of them has gone on.
    stirred: Rc<Cell<bool>>,
    /// Dropped with this: that is the signal.
    _alive: oneshot::Sender<Infallible>,
    ended: Shared<oneshot::Receiver<Infallible>>,
}

impl Tasks {
    /// No tasks yet.
    pub fn new(runtime: &Rc<Runtime>) -> Tasks {
        let (alive, ended) = oneshot::channel();
        Tasks { runtime: Rc::clone(runtime), stirred: Rc::default(), _alive: alive, ended: ended.shared() }
    }

    /// Whether one of them has gone on since the last call.
    pub fn take_stirred(&self) -> bool {
        self.stirred.take()
    }

    /// Runs `task` until it ends, or the group does.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let ended = self.ended.clone();
        self.runtime.spawn_for(&self.stirred, async move {
            select(pin!(task), ended).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::OsEnvironment;
    use crate::storage::blocking::Blocking;

    #[test]
    fn tasks_end_with_their_group_and_give_back_what_they_hold() {
        let storage = Blocking::new(1).expect("a thread");
        let runtime = Runtime::new(Box::new(storage), Rc::new(OsEnvironment::new()));
        let (done, held) = (Rc::new(Cell::new(false)), Rc::new(()));
        let tasks = Tasks::new(&runtime);
        let noted = Rc::clone(&done);
        tasks.spawn(async move { noted.set(true) });
        let kept = Rc::clone(&held);
        tasks.spawn(async move {
            std::future::pending::<()>().await;
            drop(kept);
        });
        runtime.step(&mut Vec::new());
        assert!(tasks.take_stirred() && !runtime.take_stirred(), "they concern their group only");
        runtime.step(&mut Vec::new());
        assert!(!tasks.take_stirred(), "nothing woke the one that waits");
        assert!(done.get(), "what can end ends by itself");
        assert_eq!(Rc::strong_count(&held), 2);
        drop(tasks);
        runtime.step(&mut Vec::new());
        assert_eq!(Rc::strong_count(&held), 1, "the other is gone with what it held");
    }
}
