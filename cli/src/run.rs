//! `san run`: a program with `libsan.so` in it.
//!
//! It finds the library and the program, says what would keep the two apart, and becomes the program.
//! What the library does is decided in the switch.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use san_switch::{DeploymentKey, FabricChoice, Rules, RulesError, SwitchConfig};
use verbs_shim::Fabric;

use crate::args::RunArguments;
use crate::output::tell;
use crate::problem::Problem;

/// The library's file.
const LIBRARY: &str = "libsan.so";
/// Less memory than this to be locked is too little for a NIC's buffers.
const LEAST_MEMLOCK: u64 = 64 << 20;

/// Runs the program in place of this one.
pub(crate) fn run(arguments: &RunArguments) -> Result<ExitCode, Problem> {
    let (name, rest) = arguments.program.split_first().expect("clap asks for one");
    let library = library()?;
    let program = find(name)?;
    for line in hindrances(&program, &library) {
        tell!("san: {}: {line}", name.to_string_lossy());
    }
    let mut route = arguments.route.as_str();
    if route != "off" {
        let lines = match SwitchConfig::from_env() {
            Ok(config) => machine(&config),
            Err(error) => {
                // Said here, and not again by each process of the program.
                route = "off";
                vec![format!("everything goes over TCP: {error}")]
            }
        };
        for line in lines {
            tell!("san: {line}");
        }
    }
    let files = files(arguments)?;
    let mut command = Command::new(&program);
    command.arg0(name).args(rest);
    command.env(
        "LD_PRELOAD",
        preload(&library, std::env::var_os("LD_PRELOAD")),
    );
    command.env("SAN_ROUTE", route);
    command.envs(files);
    if arguments.report {
        command.env("SAN_REPORT", "-");
    }
    let error = command.exec();
    let problem = Problem::new(format!("cannot run {}: {error}", program.display()));
    Err(match error.kind() {
        // It is there: `find` has seen it.
        io::ErrorKind::PermissionDenied => problem.with_remedy(format!(
            "it is no program, or this user may not run it; see: ls -l {0}; file {0}",
            program.display()
        )),
        io::ErrorKind::NotFound => problem.with_remedy(format!(
            "what runs it is not there: its first line (#!), or its dynamic linker; see: file {}",
            program.display()
        )),
        _ => problem,
    })
}

/// The settings that name files, which are looked at here: in the program nobody reads its complaint.
fn files(arguments: &RunArguments) -> Result<Vec<(&'static str, PathBuf)>, Problem> {
    let mut settings = Vec::new();
    if let Some(path) = &arguments.rules {
        Rules::from_file(path).map_err(|error| match &error {
            RulesError::Unreadable(why) => Problem::of_file("cannot read the rules", path, why),
            _ => Problem::new(format!("--rules {}: {error}", path.display()))
                .with_remedy("a line is such as: use direct listen redis-server *:6379"),
        })?;
        settings.push(("SAN_RULES", path));
    }
    if let Some(path) = &arguments.key {
        DeploymentKey::from_file(path).map_err(|error| {
            let problem = Problem::of_file("cannot use the key file", path, &error);
            match error.kind() {
                io::ErrorKind::NotFound => problem.with_remedy(format!(
                    "make one, and give all hosts the same: (umask 077; openssl rand -hex 32 > {})",
                    path.display()
                )),
                _ => problem,
            }
        })?;
        settings.push(("SAN_KEY_FILE", path));
    }
    // The program may change its directory before they are read.
    let absolute = |(name, path): (_, &PathBuf)| {
        let path = std::path::absolute(path);
        path.map(|path| (name, path))
            .map_err(|error| Problem::new(format!("the current directory: {error}")))
    };
    settings.into_iter().map(absolute).collect()
}

/// The library beside what is loaded already, which goes on being loaded.
fn preload(library: &Path, before: Option<OsString>) -> OsString {
    let mut list = library.as_os_str().to_owned();
    if let Some(before) = before.filter(|before| !before.is_empty()) {
        list.push(":");
        list.push(before);
    }
    list
}

/// `SAN_PRELOAD`, or the file beside this program or in the `lib` next to its folder.
fn library() -> Result<PathBuf, Problem> {
    let candidates = match std::env::var_os("SAN_PRELOAD") {
        Some(path) => vec![PathBuf::from(path)],
        None => {
            let own = std::env::current_exe()
                .map_err(|error| Problem::new(format!("cannot find myself: {error}")))?;
            let folder = own.parent().unwrap_or(Path::new("/"));
            let near = ["", "../lib", "../lib/san"];
            near.map(|near| folder.join(near).join(LIBRARY)).into()
        }
    };
    let found = candidates.iter().find_map(|path| path.canonicalize().ok());
    let Some(found) = found else {
        let looked: Vec<_> = candidates
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        let text = format!("{LIBRARY} is not there; looked for {}", looked.join(", "));
        return Err(Problem::new(text).with_remedy(format!(
            "build it beside san: cargo build --release -p san-cli -p san-preload; or say where it is: export \
             SAN_PRELOAD=/FOLDER/{LIBRARY}"
        )));
    };
    let path = found.to_string_lossy();
    // The dynamic linker takes both for the end of a name.
    if path.contains([' ', ':']) {
        let text = format!("'{path}' cannot be preloaded: its name has a space or a colon");
        return Err(Problem::new(text).with_remedy(format!(
            "copy it to another folder, and: export SAN_PRELOAD=/FOLDER/{LIBRARY}"
        )));
    }
    File::open(&found).map_err(|error| Problem::of_file("cannot read", &found, &error))?;
    Ok(found)
}

/// The program's file, as the shell finds it.
fn find(name: &OsStr) -> Result<PathBuf, Problem> {
    let is_path = Path::new(name).components().count() > 1;
    let found = match is_path {
        true => Some(PathBuf::from(name)).filter(|path| path.exists()),
        false => {
            let path = std::env::var_os("PATH").unwrap_or_default();
            let mut all = std::env::split_paths(&path).map(|folder| folder.join(name));
            all.find(|file| is_executable(file))
        }
    };
    found.ok_or_else(|| {
        let name = name.to_string_lossy();
        if name.starts_with('-') {
            let remedy = "see which there are: san run --help; the options of the program stand behind \
                 its name: san run -- PROGRAM OPTIONS";
            return Problem::new(format!("san run has no option {name}")).with_remedy(remedy);
        }
        let remedy = match is_path {
            true => format!(
                "see what is there: ls -la {}",
                Path::new(name.as_ref())
                    .parent()
                    .unwrap_or(Path::new("/"))
                    .display()
            ),
            false => format!(
                "no folder of PATH has it: echo $PATH; give the whole path, or install {name}"
            ),
        };
        Problem::new(format!("there is no program {name}")).with_remedy(remedy)
    })
}

fn is_executable(file: &Path) -> bool {
    let metadata = file.metadata();
    metadata.is_ok_and(|of| of.is_file() && of.permissions().mode() & 0o111 != 0)
}

/// What keeps the library out of this program.
fn hindrances(program: &Path, library: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let Ok(metadata) = program.metadata() else {
        return lines;
    };
    if let Some(how) = gains_rights(program, &metadata) {
        lines.push(format!(
            "it {how}: the linker loads no library into it, so it uses TCP"
        ));
    }
    let mut head = vec![0; 64 * 1024];
    let Ok(read) = File::open(program).and_then(|mut file| file.read(&mut head)) else {
        return lines;
    };
    head.truncate(read);
    if let Some(interpreter) = script(&head) {
        return hindrances(&interpreter, library);
    }
    match Elf::parse(&head) {
        None => {}
        Some(elf) if Some(elf.machine) != machine_of(library) => lines.push(
            "it is for another processor than the library: it will not be loaded, so it uses TCP"
                .to_owned(),
        ),
        Some(elf) if elf.is_go => lines.push(
            "it is written in Go, which calls the system itself: the library does not see its sockets, so it uses TCP"
                .to_owned(),
        ),
        Some(elf) if !elf.has_interpreter => lines.push(
            "it is linked statically: no library is loaded into it, so it uses TCP".to_owned(),
        ),
        Some(_) => {}
    }
    lines
}

/// How the caller would get rights by a program that he has not himself.
fn gains_rights(program: &Path, metadata: &Metadata) -> Option<&'static str> {
    use rustix::process::{getegid, geteuid};
    let mode = metadata.permissions().mode();
    if mode & 0o4000 != 0 && metadata.uid() != geteuid().as_raw() {
        return Some("is set-user-ID");
    }
    if mode & 0o2000 != 0 && metadata.gid() != getegid().as_raw() {
        return Some("is set-group-ID");
    }
    let mut value = [0; 64];
    let capabilities = rustix::fs::getxattr(program, "security.capability", &mut value[..]);
    (capabilities.is_ok() && !geteuid().is_root()).then_some("has capabilities of its file")
}

fn machine_of(file: &Path) -> Option<u16> {
    let mut head = [0; 4096];
    let read = File::open(file)
        .and_then(|mut file| file.read(&mut head))
        .ok()?;
    Elf::parse(&head[..read]).map(|elf| elf.machine)
}

/// The interpreter in a script's first line.
fn script(head: &[u8]) -> Option<PathBuf> {
    let line = head
        .strip_prefix(b"#!")?
        .split(|byte| *byte == b'\n')
        .next()?;
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_ascii_whitespace();
    let first = words.next()?;
    // `env` runs what comes after it.
    if Path::new(first).file_name()? == "env" {
        let program = words.find(|word| !word.starts_with('-'))?;
        return find(OsStr::new(program)).ok();
    }
    Some(PathBuf::from(first))
}

/// What matters here of an ELF file.
#[derive(Debug, PartialEq, Eq)]
struct Elf {
    machine: u16,
    has_interpreter: bool,
    is_go: bool,
}

impl Elf {
    /// Reads the beginning of a 64-bit little-endian file; `None` for any other.
    fn parse(head: &[u8]) -> Option<Self> {
        const INTERP: u32 = 3;
        const NOTE: u32 = 4;
        let magic = head.get(..6)?;
        if magic != b"\x7fELF\x02\x01" {
            return None;
        }
        let half = |at: usize| Some(u16::from_le_bytes(head.get(at..at + 2)?.try_into().ok()?));
        let word = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
        let long = |at: usize| {
            let long = u64::from_le_bytes(head.get(at..at + 8)?.try_into().ok()?);
            usize::try_from(long).ok()
        };
        let (table, size, count) = (long(32)?, usize::from(half(54)?), half(56)?);
        let mut elf = Elf {
            machine: half(18)?,
            has_interpreter: false,
            is_go: false,
        };
        for index in 0..usize::from(count) {
            let at = table.checked_add(index.checked_mul(size)?)?;
            let Some(kind) = word(at) else { break };
            elf.has_interpreter |= kind == INTERP;
            if kind == NOTE {
                let field = |offset: usize| long(at.checked_add(offset)?);
                let (place, length, align) = (field(8)?, field(32)?, field(48)?);
                let notes = head.get(place..place.saturating_add(length));
                elf.is_go |= notes.is_some_and(|notes| has_note_of_go(notes, align));
            }
        }
        Some(elf)
    }
}

/// Whether one of these notes is Go's. A note is three words, the first two of them lengths, then a name and what it
/// says, each filled up to the alignment.
fn has_note_of_go(mut notes: &[u8], align: usize) -> bool {
    let padded = |length: usize| length.checked_next_multiple_of(align.max(4));
    loop {
        let word = |at: usize| {
            let word = notes.get(at..at + 4)?.try_into().ok()?;
            usize::try_from(u32::from_le_bytes(word)).ok()
        };
        let (Some(name), Some(rest)) = (word(0), word(4)) else {
            return false;
        };
        if notes.get(12..16) == Some(b"Go\0\0") {
            return true;
        }
        let end = |at: usize, length: usize| padded(at.checked_add(length)?);
        let next = end(12, name).and_then(|at| end(at, rest));
        match next.and_then(|next| notes.get(next..)) {
            Some(after) => notes = after,
            None => return false,
        }
    }
}

/// What keeps this machine's connections on TCP.
fn machine(config: &SwitchConfig) -> Vec<String> {
    let mut lines = Vec::new();
    match config.fabric {
        FabricChoice::Off => lines.push("SAN_FABRIC=off: everything goes over TCP".to_owned()),
        FabricChoice::Soft => {}
        _ => {
            if let Err(error) = Fabric::rdma() {
                lines.push(format!("everything goes over TCP: {error}"));
            } else if let Some(limit) = memlock()
                && limit < LEAST_MEMLOCK
            {
                lines.push(format!(
                    "{} KiB of memory may be locked, too little for a NIC's buffers (ulimit -l)",
                    limit / 1024
                ));
            }
        }
    }
    lines
}

/// Bytes that may be locked; `None`: any number, or root asks, whom the kernel does not limit.
fn memlock() -> Option<u64> {
    use rustix::process::{Resource, getrlimit};
    match rustix::process::geteuid().is_root() {
        true => None,
        false => getrlimit(Resource::Memlock).current,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_preloaded_stays() {
        let library = Path::new("/opt/libsan.so");
        assert_eq!(preload(library, None), "/opt/libsan.so");
        assert_eq!(preload(library, Some("".into())), "/opt/libsan.so");
        assert_eq!(
            preload(library, Some("/a.so b.so".into())),
            "/opt/libsan.so:/a.so b.so"
        );
    }

    #[test]
    fn files_of_settings_are_looked_at_before_the_program_runs() {
        let folder = std::env::temp_dir().join(format!("san-run-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (rules, key) = (folder.join("rules"), folder.join("key"));
        let arguments = RunArguments {
            route: "direct".to_owned(),
            report: false,
            rules: Some(rules.clone()),
            key: Some(key.clone()),
            program: vec!["true".into()],
        };
        let said = || files(&arguments).unwrap_err().to_string();
        assert!(said().contains("No such file"), "{}", said());
        std::fs::write(&rules, "use off listen sshd *:22\nuse it").unwrap();
        assert!(said().contains("line 2, 'use it'"), "{}", said());
        std::fs::write(&rules, "use off listen sshd *:22").unwrap();
        std::fs::write(&key, "secret").unwrap();
        assert!(said().contains("chmod 600"), "{}", said());
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
        let files = files(&arguments).unwrap();
        assert_eq!(files, [("SAN_RULES", rules), ("SAN_KEY_FILE", key)]);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn this_test_is_a_program_that_the_library_reaches() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let elf = Elf::parse(&own).unwrap();
        assert!(elf.has_interpreter && !elf.is_go, "{elf:?}");
    }

    #[test]
    fn static_and_go_programs_are_told_by_their_headers() {
        // A header with one entry: nothing, an interpreter, Go's note.
        let file = |kind: u32| {
            let mut bytes = vec![0; 160];
            bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
            bytes[18] = 62;
            bytes[32] = 64;
            bytes[54] = 56;
            bytes[56] = 1;
            bytes[64..68].copy_from_slice(&kind.to_le_bytes());
            bytes[72] = 128;
            bytes[96] = 32;
            bytes[112] = 4;
            bytes[140..144].copy_from_slice(b"Go\0\0");
            bytes
        };
        let parsed = |kind| Elf::parse(&file(kind)).unwrap();
        let told = |kind| (parsed(kind).has_interpreter, parsed(kind).is_go);
        assert_eq!(told(1), (false, false));
        assert_eq!(told(3), (true, false));
        assert_eq!(told(4), (false, true));
        assert_eq!(parsed(1).machine, 62);
    }

    #[test]
    fn what_is_no_whole_header_is_no_program() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for length in 0..200 {
            let _ = Elf::parse(&own[..length]);
        }
        assert_eq!(Elf::parse(b"#!/bin/sh\n"), None);
        assert_eq!(
            script(b"#!/usr/bin/env -S sh -e\n"),
            find(OsStr::new("sh")).ok()
        );
        assert_eq!(
            script(b"#! /bin/sh -e\nexit"),
            Some(PathBuf::from("/bin/sh"))
        );
        assert_eq!(script(b"\x7fELF"), None);
    }
}
