//! Sets, maps and lists in order, made one item at a time.
//!
//! `collect` makes a set or map by sorting all of its items first. That sort is compiled for every type of item, 5 KiB
//! each, and `sort_unstable` takes half of it; what is sorted here is short.

use std::cmp::Ordering;
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

/// These in order; equals stay in the order that they have.
pub fn list<T>(items: impl IntoIterator<Item = T>, order: impl Fn(&T, &T) -> Ordering) -> Vec<T> {
    let mut list = Vec::new();
    for item in items {
        let place = list.partition_point(|before| order(before, &item).is_le());
        list.insert(place, item);
    }
    list
}

/// Those first that `goes_first` names; otherwise the order stays.
pub fn first<T>(items: Vec<T>, goes_first: impl Fn(&T) -> bool) -> Vec<T> {
    let (mut first, rest): (Vec<T>, Vec<T>) = items.into_iter().partition(goes_first);
    first.extend(rest);
    first
}
