//! Removing a group's files: the vault says first that the group has ended, by a tombstone that needs no manifest, so that
//! a crash on the way is taken up again at the next start.

use std::path::Path;
use std::rc::Rc;

use crate::error::{ErrorKind, Result};
use crate::protect::open::GroupPlan;
use crate::runtime::Runtime;
use crate::vault;

/// Deletes everything of a group; resumable. From its first step on, the group is never opened again.
pub async fn clear(runtime: &Rc<Runtime>, plan: &GroupPlan) -> Result<()> {
    vault::entomb(runtime, &plan.vault).await?;
    let tests = plan.tests();
    for name in names(runtime, &tests).await? {
        remove_directory(runtime, &tests.join(name)).await?;
    }
    for directory in [tests, plan.journal(), plan.images()] {
        remove_directory(runtime, &directory).await?;
    }
    remove_directory(runtime, &plan.directory).await?;
    vault::destroy(runtime, &plan.vault).await
}

async fn names(runtime: &Rc<Runtime>, directory: &Path) -> Result<Vec<String>> {
    match runtime.list(directory).await {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        names => names,
    }
}

/// Removes a directory of files, if it is there.
async fn remove_directory(runtime: &Rc<Runtime>, directory: &Path) -> Result<()> {
    for name in names(runtime, directory).await? {
        match runtime.remove(directory.join(name)).await {
            // What is kept of a verification may go by itself.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            removed => removed?,
        }
    }
    match runtime.remove_directory(directory).await {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
