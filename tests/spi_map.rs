//! Keeps `docs/spi-map.md` true. Runs anywhere.
//!
//! It does not run the tests that the table names; it only looks that they are there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Folders whose sources may hold tests of duties.
const SOURCES: [&str; 5] = ["tests", "provider", "switch", "verbs-shim", "soft-roce"];
/// Numbers that no duty has.
const UNUSED: [u32; 4] = [62, 94, 98, 111];

struct Row {
    duty: u32,
    text: String,
    tests: Vec<String>,
    state: String,
}

#[test]
fn every_duty_has_one_row() {
    let mut seen = BTreeSet::new();
    for row in table() {
        assert!(seen.insert(row.duty), "duty {} stands twice", row.duty);
        assert!(!row.text.is_empty(), "duty {} says nothing", row.duty);
    }
    let expected: BTreeSet<u32> = (1..=121).filter(|duty| !UNUSED.contains(duty)).collect();
    assert_eq!(seen, expected);
}

#[test]
fn every_state_is_one_of_three_and_what_holds_has_a_test() {
    for Row {
        duty, tests, state, ..
    } in table()
    {
        match state.as_str() {
            "holds" => assert!(!tests.is_empty(), "duty {duty} holds, but no test shows it"),
            "open" => {}
            other => assert!(
                other
                    .strip_prefix("does not apply on Linux because ")
                    .is_some_and(|why| why.len() > 10),
                "duty {duty} has the state '{other}'"
            ),
        }
    }
}

#[test]
fn every_named_test_exists() {
    let existing = tests_in_sources();
    for Row { duty, tests, .. } in table() {
        for test in tests {
            assert!(
                existing.contains_key(&test),
                "duty {duty} names the test {test}, which does not exist"
            );
        }
    }
}

#[test]
fn every_test_of_a_duty_stands_in_its_row() {
    let rows: BTreeMap<u32, Row> = table().into_iter().map(|row| (row.duty, row)).collect();
    let mut missing = Vec::new();
    for (test, file) in tests_in_sources() {
        let Some(rest) = test.strip_prefix("wsd_") else {
            continue;
        };
        let duty: u32 = rest
            .split('_')
            .next()
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("{test} in {file} has no number"));
        let row = rows
            .get(&duty)
            .unwrap_or_else(|| panic!("{test} in {file}: there is no duty {duty}"));
        if !row.tests.contains(&test) {
            missing.push(format!("{duty}: {test} ({file})"));
        }
    }
    assert!(
        missing.is_empty(),
        "tests that do not stand in the row of their duty:\n{}",
        missing.join("\n")
    );
}

/// The rows of all tables of the document: `| 80 | text | `test` | state |`.
fn table() -> Vec<Row> {
    let text = fs::read_to_string(root().join("docs/spi-map.md")).expect("docs/spi-map.md");
    let mut rows = Vec::new();
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let Ok(duty) = cells[0].parse() else {
            assert!(
                matches!(cells[0], "duty" | "---"),
                "a row without a number: {line}"
            );
            continue;
        };
        assert_eq!(cells.len(), 4, "a row has four cells: {line}");
        let tests = cells[2]
            .split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect();
        rows.push(Row {
            duty,
            text: cells[1].to_owned(),
            tests,
            state: cells[3].to_owned(),
        });
    }
    rows
}

/// Names of all `#[test]` functions in the sources, with the file each stands in.
fn tests_in_sources() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for folder in SOURCES {
        read_folder(&root().join(folder), &mut found);
    }
    assert!(
        found.contains_key("every_duty_has_one_row"),
        "this file was not found: {found:?}"
    );
    found
}

fn read_folder(folder: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .flatten()
    {
        let path = entry.path();
        if path.is_dir() {
            if entry.file_name() != "target" {
                read_folder(&path, found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            read_file(&path, found);
        }
    }
}

fn read_file(path: &Path, found: &mut BTreeMap<String, String>) {
    let text =
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut marked = false;
    for line in text.lines().map(str::trim) {
        if line == "#[test]" {
            marked = true;
        } else if let Some(rest) = line.strip_prefix("fn ") {
            if marked && let Some(name) = rest.split('(').next() {
                found.insert(name.to_owned(), path.display().to_string());
            }
            marked = false;
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
}
