//! Things in flight, by number: operations, waits. Grows to the most that ever were, and stays.

/// A vector with holes that remembers its holes.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab { entries: Vec::new(), free: Vec::new() }
    }
}

impl<T> Slab<T> {
    /// Keeps `value`; its number and a reference to where it lies until the next insertion.
    pub(crate) fn insert(&mut self, value: T) -> (u32, &T) {
        let key = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            // More than four thousand million requests in flight do not fit into any memory.
            u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
        });
        (key, self.entries[key as usize].insert(value))
    }

    /// The value with this number.
    pub(crate) fn get_mut(&mut self, key: u32) -> Option<&mut T> {
        self.entries.get_mut(key as usize)?.as_mut()
    }

    /// All values with their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(&self.entries).filter_map(|(key, entry)| Some((key, entry.as_ref()?)))
    }

    /// Gives the value back.
    pub(crate) fn remove(&mut self, key: u32) -> Option<T> {
        let value = self.entries.get_mut(key as usize)?.take()?;
        self.free.push(key);
        Some(value)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }
}
