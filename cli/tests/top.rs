//! `san top` in a real terminal, which tmux gives; and without one.

mod common;

use san_tests::program::{self, Program};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const SAN: &str = env!("CARGO_BIN_EXE_san");
const LIMIT: Duration = Duration::from_secs(30);

/// A tmux server of the test's own with one window, ended with it.
struct Window {
    server: String,
    directory: PathBuf,
}

impl Window {
    fn open(command: &str, width: u32, height: u32) -> Self {
        let server = format!("san-top-{}-{width}", std::process::id());
        let directory = std::env::temp_dir().join(&server);
        std::fs::create_dir_all(&directory).unwrap();
        let window = Window { server, directory };
        let (width, height) = (width.to_string(), height.to_string());
        // The end of the command is to be seen, so the window stays.
        let command = format!("{command}; echo \"it ended with $?\"; exec sleep 60");
        let args = [
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            &width,
            "-y",
            &height,
            &command,
        ];
        let output = window.tmux(&args);
        assert!(output.is_some(), "tmux makes no window");
        window
    }

    fn tmux(&self, args: &[&str]) -> Option<String> {
        let output = Command::new("tmux")
            .env("TMUX_TMPDIR", &self.directory)
            .env_remove("TMUX")
            .args(["-L", &self.server])
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(text)
    }

    fn press(&self, key: &str) {
        assert!(self.tmux(&["send-keys", key]).is_some());
    }

    /// What it shows, once that has all these words.
    fn expect(&self, words: &[&str]) -> String {
        let began = Instant::now();
        loop {
            let text = self.tmux(&["capture-pane", "-p"]).unwrap_or_default();
            if words.iter().all(|word| text.contains(word)) {
                return text;
            }
            assert!(began.elapsed() < LIMIT, "{words:?} is not in\n{text}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// A runtime directory of the test's own.
struct Sandbox(PathBuf);

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn connections_appear_while_it_runs_and_q_ends_it() {
    if program::output_of("tmux", &["-V"]).is_none() {
        eprintln!("not run: tmux is not installed");
        return;
    }
    let place = std::env::temp_dir().join(format!("san-top-place-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&place);
    std::fs::create_dir(&place).unwrap();
    let place = Sandbox(place);
    let ip = common::own_address();
    let runtime = format!("XDG_RUNTIME_DIR={}", place.0.display());
    let addresses = format!("SAN_SOFT_ADDRESSES={ip}");
    let at = format!("{ip}:0");
    let listen = [
        &runtime,
        &addresses,
        "SAN_FABRIC=soft",
        SAN,
        "listen",
        "--echo",
        "-k",
        &at,
    ];
    let mut listener = Program::start("env", &listen);
    let line = listener.expect("san: listening on ", LIMIT);
    let address = line.split(',').next().unwrap().trim().to_owned();
    let command = format!("{runtime} {SAN} top --interval 1");
    let wide = Window::open(&command, 110, 30);
    let narrow = Window::open(&format!("NO_COLOR=1 {command}"), 20, 24);
    let pid = listener.pid().to_string();
    wide.expect(&["q quit", &pid]);
    narrow.expect(&[&pid]);

    let connect = [
        &runtime,
        &addresses,
        "SAN_FABRIC=soft",
        SAN,
        "connect",
        &address,
    ];
    let mut client = Program::start("env", &connect);
    client.tell("hello");
    client.expect("hello", LIMIT);
    wide.expect(&["san soft0", &client.pid().to_string()]);
    // The order is another; it goes on after a pause.
    wide.press("s");
    wide.expect(&["sort (connections)"]);
    wide.press("Space");
    wide.expect(&["paused"]);
    wide.press("q");
    let text = wide.expect(&["it ended with 0"]);
    assert!(
        !text.contains("q quit"),
        "the terminal is not given back:\n{text}"
    );
    narrow.press("C-c");
    narrow.expect(&["it ended with 0"]);

    // Ended from outside it gives the terminal back, too.
    let file = place.0.join("pid");
    let killed = format!("sh -c 'echo $$ >{}; exec env {command}'", file.display());
    let killed = Window::open(&killed, 80, 24);
    killed.expect(&["q quit"]);
    let pid = std::fs::read_to_string(&file).unwrap();
    program::must("kill", &["-TERM", pid.trim()]);
    let text = killed.expect(&["it ended with 0"]);
    assert!(!text.contains("q quit"), "{text}");
}

#[test]
fn without_a_terminal_it_says_what_to_type_instead() {
    let output = Command::new(SAN)
        .arg("top")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("needs a terminal") && said.contains("san stat --watch 2"),
        "{said}"
    );
}
