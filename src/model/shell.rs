//! Text that is safe in a shell and a terminal.

use std::borrow::Cow;

/// Bytes as one word of a POSIX shell that is also safe in a terminal: plain if possible, else in single quotes, else
/// through printf(1).
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

/// Foreign text (from the kernel, a program or a file) as one safe line: characters that could move a cursor, break the
/// line or change the reading direction are escaped.
pub fn one_line(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_visible) {
        return Cow::Borrowed(text);
    }
    let escaped = |c: char| if is_visible(c) { c.to_string() } else { c.escape_default().to_string() };
    Cow::Owned(text.chars().map(escaped).collect())
}

/// The first three, and how many more there are.
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

/// Neither a control character nor one that is invisible or reorders text (bidirectional and zero-width characters,
/// line and paragraph separators, the byte order mark, tags).
pub fn is_visible(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
