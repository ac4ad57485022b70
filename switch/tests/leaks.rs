//! Nothing is left behind: descriptors and threads are as many after as before. Alone in its
//! process, so that no other test's descriptors are counted.

use san_switch::{ConnectOptions, FabricChoice, ListenOptions, Switch, SwitchConfig};
use std::time::{Duration, Instant};

fn count(directory: &str) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

#[test]
fn descriptors_and_threads_are_as_many_after_as_before() {
    let round = || {
        let switch = Switch::new(SwitchConfig::default().fabric(FabricChoice::Off)).unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let listener = switch.listen(any, ListenOptions::default()).unwrap();
        let options = ConnectOptions::default();
        let clients: Vec<_> = (0..20)
            .map(|_| switch.connect(listener.local_addr(), &options).unwrap())
            .collect();
        for _ in 0..10 {
            listener.accept_timeout(Duration::from_secs(10)).unwrap();
        }
        // Bad input, and a connect that is given up half-way.
        assert!(
            switch
                .listen(listener.local_addr(), ListenOptions::default())
                .is_err()
        );
        drop(
            switch
                .start_connect(listener.local_addr(), &options)
                .unwrap(),
        );
        listener.close();
        assert!(switch.connect(listener.local_addr(), &options).is_err());
        assert!(switch.shutdown());
        drop(clients);
    };
    round();
    let counts = || (count("/proc/self/fd"), count("/proc/self/task"));
    // A thread that was joined may still be listed for a moment.
    let settled = |holds: &dyn Fn((usize, usize)) -> bool| {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !holds(counts()) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        counts()
    };
    // The harness's two threads: the one that waits, and this one.
    let before = settled(&|(_, threads)| threads == 2);
    assert_eq!(before.1, 2);
    for _ in 0..5 {
        round();
    }
    assert_eq!(settled(&|now| now == before), before);
}
