//! All rows of the journal in memory, sorted: what the engine reads.

use std::collections::BTreeMap;

use super::row::{Change, Entry, Key, Operation, OperationKind, Published, Staged, VolumeRecord};
use crate::volume::LvName;

/// All rows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// Operations under way, by volume.
    pub operations: BTreeMap<LvName, Operation>,
    /// Volumes.
    pub volumes: BTreeMap<LvName, VolumeRecord>,
    /// What is staged, by volume and staging path.
    pub staged: BTreeMap<(LvName, String), Staged>,
    /// What is published, by volume and target path.
    pub published: BTreeMap<(LvName, String), Published>,
}

impl Contents {
    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.operations.len() + self.volumes.len() + self.staged.len() + self.published.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a row up, over the one with its key.
    pub fn put(&mut self, entry: Entry) {
        match entry {
            Entry::Operation(lv, row) => drop(self.operations.insert(lv, row)),
            Entry::Volume(lv, row) => drop(self.volumes.insert(lv, row)),
            Entry::Staged(lv, path, row) => drop(self.staged.insert((lv, path), row)),
            Entry::Published(lv, path, row) => drop(self.published.insert((lv, path), row)),
        }
    }

    /// Makes a change.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Put(entry) => self.put(entry),
            Change::Remove(Key::Operation(lv)) => drop(self.operations.remove(&lv)),
            Change::Remove(Key::Volume(lv)) => drop(self.volumes.remove(&lv)),
            Change::Remove(Key::Staged(lv, path)) => drop(self.staged.remove(&(lv, path))),
            Change::Remove(Key::Published(lv, path)) => drop(self.published.remove(&(lv, path))),
        }
    }

    /// All rows with their keys.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        let operations = self.operations.iter().map(|(lv, row)| Entry::Operation(lv.clone(), row.clone()));
        let volumes = self.volumes.iter().map(|(lv, row)| Entry::Volume(lv.clone(), row.clone()));
        let staged = self.staged.iter().map(|((lv, path), row)| Entry::Staged(lv.clone(), path.clone(), row.clone()));
        let published = self.published.iter();
        let published = published.map(|((lv, path), row)| Entry::Published(lv.clone(), path.clone(), row.clone()));
        operations.chain(volumes).chain(staged).chain(published)
    }

    /// The keys of all rows about a volume.
    pub fn keys_of(&self, lv: &LvName) -> Vec<Key> {
        let mut keys = Vec::new();
        keys.extend(self.operations.get(lv).map(|_| Key::Operation(lv.clone())));
        keys.extend(self.volumes.get(lv).map(|_| Key::Volume(lv.clone())));
        keys.extend(self.staged_paths(lv).map(|path| Key::Staged(lv.clone(), path.to_owned())));
        keys.extend(self.published_of(lv).map(|(path, _)| Key::Published(lv.clone(), path.to_owned())));
        keys
    }

    /// What was begun on a volume and not seen to end.
    #[must_use]
    pub fn begun(&self, lv: &LvName) -> Option<OperationKind> {
        self.operations.get(lv).map(|operation| operation.kind)
    }

    /// Where a volume is staged.
    pub fn staged_paths<'a>(&'a self, lv: &'a LvName) -> impl Iterator<Item = &'a str> + 'a {
        let from = self.staged.range((lv.clone(), String::new())..);
        from.take_while(move |((of, _), _)| of == lv).map(|((_, path), _)| path.as_str())
    }

    /// Where a volume is published.
    pub fn published_of<'a>(&'a self, lv: &'a LvName) -> impl Iterator<Item = (&'a str, &'a Published)> + 'a {
        let from = self.published.range((lv.clone(), String::new())..);
        from.take_while(move |((of, _), _)| of == lv).map(|((_, path), row)| (path.as_str(), row))
    }

    /// The changes that make `self` of `other`.
    #[must_use]
    pub fn changes_from(&self, other: &Self) -> Vec<Change> {
        let mine: BTreeMap<Key, Entry> = self.entries().map(|entry| (entry.key(), entry)).collect();
        let theirs: BTreeMap<Key, Entry> = other.entries().map(|entry| (entry.key(), entry)).collect();
        let gone = theirs.keys().filter(|key| !mine.contains_key(key)).cloned().map(Change::Remove);
        let new = mine.iter().filter(|(key, entry)| theirs.get(key) != Some(entry));
        gone.chain(new.map(|(_, entry)| Change::Put(entry.clone()))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lv(name: &str) -> LvName {
        LvName::parse(name).unwrap()
    }

    #[test]
    fn the_rows_of_one_volume_are_found_and_no_others() {
        let mut contents = Contents::default();
        for (name, path) in [("a", "/1"), ("a", "/2"), ("a-b", "/3"), ("b", "/4")] {
            contents.put(Entry::Staged(lv(name), path.to_owned(), Staged { since: 0 }));
        }
        assert_eq!(contents.staged_paths(&lv("a")).collect::<Vec<_>>(), ["/1", "/2"]);
        let keys = contents.keys_of(&lv("a-b"));
        assert_eq!(keys, [Key::Staged(lv("a-b"), "/3".to_owned())]);
        let mut without = contents.clone();
        keys.into_iter().for_each(|key| without.apply(Change::Remove(key)));
        assert_eq!(without.len(), 3);
        let mut again = without.clone();
        contents.changes_from(&without).into_iter().for_each(|change| again.apply(change));
        assert_eq!(again, contents);
        let mut back = contents.clone();
        without.changes_from(&contents).into_iter().for_each(|change| back.apply(change));
        assert_eq!(back, without);
    }
}
