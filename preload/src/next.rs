//! The functions behind the hooks: those of the next library that has the name, mostly libc.
//!
//! They are called rather than the kernel itself, so that a program without SAN connections gets
//! what it had: libc's cancellation points, its errors, the checks of `_FORTIFY_SOURCE`, and the
//! hooks of other preloaded libraries.

use std::ffi::{CStr, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// One function of the next library.
pub(crate) struct Next {
    name: &'static CStr,
    /// Null until it was looked up.
    address: AtomicPtr<c_void>,
}

impl Next {
    pub(crate) const fn new(name: &'static CStr) -> Self {
        Self {
            name,
            address: AtomicPtr::new(ptr::null_mut()),
        }
    }

    /// The function's address; null if no other library has it.
    #[inline]
    pub(crate) fn address(&self) -> *mut c_void {
        let address = self.address.load(Ordering::Relaxed);
        if address.is_null() {
            return self.look_up();
        }
        address
    }

    #[cold]
    #[inline(never)]
    fn look_up(&self) -> *mut c_void {
        // SAFETY: the name is a C string. The linker looks behind this library, whose code asks.
        let address = unsafe { libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr()) };
        self.address.store(address, Ordering::Relaxed);
        address
    }
}

/// Looks all functions up, so that none is looked up later in a signal handler or in a child that
/// `vfork` made. Before that each is looked up when it is first called.
pub(crate) fn look_all_up() {
    for next in ALL {
        next.address();
    }
}

/// Sets errno.
pub(crate) fn set_errno(errno: c_int) {
    // SAFETY: libc gives the address of this thread's errno.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: it is valid as long as the thread, and no other thread has it.
    unsafe { *place = errno };
}

/// This thread's errno.
pub(crate) fn errno() -> c_int {
    // SAFETY: libc gives the address of this thread's errno.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: it is valid as long as the thread, and no other thread has it.
    unsafe { *place }
}

/// Declares functions of the next library. A function that there is not says ENOSYS.
macro_rules! next_functions {
    ($( $name:ident($($argument:ident: $kind:ty),*) -> $result:ty; )*) => {
        /// Where the functions are.
        #[allow(non_upper_case_globals, reason = "they have the functions' names")]
        mod addresses {
            use super::Next;
            $(
                pub(super) static $name: Next = Next::new(
                    match CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                        Ok(name) => name,
                        Err(_) => panic!("a name has no zero inside"),
                    }
                );
            )*
            use std::ffi::CStr;
        }

        static ALL: &[&Next] = &[$( &addresses::$name, )*];

        $(
            /// The next library's function.
            ///
            /// # Safety
            /// As that function's.
            #[inline]
            pub(crate) unsafe fn $name($($argument: $kind),*) -> $result {
                let address = addresses::$name.address();
                if address.is_null() {
                    set_errno(libc::ENOSYS);
                    return -1;
                }
                type Function = unsafe extern "C-unwind" fn($($kind),*) -> $result;
                // SAFETY: the library that has the name has the function of libc's headers.
                let function = unsafe { std::mem::transmute::<*mut c_void, Function>(address) };
                // SAFETY: the caller keeps what the function asks.
                unsafe { function($($argument),*) }
            }
        )*
    };
}

use libc::{
    epoll_event, fd_set, iovec, loff_t, mmsghdr, msghdr, nfds_t, off_t, off64_t, pollfd, sigset_t,
    size_t, sockaddr, socklen_t, ssize_t, timespec, timeval,
};
use std::ffi::{c_char, c_long, c_uint, c_ulong};

next_functions! {
    listen(fd: c_int, backlog: c_int) -> c_int;
    accept(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int;
    accept4(fd: c_int, address: *mut sockaddr, length: *mut socklen_t, flags: c_int) -> c_int;
    connect(fd: c_int, address: *const sockaddr, length: socklen_t) -> c_int;
    shutdown(fd: c_int, how: c_int) -> c_int;
    getsockname(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int;
    getpeername(fd: c_int, address: *mut sockaddr, length: *mut socklen_t) -> c_int;
    getsockopt(fd: c_int, level: c_int, name: c_int, value: *mut c_void, length: *mut socklen_t) -> c_int;
    setsockopt(fd: c_int, level: c_int, name: c_int, value: *const c_void, length: socklen_t) -> c_int;

    close(fd: c_int) -> c_int;
    close_range(first: c_uint, last: c_uint, flags: c_int) -> c_int;
    dup(fd: c_int) -> c_int;
    dup2(fd: c_int, to: c_int) -> c_int;
    dup3(fd: c_int, to: c_int, flags: c_int) -> c_int;
    fcntl(fd: c_int, command: c_int, argument: usize) -> c_int;
    fcntl64(fd: c_int, command: c_int, argument: usize) -> c_int;
    ioctl(fd: c_int, request: c_ulong, argument: usize) -> c_int;
    sockatmark(fd: c_int) -> c_int;
    syscall(number: c_long, first: usize, second: usize, third: usize, fourth: usize, fifth: usize, sixth: usize) -> c_long;

    read(fd: c_int, buffer: *mut c_void, length: size_t) -> ssize_t;
    readv(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t;
    __read_chk(fd: c_int, buffer: *mut c_void, length: size_t, room: size_t) -> ssize_t;
    recv(fd: c_int, buffer: *mut c_void, length: size_t, flags: c_int) -> ssize_t;
    __recv_chk(fd: c_int, buffer: *mut c_void, length: size_t, room: size_t, flags: c_int) -> ssize_t;
    recvfrom(fd: c_int, buffer: *mut c_void, length: size_t, flags: c_int, address: *mut sockaddr, address_length: *mut socklen_t) -> ssize_t;
    __recvfrom_chk(fd: c_int, buffer: *mut c_void, length: size_t, room: size_t, flags: c_int, address: *mut sockaddr, address_length: *mut socklen_t) -> ssize_t;
    recvmsg(fd: c_int, message: *mut msghdr, flags: c_int) -> ssize_t;
    recvmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int, timeout: *mut timespec) -> c_int;
    write(fd: c_int, buffer: *const c_void, length: size_t) -> ssize_t;
    writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t;
    send(fd: c_int, buffer: *const c_void, length: size_t, flags: c_int) -> ssize_t;
    sendto(fd: c_int, buffer: *const c_void, length: size_t, flags: c_int, address: *const sockaddr, address_length: socklen_t) -> ssize_t;
    sendmsg(fd: c_int, message: *const msghdr, flags: c_int) -> ssize_t;
    sendmmsg(fd: c_int, messages: *mut mmsghdr, count: c_uint, flags: c_int) -> c_int;
    sendfile(to: c_int, from: c_int, offset: *mut off_t, count: size_t) -> ssize_t;
    sendfile64(to: c_int, from: c_int, offset: *mut off64_t, count: size_t) -> ssize_t;
    splice(from: c_int, from_offset: *mut loff_t, to: c_int, to_offset: *mut loff_t, length: size_t, flags: c_uint) -> ssize_t;

    fileno(stream: *mut libc::FILE) -> c_int;
    fileno_unlocked(stream: *mut libc::FILE) -> c_int;
    vdprintf(fd: c_int, format: *const c_char, arguments: *mut c_void) -> c_int;
    __vdprintf_chk(fd: c_int, flag: c_int, format: *const c_char, arguments: *mut c_void) -> c_int;

    posix_spawn(child: *mut libc::pid_t, path: *const c_char, actions: *const c_void, attributes: *const c_void, words: *const *const c_char, environment: *const *const c_char) -> c_int;
    posix_spawnp(child: *mut libc::pid_t, file: *const c_char, actions: *const c_void, attributes: *const c_void, words: *const *const c_char, environment: *const *const c_char) -> c_int;
    posix_spawn_file_actions_adddup2(actions: *mut c_void, fd: c_int, to: c_int) -> c_int;
    system(command: *const c_char) -> c_int;
    pthread_create(thread: *mut libc::pthread_t, attributes: *const c_void, start: *const c_void, argument: *mut c_void) -> c_int;
    execv(path: *const c_char, words: *const *const c_char) -> c_int;
    execvp(path: *const c_char, words: *const *const c_char) -> c_int;
    execve(path: *const c_char, words: *const *const c_char, environment: *const *const c_char) -> c_int;
    execvpe(path: *const c_char, words: *const *const c_char, environment: *const *const c_char) -> c_int;
    fexecve(fd: c_int, words: *const *const c_char, environment: *const *const c_char) -> c_int;

    poll(fds: *mut pollfd, count: nfds_t, timeout: c_int) -> c_int;
    ppoll(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t) -> c_int;
    __poll_chk(fds: *mut pollfd, count: nfds_t, timeout: c_int, room: size_t) -> c_int;
    __ppoll_chk(fds: *mut pollfd, count: nfds_t, timeout: *const timespec, mask: *const sigset_t, room: size_t) -> c_int;
    select(count: c_int, reads: *mut fd_set, writes: *mut fd_set, errors: *mut fd_set, timeout: *mut timeval) -> c_int;
    pselect(count: c_int, reads: *mut fd_set, writes: *mut fd_set, errors: *mut fd_set, timeout: *const timespec, mask: *const sigset_t) -> c_int;
    epoll_create(size: c_int) -> c_int;
    epoll_create1(flags: c_int) -> c_int;
    epoll_ctl(epoll: c_int, operation: c_int, fd: c_int, event: *mut epoll_event) -> c_int;
    epoll_wait(epoll: c_int, events: *mut epoll_event, room: c_int, timeout: c_int) -> c_int;
    epoll_pwait(epoll: c_int, events: *mut epoll_event, room: c_int, timeout: c_int, mask: *const sigset_t) -> c_int;
    epoll_pwait2(epoll: c_int, events: *mut epoll_event, room: c_int, timeout: *const timespec, mask: *const sigset_t) -> c_int;
}

/// Ends the process without its exit handlers.
pub(crate) fn exit_at_once(status: c_int) -> ! {
    loop {
        // SAFETY: the call takes a number, and does not come back.
        unsafe { libc::syscall(libc::SYS_exit_group, c_long::from(status)) };
    }
}

/// closefrom(3), which gives nothing back.
pub(crate) fn close_from(first: c_int) {
    static CLOSEFROM: Next = Next::new(c"closefrom");
    let address = CLOSEFROM.address();
    if address.is_null() {
        return;
    }
    type Function = unsafe extern "C-unwind" fn(c_int);
    // SAFETY: the library that has the name has the function of libc's headers.
    let function = unsafe { std::mem::transmute::<*mut c_void, Function>(address) };
    // SAFETY: whose descriptors these are is the program's affair.
    unsafe { function(first) };
}
