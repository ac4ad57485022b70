//! Runs both ends under callgrind, and takes what it wrote between the marks.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use san_benches::Result;
use san_benches::server::Server;
use san_instructions::callgrind::Profile;

use crate::{Layer, Subject, ends};

/// Repetitions that are not counted, then those of the short and of the long run: what counts is the difference.
pub(crate) const MESSAGES: [u32; 3] = [50, 50, 250];
pub(crate) const CONNECTS: [u32; 3] = [3, 3, 9];

/// What one repetition of a subject costs either end.
#[derive(Debug)]
pub(crate) struct Counted {
    pub(crate) subject: Subject,
    pub(crate) client: Profile,
    pub(crate) server: Profile,
}

/// Counts the subjects on a layer. `folder` takes what callgrind writes.
pub(crate) fn layer(
    layer: Layer,
    subjects: &[Subject],
    server: IpAddr,
    folder: &Path,
) -> Result<Vec<Counted>> {
    let files = ["client", "server"].map(|end| folder.join(format!("{}-{end}", layer.name())));
    run(layer, subjects, server, &files)?;
    let mut counted = Vec::new();
    for (n, &subject) in subjects.iter().enumerate() {
        let [_, short, long] = subject.counts();
        let each = |file: &Path| -> Result<Profile> {
            let (short_run, long_run) = (dump(file, n * 3 + 2)?, dump(file, n * 3 + 3)?);
            Ok(long_run.more_than(&short_run, f64::from(long - short)))
        };
        counted.push(Counted {
            subject,
            client: each(&files[0])?,
            server: each(&files[1])?,
        });
    }
    Ok(counted)
}

/// The `n`th dump of callgrind, from 1.
fn dump(file: &Path, n: usize) -> Result<Profile> {
    let name = format!("{}.{n}", file.display());
    let text = std::fs::read_to_string(&name).map_err(|e| format!("{name}: {e}"))?;
    Ok(Profile::parse(&text).map_err(|e| format!("{name}: {e}"))?)
}

/// Both ends do everything once.
fn run(
    layer: Layer,
    subjects: &[Subject],
    address: IpAddr,
    [client_file, server_file]: &[PathBuf; 2],
) -> Result<()> {
    let args = ["serve", layer.name(), &address.to_string()].map(String::from);
    let (mut server, port) = start(server_file, &args)?;
    let to = SocketAddr::new(address, port.parse()?).to_string();
    let args = ["dial", layer.name(), &to].map(String::from);
    let (mut client, _) = start(client_file, &args)?;
    let mut ended = 0;
    for &subject in subjects {
        if let Subject::Message(_) = subject {
            tell(&mut client, "open", "done")?;
        }
        for count in subject.counts() {
            match subject {
                Subject::Message(size) => {
                    tell(&mut client, &format!("ping {size} {count}"), "done")?;
                }
                Subject::Connect => {
                    tell(&mut client, &format!("connects {count}"), "done")?;
                    ended += count;
                    tell(&mut server, &format!("ended {ended}"), "done")?;
                }
            }
            tell(&mut client, "mark", ends::MARKED)?;
            tell(&mut server, "mark", ends::MARKED)?;
        }
        if let Subject::Message(_) = subject {
            tell(&mut client, "close", "done")?;
            ended += 1;
            tell(&mut server, &format!("ended {ended}"), "done")?;
        }
    }
    Ok(())
}

fn tell(end: &mut Server, command: &str, expected: &str) -> Result<()> {
    match end.ask(command)? {
        answer if answer == expected => Ok(()),
        answer => Err(format!("{command}: {answer}").into()),
    }
}

/// Callgrind, which is to run a program and to write into `file`.
pub(crate) fn callgrind(file: &Path) -> Command {
    let mut command = Command::new("valgrind");
    command.args(["-q", "--tool=callgrind", "--collect-systime=yes"]);
    command.args(["--compress-strings=no", "--compress-pos=no"]);
    command.arg("--dump-before=*callgrind_mark*");
    command.arg(format!("--callgrind-out-file={}", file.display()));
    command
}

fn start(file: &Path, args: &[String]) -> Result<(Server, String)> {
    let mut command = callgrind(file);
    command.arg(std::env::current_exe()?).args(args);
    Server::start_as(command, args.join(" "))
}
