//! What a chain is, found the slow way: gather all descriptors first, judge them afterwards.

use super::shadow::Shadow;
use crate::guest::raw::{Desc, INDIRECT, NEXT, WRITE};

/// What was negotiated, and the size of the ring.
#[derive(Clone, Copy)]
pub(super) struct Rules {
    pub(super) size: u16,
    pub(super) bytes: u64,
    pub(super) indirect: bool,
}

/// Buffers of a chain that keeps all rules.
pub(super) type Buffers = Option<Vec<Desc>>;

/// The chain at `head` of a split ring whose table is at `table` (virtio 1.3 §2.7.5).
pub(super) fn split(shadow: &Shadow, table: u64, head: u16, rules: Rules) -> Buffers {
    let mut buffers = Vec::new();
    let mut next = Some(head);
    while let Some(index) = next {
        let desc = entry(shadow, table, index, rules.size.into())?;
        next = (desc.flags & NEXT != 0).then_some(desc.next);
        if desc.flags & INDIRECT == 0 {
            buffers.push(desc);
        } else if next.is_some() {
            return None;
        } else {
            followed(shadow, desc, rules, &mut buffers)?;
        }
        if buffers.len() > rules.size.into() {
            return None;
        }
    }
    judge(shadow, buffers, rules)
}

/// The chain in these entries of a packed ring (§2.8.6).
pub(super) fn packed(shadow: &Shadow, entries: &[Desc], rules: Rules) -> Buffers {
    let indirect = |desc: &Desc| desc.flags & INDIRECT != 0;
    if !entries.iter().any(indirect) {
        return judge(shadow, entries.to_vec(), rules);
    }
    // §2.8.7: a table stands alone, and what its flags say beside WRITE is nothing.
    let [table] = entries else { return None };
    let count = table_entries(shadow, *table, rules)?;
    if count > rules.size.into() {
        return None;
    }
    let at = |nth| shadow.read(table.addr.wrapping_add(16 * nth)).map(Desc::from_packed_bytes);
    let buffers = (0..count).map(at).collect::<Option<Vec<_>>>()?;
    judge(shadow, buffers, rules)
}

/// An indirect table whose descriptors name the next (§2.7.5.3).
fn followed(shadow: &Shadow, outer: Desc, rules: Rules, buffers: &mut Vec<Desc>) -> Option<()> {
    let count = table_entries(shadow, outer, rules)?;
    let mut next = Some(0);
    while let Some(index) = next {
        let desc = entry(shadow, outer.addr, index, count)?;
        if desc.flags & INDIRECT != 0 || buffers.len() > rules.size.into() {
            return None;
        }
        buffers.push(desc);
        next = (desc.flags & NEXT != 0).then_some(desc.next);
    }
    Some(())
}

fn table_entries(shadow: &Shadow, outer: Desc, rules: Rules) -> Option<u64> {
    let whole = rules.indirect && outer.len > 0 && outer.len.is_multiple_of(16);
    shadow.pieces(outer.addr, outer.len).filter(|_| whole).map(|_| u64::from(outer.len / 16))
}

fn entry(shadow: &Shadow, table: u64, index: u16, count: u64) -> Option<Desc> {
    let there = u64::from(index) < count;
    shadow.read(table.wrapping_add(16 * u64::from(index))).filter(|_| there).map(Desc::from_bytes)
}

fn judge(shadow: &Shadow, buffers: Vec<Desc>, rules: Rules) -> Buffers {
    let bytes: u64 = buffers.iter().map(|desc| u64::from(desc.len)).sum();
    let writable = |desc: &Desc| desc.flags & WRITE != 0;
    let readable_after = buffers.iter().skip_while(|desc| !writable(desc)).any(|desc| !writable(desc));
    let fine = buffers.len() <= rules.size.into()
        && bytes > 0
        && bytes <= rules.bytes
        && !readable_after
        && buffers.iter().all(|desc| shadow.pieces(desc.addr, desc.len).is_some());
    fine.then_some(buffers)
}
