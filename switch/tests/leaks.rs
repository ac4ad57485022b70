//! Nothing is left behind: descriptors and threads are as many after as before. Alone in its
//! process, so that no other test's descriptors are counted.

use san_switch::{ConnectOptions, FabricChoice, ListenOptions, Switch, SwitchConfig};
use std::time::Duration;

fn count(directory: &str) -> usize {
    std::fs::read_dir(directory).unwrap().count()
}

#[test]
fn descriptors_and_threads_are_as_many_after_as_before() {
    let round = || {
        let switch = Switch::new(SwitchConfig {
            fabric: FabricChoice::Off,
            ..SwitchConfig::default()
        })
        .unwrap();
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
    let before = (count("/proc/self/fd"), count("/proc/self/task"));
    for _ in 0..5 {
        round();
    }
    assert_eq!((count("/proc/self/fd"), count("/proc/self/task")), before);
}
