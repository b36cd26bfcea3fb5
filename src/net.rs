//! The nouns of the network as node-fixer speaks of them: interface names, links, rules, routes, sysctl keys.
//!
//! Plain data with an order and a `Display`; nothing here looks at the system. What is displayed is fit for a
//! shell and a terminal: names come from the kernel and from files, and neither keeps them harmless.

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cidr::{IpCidr, Ipv4Cidr, Ipv6Cidr};

/// Routes that mend a policy table carry this protocol number. They are never deleted by node-fixer.
pub const PROTO_MENDED: u8 = 170;
/// Routes and rules that were declared carry this protocol number, and go when their declaration goes.
pub const PROTO_DECLARED: u8 = 171;

/// `RTPROT_KERNEL`: the kernel's own routes, which come and go with addresses.
pub const PROTO_KERNEL: u8 = 2;
/// `RTPROT_STATIC`, which systemd-networkd gives to the rules and routes of its own files.
pub const PROTO_STATIC: u8 = 4;
/// `RTPROT_RA`: routes from router advertisements.
pub const PROTO_RA: u8 = 9;

/// `RT_TABLE_DEFAULT`, where rule 32767 looks.
pub const TABLE_DEFAULT: u32 = 253;
/// `RT_TABLE_MAIN`, where rule 32766 looks.
pub const TABLE_MAIN: u32 = 254;
/// `RT_TABLE_LOCAL`, where rule 0 looks.
pub const TABLE_LOCAL: u32 = 255;

/// Priorities of the kernel's own rules, which node-fixer never touches.
pub const KERNEL_PRIORITIES: [u32; 3] = [0, 32766, 32767];

/// Priority of the rule that leads the traffic of an uplink's own address to the table of that uplink
/// (AWS VPC CNI 1.20 and later).
pub const UPLINK_RULE_PRIORITY: u32 = 32765;

/// A table as iproute2 takes it, whatever its rt_tables file says: it knows these three names by itself.
pub fn table_name(table: u32) -> Cow<'static, str> {
    match table {
        TABLE_DEFAULT => "default".into(),
        TABLE_MAIN => "main".into(),
        TABLE_LOCAL => "local".into(),
        number => number.to_string().into(),
    }
}

/// An address family that is routed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Family {
    /// IPv4.
    #[serde(rename = "ipv4")]
    V4,
    /// IPv6.
    #[serde(rename = "ipv6")]
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// The prefix that holds every address: `0.0.0.0/0` or `::/0`.
    pub fn everything(self) -> IpCidr {
        const V4: Ipv4Cidr = match Ipv4Cidr::new(Ipv4Addr::UNSPECIFIED, 0) {
            Ok(all) => all,
            Err(_) => unreachable!(),
        };
        const V6: Ipv6Cidr = match Ipv6Cidr::new(Ipv6Addr::UNSPECIFIED, 0) {
            Ok(all) => all,
            Err(_) => unreachable!(),
        };
        match self {
            Family::V4 => IpCidr::V4(V4),
            Family::V6 => IpCidr::V6(V6),
        }
    }

    /// `ip`, with the switch that it needs where nothing else on the command line names the family.
    pub fn ip_command(self) -> &'static str {
        match self {
            Family::V4 => "ip",
            Family::V6 => "ip -6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// The family of a prefix.
pub fn family_of(prefix: &IpCidr) -> Family {
    Family::of(prefix.first_address())
}

/// Whether a prefix holds all of another.
pub fn covers(whole: &IpCidr, part: &IpCidr) -> bool {
    whole.network_length() <= part.network_length() && whole.contains(&part.first_address())
}

/// The name of an interface: 1 to 15 bytes, neither `/` nor white space nor `:`, and neither `.` nor `..`
/// (`dev_valid_name` in the kernel's net/core/dev.c). It need not be UTF-8, and everything else that a shell or
/// a terminal could stumble over is allowed in it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(Box<[u8]>);

impl IfName {
    /// Takes a name if the kernel could have given it.
    pub fn new(name: &[u8]) -> Option<IfName> {
        let odd = |b: &u8| matches!(b, b'/' | b':' | 0 | b' ' | b'\t'..=b'\r' | 0xa0);
        let fits = (1..=15).contains(&name.len());
        (fits && !matches!(name, b"." | b"..") && !name.iter().any(odd)).then(|| IfName(name.into()))
    }

    /// The name as the kernel knows it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shell_word(&self.0))
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Bytes as one word of a POSIX shell that is also harmless in a terminal: plain where that is possible,
/// else in single quotes, else by way of printf(1).
pub fn shell_word(bytes: &[u8]) -> Cow<'_, str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_./:@%+=,-".contains(c);
    match str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && text.chars().all(plain) => Cow::Borrowed(text),
        Ok(text) if text.chars().all(is_visible) => Cow::Owned(format!("'{}'", text.replace('\'', r"'\''"))),
        _ => {
            let octal: String = bytes.iter().map(|b| format!("\\{b:03o}")).collect();
            Cow::Owned(format!("\"$(printf '{octal}')\""))
        }
    }
}

/// Text from elsewhere (a kernel's, a program's, a file's) as one harmless line: what could move a cursor, break
/// the line or turn the reading direction is escaped.
pub fn one_line(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_visible) {
        return Cow::Borrowed(text);
    }
    let escaped = |c: char| if is_visible(c) { c.to_string() } else { c.escape_default().to_string() };
    Cow::Owned(text.chars().map(escaped).collect())
}

/// The first three and how many more.
pub fn shortened<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    match items.as_slice() {
        [] => "none".into(),
        [first, second, third, rest @ ..] if !rest.is_empty() => {
            format!("{first}, {second}, {third} and {} more", rest.len())
        }
        few => few.join(", "),
    }
}

/// Neither a control character nor one that is invisible or reorders the text around it (the bidirectional
/// and zero-width ones, line and paragraph separators, the byte order mark, tags).
pub fn is_visible(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// An interface as a route or a change names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dev {
    /// The kernel's index, unique in the network namespace, never used again while it is up.
    pub index: u32,
    /// Its name at the time of looking.
    pub name: IfName,
}

/// How far the destinations of a route are (`rtm_scope`). IPv6 routes have none: `Global` there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Scope {
    /// Beyond a gateway.
    Global,
    /// On the link itself.
    Link,
    /// On this node.
    Host,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scope::Global => "global",
            Scope::Link => "link",
            Scope::Host => "host",
        })
    }
}

/// A unicast route with one next hop: the kind that node-fixer adds and deletes.
/// Its `Display` is the tail of an `ip route` command line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Table number.
    pub table: u32,
    /// Destination.
    pub to: IpCidr,
    /// Gateway.
    pub via: Option<IpAddr>,
    /// Interface that it leaves by; without one the kernel finds it by the gateway.
    pub dev: Option<Dev>,
    /// Scope.
    pub scope: Scope,
    /// `None` leaves it to the kernel: 0 for IPv4, 1024 for IPv6.
    pub metric: Option<u32>,
    /// Believe that the gateway is on the link even if no route says so.
    pub onlink: bool,
    /// `rtm_protocol`: who installed it.
    pub protocol: u8,
}

impl Route {
    /// Its address family.
    pub fn family(&self) -> Family {
        family_of(&self.to)
    }

    /// The metric that the kernel stores (`IP6_RT_PRIO_USER` is 1024).
    pub fn stored_metric(&self) -> u32 {
        match (self.metric, self.family()) {
            (None | Some(0), Family::V6) => 1024,
            (metric, _) => metric.unwrap_or(0),
        }
    }

    /// The `ip route` command that does `verb` to whatever has its table, destination and metric.
    pub fn command_for_its_place(&self, verb: &str) -> String {
        let (ip, to, table) = (self.family().ip_command(), self.destination(), table_name(self.table));
        format!("{ip} route {verb} {to} table {table} metric {}", self.stored_metric())
    }

    fn destination(&self) -> Cow<'static, str> {
        if self.to.network_length() == 0 { "default".into() } else { self.to.to_string().into() }
    }

    /// The `ip route` command that does `verb` to it.
    pub fn command(&self, verb: &str) -> String {
        format!("{} route {verb} {self}", self.family().ip_command())
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.destination())?;
        if let Some(via) = self.via {
            write!(f, " via {via}")?;
        }
        if let Some(dev) = &self.dev {
            write!(f, " dev {}", dev.name)?;
        }
        write!(f, " table {} proto {}", table_name(self.table), self.protocol)?;
        if self.family() == Family::V4 {
            write!(f, " scope {}", self.scope)?;
        }
        if let Some(metric) = self.metric {
            write!(f, " metric {metric}")?;
        }
        if self.onlink { f.write_str(" onlink") } else { Ok(()) }
    }
}

/// What `ip link show` tells of a bridge of ours: the mark that says whose it is.
pub const ALIAS: &str = "node-fixer";

/// A bridge and what is set on it. `None` is left as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Its name.
    pub name: IfName,
    /// Set up, so that it forwards.
    pub up: bool,
    /// Largest packet, in bytes.
    pub mtu: Option<u32>,
    /// Whether it speaks the spanning tree protocol.
    pub stp: Option<bool>,
}

impl Bridge {
    /// Makes it. The kernel takes no alias with a new link, and so the mark takes a command of its own.
    pub fn add_command(&self) -> String {
        let Bridge { name, stp, .. } = self;
        let stp = stp.map_or(String::new(), |stp| format!(" stp_state {}", u8::from(stp)));
        format!("ip link add name {name}{} type bridge{stp} && ip link set dev {name} alias {ALIAS}", self.flags())
    }

    /// Sets what is to be set.
    pub fn set_command(&self) -> String {
        let Bridge { name, stp, .. } = self;
        let stp = stp.map_or(String::new(), |stp| format!(" type bridge stp_state {}", u8::from(stp)));
        format!("ip link set dev {name}{}{stp}", self.flags())
    }

    fn flags(&self) -> String {
        let mtu = self.mtu.map_or(String::new(), |mtu| format!(" mtu {mtu}"));
        format!("{}{mtu}", if self.up { " up" } else { " down" })
    }
}

/// The selectors of a rule that node-fixer has words for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector {
    /// Source prefix; `None` is every source.
    pub from: Option<IpCidr>,
    /// Destination prefix; `None` is every destination.
    pub to: Option<IpCidr>,
    /// Mark and mask.
    pub fwmark: Option<(u32, u32)>,
    /// Interface that the packet came in by.
    pub iif: Option<IfName>,
    /// Interface that the socket is bound to.
    pub oif: Option<IfName>,
}

/// A policy rule with the action lookup: the kind that node-fixer reasons about, adds and deletes.
/// Its `Display` is the tail of an `ip rule` command line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Address family.
    pub family: Family,
    /// Lower ones are asked first.
    pub priority: u32,
    /// Which packets it is for.
    pub selector: Selector,
    /// The table that it leads to.
    pub table: u32,
    /// `FRA_PROTOCOL`: who installed it.
    pub protocol: u8,
}

impl Rule {
    /// Whether both do the same to the same packets at the same place, whoever installed them.
    pub fn equals(&self, other: &Rule) -> bool {
        self.essence() == other.essence()
    }

    /// All of it but who installed it.
    pub fn essence(&self) -> (Family, u32, u32, &Selector) {
        (self.family, self.priority, self.table, &self.selector)
    }

    /// The `ip rule` command that does `verb` to it.
    pub fn command(&self, verb: &str) -> String {
        format!("{} rule {verb} {self}", self.family.ip_command())
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "priority {}", self.priority)?;
        let Selector { from, to, fwmark, iif, oif } = &self.selector;
        match from {
            Some(from) => write!(f, " from {from}")?,
            None => f.write_str(" from all")?,
        }
        if let Some(to) = to {
            write!(f, " to {to}")?;
        }
        if let Some((mark, mask)) = fwmark {
            write!(f, " fwmark {mark:#x}/{mask:#x}")?;
        }
        if let Some(iif) = iif {
            write!(f, " iif {iif}")?;
        }
        if let Some(oif) = oif {
            write!(f, " oif {oif}")?;
        }
        write!(f, " lookup {} protocol {}", table_name(self.table), self.protocol)
    }
}

/// A sysctl as its path below /proc/sys, segment by segment. Never a dotted string: interface names contain
/// dots (`eth0.100`), and a string that is split at dots finds another file or none.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SysctlKey {
    segments: Vec<Box<[u8]>>,
    names_link: bool,
}

/// Whether the next IPv4 address of a subnet stays when the first one goes.
pub const PROMOTE: &str = "promote_secondaries";

/// The switch of IPv4 forwarding, as a path: net/ipv4/conf/all/forwarding is the same one under another name.
pub const FORWARD: &str = "net/ipv4/ip_forward";
/// Its other name.
pub const FORWARD_OF_ALL: &str = "net/ipv4/conf/all/forwarding";

impl SysctlKey {
    /// `net.ipv4.conf.LINK.rp_filter`.
    pub fn rp_filter(link: &IfName) -> SysctlKey {
        SysctlKey::conf_of(link, "rp_filter")
    }

    /// `net.ipv4.conf.default.rp_filter`, which new interfaces copy.
    pub fn rp_filter_default() -> SysctlKey {
        SysctlKey::conf(b"default", "rp_filter")
    }

    /// `net.ipv4.conf.LINK.WHAT`.
    pub fn conf_of(link: &IfName, what: &'static str) -> SysctlKey {
        SysctlKey { names_link: true, ..SysctlKey::conf(link.as_bytes(), what) }
    }

    /// `net.ipv4.conf.all.WHAT`.
    pub fn conf_of_all(what: &'static str) -> SysctlKey {
        SysctlKey::conf(b"all", what)
    }

    fn conf(whose: &[u8], what: &'static str) -> SysctlKey {
        let segments = [b"net", &b"ipv4"[..], b"conf", whose, what.as_bytes()].map(Into::into).into();
        SysctlKey { segments, names_link: false }
    }

    /// A key by its path below /proc/sys.
    pub fn from_path(path: &[u8]) -> SysctlKey {
        let segments: Vec<Box<[u8]>> = path.split(|byte| *byte == b'/').map(Into::into).collect();
        let names_link = match segments.as_slice() {
            [_, _, kind, name, _, ..] => {
                matches!(&**kind, b"conf" | b"neigh") && !matches!(&**name, b"all" | b"default")
            }
            _ => false,
        };
        SysctlKey { segments, names_link }
    }

    /// Its path below /proc/sys.
    pub fn path(&self) -> Vec<u8> {
        self.segments.join(&b'/')
    }

    /// The segments, from the root.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.segments.iter().map(|segment| &**segment)
    }

    /// Whether one of the segments is the name of an interface.
    pub fn names_link(&self) -> bool {
        self.names_link
    }
}

impl fmt::Debug for SysctlKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// As sysctl(8) takes it: with dots, or, where a segment has a dot of its own, with slashes.
impl fmt::Display for SysctlKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dotted = self.segments.iter().any(|segment| segment.contains(&b'.'));
        let separator: &[u8] = if dotted { b"/" } else { b"." };
        f.write_str(&shell_word(&self.segments.join(separator)))
    }
}

impl SysctlKey {
    /// The command that writes the value. sysctl(8) splits at `=` and expands patterns: what could be either is
    /// written to its file.
    pub fn command(&self, value: &str) -> String {
        let value = shell_word(value.as_bytes());
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-@".contains(byte);
        if self.segments.iter().all(|segment| segment.iter().all(plain)) {
            format!("sysctl -w {self}={value}")
        } else {
            let path = [&b"/proc/sys/"[..], &self.segments.join(&b'/')].concat();
            format!("printf %s {value} > {}", shell_word(&path))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_are_what_the_kernel_allows() {
        for good in [&b"eth0"[..], b"eth0.100", b"enP2p4s0", b"-", b"...", b"eth\xff9", b"a$(id)", b"fifteen-letters"] {
            assert!(IfName::new(good).is_some(), "{good:?}");
        }
        for bad in [&b""[..], b".", b"..", b"a/b", b"a b", b"a\nb", b"a:b", b"a\0", b"sixteen-letters!"] {
            assert!(IfName::new(bad).is_none(), "{bad:?}");
        }
    }

    #[test]
    fn words_are_safe_in_a_shell_and_in_a_terminal() {
        for (bytes, word) in [
            (&b"eth0.100"[..], "eth0.100"),
            (b"", "''"),
            (b"a$(id)", "'a$(id)'"),
            (b"it's", r"'it'\''s'"),
            ("höhe".as_bytes(), "'höhe'"),
            (b"\x1b[2J", r#""$(printf '\033\133\062\112')""#),
            (b"eth\xff9", r#""$(printf '\145\164\150\377\071')""#),
            ("a\u{202e}b".as_bytes(), r#""$(printf '\141\342\200\256\142')""#),
        ] {
            assert_eq!(shell_word(bytes), word, "{bytes:?}");
            let echoed = std::process::Command::new("sh").arg("-c").arg(format!("printf %s {word}")).output().unwrap();
            assert_eq!(echoed.stdout, bytes, "sh reads {word} as something else");
        }
    }

    #[test]
    fn lines_stay_one_harmless_line() {
        assert_eq!(one_line("all fine: ü"), "all fine: ü");
        assert_eq!(one_line("a\nb\x1b[31m\u{202e}"), r"a\nb\u{1b}[31m\u{202e}");
    }

    #[test]
    fn a_sysctl_is_written_so_that_sysctl_8_finds_it() {
        let key = |name: &str| SysctlKey::rp_filter(&IfName::new(name.as_bytes()).unwrap()).to_string();
        assert_eq!(key("eth0"), "net.ipv4.conf.eth0.rp_filter");
        assert_eq!(key("eth0.100"), "net/ipv4/conf/eth0.100/rp_filter");
        assert_eq!(key("a$b"), "'net.ipv4.conf.a$b.rp_filter'");
        let command = |name: &str| SysctlKey::rp_filter(&IfName::new(name.as_bytes()).unwrap()).command("2");
        assert_eq!(command("eth0.100"), "sysctl -w net/ipv4/conf/eth0.100/rp_filter=2");
        assert_eq!(command("eth=1"), "printf %s 2 > /proc/sys/net/ipv4/conf/eth=1/rp_filter");
        assert_eq!(command("e*"), "printf %s 2 > '/proc/sys/net/ipv4/conf/e*/rp_filter'");
    }
}
