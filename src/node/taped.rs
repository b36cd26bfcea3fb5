//! How answers are kept as lists of strings: of nftables, network namespaces and the container runtime.

use std::collections::{BTreeMap, BTreeSet};
use std::str::SplitWhitespace;

use crate::model::Family;
use crate::model::masquerade::{
    BaseChain, Condition, Conditions, FilterRule, FilterTable, Interface, SeenNat, SeenTable, Verdict,
};
use crate::model::netns::{NetnsId, NetnsName, Occupied, Sandboxes, SeenNetns};
use crate::model::pod::{Pod, PodId, Pods};
use crate::tape::{Taped, bytes_of, duration, nanos, text_of};

/// `DEVICE INODE SECONDS NANOSECONDS`
fn netns(id: &NetnsId) -> String {
    format!("{} {} {} {}", id.device, id.inode, id.changed.0, id.changed.1)
}

fn netns_of(words: &mut SplitWhitespace) -> Option<NetnsId> {
    let (device, inode) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(NetnsId { device, inode, changed: (words.next()?.parse().ok()?, words.next()?.parse().ok()?) })
}

/// A namespace, or `-`, and its name.
impl Taped for Vec<SeenNetns> {
    fn to_tape(&self) -> Vec<String> {
        let line = |seen: &SeenNetns| {
            let id = seen.id.as_ref().map_or_else(|| "- - - -".into(), netns);
            format!("{id} {}", text_of(seen.name.as_bytes()))
        };
        self.iter().map(line).collect()
    }

    fn of_tape(answer: &[String]) -> Option<Vec<SeenNetns>> {
        let seen = |line: &String| {
            let name = NetnsName::new(&bytes_of(line.splitn(5, ' ').nth(4)?))?;
            let id = if line.starts_with('-') { None } else { Some(netns_of(&mut line.split_whitespace())?) };
            Some(SeenNetns { name, id })
        };
        answer.iter().map(seen).collect()
    }
}

/// A namespace and a process in it.
impl Taped for Occupied {
    fn to_tape(&self) -> Vec<String> {
        self.iter().map(|(id, pid)| format!("{} {pid}", netns(id))).collect()
    }

    fn of_tape(answer: &[String]) -> Option<Occupied> {
        let mut occupied = Occupied::new();
        for line in answer {
            let mut words = line.split_whitespace();
            occupied.insert(netns_of(&mut words)?, words.next()?.parse().ok()?);
        }
        Some(occupied)
    }
}

/// `name NAME` or `namespace ID`.
impl Taped for Sandboxes {
    fn to_tape(&self) -> Vec<String> {
        let names = self.names.iter().map(|name| format!("name {}", text_of(name.as_bytes())));
        names.chain(self.ids.iter().map(|id| format!("namespace {}", netns(id)))).collect()
    }

    fn of_tape(answer: &[String]) -> Option<Sandboxes> {
        let (mut names, mut ids) = (BTreeSet::new(), BTreeSet::new());
        for line in answer {
            match line.split_once(' ')? {
                ("name", name) => drop(names.insert(NetnsName::new(&bytes_of(name))?)),
                (_, id) => drop(ids.insert(netns_of(&mut id.split_whitespace())?)),
            }
        }
        Some(Sandboxes { names, ids })
    }
}

/// When they were listed; and of each its id, when it was made, and its name.
impl Taped for Pods {
    fn to_tape(&self) -> Vec<String> {
        let pods = self.pods.iter().map(|pod| format!("{} {} {}", pod.id, nanos(pod.created), pod.name));
        std::iter::once(nanos(self.listed)).chain(pods).collect()
    }

    fn of_tape(answer: &[String]) -> Option<Pods> {
        let (listed, pods) = answer.split_first()?;
        let pod = |line: &String| {
            let mut words = line.splitn(3, ' ');
            let (id, created, name) = (words.next()?, words.next()?, words.next()?);
            Some(Pod { id: PodId::try_from(id.to_owned()).ok()?, created: duration(created)?, name: name.into() })
        };
        Some(Pods { pods: pods.iter().map(pod).collect::<Option<_>>()?, listed: duration(listed)? })
    }
}

/// `hidden`, `missing` and why, or `whole` or `changed` and the conditions of each rule; nothing where there is no table.
impl Taped for SeenNat {
    fn to_tape(&self) -> Vec<String> {
        match self {
            SeenNat::Hidden => vec!["hidden".into()],
            SeenNat::Missing(why) => vec!["missing".into(), why.clone()],
            SeenNat::Table(None) => Vec::new(),
            SeenNat::Table(Some(table)) => {
                let state = if table.whole { "whole" } else { "changed" };
                std::iter::once(state.to_owned()).chain(table.rules.iter().map(conditions)).collect()
            }
        }
    }

    fn of_tape(answer: &[String]) -> Option<SeenNat> {
        let Some((state, rules)) = answer.split_first() else { return Some(SeenNat::Table(None)) };
        Some(match state.as_str() {
            "hidden" => SeenNat::Hidden,
            "missing" => SeenNat::Missing(rules.first()?.clone()),
            state => {
                let rules = rules.iter().map(|rule| conditions_of(rule)).collect::<Option<_>>()?;
                SeenNat::Table(Some(SeenTable { whole: state == "whole", rules }))
            }
        })
    }
}

/// Of each table a line `table FAMILY NAME`, its base chains, and each other chain with its rules.
impl Taped for Vec<FilterTable> {
    fn to_tape(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for table in self {
            lines.push(format!("table {} {}", table.family, word(table.name.as_bytes())));
            for base in &table.bases {
                let (hook, policy) = (if base.forward { "forward" } else { "prerouting" }, base.drops);
                let policy = if policy { "drop" } else { "accept" };
                lines.push(format!("base {hook} {policy} {}", word(&base.name)));
            }
            for (name, rules) in &table.chains {
                lines.push(format!("chain {}", word(name)));
                lines.extend(rules.iter().map(|rule| {
                    format!("rule {}{}", verdict(&rule.verdict), " ".to_owned() + &conditions(&rule.conditions))
                }));
            }
        }
        lines
    }

    fn of_tape(answer: &[String]) -> Option<Vec<FilterTable>> {
        let mut tables: Vec<FilterTable> = Vec::new();
        let mut chain = Vec::new();
        for line in answer {
            let mut words = line.split_whitespace();
            match words.next()? {
                "table" => {
                    let known = ["ip", "ip6", "inet"];
                    let family = words.next()?;
                    let family = known.into_iter().find(|known| *known == family)?;
                    let name = String::from_utf8_lossy(&unword(words.next()?)?).into();
                    tables.push(FilterTable { family, name, bases: Vec::new(), chains: BTreeMap::new() });
                }
                "base" => {
                    let (forward, drops) = (words.next()? == "forward", words.next()? == "drop");
                    tables.last_mut()?.bases.push(BaseChain { name: unword(words.next()?)?, forward, drops });
                }
                "chain" => {
                    chain = unword(words.next()?)?;
                    tables.last_mut()?.chains.insert(chain.clone(), Vec::new());
                }
                _ => {
                    let verdict = verdict_of(&mut words)?;
                    let conditions = words.map(condition_of).collect::<Option<_>>()?;
                    tables.last_mut()?.chains.get_mut(&chain)?.push(FilterRule { conditions, verdict });
                }
            }
        }
        Some(tables)
    }
}

/// Bytes as one word: `'` before them, so that none is empty; white space as `\x20`.
fn word(bytes: &[u8]) -> String {
    let mut word = String::from("'");
    for c in text_of(bytes).chars() {
        if c.is_whitespace() {
            c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| word += &format!("\\x{byte:02x}"));
        } else {
            word.push(c);
        }
    }
    word
}

fn unword(word: &str) -> Option<Vec<u8>> {
    word.strip_prefix('\'').map(bytes_of)
}

fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".into(),
        Verdict::Drop => "drop".into(),
        Verdict::Return => "return".into(),
        Verdict::Chain(name, goes) => format!("{} {}", if *goes { "goto" } else { "jump" }, word(name)),
        Verdict::Masquerade => "masquerade".into(),
        Verdict::Continue => "continue".into(),
        Verdict::Unknown => "unknown".into(),
    }
}

fn verdict_of(words: &mut SplitWhitespace) -> Option<Verdict> {
    Some(match words.next()? {
        "accept" => Verdict::Accept,
        "drop" => Verdict::Drop,
        "return" => Verdict::Return,
        "goto" => Verdict::Chain(unword(words.next()?)?, true),
        "jump" => Verdict::Chain(unword(words.next()?)?, false),
        "masquerade" => Verdict::Masquerade,
        "continue" => Verdict::Continue,
        "unknown" => Verdict::Unknown,
        _ => return None,
    })
}

fn conditions(all: &Conditions) -> String {
    all.iter().map(condition).collect::<Vec<_>>().join(" ")
}

fn conditions_of(text: &str) -> Option<Conditions> {
    text.split_whitespace().map(condition_of).collect()
}

/// `KIND=VALUE`, or `KIND!=VALUE` where it must not be so.
fn condition(condition: &Condition) -> String {
    let interface = |interface: &Interface| match interface {
        Interface::Name(name) => word(name),
        Interface::Names(begin) => format!("*{}", word(begin)),
        Interface::Index(index) => index.to_string(),
    };
    let (kind, value, not) = match condition {
        Condition::Family(Family::V4) => ("family", "ipv4".into(), false),
        Condition::Family(Family::V6) => ("family", "ipv6".into(), false),
        Condition::In(name, not) => ("in", interface(name), *not),
        Condition::Out(name, not) => ("out", interface(name), *not),
        Condition::From(prefix, not) => ("from", format!("{prefix:#}"), *not),
        Condition::To(prefix, not) => ("to", format!("{prefix:#}"), *not),
        Condition::Protocol(protocol, not) => ("protocol", protocol.to_string(), *not),
        Condition::State(bits, not) => ("state", bits.to_string(), *not),
        Condition::Status(bits, not) => ("status", bits.to_string(), *not),
        Condition::Other => ("other", String::new(), false),
    };
    format!("{kind}{}{value}", if not { "!=" } else { "=" })
}

fn condition_of(text: &str) -> Option<Condition> {
    let (kind, value) = text.split_once('=')?;
    let (kind, not) = kind.strip_suffix('!').map_or((kind, false), |kind| (kind, true));
    let interface = || {
        Some(match value.strip_prefix('*') {
            Some(begin) => Interface::Names(unword(begin)?),
            None if value.starts_with('\'') => Interface::Name(unword(value)?),
            None => Interface::Index(value.parse().ok()?),
        })
    };
    Some(match (kind, value) {
        ("family", "ipv4") => Condition::Family(Family::V4),
        ("family", "ipv6") => Condition::Family(Family::V6),
        ("in", _) => Condition::In(interface()?, not),
        ("out", _) => Condition::Out(interface()?, not),
        ("from", prefix) => Condition::From(prefix.parse().ok()?, not),
        ("to", prefix) => Condition::To(prefix.parse().ok()?, not),
        ("protocol", number) => Condition::Protocol(number.parse().ok()?, not),
        ("state", bits) => Condition::State(bits.parse().ok()?, not),
        ("status", bits) => Condition::Status(bits.parse().ok()?, not),
        ("other", _) => Condition::Other,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn comes_back<T: Taped + PartialEq + std::fmt::Debug>(answer: T) {
        assert_eq!(T::of_tape(&answer.to_tape()).as_ref(), Some(&answer), "{:?}", answer.to_tape());
    }

    #[test]
    fn answers_come_back_as_they_were() {
        let id = NetnsId { device: 4, inode: 4_026_531_840, changed: (-1, 999) };
        let name = |name: &[u8]| NetnsName::new(name).unwrap();
        comes_back(vec![
            SeenNetns { name: name(b"cni-1"), id: Some(id) },
            SeenNetns { name: name(b"a b \xff\\"), id: None },
        ]);
        comes_back(Occupied::from([(id, 7)]));
        comes_back(Sandboxes { names: [name(b"x y")].into(), ids: [id].into() });
        let pod = Pod { id: PodId::try_from("a1".to_owned()).unwrap(), name: "kube proxy".into(), created: id_time() };
        comes_back(Pods { pods: vec![pod], listed: id_time() });
        for nat in [SeenNat::Hidden, SeenNat::Missing("no such thing".into()), SeenNat::Table(None)] {
            comes_back(nat);
        }
        comes_back(SeenNat::Table(Some(SeenTable { whole: false, rules: vec![all_conditions(), Vec::new()] })));
        let verdicts = [
            Verdict::Accept,
            Verdict::Drop,
            Verdict::Return,
            Verdict::Chain(b"a b".to_vec(), true),
            Verdict::Chain(b"\xff\\".to_vec(), false),
            Verdict::Masquerade,
            Verdict::Continue,
            Verdict::Unknown,
        ];
        let rules = verdicts.map(|verdict| FilterRule { conditions: all_conditions(), verdict }).to_vec();
        let base = |forward, drops| BaseChain { name: b"FORWARD".to_vec(), forward, drops };
        let table = FilterTable {
            family: "inet",
            name: "fire wall".into(),
            bases: vec![base(true, false), base(false, true)],
            chains: [(b"FORWARD".to_vec(), rules), (Vec::new(), Vec::new())].into(),
        };
        comes_back(vec![table.clone(), FilterTable { family: "ip", bases: Vec::new(), ..table }]);
    }

    fn id_time() -> std::time::Duration {
        std::time::Duration::new(1_800_000_000, 1)
    }

    fn all_conditions() -> Conditions {
        vec![
            Condition::Family(Family::V6),
            Condition::In(Interface::Name(b"eth0".to_vec()), true),
            Condition::In(Interface::Names(b"*'\xff".to_vec()), false),
            Condition::Out(Interface::Index(7), true),
            Condition::From("10.0.0.0/8".parse().unwrap(), false),
            Condition::To("fd00::1/128".parse().unwrap(), true),
            Condition::Protocol(6, false),
            Condition::State(2, true),
            Condition::Status(1, false),
            Condition::Other,
        ]
    }
}
