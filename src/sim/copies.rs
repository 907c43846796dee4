//! A copy of the data directory is restored, and both go on: what an administrator does with a backup or a cloned machine.
//! Neither may seal anything with a key and a nonce that the other one sealed with; the witness at the seam saw both.

use super::site::{Outcome, Site};

impl Site {
    /// The group goes on, unheard; then the copy that was taken before is put in its place, and goes on as well.
    pub(super) fn go_on_twice(&mut self) -> Outcome {
        self.rest()?;
        let issued = self.history.issued();
        self.history.make_durable(issued);
        self.disk.kill_process(self.process.id());
        self.disk.run();
        let copy = self.disk.image();
        self.start_process();
        // What it makes of this life belongs to no history.
        (self.is_faulted, self.is_verified) = (true, false);
        self.drive("opening the original", |site| site.process.is_serving())?;
        self.ask_unheard_point()?;
        self.rest()?;
        self.disk.kill_process(self.process.id());
        self.disk.run();
        self.disk.restore(&copy);
        self.tracer.note(|| "a copy was restored, and goes on".to_owned());
        self.start_process();
        Ok(())
    }
}
