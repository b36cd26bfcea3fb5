//! Sets and maps made one item at a time, and lists put in order.
//!
//! `collect` makes a set or map by sorting all of its items first, and that stable sort is compiled for every type of
//! item, 5 KiB each. What is sorted here is short.

use std::collections::{BTreeMap, BTreeSet};

/// A set of these.
pub fn set<T: Ord>(items: impl IntoIterator<Item = T>) -> BTreeSet<T> {
    let mut set = BTreeSet::new();
    set.extend(items);
    set
}

/// A map of these; of equal keys the last counts.
pub fn map<K: Ord, V>(items: impl IntoIterator<Item = (K, V)>) -> BTreeMap<K, V> {
    let mut map = BTreeMap::new();
    map.extend(items);
    map
}

/// Those first that `goes_first` names; otherwise the order stays.
pub fn first<T>(items: Vec<T>, goes_first: impl Fn(&T) -> bool) -> Vec<T> {
    let (mut first, rest): (Vec<T>, Vec<T>) = items.into_iter().partition(goes_first);
    first.extend(rest);
    first
}
