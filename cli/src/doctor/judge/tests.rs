//! Each line that can fail or warn, with facts that make it so.

use super::judge;
use crate::doctor::facts::*;
use crate::doctor::line::{Level, Line};
use crate::settings::{BadSetting, Source};
use san_provider::ConnectFailure;
use san_switch::FabricChoice;

/// A machine with an RDMA device on which all is well.
fn healthy() -> Facts {
    Facts {
        settings: SettingsFacts {
            fabric: FabricChoice::Auto,
            says_tcp: false,
            set: Vec::new(),
            bad: Vec::new(),
            unknown: Vec::new(),
            bad_file: None,
        },
        kernel: KernelFacts {
            release: "6.1.0".to_owned(),
            modules: ["ib_core", "ib_uverbs", "rdma_ucm"]
                .map(|name| ModuleFacts {
                    name,
                    present: true,
                })
                .into(),
            nodes: ["/dev/infiniband/rdma_cm", "/dev/infiniband/uverbs0"]
                .map(|path| NodeFacts {
                    path: path.to_owned(),
                    access: Access::Usable,
                })
                .into(),
        },
        fabric: FabricFacts {
            failure: None,
            devices: vec![device()],
            table: vec!["10.0.7.1/24 on mlx5_0".to_owned()],
            switch: None,
            soft_ports: Vec::new(),
        },
        interfaces: vec![InterfaceFacts {
            name: "eth1".to_owned(),
            mtu: Some(9000),
            state: "up".to_owned(),
        }],
        limits: LimitFacts {
            memlock: None,
            memlock_exempt: false,
            descriptors: Some(65_536),
            descriptors_hard: Some(65_536),
        },
        userfaultfd: WatchFacts::Usable,
        clock: ClockFacts {
            source: "tsc".to_owned(),
            available: vec!["tsc".to_owned(), "hpet".to_owned()],
            read_ns: 30,
            unix_seconds: 1_800_000_000,
        },
        meeting_places: [Purpose::Statistics, Purpose::SoftFabric]
            .map(|purpose| MeetingPlaceFacts {
                purpose,
                path: "/run/user/7/san".to_owned(),
                problem: None,
            })
            .into(),
        peer: None,
    }
}

fn device() -> DeviceFacts {
    DeviceFacts {
        name: "mlx5_0".to_owned(),
        transport: TransportFacts::Infiniband,
        ports: vec![PortFacts {
            number: 1,
            state: "active".to_owned(),
            link_layer: "ethernet".to_owned(),
            max_mtu: 4096,
            active_mtu: 4096,
            gids: vec![GidFacts {
                index: 0,
                gid: "::ffff:10.0.7.1".to_owned(),
                kind: "RoCE v2".to_owned(),
                netdev: Some("eth1".to_owned()),
            }],
        }],
        addresses: vec![AddressFacts {
            ip: "10.0.7.1".parse().unwrap(),
            prefix_len: 24,
            netdev: "eth1".to_owned(),
        }],
        windows: Some(1000),
    }
}

/// The soft fabric, well.
fn soft() -> Facts {
    let mut facts = healthy();
    facts.settings.fabric = FabricChoice::Soft;
    facts.kernel.modules.clear();
    facts.kernel.nodes.clear();
    facts.fabric.devices[0].name = "soft0".to_owned();
    facts.fabric.soft_ports = vec![SoftPortFacts {
        ip: "10.0.7.1".parse().unwrap(),
        state: SoftPortState::Free,
    }];
    facts
}

/// A peer that is reached over the SAN and over TCP.
fn with_peer(mut facts: Facts, change: impl Fn(&mut PeerAddressFacts)) -> Facts {
    let mut address = PeerAddressFacts {
        address: "10.0.7.2:7000".parse().unwrap(),
        source: Some("10.0.7.1".parse().unwrap()),
        interface: Some("eth1".to_owned()),
        interface_mtu: Some(9000),
        path_mtu: Some(9000),
        device_mtu: Some(4096),
        entry: Some("10.0.7.1/24 on mlx5_0".to_owned()),
        datagram: Datagram::Silent,
        connect: Some(ConnectFacts {
            took_ms: 3,
            outcome: ConnectOutcome::San {
                provider: "rdma".to_owned(),
                device: "mlx5_0".to_owned(),
            },
        }),
        tcp: Some(TcpFacts::Connected { took_ms: 1 }),
    };
    change(&mut address);
    facts.peer = Some(PeerFacts {
        asked: "node7:7000".to_owned(),
        has_port: true,
        unresolved: None,
        addresses: vec![address],
        omitted: 0,
    });
    facts
}

fn over_tcp(failure: ConnectFailure) -> impl Fn(&mut PeerAddressFacts) {
    move |address| {
        address.connect = Some(ConnectFacts {
            took_ms: 3000,
            outcome: ConnectOutcome::Tcp {
                failure: Some(failure),
                why: Some("so".to_owned()),
            },
        });
    }
}

/// The one line of that level under that check, which has these words in its text, and those in its
/// remedy. No other line is worse than that.
#[track_caller]
fn expect(facts: &Facts, level: Level, check: &str, text: &str, remedy: &str) -> Line {
    let lines = judge(facts);
    let found = lines
        .iter()
        .filter(|line| line.check == check && line.level == level)
        .find(|line| line.text.contains(text));
    let Some(line) = found else {
        panic!("no {level:?} of {check} with '{text}' in {lines:#?}");
    };
    let said = line.remedy.as_deref().unwrap_or_default();
    assert!(said.contains(remedy), "'{remedy}' is not in '{said}'");
    assert!(!said.is_empty(), "nothing to type: {line:?}");
    line.clone()
}

#[track_caller]
fn all_well(facts: &Facts) {
    let lines = judge(facts);
    let bad: Vec<_> = lines
        .iter()
        .filter(|line| line.level != Level::Ok)
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
}

fn changed(change: impl Fn(&mut Facts)) -> Facts {
    let mut facts = healthy();
    change(&mut facts);
    facts
}

fn soft_changed(change: impl Fn(&mut Facts)) -> Facts {
    let mut facts = soft();
    change(&mut facts);
    facts
}

use Level::{Fail, Warn};

#[test]
fn where_all_is_well_no_line_says_otherwise() {
    all_well(&healthy());
    all_well(&soft());
    all_well(&with_peer(healthy(), |_| {}));
    all_well(&with_peer(soft(), |address| address.path_mtu = Some(1500)));
}

#[test]
fn a_device_that_is_well_is_told_with_both_mtus() {
    let lines = judge(&healthy());
    let device = lines.iter().find(|line| line.check == "device").unwrap();
    let wanted = "mlx5_0: port 1 active, ethernet, MTU 4096, 1 GIDs; eth1 MTU 9000";
    assert_eq!(device.text, wanted);
}

#[test]
fn bad_settings_are_named() {
    let facts = changed(|facts| {
        facts.settings.bad.push(BadSetting {
            name: "SAN_BACKLOG".to_owned(),
            value: "0".to_owned(),
            allowed: "a number from 1 to 4096".to_owned(),
            source: Source::Environment,
        });
    });
    expect(
        &facts,
        Fail,
        "settings",
        "SAN_BACKLOG is '0'",
        "unset SAN_BACKLOG",
    );
    let facts = changed(|facts| {
        facts.settings.bad.push(BadSetting {
            name: String::new(),
            value: "nonsense".to_owned(),
            allowed: "NAME = value".to_owned(),
            source: Source::File {
                path: "/etc/san.conf".into(),
                line: 3,
            },
        });
    });
    expect(
        &facts,
        Fail,
        "settings",
        "'nonsense' (/etc/san.conf:3)",
        "mend the line",
    );
    let facts = changed(|facts| facts.settings.bad_file = Some("/x: not there".to_owned()));
    expect(
        &facts,
        Fail,
        "settings",
        "/x: not there",
        "unset SAN_CONFIG",
    );
    let facts = changed(|facts| facts.settings.unknown = vec!["SAN_FABRC".to_owned()]);
    expect(&facts, Warn, "settings", "SAN_FABRC", "unset SAN_FABRC");
    let facts = changed(|facts| facts.settings.fabric = FabricChoice::Off);
    expect(&facts, Warn, "fabric", "off", "unset SAN_FABRIC");
    let facts = changed(|facts| facts.settings.says_tcp = true);
    expect(&facts, Warn, "settings", "SAN_ROUTE=off", "unset SAN_ROUTE");
}

#[test]
fn what_the_kernel_lacks_is_named() {
    let facts = changed(|facts| facts.kernel.modules[2].present = false);
    expect(&facts, Fail, "kernel", "rdma_ucm", "modprobe -a rdma_ucm");
    let facts = changed(|facts| facts.kernel.nodes[0].access = Access::Missing);
    expect(
        &facts,
        Fail,
        "device files",
        "rdma_cm is not there",
        "modprobe",
    );
    let facts = changed(|facts| facts.kernel.nodes[1].access = Access::Denied);
    expect(&facts, Fail, "device files", "uverbs0 may not", "chmod");
}

#[test]
fn a_fabric_that_does_not_open_is_told_by_its_reason() {
    let failing = |failure: OpenFailure| {
        changed(|facts| {
            facts.fabric.failure = Some(failure.clone());
            facts.fabric.devices.clear();
        })
    };
    let library = OpenFailure::Library {
        library: "librdmacm.so.1".to_owned(),
        text: "librdmacm.so.1 cannot be loaded".to_owned(),
    };
    expect(
        &failing(library),
        Fail,
        "library",
        "librdmacm.so.1",
        "apt-get install",
    );
    let kernel = OpenFailure::Kernel("ENOSYS".to_owned());
    expect(&failing(kernel), Fail, "library", "ENOSYS", "modprobe");
    expect(
        &failing(OpenFailure::NoDevice),
        Fail,
        "device",
        "no RDMA device",
        "rdma link add",
    );
    let manager = OpenFailure::ConnectionManager("EACCES".to_owned());
    expect(&failing(manager), Fail, "library", "EACCES", "rdma_ucm");
    let soft = OpenFailure::Soft("10.9.9.9 cannot be used".to_owned());
    expect(
        &failing(soft),
        Fail,
        "device",
        "10.9.9.9",
        "SAN_SOFT_ADDRESSES",
    );
    let other = OpenFailure::Other("odd".to_owned());
    expect(&failing(other), Fail, "library", "odd", "SAN_LOG=debug");
    let facts = changed(|facts| facts.fabric.switch = Some("EMFILE".to_owned()));
    expect(&facts, Fail, "switch", "EMFILE", "SAN_LOG=debug");
}

#[test]
fn who_has_the_soft_fabrics_port_is_told() {
    let with = |states: &[SoftPortState]| {
        soft_changed(|facts| {
            let port = |state: &SoftPortState| SoftPortFacts {
                ip: "10.0.7.1".parse().unwrap(),
                state: state.clone(),
            };
            facts.fabric.soft_ports = states.iter().map(port).collect();
        })
    };
    use SoftPortState::{Free, Kernel, Shared, Taken};
    all_well(&with(&[Shared]));
    expect(
        &with(&[Kernel]),
        Fail,
        "port 4791",
        "kernel",
        "SAN_FABRIC=rdma",
    );
    expect(
        &with(&[Taken]),
        Fail,
        "port 4791",
        "another user",
        "ss -uanp",
    );
    expect(
        &with(&[Kernel, Free]),
        Warn,
        "port 4791",
        "kernel",
        "SAN_FABRIC=rdma",
    );
    expect(
        &with(&[Shared, Taken]),
        Warn,
        "port 4791",
        "another user",
        "ss -uanp",
    );
}

#[test]
fn a_port_that_is_not_fit_is_named() {
    let port =
        |change: fn(&mut PortFacts)| changed(|facts| change(&mut facts.fabric.devices[0].ports[0]));
    let down = port(|port| port.state = "down".to_owned());
    expect(
        &down,
        Fail,
        "port",
        "port 1 of mlx5_0 is down",
        "ip link set eth1 up",
    );
    let unmanaged = port(|port| {
        port.state = "init".to_owned();
        port.link_layer = "infiniband".to_owned();
    });
    expect(&unmanaged, Fail, "port", "init", "opensm");
    let unplugged = port(|port| {
        port.state = "down".to_owned();
        port.link_layer = "infiniband".to_owned();
    });
    expect(&unplugged, Fail, "port", "down", "cable");
    let none = port(|port| port.gids.clear());
    expect(&none, Fail, "gids", "no GID", "ip address add");
    let old = port(|port| port.gids[0].kind = "IB/RoCE v1".to_owned());
    expect(&old, Fail, "gids", "RoCE v2", "enable_roce");
    let small = port(|port| port.active_mtu = 1024);
    let line = expect(&small, Warn, "mtu", "1024", "ip link set eth1 mtu 4192");
    assert!(line.text.contains("9000"), "{line:?}");
    let small = port(|port| {
        port.active_mtu = 2048;
        port.link_layer = "infiniband".to_owned();
    });
    expect(&small, Warn, "mtu", "2048", "partitions.conf");
}

#[test]
fn a_device_that_is_not_fit_is_named() {
    let device =
        |change: fn(&mut DeviceFacts)| changed(|facts| change(&mut facts.fabric.devices[0]));
    let iwarp = device(|device| device.transport = TransportFacts::Iwarp);
    expect(&iwarp, Warn, "device", "iWARP", "san devices");
    expect(&iwarp, Fail, "addresses", "can be used", "SAN_FABRIC=soft");
    let silent = device(|device| device.ports.clear());
    expect(
        &silent,
        Fail,
        "device",
        "nothing of its ports",
        "ibv_devinfo",
    );
    let unnumbered = device(|device| device.addresses.clear());
    expect(
        &unnumbered,
        Fail,
        "addresses",
        "no IP address",
        "ip address add ADDRESS/LENGTH dev eth1",
    );
    let windowless = device(|device| device.windows = Some(0));
    expect(
        &windowless,
        Warn,
        "device",
        "no memory windows",
        "nothing to do",
    );
    for state in ["down", "lowerlayerdown"] {
        let facts = changed(|facts| facts.interfaces[0].state = state.to_owned());
        expect(&facts, Fail, "interface", state, "ip link set eth1 up");
    }
    let facts = changed(|facts| facts.fabric.table.clear());
    expect(
        &facts,
        Fail,
        "addresses",
        "every connection takes TCP",
        "SAN_LOOPBACK=1",
    );
}

#[test]
fn limits_that_are_too_low_are_named() {
    let facts = changed(|facts| facts.limits.memlock = Some(64 << 10));
    expect(&facts, Fail, "memlock", "64 KiB", "LimitMEMLOCK");
    let exempt = changed(|facts| {
        facts.limits.memlock = Some(64 << 10);
        facts.limits.memlock_exempt = true;
    });
    all_well(&exempt);
    all_well(&changed(|facts| facts.limits.memlock = Some(1 << 30)));
    // The soft fabric locks nothing.
    all_well(&soft_changed(|facts| facts.limits.memlock = Some(0)));
    let facts = changed(|facts| facts.limits.descriptors = Some(1024));
    expect(
        &facts,
        Warn,
        "descriptors",
        "512 connections",
        "ulimit -n 65536",
    );
    let facts = changed(|facts| facts.limits.descriptors = Some(16));
    expect(&facts, Fail, "descriptors", "only 16", "ulimit -n 65536");
    // Where the hard limit is as low, a shell cannot raise it.
    let facts = changed(|facts| {
        facts.limits.descriptors = Some(70);
        facts.limits.descriptors_hard = Some(70);
    });
    expect(
        &facts,
        Warn,
        "descriptors",
        "70",
        "as root: prlimit --nofile=65536",
    );
    all_well(&changed(|facts| facts.limits.descriptors = None));
}

#[test]
fn what_makes_things_slower_is_a_warning() {
    let facts = changed(|facts| facts.userfaultfd = WatchFacts::Denied("EPERM".to_owned()));
    expect(&facts, Warn, "userfaultfd", "EPERM", "seccomp");
    let facts = changed(|facts| facts.userfaultfd = WatchFacts::Unsupported("old".to_owned()));
    expect(&facts, Warn, "userfaultfd", "old", "newer kernel");
    let slow = changed(|facts| {
        facts.clock.source = "hpet".to_owned();
        facts.clock.read_ns = 1500;
    });
    expect(&slow, Warn, "clock", "1500 ns", "echo tsc >");
    let stuck = changed(|facts| {
        facts.clock.source = "hpet".to_owned();
        facts.clock.available = vec!["hpet".to_owned()];
        facts.clock.read_ns = 1500;
    });
    expect(&stuck, Warn, "clock", "1500 ns", "dmesg");
    let facts = changed(|facts| facts.clock.unix_seconds = 86_400);
    expect(&facts, Warn, "clock", "never set", "timedatectl");
}

#[test]
fn a_directory_that_is_not_this_users_alone_is_told() {
    let with = |at: usize| {
        soft_changed(|facts| {
            facts.meeting_places[at].path = "/tmp/san-7".to_owned();
            facts.meeting_places[at].problem = Some("/tmp/san-7 is open to others".to_owned());
        })
    };
    let remedy = "chmod 700 /tmp/san-7";
    expect(&with(0), Warn, "runtime", "san stat", remedy);
    expect(&with(1), Fail, "runtime", "the soft fabric", remedy);
    // It is why the fabric does not open, and is said once.
    let mut facts = with(1);
    facts.fabric.failure = Some(OpenFailure::Soft("rendezvous".to_owned()));
    facts.fabric.devices.clear();
    let lines = judge(&facts);
    let failed = lines.iter().filter(|line| line.level == Fail);
    assert_eq!(
        failed.map(|line| line.check).collect::<Vec<_>>(),
        ["runtime"]
    );
}

#[test]
fn a_name_without_address_is_the_one_line_about_the_peer() {
    let mut facts = with_peer(healthy(), |_| {});
    let peer = facts.peer.as_mut().unwrap();
    peer.addresses.clear();
    peer.unresolved = Some("cannot find the host 'node7'".to_owned());
    expect(&facts, Fail, "peer", "node7", "getent hosts node7");
    let mut facts = with_peer(healthy(), |_| {});
    facts.peer.as_mut().unwrap().omitted = 3;
    expect(&facts, Warn, "peer", "3 more", "ADDRESS:PORT");
}

#[test]
fn packets_that_do_not_fit_the_path_are_told() {
    let facts = with_peer(healthy(), |address| address.path_mtu = Some(1500));
    expect(
        &facts,
        Fail,
        "path mtu",
        "1500",
        "ip link set eth1 mtu 4200",
    );
}

#[test]
fn a_firewall_is_told() {
    let closed = |address: &mut PeerAddressFacts| {
        over_tcp(ConnectFailure::TimedOut)(address);
        address.datagram = Datagram::Prohibited("Operation not permitted".to_owned());
    };
    let facts = with_peer(healthy(), closed);
    expect(&facts, Fail, "firewall", "Operation not permitted", "nft");
    expect(&facts, Fail, "route", "a firewall closes", "firewall above");
    let facts = with_peer(healthy(), |address| {
        address.datagram = Datagram::Unsent("EINVAL".to_owned());
    });
    expect(&facts, Warn, "firewall", "EINVAL", "ip route get 10.0.7.2");
}

/// Every reason for which a connection takes TCP, or there is none, has a line of its own.
#[test]
fn each_reason_for_tcp_is_told_with_what_to_type() {
    use ConnectFailure as F;
    let mut texts = Vec::new();
    let peer = "10.0.7.2:7000".parse().unwrap();
    for failure in F::every() {
        // The words of `route()` and `san stat`; of silence the doctor knows more.
        let (text, remedy) = match failure {
            F::TimedOut => (
                "a firewall drops".to_owned(),
                "tcpdump -ni any udp port 4791".to_owned(),
            ),
            F::Unreachable => ("a firewall drops".to_owned(), "nft list ruleset".to_owned()),
            failure => (failure.to_string(), failure.remedy(peer)),
        };
        let facts = with_peer(healthy(), over_tcp(failure));
        let line = expect(&facts, Fail, "route", &text, &remedy);
        assert!(line.text.contains("10.0.7.2:7000 takes TCP"), "{line:?}");
        texts.push(line.text);
        // The same where TCP failed, too.
        let facts = with_peer(healthy(), |address| {
            address.connect = Some(ConnectFacts {
                took_ms: 1,
                outcome: ConnectOutcome::Failed {
                    failure: Some(failure),
                    why: "so".to_owned(),
                },
            });
        });
        expect(&facts, Fail, "route", &text, &remedy);
    }
    texts.dedup();
    assert!(texts.len() >= 20, "{texts:#?}");
}

#[test]
fn silence_is_told_by_what_a_datagram_met() {
    let met = |datagram: Datagram| {
        with_peer(healthy(), |address| {
            over_tcp(ConnectFailure::TimedOut)(address);
            address.datagram = datagram.clone();
        })
    };
    expect(
        &met(Datagram::Refused),
        Fail,
        "route",
        "nobody has UDP port 4791",
        "same SAN_FABRIC",
    );
    expect(
        &met(Datagram::Untried),
        Fail,
        "route",
        "over the fabric",
        "ibstat",
    );
    expect(
        &met(Datagram::Silent),
        Fail,
        "route",
        "a firewall drops",
        "tcpdump",
    );
}

#[test]
fn a_peer_that_no_subnet_reaches_takes_tcp() {
    let away = |address: &mut PeerAddressFacts| {
        address.entry = None;
        address.datagram = Datagram::Untried;
        address.connect = Some(ConnectFacts {
            took_ms: 1,
            outcome: ConnectOutcome::Tcp {
                failure: None,
                why: None,
            },
        });
    };
    let facts = with_peer(healthy(), away);
    expect(
        &facts,
        Fail,
        "route",
        "no subnet of the SAN (10.0.7.1/24",
        "ip route get",
    );
    let mut facts = with_peer(healthy(), away);
    facts.fabric.table.clear();
    expect(
        &facts,
        Fail,
        "route",
        "no address on the SAN",
        "san devices",
    );
    let facts = with_peer(healthy(), |address| {
        away(address);
        address.address = "127.0.0.1:7000".parse().unwrap();
    });
    expect(&facts, Fail, "route", "the loopback", "SAN_LOOPBACK=1");
    let mut facts = with_peer(healthy(), away);
    facts.settings.fabric = FabricChoice::Off;
    expect(&facts, Warn, "route", "SAN_FABRIC=off", "unset SAN_FABRIC");
    // A companion that could not be made.
    let facts = with_peer(healthy(), |address| {
        away(address);
        address.entry = Some("10.0.7.1/24 on mlx5_0".to_owned());
        address.connect.as_mut().unwrap().outcome = ConnectOutcome::Tcp {
            failure: None,
            why: Some("the companion socket cannot bind".to_owned()),
        };
    });
    expect(&facts, Fail, "route", "cannot bind", "SAN_LOG=debug");
}

#[test]
fn tcp_that_fails_is_told() {
    let with = |refused: bool| {
        with_peer(healthy(), |address| {
            address.tcp = Some(TcpFacts::Failed {
                refused,
                why: "cannot connect".to_owned(),
            });
        })
    };
    expect(
        &with(true),
        Fail,
        "tcp",
        "cannot connect",
        "ss -ltnp 'sport = :7000'",
    );
    expect(&with(false), Fail, "tcp", "cannot connect", "ip route get");
    let facts = with_peer(healthy(), |address| {
        address.connect = Some(ConnectFacts {
            took_ms: 1,
            outcome: ConnectOutcome::Failed {
                failure: None,
                why: "cannot connect to it".to_owned(),
            },
        });
    });
    expect(
        &facts,
        Fail,
        "route",
        "cannot connect to it",
        "ip route get",
    );
}

#[test]
fn without_a_port_an_answer_of_any_kind_is_well() {
    let asked = |failure| {
        let mut facts = with_peer(healthy(), over_tcp(failure));
        let peer = facts.peer.as_mut().unwrap();
        peer.has_port = false;
        peer.addresses[0].tcp = None;
        facts
    };
    all_well(&asked(ConnectFailure::NobodyListens { strict: false }));
    all_well(&asked(ConnectFailure::ForeignReject { reason: 8 }));
    expect(
        &asked(ConnectFailure::TimedOut),
        Fail,
        "route",
        "a firewall drops",
        "tcpdump",
    );
}
