//! The formats of /proc/PID/stat and /proc/PID/status, proc_pid_stat(5) and proc_pid_status(5).
//!
//! Pure parsing of bytes that another process may have influenced (its name): it must never panic
//! and never guess. What it cannot read, it says is unreadable.

/// The flag of a kernel thread in field 9: PF_KTHREAD, linux/sched.h.
const PF_KTHREAD: u32 = 0x0020_0000;

/// The fields of /proc/PID/stat that vervet uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat<'a> {
    pub pid: u32,
    /// Any bytes, spaces, parentheses and line ends included.
    pub comm: &'a [u8],
    /// One letter.
    pub state: u8,
    pub parent: u32,
    pub flags: u32,
    pub threads: u32,
    /// Clock ticks since boot.
    pub start: u64,
}

impl<'a> Stat<'a> {
    /// Reads the whole content of the file; `None` when it is not one.
    ///
    /// The name ends at the *last* closing parenthesis: it may hold others, the numbers cannot.
    #[must_use]
    pub fn parse(content: &'a [u8]) -> Option<Self> {
        let open = content.iter().position(|byte| *byte == b'(')?;
        let close = content.iter().rposition(|byte| *byte == b')')?;
        let comm = content.get(open + 1..close)?;
        let pid = number(content[..open].trim_ascii())?;
        let mut fields = content[close + 1..].trim_ascii().split(|byte| *byte == b' ');
        // Fields are counted from 1 in the manual; the first one here is number 3.
        let &[state] = fields.next()? else { return None };
        let parent = number(fields.next()?)?;
        let flags = number(fields.nth(4)?)?;
        let threads = number(fields.nth(10)?)?;
        let start = number(fields.nth(1)?)?;
        Some(Self { pid, comm, state, parent, flags, threads, start })
    }

    #[must_use]
    pub fn is_kernel_thread(&self) -> bool {
        self.flags & PF_KTHREAD != 0
    }

    /// Dead and waiting to be reaped. A leader that has ended while other threads of the process
    /// go on shows the same letter, but is counted with them.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        matches!(self.state, b'Z' | b'X' | b'x') && self.threads <= 1
    }

    /// Stopped by a signal; a tracer's stop (`t`) is not one.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.state == b'T'
    }
}

/// The words after `key:` in /proc/PID/status.
#[must_use]
pub fn status_field<'a>(status: &'a [u8], key: &str) -> Option<&'a [u8]> {
    status.split(|byte| *byte == b'\n').find_map(|line| {
        let value = line.strip_prefix(key.as_bytes())?.strip_prefix(b":")?;
        Some(value.trim_ascii())
    })
}

/// The real uid in /proc/PID/status: the first of four.
#[must_use]
pub fn real_uid(status: &[u8]) -> Option<u32> {
    number(status_field(status, "Uid")?.split(u8::is_ascii_whitespace).next()?)
}

/// Whether the process has a handler of its own for the signal with this number.
#[must_use]
pub fn catches(status: &[u8], signal: i32) -> Option<bool> {
    let mask = std::str::from_utf8(status_field(status, "SigCgt")?).ok()?;
    let mask = u64::from_str_radix(mask, 16).ok()?;
    let bit = u32::try_from(signal).ok()?.checked_sub(1)?;
    Some(mask.checked_shr(bit)? & 1 == 1)
}

/// A decimal number and nothing else.
pub(super) fn number<N: std::str::FromStr>(text: &[u8]) -> Option<N> {
    if !text.first()?.is_ascii_digit() {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(comm: &[u8], state: char, flags: u32, threads: u32, start: u64) -> Vec<u8> {
        let mut line = b"4711 (".to_vec();
        line.extend_from_slice(comm);
        line.extend_from_slice(
            format!(
                ") {state} 17 4711 4711 0 -1 {flags} 1 2 3 4 5 6 7 8 20 0 {threads} 0 {start} 99 1\n"
            )
            .as_bytes(),
        );
        line
    }

    proptest! {
        #[test]
        fn any_name_is_read_back(
            comm in proptest::collection::vec(any::<u8>(), 0..16),
            flags: u32,
            threads: u32,
            start: u64,
        ) {
            let content = line(&comm, 'S', flags, threads, start);
            let stat = Stat::parse(&content).expect("a stat line");
            prop_assert_eq!(
                stat,
                Stat { pid: 4711, comm: &comm, state: b'S', parent: 17, flags, threads, start }
            );
        }

        #[test]
        fn any_bytes_are_survived(content in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Stat::parse(&content);
            let _ = real_uid(&content);
            let _ = catches(&content, 9);
        }

        #[test]
        fn a_cut_line_is_never_misread(cut in 0_usize..76) {
            let content = line(b"a) S 1 (b", 'S', 0, 1, 123_456_789);
            prop_assert!(content.len() > 76);
            // Cut inside the last number that is used, a shorter start time would be believed: the
            // kernel never cuts there, and nothing before it is believed.
            let start = content.windows(9).position(|part| part == b"123456789").expect("start");
            if cut < start {
                prop_assert_eq!(Stat::parse(&content[..cut]), None);
            }
        }
    }

    #[test]
    fn a_leader_that_ended_before_its_threads_is_not_dead() {
        assert!(Stat::parse(&line(b"x", 'Z', 0, 1, 1)).expect("stat").is_dead());
        assert!(!Stat::parse(&line(b"x", 'Z', 0, 3, 1)).expect("stat").is_dead());
    }

    #[test]
    fn the_flag_of_kernel_threads() {
        assert!(
            Stat::parse(&line(b"kworker/0:1", 'I', 0x0420_8060, 1, 1)).expect("stat").is_kernel_thread()
        );
        assert!(!Stat::parse(&line(b"cat", 'R', 4_194_304, 1, 1)).expect("stat").is_kernel_thread());
    }

    #[test]
    fn handlers_are_bits_counted_from_one() {
        let status = b"Name:\tx\nUid:\t1000\t0\t0\t0\nSigCgt:\t0000000000004001\n";
        assert_eq!(catches(status, 15), Some(true));
        assert_eq!(catches(status, 1), Some(true));
        assert_eq!(catches(status, 9), Some(false));
        assert_eq!(catches(status, 0), None);
        assert_eq!(real_uid(status), Some(1000));
    }
}
