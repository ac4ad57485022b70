//! What the library exports: its hooks, and nothing else.

use std::process::Command;

const HOOKS: &str = "_Exit __dprintf_chk __poll_chk __ppoll_chk __read_chk __recv_chk __recvfrom_chk __vdprintf_chk _exit accept \
    accept4 close close_range closefrom connect dprintf dup dup2 dup3 epoll_create epoll_create1 epoll_ctl \
    epoll_pwait epoll_pwait2 epoll_wait execl execle execlp execv execve execvp execvpe fcntl fcntl64 fdopen \
    fexecve fileno fileno_unlocked getpeername getsockname getsockopt ioctl listen poll popen posix_spawn \
    posix_spawn_file_actions_adddup2 posix_spawnp ppoll pselect pthread_create read readv recv recvfrom recvmmsg recvmsg select \
    send sendfile sendfile64 sendmmsg sendmsg sendto setsockopt shutdown sockatmark splice syscall system vdprintf write \
    writev";

#[test]
fn nothing_is_exported_that_is_no_hook() {
    let output = Command::new("nm")
        .args(["-D", "--defined-only", "--format=just-symbols"])
        .arg(crate::support::library())
        .output()
        .expect("nm of the binutils");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let exported: Vec<_> = text.lines().collect();
    let hooks: Vec<_> = HOOKS.split_whitespace().collect();
    assert_eq!(exported, hooks);
}
