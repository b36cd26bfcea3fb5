//! Words of texts: those in the vocabulary stay, all others are replaced by ones of the same length and kind.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use cidr::{IpCidr, IpInet};

use super::{Randomness, Substitutes};
use crate::config::{DEFAULT_YAML, SCHEMA};
use crate::history::memory::Memory;

/// Common words of configuration files, network plugins and error messages, in addition to those of node-fixer's own
/// configuration and its schema.
const VOCABULARY: &str = include_str!("vocabulary.txt");

/// How the kernel, udev and network plugins name interfaces.
const STEMS: [&str; 31] = [
    "all",
    "azv",
    "bond",
    "br",
    "cali",
    "cilium",
    "cni",
    "default",
    "docker",
    "dummy",
    "eni",
    "eno",
    "enp",
    "enP",
    "ens",
    "eth",
    "flannel",
    "gre",
    "ifb",
    "ip6tnl",
    "lo",
    "lxc",
    "nodelocaldns",
    "ovn",
    "sit",
    "tailscale",
    "tun",
    "veth",
    "vlan",
    "vxlan",
    "wg",
];

/// Longer numbers, and longer words of hexadecimal digits alone, can identify a node.
const SHORT: usize = 10;

/// Which numbers stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Numbers {
    /// All: they are times, and what the kernel counts.
    Any,
    /// Those of up to ten digits.
    Short,
}

/// What stands for which word.
pub struct Words {
    dice: Randomness,
    /// Of a word of the vocabulary, itself; of a substitute, behind a `=`, too.
    known: BTreeMap<String, String>,
}

impl Default for Words {
    fn default() -> Words {
        // The names of its fields.
        let memory = serde_json::to_string(&Memory::default()).unwrap_or_default();
        let texts = [SCHEMA, DEFAULT_YAML, VOCABULARY, &memory];
        let words = texts.iter().flat_map(|text| text.split(|c: char| !is_of_word(c)));
        let mut known = BTreeMap::new();
        words
            .flat_map(|word| word.split('-').chain([word]))
            .for_each(|word| drop(known.insert(word.into(), word.into())));
        Words { dice: Randomness::default(), known }
    }
}

fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
}

/// Whether a character may stand in an address, a path or a name.
fn is_of_token(c: char) -> bool {
    is_of_word(c) || matches!(c, '.' | ':' | '/')
}

/// The prefixes that a text names.
pub fn prefixes(text: &str) -> impl Iterator<Item = IpCidr> {
    let tokens = text.split(|c| !is_of_token(c)).filter(|token| token.contains('/'));
    tokens.filter_map(|token| token.parse::<IpInet>().ok()).map(|inet| inet.network())
}

impl Words {
    /// Has this word replaced by that one.
    pub fn know(&mut self, word: &str, other: String) {
        self.known.insert(format!("={other}"), other.clone());
        self.known.insert(word.to_owned(), other);
    }

    /// Whether a word is in the vocabulary.
    fn is_common(&self, word: &str) -> bool {
        self.known.get(word).is_some_and(|known| known == word)
    }

    /// What stands for a word without white space and punctuation.
    pub fn of(&mut self, word: &str, numbers: Numbers) -> String {
        if let Some(known) = self.known.get(word) {
            return known.clone();
        }
        let digits = match word.strip_prefix("0x") {
            Some(digits) => !digits.is_empty() && is_hexadecimal(digits),
            None => word.bytes().all(|byte| byte.is_ascii_digit()),
        };
        let stays = word.len() <= 2 || is_of_kernel(word);
        if stays || digits && (numbers == Numbers::Any || word.len() <= SHORT) {
            return word.to_owned();
        }
        let other = (0..).map(|attempt: u32| self.made(word, attempt)).find(|other| self.is_free(word, other));
        let other = other.unwrap_or_default();
        self.know(word, other.clone());
        other
    }

    /// Whether nothing else is called like that.
    fn is_free(&self, word: &str, other: &str) -> bool {
        other != word && !self.known.contains_key(&format!("={other}")) && !self.is_common(other)
    }

    /// Another word: the stem of an interface stays, of the rest each digit becomes a digit, each letter a letter.
    fn made(&self, word: &str, attempt: u32) -> String {
        let is_hash = |rest: &str| !rest.is_empty() && is_hexadecimal(rest);
        let stem =
            STEMS.iter().find(|stem| word.strip_prefix(**stem).is_some_and(is_hash)).map_or(0, |stem| stem.len());
        let hexadecimal = stem > 0 || word.len() >= 4 && is_hexadecimal(word);
        let letter = |at: usize, byte: u8| {
            let roll = self.dice.roll((word, attempt, at));
            let digit = char::from_digit((roll % 16) as u32, 16).unwrap_or('0') as u8;
            match byte {
                _ if at < stem => byte,
                b'0'..=b'9' | b'a'..=b'f' if hexadecimal => digit,
                b'A'..=b'F' if hexadecimal => digit.to_ascii_uppercase(),
                b'0'..=b'9' => b'0' + (roll % 10) as u8,
                b'A'..=b'Z' => b'A' + (roll % 26) as u8,
                b'a'..=b'z' => b'a' + (roll % 26) as u8,
                other => other,
            }
        };
        word.bytes().enumerate().map(|(at, byte)| char::from(letter(at, byte))).collect()
    }
}

/// Whether the kernel or udev would call an interface like this by itself: a known stem, and few digits and letters behind.
fn is_of_kernel(word: &str) -> bool {
    let is_place = |rest: &str| {
        rest.len() <= 10
            && rest.split(|c: char| !c.is_ascii_digit()).all(|number| number.len() <= 4)
            && rest.bytes().all(|byte| byte.is_ascii_digit() || b"spfnduv".contains(&byte))
    };
    STEMS.iter().any(|stem| word.strip_prefix(stem).is_some_and(is_place))
}

impl Substitutes {
    /// A text with all that it names replaced.
    pub(super) fn text(&mut self, text: &str, numbers: Numbers) -> String {
        let mut replaced = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let end = rest.find(|c| is_of_token(c) != is_of_token(rest.chars().next().unwrap_or_default()));
            let (token, after) = rest.split_at(end.unwrap_or(rest.len()));
            if is_of_token(c) {
                replaced += &self.token(token, numbers);
            } else {
                // Letters of other scripts are names as well.
                replaced.extend(token.chars().map(|c| if c.is_alphanumeric() { 'x' } else { c }));
            }
            rest = after;
        }
        replaced
    }

    /// An address, a prefix, a hardware address; or a path, a name or a word, piece by piece.
    fn token(&mut self, token: &str, numbers: Numbers) -> String {
        if let Some(known) = self.words.known.get(token) {
            return known.clone();
        }
        let core = token.trim_matches(['.', ':', '/', '-']);
        let begin = token.find(core).unwrap_or_default();
        for whole in [token, core] {
            if let Some(found) = self.address_in(whole) {
                let before = if whole == core { token.get(..begin).unwrap_or_default() } else { "" };
                let after = if whole == core { token.get(begin + core.len()..).unwrap_or_default() } else { "" };
                return format!("{before}{found}{after}");
            }
        }
        // From one address to another, or a name with an address in it.
        let has_address = |piece: &str| {
            let parts: Vec<&str> = piece.split('.').collect();
            piece.parse::<IpAddr>().is_ok() || parts.windows(4).any(|four| four.join(".").parse::<Ipv4Addr>().is_ok())
        };
        let marks = if token.split('-').any(has_address) { ['-', '/', ':', '.'] } else { ['/', ':', '.', '-'] };
        match marks.into_iter().find(|mark| token.contains(*mark)) {
            Some(mark) => self.pieces(token, mark, numbers),
            None => self.words.of(token, numbers),
        }
    }

    fn pieces(&mut self, token: &str, mark: char, numbers: Numbers) -> String {
        let pieces: Vec<&str> = token.split(mark).collect();
        let mut replaced: Vec<String> = pieces.iter().map(|piece| self.token(piece, numbers)).collect();
        // The name of a host often has its address in it.
        for at in 0..pieces.len().saturating_sub(3) {
            let address = pieces.get(at..at + 4).and_then(|four| four.join(".").parse::<Ipv4Addr>().ok());
            if let Some(IpAddr::V4(other)) = address.map(|address| self.addresses.of(address.into())) {
                replaced.splice(at..at + 4, other.octets().map(|octet| octet.to_string()));
            }
        }
        replaced.join(&mark.to_string())
    }

    fn address_in(&mut self, text: &str) -> Option<String> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Some(self.addresses.of(address).to_string());
        }
        if let Some((address, length)) = text.split_once('/')
            && let Ok(address) = address.parse::<IpAddr>()
            && length.parse::<u8>().is_ok()
        {
            return Some(format!("{}/{length}", self.addresses.of(address)));
        }
        // Pairs of digits, or groups of four with dots.
        let (mark, length) = if text.contains('.') { ('.', 4) } else { (':', 2) };
        let parts: Vec<&str> = text.split([mark, '-']).collect();
        let is_hardware =
            parts.len() * length == 12 && parts.iter().all(|part| part.len() == length && is_hexadecimal(part));
        is_hardware.then(|| {
            let digits = self.words.of(&parts.concat().to_lowercase(), Numbers::Short);
            let pairs: Vec<&str> = (0..6).filter_map(|at| digits.get(at * 2..at * 2 + 2)).collect();
            pairs.join(":")
        })
    }
}

fn is_hexadecimal(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use crate::history::cni_rules::CniState;
    use crate::history::contention::{LastChange, Repair, RepairHistory};
    use crate::history::memory::{
        AddedAddress, EndedRun, Kind, Knowledge, Ledger, Pending, Port, Restart, SetMtu, SetSysctl, SeveralHops, Uplink,
    };
    use crate::model::netns::{Idle, IdleLink, IdleNetns, NetnsId};
    use crate::model::pod::PodId;

    fn of(text: &str) -> String {
        Substitutes::default().text(text, Numbers::Short)
    }

    #[test]
    fn what_names_an_address_is_replaced_in_whatever_form() {
        for (text, leaks) in [
            ("10.77.1.7-10.77.1.9", "77"),
            ("2001:678:1234::1-2001:678:1234::9", "1234"),
            ("node-10.77.1.7.example.com", "77"),
            ("10.77.1.7.nip.io", "77"),
            ("7.1.77.10.in-addr.arpa", "77"),
            ("ip-10-77-1-7.ec2.internal", "77"),
            ("10.77.1.7:443", "77"),
            ("0277.3456.7899", "3456"),
            ("02:77:34:56:78:99", "34:56"),
        ] {
            // An octet may become itself, once.
            assert!((0..20).filter(|_| of(text).contains(leaks)).count() < 5, "{text}: {}", of(text));
        }
        for stays in ["0x200/0xf00", "1400", "eth0.100", "enp3s0f1", "kube-system", "v1.34", "0x"] {
            assert_eq!(of(stays), stays);
        }
        assert_ne!(of("0x123456789ab"), "0x123456789ab");
        for (name, stem) in [("eni56651d0d5ae", "eni"), ("calia1", "cali"), ("lxc1", "lxc"), ("veth9f", "veth")] {
            assert!(of(name).starts_with(stem) && of(name).len() == name.len(), "{}", of(name));
        }
    }

    /// All that a run may leave behind.
    fn memory() -> Memory {
        let time = Duration::new(7, 9);
        let uplink = Uplink {
            name: "acme0".into(),
            index: 2,
            hardware: "021234567899".into(),
            addresses: vec!["10.77.1.7/24".into()],
        };
        let id = NetnsId { device: 4, inode: 5, changed: (6, 7) };
        let repair = Repair {
            reconciler: "routes".into(),
            command: "ip route add default".into(),
            times: vec![1],
            reported: true,
            made: 1,
            undone: 2,
            until: 3,
        };
        let change = LastChange { wall: 1, command: "sysctl -w x=1".into() };
        Memory {
            made: BTreeMap::from([
                (Kind::Routes, true),
                (Kind::Bridges, true),
                (Kind::Addresses, true),
                (Kind::Masquerade, true),
                (Kind::Sysctls, true),
            ]),
            kube_proxy: Knowledge {
                interfaces: Some("auto".into()),
                uplinks: Some(vec![uplink.clone()]),
                pending: Some(Pending { since: time, uplinks: vec![uplink.clone()] }),
                restart: Some(Restart { id: PodId::try_from("a1".to_owned()).unwrap(), uplinks: vec![uplink] }),
                restarted: Some(time),
                row: 1,
                hardware: vec!["021234567899".into()],
                failures: 1,
                retry: Some(time),
                unanswered: Some("pods".into()),
            },
            namespaces: Idle {
                namespaces: vec![IdleNetns { name: "acme".into(), id, since: time }],
                links: vec![IdleLink { name: "acme0".into(), index: 3, since: time }],
            },
            mtus: vec![SetMtu { index: 1, before: 1500, value: 1400, earlier: Some(1) }],
            several: [SeveralHops { place: "x".into(), route: "y".into() }].into(),
            ports: [Port { index: 1, bridge: "br0".into() }].into(),
            cni: CniState { digest: Some(1), missing: vec![("x".into(), 1)], flushed: true },
            repairs: RepairHistory { repairs: vec![repair], sections: [("routes".into(), change)].into() },
            reported: [("routes".into(), vec!["blocked".into()])].into(),
            ended: Some(EndedRun { time: 1, exit: 1 }),
        }
    }

    #[test]
    fn what_a_run_left_behind_can_be_read_without_its_names() {
        let mut substitutes = Substitutes::default();
        let mut replaced = |text: String| substitutes.value(serde_json::from_str(&text).unwrap()).to_string();
        let text = replaced(serde_json::to_string(&memory()).unwrap());
        let read: Memory = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!((read.made, read.mtus, read.ended), (memory().made, memory().mtus, memory().ended));
        assert!(!text.contains("acme") && !text.contains("10.77.1.7") && !text.contains("021234567899"), "{text}");
        let ledger = Ledger {
            addresses: vec![AddedAddress {
                dev: "acme0".into(),
                address: "10.77.1.7/24".parse().unwrap(),
                added: Duration::new(7, 9),
            }],
            sysctls: vec![SetSysctl {
                key: "net/ipv4/ip_forward".into(),
                before: "0".into(),
                value: "1".into(),
                earlier: Some("0".into()),
                persist: true,
            }],
        };
        let text = replaced(serde_json::to_string(&ledger).unwrap());
        let read: Ledger = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert_eq!(read.sysctls, ledger.sysctls);
    }
}
