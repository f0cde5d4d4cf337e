//! The directory of a zip archive: just enough to find the members that PyTorch writes, which are never compressed.
//! Specification: PKWARE APPNOTE 6.3, sections 4.3.7 (local header), 4.3.12 (central directory), 4.3.14–16 (ends).

use super::Bytes;
use super::error::shown;
use std::collections::BTreeMap;

/// Reads the archive's members by name.
///
/// # Errors
/// With a sentence that says what is wrong.
pub(super) fn members(bytes: &Bytes) -> Result<BTreeMap<String, Bytes>, String> {
    let (count, directory) = directory(bytes)?;
    let mut out = BTreeMap::new();
    let mut at = directory;
    for _ in 0..count {
        let Some(head) = bytes.get(at..).and_then(|b| b.first_chunk::<46>()) else {
            return Err("the zip directory is cut off".into());
        };
        if !head.starts_with(b"PK\x01\x02") {
            return Err("the zip directory is damaged".into());
        }
        let [name_len, extra_len, comment_len] = [28, 30, 32].map(|i| u16_at(head, i) as usize);
        let name = bytes.get(at + 46..at + 46 + name_len).ok_or("the zip directory is cut off")?;
        let name = std::str::from_utf8(name).map_err(|_| "a zip member's name is not UTF-8")?.to_owned();
        let extra_at = at + 46 + name_len;
        let extra = bytes.get(extra_at..extra_at + extra_len).ok_or("the zip directory is cut off")?;
        at = extra_at + extra_len + comment_len;

        let mut wide = zip64(extra);
        let mut field = |i: usize| match u32_at(head, i) {
            u32::MAX => wide.next(),
            v => Some(v as u64),
        };
        // The order of the zip64 fields: size, compressed size, offset.
        let (size, packed, local) = (field(24), field(20), field(42));
        let (Some(size), Some(packed), Some(local)) = (size, packed, local) else {
            return Err(format!("the zip member {} has no size", shown(&name)));
        };
        if u16_at(head, 8) & 1 != 0 {
            return Err(format!("the zip member {} is encrypted", shown(&name)));
        }
        if u16_at(head, 10) != 0 || size != packed {
            return Err(format!(
                "the zip member {} is compressed, which PyTorch never does (was the archive packed again?)",
                shown(&name)
            ));
        }
        let data = member(bytes, local, size)
            .ok_or_else(|| format!("the zip member {} lies outside the file", shown(&name)))?;
        if out.insert(name.clone(), data).is_some() {
            return Err(format!("the zip member {} appears twice", shown(&name)));
        }
    }
    Ok(out)
}

/// The content of a member whose local header is at `local`.
fn member(bytes: &Bytes, local: u64, size: u64) -> Option<Bytes> {
    let local = usize::try_from(local).ok()?;
    let head = bytes.get(local..)?.first_chunk::<30>()?;
    if !head.starts_with(b"PK\x03\x04") {
        return None;
    }
    let start = local + 30 + u16_at(head, 26) as usize + u16_at(head, 28) as usize;
    bytes.slice(start..start.checked_add(usize::try_from(size).ok()?)?)
}

/// Number of members and place of the first directory entry.
fn directory(bytes: &Bytes) -> Result<(u64, usize), String> {
    const CUT: &str = "the zip archive has no directory at its end: the file is incomplete";
    // The end record is 22 bytes and a comment of up to 65,535.
    let last = bytes.len().checked_sub(22).ok_or(CUT)?;
    let end = (last.saturating_sub(65535)..=last)
        .rev()
        .find(|&i| {
            bytes[i..].starts_with(b"PK\x05\x06") && i + 22 + u16_at(&bytes[i..], 20) as usize == bytes.len()
        })
        .ok_or(CUT)?;
    let (mut count, mut size, mut start) = (
        u16_at(&bytes[end..], 10) as u64,
        u32_at(&bytes[end..], 12) as u64,
        u32_at(&bytes[end..], 16) as u64,
    );
    if count == 0xffff || size == 0xffff_ffff || start == 0xffff_ffff {
        let record = end
            .checked_sub(20)
            .filter(|&i| bytes[i..].starts_with(b"PK\x06\x07"))
            .and_then(|i| usize::try_from(u64_at(&bytes[i..], 8)).ok())
            .and_then(|i| bytes.get(i..)?.first_chunk::<56>())
            .filter(|r| r.starts_with(b"PK\x06\x06"))
            .ok_or("the zip64 directory is damaged")?;
        (count, size, start) = (u64_at(record, 32), u64_at(record, 40), u64_at(record, 48));
    }
    let fits = start.checked_add(size).is_some_and(|e| e <= bytes.len() as u64);
    if !fits || count > size / 46 {
        return Err("the zip directory is damaged".into());
    }
    Ok((count, start as usize))
}

/// The 64-bit fields of the extra data.
fn zip64(mut extra: &[u8]) -> impl Iterator<Item = u64> {
    let mut fields: &[u8] = &[];
    while let Some((head, rest)) = extra.split_first_chunk::<4>() {
        let Some((data, after)) = rest.split_at_checked(u16_at(head, 2) as usize) else { break };
        if u16_at(head, 0) == 1 {
            fields = data;
            break;
        }
        extra = after;
    }
    fields.as_chunks::<8>().0.iter().map(|c| u64::from_le_bytes(*c))
}

// Callers have checked the length.
fn u16_at(b: &[u8], i: usize) -> u16 {
    u16::from_le_bytes([b[i], b[i + 1]])
}

fn u32_at(b: &[u8], i: usize) -> u32 {
    u32::from_le_bytes([b[i], b[i + 1], b[i + 2], b[i + 3]])
}

fn u64_at(b: &[u8], i: usize) -> u64 {
    u32_at(b, i) as u64 | (u32_at(b, i + 4) as u64) << 32
}
