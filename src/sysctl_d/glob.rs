//! glob(3) with braces, on text alone. Patterns are foreign input and are not expanded: the pattern is followed along
//! the name in all alternatives at once, so the work is at most the product of both lengths.

use super::fnmatch::{after, is_match, set};

/// Alternatives whose braces split a bracket expression, such as `[{a,b}]`, cannot be followed. Up to this many are
/// expanded; beyond that, and in longer patterns, the braces are literal.
const MOST_SPELLED_OUT: usize = 64;
const LONGEST_SPELLED_OUT: usize = 4096;

/// Whether glob(3) finds the path with the pattern.
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

/// How many bytes at the beginning and at the end of the pattern are literal.
pub fn plain_ends(pattern: &[u8]) -> (usize, usize) {
    let special = |byte: &u8| b"*?[]{},\\".contains(byte);
    let start = pattern.iter().position(special).unwrap_or(pattern.len());
    let end = pattern.iter().rposition(special).map_or(pattern.len(), |last| pattern.len() - last - 1);
    (start, end)
}

/// A `{`, `,` or `}` that makes alternatives.
#[derive(Debug, Clone, Copy)]
struct Sign {
    at: u32,
    /// The index of the next sign of the same pair of braces; for a `}`, its own.
    next: u32,
    /// Where its pair of braces ends in the pattern.
    close: u32,
}

/// The braces of a pattern, in order. From the first one that is never closed they are literal.
fn signs(pattern: &[u8]) -> Vec<Sign> {
    let mut signs: Vec<Sign> = Vec::new();
    // For each open pair, the first and the last of its signs.
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
        // Lines of configuration files are short enough.
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

/// Braces split a bracket expression.
struct CutUp;

/// A pattern with the positions that may come next.
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

    /// The positions at which a byte can match, by `*` at the longest, or at which the pattern ends. Alternatives that
    /// begin with another byte than the next are left out.
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

    /// Where the pattern continues after the byte. Wildcards match neither hidden names nor `/`.
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
            // Neither matches beyond the segment.
            b'[' | b'\\' => after(self.pattern.get(..self.segment_end(place)).unwrap_or_default(), place, byte),
            _ => after(self.pattern, place, byte),
        })
    }

    fn segment_end(&self, place: usize) -> usize {
        let rest = self.pattern.get(place..).unwrap_or_default();
        place + rest.iter().position(|byte| *byte == b'/').unwrap_or(rest.len())
    }

    /// Whether the bracket expression contains signs, or follows a `[` that might begin one without them.
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
        #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

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
