//! `san run` before it starts a program: what it says of the program at hand, of the library and of the settings.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder that any user can read, with a copy of `san` in it. It is gone with this value.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("san-run-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        allow(&folder, 0o755);
        let folder = Folder(folder);
        // By another process: a program that this one has open for writing, if only in a child that another test has
        // just forked, cannot be run ("Text file busy").
        let mut copy = Command::new("cp");
        copy.arg(env!("CARGO_BIN_EXE_san")).arg(folder.file("san"));
        assert!(copy.status().unwrap().success());
        allow(&folder.file("san"), 0o755);
        folder
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Builds a C program, or a library, from its text.
    fn built(&self, name: &str, text: &str, options: &[&str]) -> PathBuf {
        let source = self.file(&format!("{name}.c"));
        fs::write(&source, text).unwrap();
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
        let mut command = Command::new(compiler);
        command.args(options).arg("-o").arg(self.file(name));
        let status = command.arg(source).status().expect("a C compiler");
        assert!(status.success());
        self.file(name)
    }

    /// A library that does nothing, in place of `libsan.so`.
    fn libsan(&self) -> PathBuf {
        self.built("libsan.so", "", &["-shared", "-fPIC"])
    }

    /// `san run` of the program, with this library, by a user that is not root.
    fn run(&self, library: &Path, program: &Path) -> Output {
        let mut command = match rustix::process::geteuid().is_root() {
            true => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
                command.arg(self.file("san"));
                command
            }
            false => Command::new(self.file("san")),
        };
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("SAN_") {
                command.env_remove(name);
            }
        }
        command.args(["run", "--route", "off", "--"]).arg(program);
        command.current_dir("/").env("SAN_PRELOAD", library);
        command.output().unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn allow(file: &Path, mode: u32) {
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
}

const HERE: &str =
    "#include <unistd.h>\nint main(void) { return write(1, \"here\\n\", 5) != 5; }\n";

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The program ran, and its standard error has this.
fn ran_and_was_told(output: &Output, text: &str) {
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "here\n",
        "{output:?}"
    );
    assert!(output.status.success(), "{output:?}");
    assert!(said(output).contains(text), "{}", said(output));
}

#[test]
fn a_program_that_the_library_reaches_is_run_without_a_word() {
    let folder = Folder::new("plain");
    let program = folder.built("plain", HERE, &[]);
    let output = folder.run(&folder.libsan(), &program);
    ran_and_was_told(&output, "");
    assert_eq!(said(&output), "");
}

#[test]
fn a_static_program_is_told_of_and_run() {
    let folder = Folder::new("static");
    let program = folder.built("static", HERE, &["-static"]);
    let output = folder.run(&folder.libsan(), &program);
    ran_and_was_told(
        &output,
        "static: it is linked statically: no library is loaded into it, so it uses TCP",
    );
}

/// What tells a program in Go is its linker's note; a Go compiler is not needed to write one.
#[test]
fn a_program_with_the_note_of_go_is_told_of_and_run() {
    let folder = Folder::new("go");
    let note = "__asm__(\".pushsection .note.go.buildid,\\\"a\\\",@note\\n.balign 4\\n.long 4, 4, 4\\n\
        .ascii \\\"Go\\\\0\\\\0id__\\\"\\n.popsection\\n\");\n";
    let options = ["-static", "-Wl,--build-id=none"];
    let program = folder.built("go", &format!("{note}{HERE}"), &options);
    let output = folder.run(&folder.libsan(), &program);
    ran_and_was_told(&output, "go: it is written in Go");
}

#[test]
fn a_program_of_other_rights_is_told_of_and_run() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not run: only root can give a file to another user");
        return;
    }
    for (name, mode) in [("user", 0o4755), ("group", 0o2755)] {
        let folder = Folder::new(name);
        let program = folder.built(name, HERE, &[]);
        allow(&program, mode);
        let output = folder.run(&folder.libsan(), &program);
        ran_and_was_told(&output, &format!("{name}: it is set-{name}-ID: the linker"));
    }
}

#[test]
fn a_library_for_another_processor_is_told_of_and_the_program_runs() {
    let folder = Folder::new("processor");
    let program = folder.built("processor", HERE, &[]);
    let library = folder.libsan();
    let mut bytes = fs::read(&library).unwrap();
    // The header's e_machine: that of a Cray.
    bytes[18] = 0xea;
    fs::write(&library, bytes).unwrap();
    let output = folder.run(&library, &program);
    ran_and_was_told(
        &output,
        "processor: it is for another processor than the library",
    );
}

#[test]
fn a_library_that_is_missing_or_unreadable_is_said_and_nothing_runs() {
    let folder = Folder::new("missing");
    let program = folder.built("program", HERE, &[]);
    let output = folder.run(&folder.file("libsan.so"), &program);
    for words in [
        "libsan.so is not there",
        "-p san-preload",
        "export SAN_PRELOAD=",
    ] {
        assert!(said(&output).contains(words), "{}", said(&output));
    }
    let library = folder.libsan();
    allow(&library, 0);
    let unreadable = folder.run(&library, &program);
    assert!(
        said(&unreadable).contains("cannot read") && said(&unreadable).contains("ls -ld"),
        "{}",
        said(&unreadable)
    );
    for output in [output, unreadable] {
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_setting_that_cannot_be_is_one_line_and_the_program_runs() {
    let folder = Folder::new("setting");
    let program = folder.built("setting", HERE, &[]);
    let mut command = Command::new(folder.file("san"));
    command.args(["run", "--"]).arg(program);
    command.env("SAN_PRELOAD", folder.libsan());
    command.env("SAN_FABRIC", "sideways");
    let output = command.output().unwrap();
    ran_and_was_told(&output, "san: everything goes over TCP: SAN_FABRIC");
    assert_eq!(said(&output).lines().count(), 1, "{}", said(&output));
}

#[test]
fn what_cannot_be_run_or_read_is_said_with_what_mends_it() {
    let folder = Folder::new("unusable");
    let library = folder.libsan();
    let no_program = folder.file("text");
    fs::write(&no_program, "not a program").unwrap();
    allow(&no_program, 0o644);
    let no_interpreter = folder.file("script");
    fs::write(&no_interpreter, "#!/no/such/interpreter\n").unwrap();
    allow(&no_interpreter, 0o755);
    let path = |path: &Path| path.to_string_lossy().into_owned();
    let (text, script) = (path(&no_program), path(&no_interpreter));
    for (args, what, remedy) in [
        (
            &["--", "no-such-program"][..],
            "there is no program no-such-program",
            "echo $PATH",
        ),
        (
            &["--", "/no/such/program"],
            "there is no program /no/such/program",
            "ls -la /no/such",
        ),
        (&["--", &text], "cannot run", "ls -l /"),
        (
            &["--libary", "/x", "--", "true"],
            "san run has no option --libary",
            "san run --help",
        ),
        (&["--", &script], "cannot run", "its first line (#!)"),
        (
            &["--key", "/no/such/key", "--", "true"],
            "cannot use the key file /no/such/key",
            "openssl rand -hex 32 > /no/such/key",
        ),
        (
            &["--key", &text, "--", "true"],
            "cannot use the key file",
            "see who may: id; ls -ld",
        ),
        (
            &["--rules", "/no/such/rules", "--", "true"],
            "cannot read the rules /no/such/rules",
            "ls -la /no/such",
        ),
    ] {
        let output = Command::new(folder.file("san"))
            .args(["run", "--route", "off"])
            .args(args)
            .env("SAN_PRELOAD", &library)
            .output()
            .unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        let (first, second) = said.split_once("\n     ").unwrap_or((&said, ""));
        assert!(
            first.starts_with("san: ") && first.contains(what) && second.contains(remedy),
            "{args:?}: {said}"
        );
    }
}
