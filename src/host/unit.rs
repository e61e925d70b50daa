//! Names of systemd units: which unit a cgroup belongs to, and patterns over names.
//!
//! Pure text. The rules are systemd's: those of `cg_path_get_unit` (src/basic/cgroup-util.c) for
//! paths, and of `systemctl`'s patterns, fnmatch(3) without escapes, for names.

/// What a unit's name ends with, systemd.unit(5).
const TYPES: [&str; 11] = [
    "service",
    "socket",
    "scope",
    "slice",
    "target",
    "mount",
    "automount",
    "swap",
    "timer",
    "path",
    "device",
];

/// `UNIT_NAME_MAX`
const LONGEST: usize = 255;

/// A pattern over the names of units: `*`, `?` and `[…]`; a backslash is one, as `\x2d` is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Byte(u8),
    One,
    Any,
    Class { negated: bool, ranges: Vec<(u8, u8)> },
}

/// Why a text is no pattern over names of units.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GlobError {
    #[error("a unit's name has at most {LONGEST} bytes")]
    TooLong,
    #[error("{0:?} is in no unit's name")]
    Character(char),
    #[error("this `[` is never closed")]
    Open,
    #[error("it matches every unit of its type")]
    Everything,
    #[error("a slice holds units and is none that runs")]
    Slice,
}

impl Glob {
    /// Reads a pattern. One without a type means services.
    ///
    /// # Errors
    /// When it could match no unit, or would match all of them.
    pub fn new(pattern: &str) -> Result<Self, GlobError> {
        let whole = complete(pattern);
        if whole.len() > LONGEST {
            return Err(GlobError::TooLong);
        }
        let parts = parse(whole.as_bytes())?;
        let (prefix, kind) = whole.rsplit_once('.').unwrap_or((&whole, ""));
        if kind == "slice" {
            return Err(GlobError::Slice);
        }
        if prefix.bytes().all(|byte| byte == b'*') {
            return Err(GlobError::Everything);
        }
        Ok(Self { parts })
    }

    /// Whether a unit with this name is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        let name = name.as_bytes();
        let (mut part, mut byte) = (0, 0);
        // Where the last `*` was, and how much it has swallowed: no other one needs to be revisited.
        let mut star: Option<(usize, usize)> = None;
        while byte < name.len() {
            match self.parts.get(part) {
                Some(Part::Any) => {
                    star = Some((part, byte));
                    part += 1;
                }
                Some(one) if one.is(name[byte]) => (part, byte) = (part + 1, byte + 1),
                _ => {
                    let Some((at, swallowed)) = star else { return false };
                    star = Some((at, swallowed + 1));
                    (part, byte) = (at + 1, swallowed + 1);
                }
            }
        }
        self.parts[part..].iter().all(|rest| *rest == Part::Any)
    }
}

impl Part {
    fn is(&self, byte: u8) -> bool {
        match self {
            Self::Byte(own) => *own == byte,
            Self::One | Self::Any => true,
            Self::Class { negated, ranges } => {
                ranges.iter().any(|(low, high)| (*low..=*high).contains(&byte)) != *negated
            }
        }
    }
}

/// The pattern with its type: `.service`, unless it names or patterns another one.
#[must_use]
pub fn complete(pattern: &str) -> String {
    match pattern.rsplit_once('.') {
        Some((_, kind)) if TYPES.contains(&kind) || kind.contains(['*', '?', '[', ']']) => {
            pattern.to_owned()
        }
        _ => format!("{pattern}.service"),
    }
}

/// The unit of the system's manager that a cgroup belongs to, out of the path below the hierarchy's
/// root: what comes first that is not a slice. Cgroups that a unit made for itself belong to it;
/// so the units of a user's manager all belong to `user@UID.service`, and those inside of a
/// container to the container's own unit.
#[must_use]
pub fn of_cgroup(path: &[u8]) -> Option<&str> {
    let path = std::str::from_utf8(path).ok()?;
    let mut parts = path.split('/').filter(|part| !part.is_empty()).map(unescape);
    let unit = parts.find(|part| !(part.strip_suffix(".slice").is_some() && is_name(part)))?;
    is_name(unit).then_some(unit)
}

/// systemd puts a `_` before names that the kernel could take for files of its own, and before
/// those that begin with one (`cg_escape`).
fn unescape(part: &str) -> &str {
    part.strip_prefix('_').unwrap_or(part)
}

/// A unit's name: characters that are allowed, and a type at the end.
fn is_name(name: &str) -> bool {
    let Some((prefix, kind)) = name.rsplit_once('.') else { return false };
    let fits = name.len() <= LONGEST && !prefix.is_empty() && TYPES.contains(&kind);
    fits && !prefix.starts_with('@') && name.bytes().all(allowed)
}

/// `VALID_CHARS_WITH_AT` of src/basic/unit-name.c.
fn allowed(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte)
}

fn parse(pattern: &[u8]) -> Result<Vec<Part>, GlobError> {
    let mut parts = Vec::with_capacity(pattern.len());
    let mut rest = pattern;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'*' if parts.last() == Some(&Part::Any) => {}
            b'*' => parts.push(Part::Any),
            b'?' => parts.push(Part::One),
            b'[' => {
                let (class, after) = class(rest)?;
                parts.push(class);
                rest = after;
            }
            _ if allowed(byte) => parts.push(Part::Byte(byte)),
            _ => {
                let at = pattern.len() - after.len() - 1;
                let text = String::from_utf8_lossy(&pattern[at..]);
                return Err(GlobError::Character(text.chars().next().unwrap_or_default()));
            }
        }
    }
    Ok(parts)
}

/// A class of characters, behind its `[`; a `]` that comes first is one of them.
fn class(rest: &[u8]) -> Result<(Part, &[u8]), GlobError> {
    let negated = matches!(rest.first(), Some(b'!' | b'^'));
    let body = &rest[usize::from(negated)..];
    let close = body.iter().skip(1).position(|byte| *byte == b']').ok_or(GlobError::Open)? + 1;
    let (mut members, mut ranges) = (&body[..close], Vec::new());
    while let Some((&low, after)) = members.split_first() {
        members = after;
        match *members {
            [b'-', high, ..] => {
                ranges.push((low, high));
                members = &members[2..];
            }
            _ => ranges.push((low, low)),
        }
    }
    Ok((Part::Class { negated, ranges }, &body[close + 1..]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn unit(path: &str) -> Option<&str> {
        of_cgroup(path.as_bytes())
    }

    fn is(pattern: &str, name: &str) -> bool {
        Glob::new(pattern).unwrap().matches(name)
    }

    #[test]
    fn the_first_that_is_no_slice_is_the_unit() {
        assert_eq!(unit("/system.slice/nginx.service"), Some("nginx.service"));
        assert_eq!(unit("/init.scope"), Some("init.scope"));
        let template = "/system.slice/system-checkout.slice/checkout@1.service";
        assert_eq!(unit(template), Some("checkout@1.service"));
        assert_eq!(unit("/user.slice/user-0.slice/session-3.scope"), Some("session-3.scope"));
        let socket = "/system.slice/cups.socket";
        assert_eq!(unit(socket), Some("cups.socket"));
    }

    #[test]
    fn what_a_unit_made_below_belongs_to_it() {
        assert_eq!(unit("/system.slice/docker.service/inner"), Some("docker.service"));
        let user = "/user.slice/user-1000.slice/user@1000.service/app.slice/foo.service";
        assert_eq!(unit(user), Some("user@1000.service"));
        let machine = "/machine.slice/machine-web.scope/payload/system.slice/nginx.service";
        assert_eq!(unit(machine), Some("machine-web.scope"));
    }

    #[test]
    fn what_is_in_no_unit_has_none() {
        for path in ["/", "", "/docker/0123", "/system.slice", "/a.slice/b.slice/plain", "/x/y.service"]
        {
            assert_eq!(unit(path), None, "{path}");
        }
    }

    #[test]
    fn both_ways_of_escaping_are_undone_or_kept() {
        assert_eq!(unit("/system.slice/_cpu.service"), Some("cpu.service"));
        assert_eq!(unit("/system.slice/__own.service"), Some("_own.service"));
        let escaped = r"/system.slice/system-web\x2dshop.slice/web\x2dshop@a.service";
        assert_eq!(unit(escaped), Some(r"web\x2dshop@a.service"));
        assert!(is(r"web\x2dshop@*", r"web\x2dshop@a.service"));
        assert!(!is("web-shop@*", r"web\x2dshop@a.service"));
    }

    #[test]
    fn patterns_match_as_systemctl_has_it() {
        assert!(is("nginx", "nginx.service") && !is("nginx", "nginx.socket"));
        assert!(is("checkout@*", "checkout@1.service") && !is("checkout@*", "checkout.service"));
        assert!(is("checkout@[1-3].service", "checkout@2.service"));
        assert!(!is("checkout@[!1-3].service", "checkout@2.service"));
        assert!(is("app-?.s[ce]*", "app-1.scope") && is("app-?.s[ce]*", "app-1.service"));
        assert!(is("a*b*c.service", "a1b2b3c.service") && !is("a*b*c.service", "a1c2b.service"));
        assert!(is("app-1.2", "app-1.2.service"));
    }

    #[test]
    fn what_matches_nothing_or_everything_is_an_error() {
        assert_eq!(Glob::new("web/1"), Err(GlobError::Character('/')));
        assert_eq!(Glob::new("wéb"), Err(GlobError::Character('é')));
        assert_eq!(Glob::new("web@[12.service"), Err(GlobError::Open));
        assert_eq!(Glob::new("*"), Err(GlobError::Everything));
        assert_eq!(Glob::new("**.service"), Err(GlobError::Everything));
        assert_eq!(Glob::new("system.slice"), Err(GlobError::Slice));
        assert_eq!(Glob::new(&"a".repeat(300)), Err(GlobError::TooLong));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(pattern in ".{0,40}", name in ".{0,40}", path: Vec<u8>) {
            if let Ok(glob) = Glob::new(&pattern) {
                let _ = glob.matches(&name);
            }
            let _ = of_cgroup(&path);
        }

        #[test]
        fn a_name_matches_itself_and_every_prefix_of_it(name in "[a-z][a-z0-9@-]{0,20}", cut in 1_usize..20) {
            let name = format!("{name}.service");
            prop_assert!(is(&name, &name));
            let cut = cut.min(name.len() - ".service".len());
            let open = format!("{}*", &name[..cut]);
            prop_assert!(is(&open, &name));
        }
    }
}
