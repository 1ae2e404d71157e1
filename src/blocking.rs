//! Runs work that keeps a processor busy for milliseconds on threads of its own: on those that serve
//! all connections it would delay every other request and every token.

use std::panic::resume_unwind;
use std::sync::{Arc, LazyLock};
use std::thread::available_parallelism;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::byte_room::Shares;
use crate::source::ShareKey;

/// Bytes up to which work on them is done at once: a change of threads costs more than they do.
pub const SMALL: usize = 64 << 10;

/// As many run at a time as there are processors, at least two and at most four. A body of 8 MiB that is
/// parsed takes up to about 18 MiB in addition to its text, for which there is no room. The others wait, each
/// with the bytes that it holds anyway.
static PERMITS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(at_a_time())));

/// The tasks that one network or user may have running, or waiting for a thread: half of the threads at most,
/// so that work for others waits for no more than that.
static SHARES: LazyLock<Shares> = LazyLock::new(|| Shares::new(at_a_time() / 2));

/// Two, also on one processor: the other half is there for others.
fn at_a_time() -> usize {
    available_parallelism().map_or(2, usize::from).clamp(2, 4)
}

/// Returns the result of work on so many bytes, in the name of a network or a user where it is a client's. A
/// panic of the work is the caller's.
pub async fn run<T: Send + 'static>(
    client: Option<ShareKey>,
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    if bytes <= SMALL {
        return work();
    }
    // The semaphores are never closed.
    let of_client = match client {
        Some(client) => SHARES.of(client).acquire_owned().await.ok(),
        None => None,
    };
    let permit = Arc::clone(&PERMITS).acquire_owned().await.ok();
    let done = spawn_blocking(move || {
        // Held until the work has ended, also where nobody waits for it any more.
        let _permits = (permit, of_client);
        work()
    });
    match done.await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(done) => done,
        Err(Ok(panic)) => resume_unwind(panic),
        // The runtime ends, and drops the tasks that wait.
        Err(Err(_)) => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;
    use std::time::Duration;

    use futures_util::FutureExt;
    use futures_util::future::join_all;

    use super::*;
    use crate::source::SourceKey;

    #[tokio::test]
    async fn large_work_runs_beside_the_runtime_and_at_most_four_at_a_time() {
        static RUNNING: AtomicUsize = AtomicUsize::new(0);
        let here = thread::current().id();
        assert_eq!(run(None, SMALL, || thread::current().id()).await, here);
        let work = || {
            let running = RUNNING.fetch_add(1, Ordering::SeqCst) + 1;
            testkit::pause(Duration::from_millis(20));
            RUNNING.fetch_sub(1, Ordering::SeqCst);
            (thread::current().id(), running)
        };
        let done = join_all((0..16).map(|_| run(None, SMALL + 1, work))).await;
        for (thread, running) in done {
            assert!(thread != here && running <= at_a_time(), "{running} at a time");
        }
    }

    #[tokio::test]
    async fn a_network_with_much_large_work_leaves_half_of_the_threads_to_others() {
        const PIECES: usize = 24;
        static DONE: AtomicUsize = AtomicUsize::new(0);
        static RUNNING: AtomicUsize = AtomicUsize::new(0);
        let half = at_a_time() / 2;
        let key = SourceKey::default();
        let network = |address: &str| {
            key.source(address.parse().expect("an address")).widest_network().expect("a network")
        };
        let piece = || {
            testkit::pause(Duration::from_millis(20));
            DONE.fetch_add(1, Ordering::SeqCst)
        };
        let of_flood = move || {
            let running = RUNNING.fetch_add(1, Ordering::SeqCst) + 1;
            piece();
            RUNNING.fetch_sub(1, Ordering::SeqCst);
            running
        };
        let flood = Some(network("192.0.2.1"));
        let mut flood: Vec<_> =
            (0..PIECES).map(|_| tokio::spawn(run(flood, SMALL + 1, of_flood))).collect();
        let others = ["192.0.2.2", "2001:db8::1"].map(network);
        tokio::task::yield_now().await;
        for other in others {
            let before = DONE.load(Ordering::SeqCst);
            let ended = run(Some(other), SMALL + 1, piece).await;
            // Those of the flood that run as it begins, and as many again while it runs.
            assert!(ended - before <= 2 * half, "{ended} after {before} of {PIECES}");
        }
        assert!(flood.iter_mut().any(|piece| !piece.is_finished()), "the flood has ended before");
        for piece in flood {
            let running = piece.await.expect("done");
            assert!(running <= half, "{running} of {} threads", at_a_time());
        }
    }

    #[tokio::test]
    async fn a_panic_of_large_work_is_its_callers_and_frees_its_permit() {
        let panics = || async { run(None, SMALL + 1, || panic!("on purpose")).await };
        for _ in 0..64 {
            let caught = std::panic::AssertUnwindSafe(panics()).catch_unwind().await;
            assert!(caught.is_err_and(|panic| panic.downcast_ref() == Some(&"on purpose")));
        }
        assert_eq!(run(None, SMALL + 1, || 7).await, 7);
    }
}
