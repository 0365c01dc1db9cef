//! What a policy file says: one system call a line, under what conditions, and why.
//!
//! ```text
//! # A comment.
//! [data path]                                      # a part: what one kind of thread or process may do
//! read                                             # takes kicks of other threads
//! mmap if arg2 & PROT_EXEC == 0                    # memory of the guest; nothing that could be run
//! socket if arg0 == AF_UNIX, arg2 == 0             # both must hold
//! openat = ENOENT                                  # libraries try files they can do without
//! ```
//! In: texts, which belong to the program. Out: [`Rule`]s of the parts that were asked for. Lines with the same call are
//! alternatives. An argument is
//! compared by its lower 32 bits: all that are compared are ints and flags. `SELF` is the number of the process that
//! asks. Refuses, naming the line: an unknown call or name, a condition that is none, and a line without its why.

use std::str::FromStr;

use syscalls::Sysno;
use thiserror::Error;

/// Names that conditions and answers may use.
const NAMES: &[(&str, u32)] = &[
    ("AF_UNIX", cast(libc::AF_UNIX)),
    ("CLONE_THREAD", cast(libc::CLONE_THREAD)),
    ("CLONE_NAMESPACES", NAMESPACES),
    ("EINVAL", cast(libc::EINVAL)),
    ("ENOENT", cast(libc::ENOENT)),
    ("ENOSYS", cast(libc::ENOSYS)),
    ("EPERM", cast(libc::EPERM)),
    ("FALLOC_FL_KEEP_SIZE", cast(libc::FALLOC_FL_KEEP_SIZE)),
    ("FALLOC_OTHERS", !cast(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE)),
    ("FIONBIO", 0x5421),
    ("FIONREAD", 0x541b),
    ("F_ADD_SEALS", cast(libc::F_ADD_SEALS)),
    ("F_DUPFD_CLOEXEC", cast(libc::F_DUPFD_CLOEXEC)),
    ("F_GETFD", cast(libc::F_GETFD)),
    ("F_GETFL", cast(libc::F_GETFL)),
    ("F_GET_SEALS", cast(libc::F_GET_SEALS)),
    ("F_OFD_SETLK", cast(libc::F_OFD_SETLK)),
    ("F_SETFD", cast(libc::F_SETFD)),
    ("F_SETFL", cast(libc::F_SETFL)),
    ("IORING_REGISTER_ENABLE_RINGS", 12),
    ("KVM_GET_REGS", 0x8090_ae81),
    ("KVM_IOEVENTFD", 0x4040_ae79),
    ("KVM_IRQFD", 0x4020_ae76),
    ("KVM_RUN", 0xae80),
    ("KVM_SET_DEBUGREGS", 0x4080_aea2),
    ("KVM_SET_FPU", 0x41a0_ae8d),
    ("KVM_SET_GSI_ROUTING", 0x4008_ae6a),
    ("KVM_SET_IRQCHIP", 0x8208_ae63),
    ("KVM_SET_LAPIC", 0x4400_ae8f),
    ("KVM_SET_MP_STATE", 0x4004_ae99),
    ("KVM_SET_MSRS", 0x4008_ae89),
    ("KVM_SET_REGS", 0x4090_ae82),
    ("KVM_SET_SREGS", 0x4138_ae84),
    ("KVM_SET_VCPU_EVENTS", 0x4040_aea0),
    ("KVM_SET_XCRS", 0x4188_aea7),
    ("KVM_TRANSLATE", 0xc018_ae85),
    ("PRIO_PROCESS", 0),
    ("PROT_EXEC", cast(libc::PROT_EXEC)),
    ("PR_CAP_AMBIENT", cast(libc::PR_CAP_AMBIENT)),
    ("PR_GET_AUXV", 0x4155_5856),
    ("PR_GET_NO_NEW_PRIVS", cast(libc::PR_GET_NO_NEW_PRIVS)),
    ("PR_SET_DUMPABLE", cast(libc::PR_SET_DUMPABLE)),
    ("PR_SET_PDEATHSIG", cast(libc::PR_SET_PDEATHSIG)),
    ("PR_SET_NAME", cast(libc::PR_SET_NAME)),
    ("PR_SET_NO_NEW_PRIVS", cast(libc::PR_SET_NO_NEW_PRIVS)),
    ("RWF_DSYNC", cast(libc::RWF_DSYNC)),
    ("SECCOMP_SET_MODE_FILTER", libc::SECCOMP_SET_MODE_FILTER),
    ("SOCK_DGRAM", cast(libc::SOCK_DGRAM)),
    ("SOCK_TYPE_MASK", 15),
    ("SOL_SOCKET", cast(libc::SOL_SOCKET)),
    ("SO_ACCEPTCONN", cast(libc::SO_ACCEPTCONN)),
    ("SO_SNDTIMEO", cast(libc::SO_SNDTIMEO)),
    ("SO_PEERCRED", cast(libc::SO_PEERCRED)),
    ("TCGETS", 0x5401),
    ("TCGETS2", 0x802c_542a),
    ("TCSETS2", 0x402c_542b),
    ("TIOCGWINSZ", 0x5413),
];
/// Flags of clone(2) that make namespaces.
const NAMESPACES: u32 = cast(
    libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUSER
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET,
);

const fn cast(value: i32) -> u32 {
    value.cast_unsigned()
}

/// What is wrong with a policy.
#[derive(Debug, Error)]
#[error("policy line `{line}`: {problem}")]
pub struct PolicyError {
    line: String,
    problem: &'static str,
}

/// An argument must be this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its place, from 0.
    pub arg: u8,
    /// The bits that count.
    pub mask: u32,
    /// What they must be.
    pub value: u32,
}

impl Condition {
    /// Whether a call with these arguments fulfils it.
    pub fn holds(&self, args: &[u64]) -> bool {
        let masked = |arg: &u64| arg & u64::from(self.mask);
        args.get(usize::from(self.arg)).is_some_and(|arg| masked(arg) == u64::from(self.value))
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The system call.
    pub call: Sysno,
    /// All must hold; none: always.
    pub conditions: Vec<Condition>,
    /// It is not done, and this error number is the answer.
    pub answer: Option<u32>,
    /// What it is needed for.
    pub why: &'static str,
}

impl Rule {
    /// Whether it speaks of this call.
    pub fn matches(&self, call: Sysno, args: &[u64]) -> bool {
        self.call == call && self.conditions.iter().all(|condition| condition.holds(args))
    }
}

/// The rules of these parts of these texts, together.
///
/// # Errors
/// [`PolicyError`]
pub fn parse(texts: &[&'static str], parts: &[&str]) -> Result<Vec<Rule>, PolicyError> {
    let lines = texts.iter().flat_map(|text| of(text, parts));
    lines.map(|line| rule(line).map_err(|problem| PolicyError { line: line.to_owned(), problem })).collect()
}

/// The lines of these parts of a text that are rules.
fn of(text: &'static str, parts: &[&str]) -> impl Iterator<Item = &'static str> {
    let (mut part, without) = ("", without());
    text.lines().map(str::trim).filter(move |line| {
        if let Some(head) = line.strip_prefix('[') {
            part = head.split_once(']').map_or("", |(name, _)| name);
            return false;
        }
        let left_out = without.as_ref().is_some_and(|(of, rule)| of == part && line.starts_with(&**rule));
        parts.contains(&part) && !line.is_empty() && !line.starts_with('#') && !left_out
    })
}

/// A part, and how the rules of it begin that a test leaves out: it sees that they are what is enforced.
fn without() -> Option<(String, String)> {
    let asked = cfg!(debug_assertions).then(|| std::env::var("OUTBOARD_POLICY_WITHOUT").ok())?;
    asked?.split_once(':').map(|(part, rule)| (part.to_owned(), rule.to_owned()))
}

fn rule(line: &'static str) -> Result<Rule, &'static str> {
    let (rule, why) = line.split_once(" # ").ok_or("it does not say why, after ` # `")?;
    let (rule, answer) = match rule.split_once(" = ") {
        Some((rule, answer)) => (rule, Some(number(answer)?)),
        None => (rule, None),
    };
    let (call, conditions) = match rule.split_once(" if ") {
        Some((call, list)) => (call, list.split(',').map(condition).collect::<Result<_, _>>()?),
        None => (rule, Vec::new()),
    };
    let call = Sysno::from_str(call.trim()).map_err(|_| "there is no such system call")?;
    Ok(Rule { call, conditions, answer, why: why.trim() })
}

/// `argN == VALUE` or `argN & MASK == VALUE`.
fn condition(text: &str) -> Result<Condition, &'static str> {
    let (what, value) =
        text.split_once("==").ok_or("a condition is `argN == VALUE` or `argN & MASK == VALUE`")?;
    let (arg, mask) = match what.split_once('&') {
        Some((arg, mask)) => (arg, number(mask)?),
        None => (what, u32::MAX),
    };
    let arg = arg.trim().strip_prefix("arg").and_then(|digit| digit.parse().ok()).filter(|arg| *arg < 6);
    Ok(Condition { arg: arg.ok_or("arguments are arg0 to arg5")?, mask, value: number(value)? })
}

/// A number, or a name of one.
fn number(text: &str) -> Result<u32, &'static str> {
    let text = text.trim();
    if text == "SELF" {
        return Ok(std::process::id());
    }
    let named = NAMES.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
    named.or_else(|| text.parse().ok()).ok_or("it uses a name that is not known here")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::{COMMON, Filter, Mode};

    const TEXT: &str = "
        # Nothing yet.
        [one]
        read                                    # a
        mmap if arg2 & PROT_EXEC == 0, arg0 == 0    # b
        [two]                                   # for others
        openat = ENOENT                         # c
        tgkill if arg0 == SELF                  # d
    ";

    #[test]
    fn rules_are_those_of_the_parts_asked_for() {
        let calls =
            |parts: &[&str]| parse(&[TEXT], parts).unwrap().iter().map(|rule| rule.call).collect::<Vec<_>>();
        assert_eq!(calls(&["one"]), [Sysno::read, Sysno::mmap]);
        assert_eq!(calls(&["two"]), [Sysno::openat, Sysno::tgkill]);
        assert_eq!(calls(&["one", "two"]).len(), 4);
        assert_eq!(calls(&["three"]), []);
    }

    #[test]
    fn conditions_must_all_hold() {
        let rules = parse(&[TEXT], &["one", "two"]).unwrap();
        assert!(rules[1].matches(Sysno::mmap, &[0, 1, 3]));
        assert!(!rules[1].matches(Sysno::mmap, &[0, 1, 7]) && !rules[1].matches(Sysno::mmap, &[1, 1, 3]));
        assert!(!rules[1].matches(Sysno::mmap, &[0, 1]) && !rules[1].matches(Sysno::munmap, &[0, 1, 3]));
        assert_eq!((rules[2].answer, rules[2].why), (Some(2), "c"));
        assert!(rules[3].matches(Sysno::tgkill, &[std::process::id().into()]));
    }

    #[test]
    fn lines_that_make_no_sense_are_named() {
        for (line, problem) in [
            ("read", "why"),
            ("raed # why", "no such system call"),
            ("read if arg0 # why", "a condition is"),
            ("read if arg6 == 1 # why", "arguments are"),
            ("read if arg0 == NOTHING # why", "not known"),
            ("read = EVIL # why", "not known"),
        ] {
            let text: &'static str = format!("[part]\n{line}").leak();
            let error = parse(&[text], &["part"]).unwrap_err().to_string();
            assert!(error.contains(line) && error.contains(problem), "{error}");
        }
    }

    #[test]
    fn no_call_of_a_part_stands_there_twice_without_need() {
        for part in ["data path", "worker", "closed", "alone", "keeper"] {
            let rules = parse(&COMMON, &[part]).unwrap();
            assert!(!rules.is_empty(), "{part}");
            for (at, rule) in rules.iter().enumerate() {
                let again = rules.iter().skip(at + 1).filter(|other| other.call == rule.call);
                let pointless = |other: &Rule| rule.conditions.is_empty() || other.conditions.is_empty();
                assert!(!again.into_iter().any(pointless), "{part}: {}", rule.call);
            }
        }
    }

    /// Compiled at each start of each process: it must not be seen there.
    #[test]
    fn what_is_off_forbids_nothing_and_the_rest_is_short() {
        let parts = ["data path", "worker", "closed"];
        assert!(Filter::new(&COMMON, &parts, Mode::Off).unwrap().is_empty());
        let filter = Filter::new(&COMMON, &parts, Mode::On).unwrap();
        assert!((100..1000).contains(&filter.len()), "{}", filter.len());
    }
}
