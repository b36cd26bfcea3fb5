//! The nouns of the network: interface names, links, rules, routes, sysctl keys.
//!
//! Plain data with an order and a `Display`; nothing here accesses the system. Everything displayed is safe in a shell
//! and a terminal, because names from the kernel and from files may contain anything.

mod family;
mod link;
pub mod masquerade;
pub mod netns;
pub mod pod;
mod route;
mod rule;
mod shell;
mod sysctl;

pub use family::{Family, covers, family_of, is_link_local};
pub use link::{ALIAS, Dev, IfAddress, IfName, LEAST_IPV6_MTU, LinkKind, LinkSettings};
pub use route::{
    NextHop, PROTO_DECLARED, PROTO_KERNEL, PROTO_MENDED, PROTO_RA, PROTO_RESTORED, PROTO_STATIC, Route, RouteOptions,
    Scope, Special, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN, table_name,
};
pub use rule::{EVERYTHING, KERNEL_PRIORITIES, Rule, RuleAction, RuleExtras, SeenRule, Selector, UPLINK_RULE_PRIORITY};
pub use shell::{is_visible, one_line, shell_word, shortened};
pub use sysctl::{FORWARD, FORWARD_OF_ALL, PROMOTE, SysctlKey, SysctlWrite};

/// An object that is added and deleted, with the commands that an operator would type.
pub trait Noun {
    /// The command that adds it.
    fn add_command(&self) -> String;

    /// The command that deletes exactly this object.
    fn delete_command(&self) -> String;

    /// The command that replaces an old object with it.
    fn replace_command(&self, old: &Self) -> String {
        format!("{} && {}", old.delete_command(), self.add_command())
    }
}
