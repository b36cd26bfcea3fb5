//! fnmatch(3), on text alone. Patterns are foreign input: the work is at most the product of both lengths.

use std::ops::RangeInclusive;

/// Whether fnmatch(3) says that the pattern matches the whole name.
pub(crate) fn is_match(pattern: &[u8], name: &[u8]) -> bool {
    // The rest of the pattern after the last `*`, and where in the name it was tried.
    let mut retry: Option<(usize, usize)> = None;
    let (mut place, mut at) = (0, 0);
    loop {
        match (pattern.get(place), name.get(at)) {
            (None, None) => return true,
            (Some(b'*'), _) => {
                retry = Some((place + 1, at));
                place += 1;
                continue;
            }
            (Some(_), Some(byte)) => {
                if let Some(next) = after(pattern, place, *byte) {
                    (place, at) = (next, at + 1);
                    continue;
                }
            }
            _ => {}
        }
        match retry {
            Some((next, from)) if from < name.len() => {
                retry = Some((next, from + 1));
                (place, at) = (next, from + 1);
            }
            _ => return false,
        }
    }
}

/// The rest of the pattern after one element other than `*` has matched the byte; `None` if it does not match.
pub fn after(pattern: &[u8], place: usize, byte: u8) -> Option<usize> {
    let (first, rest) = pattern.get(place..)?.split_first()?;
    let (takes, length) = match (first, rest) {
        (b'?', _) => (true, 1),
        (b'\\', [escaped, ..]) => (*escaped == byte, 2),
        (b'[', _) => match set(rest, byte) {
            Some((takes, length)) => (takes, length + 1),
            None => (byte == b'[', 1),
        },
        (first, _) => (*first == byte, 1),
    };
    takes.then_some(place + length)
}

/// A bracket expression, without its `[`: whether it matches the byte, and its length. `None` if it is not one.
pub fn set(text: &[u8], byte: u8) -> Option<(bool, usize)> {
    let (negated, mut rest) = match text {
        [b'!' | b'^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    // Without an earlier end, the last `]` ends it.
    rest.contains(&b']').then_some(())?;
    let (mut takes, mut first) = (false, true);
    loop {
        match rest {
            [] => return None,
            [b']', after @ ..] if !first => return Some((takes != negated, text.len() - after.len())),
            [b'[', b':', class @ ..] => {
                let end = class.windows(2).position(|end| end == b":]")?;
                takes |= class_ranges(class.get(..end)?)?.iter().any(|range| range.contains(&byte));
                rest = class.get(end + 2..)?;
            }
            _ => {
                let (from, after) = literal(rest)?;
                let (to, after) = match after {
                    [b'-', to @ ..] if !matches!(to, [b']', ..]) => literal(to)?,
                    _ => (from, after),
                };
                takes |= (from..=to).contains(&byte);
                rest = after;
            }
        }
        first = false;
    }
}

fn literal(text: &[u8]) -> Option<(u8, &[u8])> {
    match text {
        [b'\\', byte, rest @ ..] | [byte, rest @ ..] => Some((*byte, rest)),
        [] => None,
    }
}

fn class_ranges(name: &[u8]) -> Option<&'static [RangeInclusive<u8>]> {
    Some(match name {
        b"alnum" => &[b'0'..=b'9', b'A'..=b'Z', b'a'..=b'z'],
        b"alpha" => &[b'A'..=b'Z', b'a'..=b'z'],
        b"blank" => &[b' '..=b' ', b'\t'..=b'\t'],
        b"digit" => &[b'0'..=b'9'],
        b"graph" => &[b'!'..=b'~'],
        b"lower" => &[b'a'..=b'z'],
        b"print" => &[b' '..=b'~'],
        b"punct" => &[b'!'..=b'/', b':'..=b'@', b'['..=b'`', b'{'..=b'~'],
        b"upper" => &[b'A'..=b'Z'],
        b"xdigit" => &[b'0'..=b'9', b'A'..=b'F', b'a'..=b'f'],
        _ => return None,
    })
}
