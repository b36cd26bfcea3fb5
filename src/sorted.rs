//! Ordered sets, maps and lists, built one item at a time.
//!
//! `collect` sorts all items before it builds a set or map. That sort is compiled for every item type, 5 KiB each;
//! `sort_unstable` takes half of that, and what is sorted here is short.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// A set of these items.
pub fn set<T: Ord>(items: impl IntoIterator<Item = T>) -> BTreeSet<T> {
    let mut set = BTreeSet::new();
    set.extend(items);
    set
}

/// A map of these items; the last of equal keys wins.
pub fn map<K: Ord, V>(items: impl IntoIterator<Item = (K, V)>) -> BTreeMap<K, V> {
    let mut map = BTreeMap::new();
    map.extend(items);
    map
}

/// These items in order. Equal ones keep their order.
pub fn list<T>(items: impl IntoIterator<Item = T>, order: impl Fn(&T, &T) -> Ordering) -> Vec<T> {
    let mut list = Vec::new();
    for item in items {
        let place = list.partition_point(|before| order(before, &item).is_le());
        list.insert(place, item);
    }
    list
}

/// Moves the items that `goes_first` selects to the front. Otherwise the order stays.
pub fn first<T>(items: Vec<T>, goes_first: impl Fn(&T) -> bool) -> Vec<T> {
    let (mut first, rest): (Vec<T>, Vec<T>) = items.into_iter().partition(goes_first);
    first.extend(rest);
    first
}
