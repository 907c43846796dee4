//! Many operations of one kind, some of them under way at a time.

use std::cell::RefCell;

use futures::stream::{self, StreamExt};

use crate::error::{Error, Result};

/// Carries out operations, at most `at_once` under way, and hands what each brought to `take`. After an error none is begun any more,
/// but those under way are waited for: a write that landed later would undo what a next attempt writes.
///
/// # Errors
/// The first that came.
pub async fn pour<T, F>(
    operations: impl IntoIterator<Item = F>,
    at_once: usize,
    mut take: impl FnMut(T),
) -> Result<()>
where
    F: Future<Output = Result<T>>,
{
    let failure: RefCell<Option<Error>> = RefCell::new(None);
    stream::iter(operations.into_iter().take_while(|_| failure.borrow().is_none()))
        .buffer_unordered(at_once)
        .for_each(|result| {
            match result {
                Ok(brought) => take(brought),
                Err(error) => drop(failure.borrow_mut().get_or_insert(error)),
            }
            std::future::ready(())
        })
        .await;
    failure.into_inner().map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures::FutureExt;
    use futures::channel::oneshot;

    use super::*;

    const CONCURRENCY: usize = 64;

    #[test]
    fn bytes_are_counted_whatever_fails() {
        let mut written = 5;
        let writes = [Ok(512), Ok(0), Ok(4096)].map(std::future::ready);
        pour(writes, CONCURRENCY, |bytes: u64| written += bytes)
            .now_or_never()
            .expect("all are ready")
            .expect("none failed");
        assert_eq!(written, 5 + 512 + 4096);
        let writes = [Ok(512), Err(Error::invalid("first")), Ok(1), Err(Error::invalid("second"))];
        let result =
            pour(writes.map(std::future::ready), CONCURRENCY, |bytes: u64| written += bytes).now_or_never();
        assert!(result.expect("all are ready").expect_err("two failed").to_string().contains("first"));
        assert_eq!(written, 5 + 512 + 4096 + 512 + 1);
    }

    #[test]
    fn after_an_error_nothing_is_begun_and_what_was_begun_is_waited_for() {
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..2 * CONCURRENCY).map(|_| oneshot::channel::<Result<u64>>()).unzip();
        let begun = Cell::new(0);
        let begun = &begun;
        let writes = receivers.into_iter().map(|receiver| async move {
            begun.set(begun.get() + 1);
            receiver.await.expect("nobody gives up")
        });
        let mut written = 0;
        let mut poured = Box::pin(pour(writes, CONCURRENCY, |bytes| written += bytes));
        assert!(poured.as_mut().now_or_never().is_none());
        assert_eq!(begun.get(), CONCURRENCY);
        let mut senders = senders.into_iter();
        let mut answer = |result| senders.next().expect("there are more").send(result).expect("it waits");
        answer(Ok(512));
        assert!(poured.as_mut().now_or_never().is_none());
        assert_eq!(begun.get(), CONCURRENCY + 1);
        answer(Err(Error::invalid("no")));
        (2..CONCURRENCY).for_each(|_| answer(Ok(512)));
        assert!(poured.as_mut().now_or_never().is_none(), "one is under way");
        // One may have been asked for before the error was seen.
        assert!(begun.get() <= CONCURRENCY + 2, "{} begun", begun.get());
        (CONCURRENCY..begun.get()).for_each(|_| answer(Ok(512)));
        poured.now_or_never().expect("none is under way").expect_err("one failed");
        assert_eq!(written, 512 * (begun.get() as u64 - 1));
    }
}
