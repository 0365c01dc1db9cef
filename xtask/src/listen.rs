//! Whether somebody listens on a unix socket, seen without a connection that would be taken for the front-end's.

use std::fs;
use std::path::Path;

/// Whether a process of this host accepts connections on the socket `path`.
pub fn is_listening(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    listens_in(&table, &path.to_string_lossy())
}

/// Lines: address, reference count, protocol, flags (bit 16: accepts connections), type, state, inode, path.
fn listens_in(table: &str, path: &str) -> bool {
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(3) == Some(&"00010000") && fields.get(7) == Some(&path)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_socket_listens_once_somebody_accepts_on_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        assert!(!is_listening(&path));
        let listener = UnixListener::bind(&path).unwrap();
        assert!(is_listening(&path));
        drop(listener);
        assert!(path.exists() && !is_listening(&path));
    }
}
