//! The threads of an endpoint: one, with its name, gone with the last handle. In a
//! program of its own, where no other test's endpoints live.

use soft_roce::endpoint::{Config, Endpoint};

fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm"));
    tasks
        .filter_map(|task| name(task).ok())
        .filter(|name| name.trim() == "soft-roce")
        .count()
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
    // The thread takes its name as its first act.
    while threads() == 0 {
        std::thread::yield_now();
    }
    assert_eq!(threads(), 1);
    drop(channel);
    assert_eq!(threads(), 1);
    drop(completions);
    assert_eq!(threads(), 0);
    std::fs::remove_dir_all(dir).unwrap();
}
