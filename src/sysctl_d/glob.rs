//! fnmatch(3) and glob(3) with braces, on text alone. Patterns are foreign: nothing is expanded. The pattern is walked
//! along the name, in all of its alternatives at once, and the work is at most the product of both lengths.

use std::ops::RangeInclusive;

/// Alternatives whose braces cut a bracket expression in pieces, `[{a,b}]`, cannot be walked. So many of them are spelled
/// out; of more, and of longer patterns, the braces stand for themselves.
const MOST_SPELLED_OUT: usize = 64;
const LONGEST_SPELLED_OUT: usize = 4096;

/// Whether fnmatch(3) says that the pattern matches the whole name.
pub(crate) fn is_match(pattern: &[u8], name: &[u8]) -> bool {
    // What follows the last `*`, and the place in the name where it was tried.
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

/// Whether glob(3) finds the path by the pattern.
pub fn finds(pattern: &[u8], path: &[u8]) -> bool {
    if !pattern.contains(&b'{') {
        return finds_without_braces(pattern, path);
    }
    let walk = Walk { pattern, signs: signs(pattern) };
    match walk.finds(path) {
        Ok(found) => found,
        Err(CutUp) => spelled_out(pattern).iter().any(|pattern| finds_without_braces(pattern, path)),
    }
}

fn finds_without_braces(pattern: &[u8], path: &[u8]) -> bool {
    let mut names = path.split(|byte| *byte == b'/');
    let mut segments = pattern.split(|byte| *byte == b'/');
    let all = segments.by_ref().all(|segment| {
        let wild = segment.first().is_some_and(|byte| b"*?[".contains(byte));
        names.next().is_some_and(|name| !(wild && name.starts_with(b".")) && is_match(segment, name))
    });
    all && names.next().is_none()
}

/// How much at the beginning and at the end of the pattern stands for itself in whatever it matches.
pub fn plain_ends(pattern: &[u8]) -> (usize, usize) {
    let special = |byte: &u8| b"*?[]{},\\".contains(byte);
    let start = pattern.iter().position(special).unwrap_or(pattern.len());
    let end = pattern.iter().rposition(special).map_or(pattern.len(), |last| pattern.len() - last - 1);
    (start, end)
}

/// Where the pattern goes on after the byte has been taken by what stands in this place, which is not `*`; `None` where it
/// takes another.
fn after(pattern: &[u8], place: usize, byte: u8) -> Option<usize> {
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

/// A bracket expression, without its `[`: whether it takes the byte, and its length. `None` where it is none.
fn set(text: &[u8], byte: u8) -> Option<(bool, usize)> {
    let (negated, mut rest) = match text {
        [b'!' | b'^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    // The last `]` of all ends it, if nothing does before.
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

/// A `{`, `,` or `}` that makes alternatives.
#[derive(Debug, Clone, Copy)]
struct Sign {
    at: u32,
    /// Where in the list the next sign of the same pair of braces is; of a `}`, itself.
    next: u32,
    /// Where in the pattern its pair of braces ends.
    close: u32,
}

/// The braces of a pattern, in their order. From the first one that is never closed on they stand for themselves.
fn signs(pattern: &[u8]) -> Vec<Sign> {
    let mut signs: Vec<Sign> = Vec::new();
    // Of each pair that is open, the first and the last of its signs.
    let mut open: Vec<(usize, usize)> = Vec::new();
    let mut bytes = pattern.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        if *byte == b'\\' {
            bytes.next();
            continue;
        }
        if !(*byte == b'{' || !open.is_empty() && matches!(byte, b',' | b'}')) {
            continue;
        }
        // The lines of a file of configuration are short enough.
        let (Ok(place), Ok(index)) = (u32::try_from(at), u32::try_from(signs.len())) else { break };
        if *byte == b'{' {
            open.push((signs.len(), signs.len()));
        } else if let Some((_, last)) = open.last_mut() {
            if let Some(sign) = signs.get_mut(*last) {
                sign.next = index;
            }
            *last = signs.len();
        }
        signs.push(Sign { at: place, next: index, close: place });
        if *byte == b'}' {
            let mut member = open.pop().map(|(first, _)| first);
            while let Some(sign) = member.and_then(|index| signs.get_mut(index)) {
                sign.close = place;
                member = (sign.next != index).then_some(sign.next as usize);
            }
        }
    }
    signs.truncate(open.first().map_or(signs.len(), |(first, _)| *first));
    signs
}

/// Braces cut a bracket expression in pieces.
struct CutUp;

/// A pattern with the places in it that may come next.
struct Walk<'a> {
    pattern: &'a [u8],
    signs: Vec<Sign>,
}

impl Walk<'_> {
    fn finds(&self, path: &[u8]) -> Result<bool, CutUp> {
        let mut seen = vec![0_u64; self.pattern.len() / 64 + 1];
        let mut places = vec![0];
        let mut before = b'/';
        for byte in path {
            let hidden = before == b'/' && *byte == b'.';
            let mut next = Vec::new();
            for place in self.reach(places, Some(*byte), hidden, &mut seen) {
                next.extend(self.step(place, *byte, hidden)?);
            }
            if next.is_empty() {
                return Ok(false);
            }
            (places, before) = (next, *byte);
        }
        Ok(self.reach(places, None, false, &mut seen).contains(&self.pattern.len()))
    }

    /// The places at which a byte can be taken, by `*` at the longest, or at which the pattern ends. An alternative that
    /// begins with another byte than the next is none.
    fn reach(&self, from: Vec<usize>, byte: Option<u8>, hidden: bool, seen: &mut [u64]) -> Vec<usize> {
        seen.fill(0);
        let mut found = Vec::new();
        let mut open = from;
        while let Some(place) = open.pop() {
            let Some(word) = seen.get_mut(place / 64) else { continue };
            let bit = 1 << (place % 64);
            if *word & bit != 0 {
                continue;
            }
            *word |= bit;
            match (self.pattern.get(place), self.sign(place)) {
                (Some(b'{'), Some(sign)) => {
                    let starts = self.alternatives(sign);
                    open.extend(starts.filter(|start| self.may_begin(*start, byte)));
                }
                (_, Some(sign)) => open.push(sign.close as usize + 1),
                (Some(b'*'), None) => {
                    if !hidden {
                        found.push(place);
                        open.push(place + 1);
                    }
                }
                (_, None) => found.push(place),
            }
        }
        found
    }

    /// Where the pattern goes on after the byte. What is wild finds no name that is hidden, and never a `/`.
    fn step(&self, place: usize, byte: u8, hidden: bool) -> Result<Option<usize>, CutUp> {
        let Some(first) = self.pattern.get(place) else { return Ok(None) };
        let wild = b"*?[".contains(first);
        if *first == b'[' && self.is_cut_up(place) {
            return Err(CutUp);
        }
        if wild && hidden || (wild || *first == b'\\') && byte == b'/' {
            return Ok(None);
        }
        if *first == b'*' {
            return Ok(Some(place));
        }
        Ok(match first {
            // Neither goes beyond the segment.
            b'[' | b'\\' => after(self.pattern.get(..self.segment_end(place)).unwrap_or_default(), place, byte),
            _ => after(self.pattern, place, byte),
        })
    }

    fn segment_end(&self, place: usize) -> usize {
        let rest = self.pattern.get(place..).unwrap_or_default();
        place + rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len())
    }

    /// Whether there are signs in the bracket expression; or after a `[` that without them might begin one.
    fn is_cut_up(&self, place: usize) -> bool {
        let end = self.segment_end(place);
        let length = set(self.pattern.get(place + 1..end).unwrap_or_default(), 0).map(|(_, length)| length);
        let end = length.map_or(end, |length| place + 1 + length);
        let first = self.signs.partition_point(|sign| (sign.at as usize) < place);
        self.signs.get(first).is_some_and(|sign| (sign.at as usize) < end)
    }

    fn sign(&self, place: usize) -> Option<&Sign> {
        let is_candidate = matches!(self.pattern.get(place), Some(b'{' | b',' | b'}'));
        let index = is_candidate.then(|| self.signs.binary_search_by_key(&place, |sign| sign.at as usize).ok());
        self.signs.get(index.flatten()?)
    }

    /// Where the alternatives of a pair of braces begin.
    fn alternatives(&self, open: &Sign) -> impl Iterator<Item = usize> {
        let next = |sign: &Sign| self.signs.get(sign.next as usize).copied().filter(|next| next.at < next.close);
        std::iter::successors(Some(*open), next).map(|sign| sign.at as usize + 1)
    }

    fn may_begin(&self, place: usize, byte: Option<u8>) -> bool {
        match self.pattern.get(place) {
            Some(first) if b"*?[{,}\\".contains(first) => true,
            first => first.copied() == byte,
        }
    }
}

/// The patterns that the braces stand for.
fn spelled_out(pattern: &[u8]) -> Vec<Vec<u8>> {
    let (mut done, mut open) = (Vec::new(), vec![pattern.to_vec()]);
    while let Some(pattern) = open.pop() {
        let number = done.len() + open.len();
        match parts(&pattern) {
            Some(parts) if number + parts.len() <= MOST_SPELLED_OUT && pattern.len() <= LONGEST_SPELLED_OUT => {
                open.extend(parts);
            }
            _ => done.push(pattern),
        }
    }
    done
}

/// The pattern once for each part of its first pair of braces.
fn parts(pattern: &[u8]) -> Option<Vec<Vec<u8>>> {
    let walk = Walk { pattern, signs: signs(pattern) };
    let open = walk.signs.first()?;
    let (before, behind) = (pattern.get(..open.at as usize)?, pattern.get(open.close as usize + 1..)?);
    let part = |start: usize| {
        let sign = walk.signs.iter().find(|sign| sign.at as usize + 1 == start)?;
        let end = walk.signs.get(sign.next as usize)?.at as usize;
        Some([before, pattern.get(start..end)?, behind].concat())
    };
    walk.alternatives(open).map(part).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What glob(3) of the GNU C library says of files with these names.
    #[test]
    fn braces_are_what_glob_makes_of_them() {
        for (pattern, found, not_found) in [
            ("{}", "", "{}"),
            ("a{}", "a", "a{}"),
            ("{a,b", "{a,b", "a"),
            ("{a,b}", "b", "{a,b}"),
            ("\\{a,b", "{a,b", "a"),
            ("\\{a,b}", "{a,b}", "a"),
            ("x\\{a,b\\}", "x{a,b}", "xa"),
            ("{\\a,b}", "a", "\\a"),
            ("{a\\,b}", "a,b", "a"),
            ("{a,b}{", "b{", "b"),
            ("[{a,b}]", "b", "{"),
            ("{[,x}a]", "a", "[a]"),
            ("{[,x}a]", "xa]", "[a]"),
            ("{.h,}", ".h", "h"),
            ("{,.}h", ".h", "..h"),
            ("{,?}h", "xh", ".h"),
            ("{,*}.h", ".h", "..h"),
            ("d/{a,b}", "d/b", "d/d"),
            ("{d/a,d/b}", "d/b", "d/d/b"),
            ("{d/,}a", "d/a", "d/"),
            ("{a{b,c}", "{a{b,c}", "{ab"),
            ("{{a,b},c}", "b", "{b"),
            ("*{,x}", "cx", ".x"),
            ("[{]a", "{a", "[{]a"),
            ("{a,b}}", "a}", "a"),
            ("d/{*,.h}", "d/.h", "d/.x"),
            ("{a,b}/[!x]{?,*y}", "a/zzzy", "a/z/y"),
            ("{x\\,a}\\/b", "x,a\\/b", "x,a/b"),
        ] {
            assert!(finds(pattern.as_bytes(), found.as_bytes()), "{pattern} finds {found}");
            assert!(!finds(pattern.as_bytes(), not_found.as_bytes()), "{pattern} does not find {not_found}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, cases: 4000, ..Default::default() })]

        #[test]
        fn a_walk_finds_what_its_patterns_spelled_out_find(pattern in "([ab*?./]|[ab]|\\{|\\}|,|\\{[ab],|,[ab*.]\\}|\\[[!ab]\\]|\\\\.){0,9}", path in "[ab./,{]{0,6}") {
            let (pattern, path) = (pattern.as_bytes(), path.as_bytes());
            let patterns = spelled_out(pattern);
            let expected = patterns.iter().any(|pattern| finds_without_braces(pattern, path));
            prop_assert_eq!(finds(pattern, path), expected);
        }

        #[test]
        fn plain_ends_are_in_all_that_is_found(pattern in "[ab/]{0,3}[ab*?{},\\[\\]\\\\/]{0,6}[ab/]{0,3}", path in "[ab/]{0,8}") {
            let (start, end) = plain_ends(pattern.as_bytes());
            if finds(pattern.as_bytes(), path.as_bytes()) {
                prop_assert!(path.starts_with(&pattern[..start]) && path.ends_with(&pattern[pattern.len() - end..]));
            }
        }
    }

    /// Each of these would be a day's work, or a gibibyte, were it expanded.
    #[test]
    fn a_bomb_is_a_pattern() {
        let many = |n: usize| (0..n).map(|i| format!("x{i}")).collect::<Vec<_>>().join(",");
        let big = 1 << 20;
        for (case, pattern) in [
            ("pairs", format!("e*{}9", "{t,h}".repeat(200))),
            ("pairs of nothing", format!("e*{}9", "{,}".repeat(200_000))),
            ("a long end", format!("{{{}}}*{}", many(990), "y".repeat(big))),
            ("many", format!("*{{{}}}", many(100_000))),
            ("many that are wild", format!("*{{{}}}z", "?,".repeat(300_000))),
            ("deep", format!("{}{}", "{x,".repeat(200_000), "}".repeat(200_000))),
            ("never closed", "{".repeat(big)),
            ("brackets", "[".repeat(big)),
            ("brackets in braces", format!("{{{},x}}", "[".repeat(big))),
            ("a long set", format!("{{*[{}],x}}", "y-z".repeat(big / 3))),
            ("stars", "*e".repeat(big / 2)),
            ("stars in braces", format!("{{{},x}}", "*e".repeat(big / 2))),
        ] {
            assert!(!finds(pattern.as_bytes(), b"eth0"), "{case}");
        }
        let last = format!("net/*{{{},th0}}/rp_filter", many(100_000));
        assert!(finds(last.as_bytes(), b"net/eth0/rp_filter"));
    }
}
