//! `san config` as an operator has it.

use serde_json::Value;
use std::io::Write;
use std::process::{Command, Output};

fn config(settings: &[(&str, &str)], args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_san"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SAN_") {
            command.env_remove(name);
        }
    }
    command.arg("config").args(args);
    command.envs(settings.iter().copied()).output().unwrap()
}

#[test]
fn each_setting_is_shown_with_where_it_came_from() {
    let path = std::env::temp_dir().join(format!("san-config-{}", std::process::id()));
    let mut file = std::fs::File::create(&path).unwrap();
    writeln!(file, "# a comment\nSAN_BACKLOG = 16").unwrap();
    let path = path.to_str().unwrap();
    let output = config(&[("SAN_CONFIG", path), ("SAN_FABRIC", "soft")], &[]);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let row = |name: &str| {
        let mut lines = text.lines().filter(|line| line.starts_with(name));
        let line = lines.next().unwrap_or_else(|| panic!("{name}: {text}"));
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    assert_eq!(row("SAN_FABRIC "), ["SAN_FABRIC", "soft", "environment"]);
    assert_eq!(
        row("SAN_BACKLOG"),
        ["SAN_BACKLOG", "16", &format!("{path}:2")]
    );
    assert_eq!(row("SAN_STAT"), ["SAN_STAT", "on", "default"]);

    let output = config(&[("SAN_CONFIG", path)], &["--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut settings = report["settings"].as_array().unwrap().iter();
    let backlog = settings.find(|one| one["name"] == "SAN_BACKLOG").unwrap();
    assert_eq!(backlog["source"]["file"]["line"], 2);
    let _ = std::fs::remove_file(path);
}

#[test]
fn a_bad_value_names_itself_and_hides_no_other() {
    let settings = [
        ("SAN_BACKLOG", "0"),
        ("SAN_STRICT", "yes"),
        ("SAN_FABRC", "soft"),
    ];
    let output = config(&settings, &["--allowed"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    for line in [
        "SAN_BACKLOG is '0' (environment), but must be a number from 1 to 4096",
        "SAN_STRICT is 'yes' (environment), but must be 1, 0, true or false",
        "SAN_FABRC is not a setting, and nothing reads it; did you mean SAN_FABRIC?",
    ] {
        assert!(said.contains(line), "{said}");
    }
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("auto, rdma, soft or off"), "{text}");
    let output = config(&[("SAN_CONFIG", "/no/such/file")], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("/no/such/file")
    );
}

/// The page for operators has what the code has: names, defaults and what is allowed.
#[test]
fn the_page_of_settings_is_that_of_the_code() {
    let output = config(&[], &["--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let settings = report["settings"].as_array().unwrap();
    let wanted: Vec<[String; 3]> = settings
        .iter()
        .map(|one| {
            let name = format!("`{}`", text(&one["name"]));
            [name, text(&one["value"]), text(&one["allowed"])]
        })
        .collect();

    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/settings.md");
    let page = std::fs::read_to_string(path).unwrap();
    let is_head = |line: &str| line.starts_with("| setting | default | allowed |");
    let before = page.lines().position(is_head).unwrap() + 2;
    let lines: Vec<&str> = page.lines().collect();
    let end = before
        + lines[before..]
            .iter()
            .take_while(|line| line.starts_with('|'))
            .count();
    let cells = |line: &str| -> Vec<String> {
        let line = line.trim_matches(|c: char| c == '|' || c == ' ');
        line.splitn(4, '|')
            .map(|cell| cell.trim().to_owned())
            .collect()
    };
    let rows: Vec<Vec<String>> = lines[before..end].iter().map(|line| cells(line)).collect();
    for row in &rows {
        assert!(
            row.len() == 4 && !row[3].is_empty(),
            "what does it do? {row:?}"
        );
    }
    if std::env::var_os("SAN_TEST_WRITE").is_some() {
        let meaning = |name: &str| {
            let row = rows.iter().find(|row| row[0] == name);
            row.map_or("", |row| &row[3])
        };
        let table = wanted.iter().map(|[name, value, allowed]| {
            format!("| {name} | {value} | {allowed} | {} |", meaning(name))
        });
        let (head, tail) = (lines[..before].iter(), lines[end..].iter());
        let owned = |line: &&str| (*line).to_owned();
        let all: Vec<String> = head
            .map(owned)
            .chain(table)
            .chain(tail.map(owned))
            .collect();
        std::fs::write(path, all.join("\n") + "\n").unwrap();
        return;
    }
    let found: Vec<&[String]> = rows.iter().map(|row| &row[..3]).collect();
    let wanted: Vec<&[String]> = wanted.iter().map(|row| &row[..]).collect();
    assert_eq!(
        found, wanted,
        "SAN_TEST_WRITE=1 cargo test -p san-cli --test config writes docs/settings.md"
    );
}

#[test]
fn a_setting_that_is_wrong_is_said_with_what_shows_all_of_them() {
    for args in [
        &["connect", "127.0.0.1:9"][..],
        &["listen", "127.0.0.1:0"],
        &["ping", "127.0.0.1:9"],
        &["perf", "127.0.0.1:9"],
        &["devices"],
        &["demo"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_san"))
            .args(args)
            .env("SAN_BACKLOG", "many")
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(
            said.starts_with("san: SAN_BACKLOG is 'many'")
                && said.ends_with("\n     see every setting that is wrong: san config\n"),
            "{args:?}: {said}"
        );
    }
}
