//! What a guest wrote: it can be used, and not be printed.

use std::fmt;
use std::ops::{Deref, DerefMut};

/// Wraps what came out of guest memory, so that a type which derives `Debug` shows its size instead of its bytes.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct GuestData<T>(pub T);

impl<T: AsRef<[u8]>> fmt::Debug for GuestData<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes of the guest>", self.0.as_ref().len())
    }
}

impl<T> From<T> for GuestData<T> {
    fn from(data: T) -> GuestData<T> {
        GuestData(data)
    }
}

impl<T> Deref for GuestData<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for GuestData<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_wrote_is_not_printed() {
        #[derive(Debug)]
        struct Holder {
            _bytes: GuestData<Vec<u8>>,
        }
        let holder = Holder { _bytes: GuestData(b"secret".to_vec()) };
        assert_eq!(format!("{holder:?}"), "Holder { _bytes: <6 bytes of the guest> }");
        assert_eq!(holder._bytes.len(), 6);
    }
}
