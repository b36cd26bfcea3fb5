//! Values as the kernel reads them.

/// Whether both mean the same to the kernel, ignoring white space and number formats.
pub fn is_same(live: &str, wanted: &str) -> bool {
    if format!("{live}{wanted}").contains([',', '-'])
        && let (Some(live), Some(wanted)) = (ranges(live), ranges(wanted))
    {
        return live == wanted;
    }
    let (mut live, mut wanted) = (live.split_whitespace(), wanted.split_whitespace());
    loop {
        match (live.next(), wanted.next()) {
            (None, None) => return true,
            (Some(a), Some(b)) if a == b || number(a).is_some_and(|a| number(b) == Some(a)) => {}
            _ => return false,
        }
    }
}

/// A list of ports as the kernel shows it: sorted and joined (`8080,8081` is `8080-8081`). `None` if it is not one.
fn ranges(list: &str) -> Option<Vec<(u32, u32)>> {
    let range = |range: &str| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        Some((from.trim().parse().ok()?, to.trim().parse().ok()?))
    };
    let mut all: Vec<(u32, u32)> = list.split(',').map(range).collect::<Option<_>>()?;
    all.sort_unstable();
    all.dedup_by(|next, last| {
        let joined = next.0 <= last.1.saturating_add(1);
        last.1 = if joined { last.1.max(next.1) } else { last.1 };
        joined
    });
    Some(all)
}

/// A number as the kernel parses it (base 0 of `simple_strtoul`): decimal, 0x… or, with a leading zero, octal.
fn number(text: &str) -> Option<i128> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let (base, digits) = match digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        Some(digits) => (16, digits),
        None if digits.len() > 1 && digits.starts_with('0') => (8, digits),
        None => (10, digits),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    i128::from_str_radix(digits, base).ok().map(|number| sign * number)
}
