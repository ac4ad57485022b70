//! The threads of an endpoint: one, with its name, gone with the last handle. In a
//! program of its own, where no other test's endpoints live.

use soft_roce::endpoint::{Config, Endpoint};
use std::time::{Duration, Instant};

fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
    tasks
        .filter_map(|task| name(task).ok())
        .filter(|name| name.trim() == "soft-roce")
        .count()
}

/// Waits until so many threads are listed. A thread has its name after its first act, and one that was joined may
/// still be listed for a moment.
fn settles_at(count: usize) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while threads() != count && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(threads(), count);
}

#[test]
fn one_thread_that_ends_with_the_last_handle() {
    let dir = std::env::temp_dir().join(format!("soft-roce-threads-{}", std::process::id()));
    let config = Config {
        rendezvous: Some(dir.clone()),
        ..Config::default()
    };
    assert_eq!(threads(), 0);
    let endpoint = Endpoint::new(config).unwrap();
    let channel = endpoint.event_channel().unwrap();
    let completions = endpoint.completion_channel().unwrap();
    drop(endpoint);
    settles_at(1);
    drop(channel);
    assert_eq!(threads(), 1);
    drop(completions);
    settles_at(0);
    std::fs::remove_dir_all(dir).unwrap();
}
