//! The functions that are exported, by what they are about.
//!
//! Each has the name and the arguments of libc's. `fcntl` and `ioctl` take one more argument in a
//! register whether they are called with one or not, which is what the calling conventions of x86-64
//! and aarch64 do with a call of a variadic function that has no floating-point argument.
//! `syscall` takes all seven: on x86-64 the last one from the stack.

mod data;
mod descriptors;
mod epoll;
mod messages;
mod naming;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod numbers;
mod poll;
mod process;
mod reads;
mod select;
mod stdio;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod variadic;
mod writes;
