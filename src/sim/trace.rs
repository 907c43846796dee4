//! What a run tells: a running hash of everything, and lines for who asked for them.

use std::cell::RefCell;
use std::rc::Rc;

use xxhash_rust::xxh3::Xxh3Default;

use crate::storage::sim::SimDisk;

/// Gets a line for everything that happens.
pub type Sink = Rc<RefCell<dyn FnMut(&str)>>;

/// The trace of one run.
pub struct Tracer {
    hash: Xxh3Default,
    sink: Option<Sink>,
}

impl Tracer {
    /// A trace to `sink`, to which the disk's events go as well.
    pub fn new(sink: Option<Sink>, disk: &SimDisk) -> Tracer {
        if let Some(sink) = &sink {
            let sink = Rc::clone(sink);
            disk.set_trace(Some(Box::new(move |line| (sink.borrow_mut())(&format!("    {line}")))));
        }
        Tracer { hash: Xxh3Default::new(), sink }
    }

    /// Adds an event.
    pub fn note(&mut self, event: impl FnOnce() -> String) {
        let event = event();
        self.hash.update(event.as_bytes());
        if let Some(sink) = &self.sink {
            (sink.borrow_mut())(&event);
        }
    }

    /// The hash of all events.
    pub fn hash(&self) -> u64 {
        self.hash.digest()
    }
}
