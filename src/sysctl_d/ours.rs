//! The file that node-fixer writes.

use crate::model::{Noun, shell_word};

/// Its path: late enough to win over distributions' files, early enough for an operator's `99-`.
pub const OURS: &str = "/etc/sysctl.d/90-node-fixer.conf";

/// Its directory.
pub const OURS_IN: &str = "/etc/sysctl.d";

/// What is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OurFile(pub String);

impl Noun for OurFile {
    fn add_command(&self) -> String {
        let words: String = self.0.lines().map(|line| format!(" {}", shell_word(line.as_bytes()))).collect();
        // A link at its path is replaced, not followed.
        format!("mkdir -p -m 755 {OURS_IN} && rm -f {OURS} && printf '%s\\n'{words} > {OURS} && chmod 644 {OURS}")
    }

    fn delete_command(&self) -> String {
        format!("rm {OURS}")
    }

    fn replace_command(&self, _old: &OurFile) -> String {
        self.add_command()
    }
}
