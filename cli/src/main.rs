//! The `san` command.

fn main() {}
