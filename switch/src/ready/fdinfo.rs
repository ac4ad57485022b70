//! What the kernel says of an epoll set.

use std::os::fd::RawFd;

use rustix::event::epoll::EventFlags;

/// What the kernel has for `fd` in the epoll set of this number.
pub(crate) fn registered(epoll: RawFd, fd: RawFd) -> Option<(EventFlags, u64)> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{epoll}")).ok()?;
    text.lines().find_map(|line| parse(line, fd))
}

/// A line of an epoll set's fdinfo, `tfd: 5 events: 19 data: ff pos:0 ...`, if it is this descriptor's.
fn parse(line: &str, fd: RawFd) -> Option<(EventFlags, u64)> {
    let mut words = line.split_ascii_whitespace();
    let mut after = |name: &str| (words.next()? == name).then(|| words.next()).flatten();
    let number: RawFd = after("tfd:")?.parse().ok()?;
    let flags = u32::from_str_radix(after("events:")?, 16).ok()?;
    let data = u64::from_str_radix(after("data:")?, 16).ok()?;
    (number == fd).then_some((EventFlags::from_bits_retain(flags), data))
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd};

    use rustix::event::epoll;
    use san_base::Signal;

    use super::*;

    #[test]
    fn the_kernel_tells_what_it_has() {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let (one, other) = (Signal::new().unwrap(), Signal::new().unwrap());
        let flags = EventFlags::IN | EventFlags::ET | EventFlags::RDHUP;
        let data = 0xfedc_ba98_7654_3210;
        epoll::add(&set, one.as_fd(), epoll::EventData::new_u64(data), flags).unwrap();
        let (set, one, other) = (set.as_raw_fd(), one.as_raw_fd(), other.as_raw_fd());
        let (told, told_data) = registered(set, one).unwrap();
        assert!(told.contains(flags), "{told:?}");
        assert_eq!(told_data, data);
        assert_eq!(registered(set, other), None);
        assert_eq!(registered(one, one), None, "it is no epoll set");
    }
}
