//! The table of everything that can be looked at.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use super::{Address, Gap, Link, Look, RouteSet, RpFilters, SeenBridge, SeenRoute, SeenRule, all, one};
use crate::config::Pattern;
use crate::history::cni_rules::SavedRules;
use crate::history::memory::{Ledger, Recall};
use crate::model::masquerade::{FilterTable, SeenNat};
use crate::model::netns::{Occupied, Sandboxes, SeenNetns, Veth};
use crate::model::pod::{PodQuery, Pods};
use crate::model::{Dev, IfName, SysctlKey};
use crate::sysctl_d::{OURS, Settings};

/// Generates everything that a look needs, except the code that looks. A row
///
/// ```text
/// /// The policy rules.
/// Rules => rules: Vec<SeenRule> as &[SeenRule], "the policy rules";
/// ```
///
/// generates
/// - `Want::Rules`, with which a plan asks for it,
/// - the field `Observed::rules`, which holds the answer: `Option<Look<Vec<SeenRule>>>`,
/// - `Observed::rules()`, which lends it to a plan as `&[SeenRule]`, or reports that it must be looked at first.
///   Without `as …` this method is written by hand,
/// - `LookAt::rules()`, which looks. The compiler requires it in `impl LookAt for Node`, and in the one of the tests,
/// - the message of a failure: "cannot read the policy rules: …".
///
/// A row of `each` has a key, which the text may use. `Link(index: u32) => links: …` generates `Want::Link(u32)`,
/// stores a `BTreeMap<u32, …>`, lends several at once with `links(indexes)`, and looks at one with
/// `LookAt::links(&index)`.
macro_rules! looks {
    (
        once { $(
            $(#[$doc:meta])*
            $want:ident => $field:ident: $answer:ty $(as $lent:ty)?, $what:literal;
        )* }
        past { $(
            $(#[$past_doc:meta])*
            $past_want:ident => $past_field:ident: $past_answer:ty as $past_lent:ty, $past_what:literal;
        )* }
        each { $(
            $(#[$each_doc:meta])*
            $each_want:ident($key:ident: $key_type:ty) =>
                $each_field:ident: $each_answer:ty $(as $each_lent:ty)?, $each_what:literal;
        )* }
    ) => {
        /// A part of the node that can be looked at.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Want {
            $( $(#[$doc])* $want, )*
            $( $(#[$past_doc])* $past_want, )*
            $( $(#[$each_doc])* $each_want($key_type), )*
            /// Only lets this time pass. What is seen afterwards is kept separately.
            Settle(Duration),
            /// This, as it is after [`Want::Settle`].
            Later(Box<Want>),
        }

        /// Everything seen so far in one look at the node.
        #[derive(Debug, Default, PartialEq)]
        pub struct Observed {
            $( $(#[$doc])* pub $field: Option<Look<$answer>>, )*
            $( $(#[$past_doc])* pub $past_field: Option<Look<$past_answer>>, )*
            $( $(#[$each_doc])* pub $each_field: BTreeMap<$key_type, Look<$each_answer>>, )*
            /// What was seen after [`Want::Settle`]: the answers to [`Want::Later`].
            pub settled: Option<Look<Box<Observed>>>,
            /// The pods whose rules differ from the saved ones, which follow from the above; `None` if more does. They are
            /// kept because a plan is made again from the start after each look.
            pub changed_pods: OnceCell<Option<BTreeSet<IpAddr>>>,
        }

        impl Observed {
            $( $(
                #[doc = concat!("The answer to [`Want::", stringify!($want), "`].")]
                pub fn $field(&self) -> Result<$lent, Gap> {
                    let lent: $lent = one(&self.$field, Want::$want)?;
                    Ok(lent)
                }
            )? )*

            $(
                #[doc = concat!("The answer to [`Want::", stringify!($past_want), "`].")]
                pub fn $past_field(&self) -> Result<$past_lent, Gap> {
                    let lent: $past_lent = one(&self.$past_field, Want::$past_want)?;
                    Ok(lent)
                }
            )*

            $( $(
                #[doc = concat!("The answers to [`Want::", stringify!($each_want), "`], in the order asked for.")]
                pub fn $each_field(
                    &self,
                    keys: impl IntoIterator<Item = $key_type>,
                ) -> Result<Vec<$each_lent>, Gap> {
                    let answers = all(keys, &self.$each_field, Want::$each_want)?;
                    Ok(answers.into_iter().map(|answer| answer.as_ref()).collect())
                }
            )? )*

            /// Looks at this, and keeps the answer or the error.
            pub(crate) fn look(&mut self, want: Want, at: &mut impl LookAt, past: &mut impl Past) {
                match want {
                    $( Want::$want => self.$field = Some(seen(format_args!($what), at.$field())), )*
                    $( Want::$each_want($key) => {
                        let answer = seen(format_args!($each_what), at.$each_field(&$key));
                        self.$each_field.insert($key, answer);
                    } )*
                    $( Want::$past_want => self.$past_field = Some(seen(format_args!($past_what), past.$past_field())), )*
                    Want::Settle(time) => {
                        let settled = past.settle(time).map(|()| Box::default());
                        self.settled = Some(seen(format_args!("what has settled"), settled));
                    }
                    Want::Later(want) => {
                        // If there was no waiting, that look has failed already.
                        if let Some(Ok(settled)) = &mut self.settled {
                            settled.look(*want, at, past);
                        }
                    }
                }
            }
        }

        /// The sources of answers: the node, or a model of one. An error says why there is no answer.
        #[expect(clippy::ptr_arg, reason = "a key is passed as it is kept")]
        pub(crate) trait LookAt {
            $( $(#[$doc])* fn $field(&mut self) -> anyhow::Result<$answer>; )*
            $( $(#[$each_doc])* fn $each_field(&mut self, $key: &$key_type) -> anyhow::Result<$each_answer>; )*
        }

        /// Answers that the node cannot give: the state of earlier runs, and time that passes.
        pub(crate) trait Past {
            $( $(#[$past_doc])* fn $past_field(&mut self) -> anyhow::Result<$past_answer>; )*
            /// Lets this time pass, unless a person or a monitor waits for the answer.
            fn settle(&mut self, time: Duration) -> anyhow::Result<()>;
        }
    };
}

looks! {
    once {
        /// The policy rules of all families, in the kernel's order.
        Rules => rules: Vec<SeenRule> as &[SeenRule], "the policy rules";

        /// The rp_filter of every interface.
        RpFilters => rp_filters: RpFilters as &RpFilters, "rp_filter of all interfaces";

        /// The addresses of all interfaces.
        Addresses => addresses: Vec<Address> as &[Address], "the addresses of all interfaces";

        /// Those that are global. On a node with many pods they are few, as each pod's link has a link-local one.
        GlobalAddresses => global_addresses: Vec<Address>, "the addresses of all interfaces";

        /// All bridges.
        Bridges => bridges: Vec<SeenBridge> as &[SeenBridge], "the bridges";

        /// Links that are built on other links, and go with them, by the index of the other one.
        LinksOn => links_on: BTreeMap<u32, Vec<IfName>> as &BTreeMap<u32, Vec<IfName>>, "the links on other links";

        /// node-fixer's nftables table.
        Nat => nat: SeenNat as &SeenNat, "the nftables table inet node_fixer";

        /// The nftables tables of other programs that filter forwarded packets.
        Filters => filters: Vec<FilterTable> as &[FilterTable], "the nftables tables that filter";

        /// node-fixer's file in /etc/sysctl.d; `None` if it does not exist.
        Persisted => persisted: Option<String>, "{OURS}";

        /// All files of sysctl.d(5).
        SysctlFiles => sysctl_files: Settings as &Settings, "sysctl.d";

        /// The network namespaces that have a name.
        Namespaces => namespaces: Vec<SeenNetns> as &[SeenNetns], "the network namespaces";

        /// The network namespaces that have a process.
        Occupied => occupied: Occupied as &Occupied, "the network namespaces of all processes";
    }

    past {
        /// Changes by node-fixer that carry no mark.
        Ledger => ledger: Ledger as &Ledger, "the ledger";

        /// The state that the last run saved.
        Recall => recall: Recall as &Recall, "the state of the last run";

        /// The saved rules of the VPC CNI.
        CniMemory => cni_memory: SavedRules as &SavedRules, "the saved rules of the VPC CNI";
    }

    each {
        /// Routes.
        Routes(set: RouteSet) => routes: Vec<SeenRoute> as &[SeenRoute], "{set}";

        /// The interface with this index; `None` if it does not exist.
        Link(index: u32) => links: Option<Link> as Option<&Link>, "interface number {index}";

        /// The name of the interface with this index: a thirtieth of the cost of [`Want::Link`].
        Name(index: u32) => names: Option<IfName> as Option<&IfName>, "the names of interfaces";

        /// The interface that the main table's host route to this address leads over; `None` without such a route.
        HostLink(address: IpAddr) => host_links: Option<Dev> as Option<&Dev>, "the route to {address}";

        /// The interface with this name.
        LinkNamed(name: IfName) => links_named: Option<Link> as Option<&Link>, "interface {name}";

        /// Whether there is a program of this name on PATH.
        Program(name: &'static str) => programs: bool, "the program {name}";

        /// The value of a sysctl, without surrounding white space; `None` if the key does not exist.
        Sysctl(key: SysctlKey) => sysctls: Option<String>, "the sysctl {key}";

        /// The interfaces with sysctls in this directory below /proc/sys, such as `net/ipv4/conf`, including `all` and
        /// `default`.
        SysctlNames(directory: String) => sysctl_names: Vec<Box<[u8]>> as &[Box<[u8]>], "/proc/sys/{directory}";

        /// The ready pods that match this.
        Pods(query: PodQuery) => pods: Pods, "the pods";

        /// The veths whose names match and whose ends are both here, by name.
        Veths(names: Pattern) => veths: Vec<Veth> as &[Veth], "the veths";

        /// The network namespaces of all pods' sandboxes.
        Sandboxes(query: PodQuery) => sandboxes: Sandboxes, "the sandboxes of pods";
    }
}

/// An answer, or a failed look in the words of a report.
fn seen<T>(what: fmt::Arguments, answer: anyhow::Result<T>) -> Look<T> {
    answer.map_err(|error| format!("cannot read {what}: {error}").into())
}
