//! Secrets in configuration files. Word by word some would remain: digits alone, words of two letters between other
//! characters, words of the vocabulary. So the value of a key that names a secret goes as a whole.

/// Parts of keys that name a secret.
const SECRET: [&str; 9] =
    ["passw", "passphrase", "psk", "secret", "token", "credential", "private", "preshared", "wep"];

/// A file without what is for people alone, and without secrets. Its lines keep their numbers.
pub fn without(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    // How far the line of a secret is indented: lines further in belong to it.
    let mut secret: Option<usize> = None;
    for line in text.split_inclusive('\n') {
        let words = line.trim_start();
        let indent = line.len() - words.len();
        if words.is_empty() {
            clean += line;
        } else if words.starts_with(['#', ';']) {
            clean.extend(words.chars().next());
            clean.extend(line.ends_with('\n').then_some('\n'));
        } else if secret.is_some_and(|secret| indent > secret) {
            clean.extend(line.chars().map(hidden));
        } else {
            let end = end_of_key(line);
            secret = end.map(|_| indent);
            let (key, value) = line.split_at_checked(end.unwrap_or(line.len())).unwrap_or_default();
            clean += key;
            clean.extend(value.chars().map(hidden));
        }
    }
    clean
}

/// What stands for a character of a secret. What gives a line its form stays.
fn hidden(c: char) -> char {
    if c.is_whitespace() || "\"'{}[],:=|>".contains(c) { c } else { 'x' }
}

/// Where the first key of a line ends that names a secret.
fn end_of_key(line: &str) -> Option<usize> {
    let is_of_key = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let mut at = 0;
    for word in line.split_inclusive(|c| !is_of_key(c)) {
        let end = at + word.trim_end_matches(|c| !is_of_key(c)).len();
        let key = line.get(at..end).unwrap_or_default().to_ascii_lowercase();
        let numbered = key.trim_end_matches(|c: char| c.is_ascii_digit());
        let is_secret =
            SECRET.iter().any(|part| key.contains(part)) || key == "pin" || numbered == "key" && key != "key";
        if is_secret {
            return Some(end);
        }
        at += word.len();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_value_of_a_secret_goes_as_a_whole() {
        for (text, clean) in [
            ("password: \"13579246\"\nmode: ap\n", "password: \"xxxxxxxx\"\nmode: ap\n"),
            ("auth: {key-management: psk, x: 1}\n", "auth: {key-management: psk, x: x}\n"),
            ("auth: {password: \"x7!k9@p2\", identity: me}\n", "auth: {password: \"xxxxxxxx\", xxxxxxxx: xx}\n"),
            (
                "  password: >\n    default 12\n\n    34\n  dhcp4: true\n",
                "  password: >\n    xxxxxxx xx\n\n    xx\n  dhcp4: true\n",
            ),
            ("PrivateKey=aA+/bB=\nListenPort=51820\n", "PrivateKey=xxxxxx=\nListenPort=51820\n"),
            ("WPA_PSK='12 34'\nKEY1=00112233\nKEY_TYPE=open\n", "WPA_PSK='xx xx'\nKEY1=xxxxxxxx\nKEY_TYPE=open\n"),
            ("  wpa-psk 87654321\r\n", "  wpa-psk xxxxxxxx\r\n"),
            ("[gsm]\npin=1234\npinned=7\n", "[gsm]\npin=xxxx\npinned=7\n"),
            ("# 1234\n  ; x\n; y", "#\n;\n;"),
            ("- {key: net.ipv4.ip_forward, value: '1'}\n", "- {key: net.ipv4.ip_forward, value: '1'}\n"),
            ("pass\u{e9}: \u{e9}\npassw\u{e9}: \u{e9}", "pass\u{e9}: \u{e9}\npasswx: x"),
        ] {
            assert_eq!(without(text), clean);
        }
    }
}
