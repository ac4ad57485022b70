//! `san stat` as an operator has it: processes of `san listen` and `san connect` beside it, on plain
//! TCP and on the soft fabric.

mod common;

use san_tests::program::{self, Program};
use serde_json::Value;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

const SAN: &str = env!("CARGO_BIN_EXE_san");
const LIMIT: Duration = Duration::from_secs(30);

/// A directory of this test's own for the sockets, in place of the user's, and an address of its own.
struct Sandbox(PathBuf, String);

impl Sandbox {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("san-stat-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Sandbox(path, common::own_address())
    }

    fn runtime(&self) -> String {
        format!("XDG_RUNTIME_DIR={}", self.0.display())
    }

    /// Starts `san` there; the process id is its own, since env becomes it.
    fn start(&self, settings: &[&str], args: &[&str]) -> Program {
        let runtime = self.runtime();
        let addresses = format!("SAN_SOFT_ADDRESSES={}", self.1);
        let mut all = vec![runtime.as_str(), &addresses];
        all.extend_from_slice(settings);
        all.push(SAN);
        all.extend_from_slice(args);
        Program::start("env", &all)
    }

    /// A listener that echoes, and where it listens.
    fn listener(&self, settings: &[&str]) -> (Program, String) {
        let mut listener = self.start(
            settings,
            &["listen", "--echo", "--json", &format!("{}:0", self.1)],
        );
        let line = listener.expect("{", LIMIT);
        let report: Value = serde_json::from_str(&format!("{{{line}")).unwrap();
        let address = report["address"].as_str().unwrap().to_owned();
        (listener, address)
    }

    fn stat(&self, args: &[&str]) -> Output {
        let mut command = Command::new(SAN);
        command.arg("stat").args(args);
        command.env("XDG_RUNTIME_DIR", &self.0);
        command.output().unwrap()
    }

    fn reports(&self, pid: u32) -> Value {
        let output = self.stat(&[&pid.to_string(), "--json"]);
        assert!(output.status.success(), "{}", error_of(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn sockets(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.join("san")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect()
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text_of(output: &Output) -> String {
    assert!(output.status.success(), "{}", error_of(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// One connection that sent a line and got it back: what both ends tell.
fn both_ends_tell(fabric: &str, route: &str) {
    let setting = format!("SAN_FABRIC={fabric}");
    let place = Sandbox::new(fabric);
    let (listener, address) = place.listener(&[&setting]);
    let mut client = place.start(&[&setting], &["connect", &address]);
    client.tell("hello");
    client.expect("hello", LIMIT);

    // The server's last count is made when the client has its answer already.
    let started = Instant::now();
    let report = loop {
        let mut reports = place.reports(listener.pid());
        assert_eq!(reports.as_array().unwrap().len(), 1);
        let report = reports[0].take();
        let sent = &report["connections"][0]["counters"]["bytes_sent"];
        if sent == 6 {
            break report;
        }
        assert!(started.elapsed() < LIMIT, "{report}");
    };
    assert_eq!(report["format"], 1);
    assert_eq!(report["pid"], listener.pid());
    assert_eq!(report["program"], "san");
    let listening = &report["listeners"][0];
    assert_eq!(listening["address"], address.as_str());
    assert_eq!(listening["backlog"], 128);
    assert_eq!(listening["waiting"], 0);
    assert_eq!(listening["counters"][format!("{route}_accepted")], 1);
    let connection = &report["connections"][0];
    assert_eq!(connection["route"], route);
    assert_eq!(connection["local"], address.as_str());
    assert_eq!(connection["counters"]["bytes_received"], 6);
    assert_eq!(connection["counters"]["messages_sent"], 1);
    if route == "san" {
        let counters = &report["providers"][0]["counters"];
        assert_eq!(counters["requests"], 1);
        assert_eq!(counters["accepted"], 1);
        assert_eq!(counters["bytes_received"], 6);
        assert_eq!(listening["companions"][0]["counters"]["requests"], 1);
        assert_eq!(listening["companions"][0]["counters"]["accepted"], 1);
        assert_eq!(connection["counters"]["sends_delayed"], 0);
        assert!(connection["device"].is_string());
    }

    let other = place.reports(client.pid());
    assert_eq!(other[0]["connections"][0]["peer"], address.as_str());
    assert_eq!(other[0]["switch"][format!("connected_{route}")], 1);

    let text = text_of(&place.stat(&[&listener.pid().to_string()]));
    assert!(
        text.contains(&address) && text.contains("LISTENER"),
        "{text}"
    );
    let overview = text_of(&place.stat(&[]));
    for pid in [listener.pid(), client.pid()] {
        assert!(overview.contains(&pid.to_string()), "{overview}");
    }

    // A connection that ended is not listed any more.
    let (status, _) = client.finish(LIMIT);
    assert!(status.success());
    let started = Instant::now();
    while place.reports(listener.pid())[0]["connections"] != serde_json::json!([]) {
        assert!(
            started.elapsed() < LIMIT,
            "the connection stays in the list"
        );
    }
    // The one that ended by itself took its socket away.
    assert_eq!(place.sockets(), [format!("{}-1.sock", listener.pid())]);
}

#[test]
fn both_ends_tell_of_a_connection_over_tcp() {
    both_ends_tell("off", "tcp");
}

#[test]
fn both_ends_tell_of_a_connection_over_the_soft_fabric() {
    both_ends_tell("soft", "san");
}

/// The lines below the table: what an operator who sees nothing else goes by.
fn why_tcp(place: &Sandbox, client: &Program) -> String {
    let text = text_of(&place.stat(&[&client.pid().to_string()]));
    let lines = text
        .lines()
        .skip_while(|line| !line.starts_with("tcp, since "));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn each_reason_for_tcp_is_told_with_its_remedy() {
    let place = Sandbox::new("reasons");
    // Only TCP listens here, and the client's own endpoint answers for the SAN.
    let plain = TcpListener::bind((place.1.as_str(), 0)).unwrap();
    let there = plain.local_addr().unwrap().to_string();
    for (setting, why, remedy) in [
        (
            "SAN_FABRIC=soft",
            "no program listens on that port over RDMA",
            "-> on the peer: san stat",
        ),
        (
            "SAN_FABRIC=off",
            "SAN_FABRIC=off says so",
            "-> unset SAN_FABRIC",
        ),
        (
            "SAN_ROUTE=off",
            "the settings or the program say TCP",
            "-> see the settings: san config",
        ),
    ] {
        let mut client = place.start(&[setting], &["connect", "--json", &there]);
        client.expect(r#"{"event":"connected""#, LIMIT);
        let told = why_tcp(&place, &client);
        assert!(
            told.contains(why) && told.contains(remedy),
            "{setting}: {told}"
        );
        let report = &place.reports(client.pid())[0]["connections"][0];
        // Only one that asked the SAN is a fall-back.
        let fell_back = setting == "SAN_FABRIC=soft";
        assert_eq!(report["why"].is_string(), fell_back, "{report}");
        assert_eq!(report["not_tried"].is_string(), !fell_back, "{report}");
        assert!(report["remedy"].is_string(), "{report}");
        client.kill();
    }
}

#[test]
fn who_cannot_be_asked_is_told_why() {
    let place = Sandbox::new("why");
    let output = place.stat(&["2147483647"]);
    assert!(!output.status.success());
    assert!(error_of(&output).contains("there is no process 2147483647"));

    // This test is a process without a switch.
    let output = place.stat(&[&std::process::id().to_string()]);
    assert!(!output.status.success());
    assert!(error_of(&output).contains("has no San Direct switch"));

    let (silent, _) = place.listener(&["SAN_FABRIC=off", "SAN_STAT=off"]);
    assert!(!place.0.join("san").exists());
    let output = place.stat(&[&silent.pid().to_string()]);
    assert!(error_of(&output).contains("SAN_STAT=off"));
    assert!(text_of(&place.stat(&["--json"])).starts_with('['));
}

#[test]
fn what_a_killed_process_leaves_is_taken_away_by_the_next() {
    let place = Sandbox::new("killed");
    let (mut first, _) = place.listener(&["SAN_FABRIC=off"]);
    let left = format!("{}-1.sock", first.pid());
    first.kill();
    assert_eq!(place.sockets(), [left]);
    let output = place.stat(&[&first.pid().to_string()]);
    assert!(error_of(&output).contains("there is no process"));
    let (second, _) = place.listener(&["SAN_FABRIC=off"]);
    assert_eq!(place.sockets(), [format!("{}-1.sock", second.pid())]);
}

#[test]
fn a_directory_that_others_can_write_is_not_used() {
    let place = Sandbox::new("open");
    let directory = place.0.join("san");
    std::fs::create_dir(&directory).unwrap();
    let open = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(&directory, open).unwrap();
    // It goes on, and is found where processes without such a directory are.
    let (listener, address) = place.listener(&["SAN_FABRIC=off"]);
    assert!(place.sockets().is_empty());
    assert_eq!(
        place.reports(listener.pid())[0]["listeners"][0]["address"],
        address.as_str()
    );
}

#[test]
fn another_user_gets_nothing() {
    if program::output_of("id", &["-u"]).as_deref() != Some("0\n") {
        // Only root can become another user.
        return;
    }
    let place = Sandbox::new("user");
    let (listener, _) = place.listener(&["SAN_FABRIC=off"]);
    // Where the other user can reach it.
    let copy = place.0.join("san-copy");
    std::fs::copy(Path::new(SAN), &copy).unwrap();
    for path in [&place.0, &copy] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let asked = Command::new(&copy)
        .args(["stat", &listener.pid().to_string()])
        .env("XDG_RUNTIME_DIR", &place.0)
        .uid(65_534)
        .gid(65_534)
        .output();
    // The root of a container may have no other users.
    let Ok(output) = asked else {
        return;
    };
    assert!(!output.status.success());
    assert!(
        error_of(&output).contains("belongs to user 0"),
        "{}",
        error_of(&output)
    );
}
