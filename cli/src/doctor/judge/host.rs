//! The settings, the kernel, the limits, the clock.

use crate::doctor::facts::{Access, Facts, Purpose, WatchFacts};
use crate::doctor::line::Line;
use crate::settings::{Source, of_unknown};
use san_switch::FabricChoice;

/// Bytes of locked memory that a handful of connections need.
const LEAST_MEMLOCK: u64 = 64 << 20;
/// Descriptors that some hundred connections need.
const LEAST_DESCRIPTORS: u64 = 4096;
/// Descriptors without which nothing can be done.
const FEWEST_DESCRIPTORS: u64 = 64;
/// What reading the clock may take: it is read for each wait.
const MOST_CLOCK_NS: u64 = 500;
/// 2024-01-01: an earlier time is that of a clock that was never set.
const EARLIEST: u64 = 1_704_067_200;

pub(super) fn settings(facts: &Facts) -> Vec<Line> {
    let settings = &facts.settings;
    let mut lines = Vec::new();
    if let Some(why) = &settings.bad_file {
        lines.push(Line::fail(
            "settings",
            format!("SAN_CONFIG names a file that cannot be used: {why}"),
            "mend the file, or do without: unset SAN_CONFIG",
        ));
    }
    for bad in &settings.bad {
        let remedy = match bad.source {
            Source::Environment => format!("set it right, or: unset {}", bad.name),
            _ => "mend the line in the file that SAN_CONFIG names; then: san config".to_owned(),
        };
        let text = format!("{bad}; no program starts with it");
        lines.push(Line::fail("settings", text, remedy));
    }
    for name in &settings.unknown {
        lines.push(Line::warn(
            "settings",
            of_unknown(name),
            format!("see the names: san config; or: unset {name}"),
        ));
    }
    if lines.is_empty() {
        let text = match settings.set.is_empty() {
            true => "the defaults".to_owned(),
            false => settings.set.join(", "),
        };
        lines.push(Line::ok("settings", text));
    }
    if settings.says_tcp {
        lines.push(Line::warn(
            "settings",
            "SAN_ROUTE=off: every connection takes TCP, unless a rule of SAN_RULES says otherwise",
            "let them use the SAN: unset SAN_ROUTE",
        ));
    }
    lines.push(match settings.fabric {
        FabricChoice::Auto => Line::ok(
            "fabric",
            "auto: RDMA devices if there are any, else TCP alone",
        ),
        FabricChoice::Rdma => Line::ok("fabric", "rdma: RDMA devices, or an error"),
        FabricChoice::Soft => Line::ok("fabric", "soft: RoCEv2 in user space, by UDP port 4791"),
        FabricChoice::Off => Line::warn(
            "fabric",
            "off: every connection of this host's takes TCP",
            "let it use the SAN: unset SAN_FABRIC (or: export SAN_FABRIC=soft)",
        ),
    });
    lines
}

pub(super) fn kernel(facts: &Facts) -> Vec<Line> {
    let kernel = &facts.kernel;
    let missing: Vec<&str> = kernel
        .modules
        .iter()
        .filter(|module| !module.present)
        .map(|module| module.name)
        .collect();
    let mut lines = vec![match missing.is_empty() {
        true => Line::ok(
            "kernel",
            format!("Linux {}, with its RDMA modules", kernel.release),
        ),
        false => Line::fail(
            "kernel",
            format!(
                "Linux {} has not loaded {}",
                kernel.release,
                missing.join(", ")
            ),
            format!(
                "as root: modprobe -a {}; at each start: printf '%s\\n' {} > \
                 /etc/modules-load.d/san.conf",
                missing.join(" "),
                missing.join(" ")
            ),
        ),
    }];
    if missing.contains(&"ib_core") {
        // Nothing can be in /dev/infiniband.
        return lines;
    }
    for node in &kernel.nodes {
        let path = &node.path;
        lines.push(match node.access {
            Access::Usable => continue,
            Access::Missing => Line::fail(
                "device files",
                format!("{path} is not there"),
                "as root: modprobe -a ib_uverbs rdma_ucm; in a container: docker run \
                 --device=/dev/infiniband/rdma_cm --device=/dev/infiniband/uverbs0",
            ),
            Access::Denied => Line::fail(
                "device files",
                format!("{path} may not be opened by this user"),
                "as root: chmod a+rw /dev/infiniband/rdma_cm /dev/infiniband/uverbs*",
            ),
        });
    }
    if lines.len() == 1 {
        let count = kernel.nodes.len();
        lines.push(Line::ok(
            "device files",
            format!("{count} in /dev/infiniband, all usable"),
        ));
    }
    lines
}

pub(super) fn memlock(facts: &Facts) -> Line {
    let limits = &facts.limits;
    match limits.memlock {
        None => Line::ok("memlock", "no limit of locked memory"),
        Some(limit) if limits.memlock_exempt => Line::ok(
            "memlock",
            format!(
                "{} of locked memory, which does not count for this user",
                size(limit)
            ),
        ),
        Some(limit) if limit >= LEAST_MEMLOCK => {
            Line::ok("memlock", format!("{} of locked memory", size(limit)))
        }
        Some(limit) => Line::fail(
            "memlock",
            format!(
                "only {} may be locked in memory, and registered memory is locked; {} are needed",
                size(limit),
                size(LEAST_MEMLOCK)
            ),
            "ulimit -l unlimited; for good: LimitMEMLOCK=infinity in the systemd unit, or \
             '* - memlock unlimited' in /etc/security/limits.conf",
        ),
    }
}

/// Whether so few may be open that nothing works: the line `descriptors` says what to type.
pub(super) fn has_few_descriptors(facts: &Facts) -> bool {
    let limit = facts.limits.descriptors;
    limit.is_some_and(|limit| limit < FEWEST_DESCRIPTORS)
}

pub(super) fn descriptors(facts: &Facts) -> Line {
    let limits = &facts.limits;
    let hard = match limits.descriptors_hard {
        // The hard limit is as low: a shell cannot raise it.
        Some(hard) if hard < LEAST_DESCRIPTORS => {
            "as root: prlimit --nofile=65536 --pid $$; for good: '* - nofile 65536' in \
             /etc/security/limits.conf, or LimitNOFILE=65536 in the systemd unit"
                .to_owned()
        }
        hard => {
            let hard = hard.map_or("unlimited".to_owned(), |hard| hard.to_string());
            format!("ulimit -n {hard}; for good: LimitNOFILE= in the systemd unit")
        }
    };
    match limits.descriptors {
        Some(limit) if limit < FEWEST_DESCRIPTORS => Line::fail(
            "descriptors",
            format!("only {limit} descriptors may be open; a switch alone needs some twenty"),
            hard,
        ),
        Some(limit) if limit < LEAST_DESCRIPTORS => Line::warn(
            "descriptors",
            format!(
                "{limit} descriptors may be open: enough for about {} connections",
                limit / 2
            ),
            format!("for more: {hard}"),
        ),
        Some(limit) => Line::ok("descriptors", format!("{limit} may be open")),
        None => Line::ok("descriptors", "no limit"),
    }
}

pub(super) fn userfaultfd(facts: &Facts) -> Line {
    let slower = "memory that is sent often is registered again each time";
    match &facts.userfaultfd {
        WatchFacts::Usable => Line::ok("userfaultfd", "usable: registrations of memory are kept"),
        WatchFacts::Denied(why) => Line::warn(
            "userfaultfd",
            format!("{why}; {slower}"),
            "in a container: --security-opt seccomp=unconfined, or --device=/dev/userfaultfd",
        ),
        WatchFacts::Unsupported(why) => Line::warn(
            "userfaultfd",
            format!("{why}; {slower}"),
            "install a newer kernel (uname -r shows this one); everything works without",
        ),
    }
}

pub(super) fn clock(facts: &Facts) -> Line {
    let clock = &facts.clock;
    if clock.unix_seconds < EARLIEST {
        return Line::warn(
            "clock",
            "the clock was never set: the times in two hosts' logs cannot be compared",
            "as root: timedatectl set-ntp true (or: date -s 'YYYY-MM-DD hh:mm:ss')",
        );
    }
    let source = match clock.source.as_str() {
        "" => "source unknown",
        source => source,
    };
    if clock.read_ns > MOST_CLOCK_NS {
        let better = ["tsc", "kvm-clock", "arch_sys_counter"];
        let better = better
            .into_iter()
            .find(|name| clock.source != *name && clock.available.iter().any(|one| one == name));
        return Line::warn(
            "clock",
            format!(
                "reading the clock ({source}) takes {} ns, which each wait pays",
                clock.read_ns
            ),
            match better {
                Some(better) => format!(
                    "as root: echo {better} > \
                     /sys/devices/system/clocksource/clocksource0/current_clocksource"
                ),
                None => "no better clock source is on offer; see why: dmesg | grep -i clocksource"
                    .to_owned(),
            },
        );
    }
    Line::ok("clock", format!("{source}, read in {} ns", clock.read_ns))
}

/// Where processes of one user find each other. Told only where there is something to tell.
pub(super) fn meeting_places(facts: &Facts) -> Vec<Line> {
    let broken = facts.meeting_places.iter().filter_map(|place| {
        let why = place.problem.as_ref()?;
        let path = &place.path;
        let remedy = format!(
            "if it is yours: chmod 700 {path}; else, for every program: export \
             XDG_RUNTIME_DIR=DIRECTORY"
        );
        Some(match place.purpose {
            Purpose::Statistics => Line::warn(
                "runtime",
                format!("san stat and san top find no process: {why}"),
                remedy,
            ),
            Purpose::SoftFabric => Line::fail(
                "runtime",
                format!("endpoints of the soft fabric cannot find each other: {why}"),
                remedy,
            ),
        })
    });
    broken.collect()
}

/// Bytes for people.
fn size(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{} KiB", bytes >> 10),
        0x10_0000..0x4000_0000 => format!("{} MiB", bytes >> 20),
        _ => format!("{} GiB", bytes >> 30),
    }
}
