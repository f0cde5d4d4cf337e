//! Byte-pair merges with CLIP's end-of-word mark.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// Ends the last symbol of each word.
const END_OF_WORD: &str = "</w>";

pub(super) struct Bpe {
    vocab: HashMap<String, u32>,
    names: HashMap<u32, String>,
    /// Pair → rank and the merged symbol.
    merges: HashMap<(u32, u32), (u32, u32)>,
    unknown: u32,
}

/// One symbol of a word, in a doubly linked list by index; merged ones are dead.
struct Symbol {
    id: u32,
    previous: usize,
    next: usize,
    alive: bool,
}

const NONE: usize = usize::MAX;

impl Bpe {
    /// `unknown` stands for symbols outside the vocabulary. The error says what is wrong with the merges.
    pub fn new<'a>(
        vocab: HashMap<String, u32>,
        pairs: impl Iterator<Item = (&'a str, &'a str)>,
        unknown: u32,
    ) -> Result<Self, String> {
        let id = |symbol: &str| {
            vocab
                .get(symbol)
                .copied()
                .ok_or_else(|| format!("\"{}\" is not in the vocabulary", symbol.escape_debug()))
        };
        let mut merges = HashMap::new();
        for (rank, (a, b)) in pairs.enumerate() {
            let rank = u32::try_from(rank).map_err(|_| "too many")?;
            merges.insert((id(a)?, id(b)?), (rank, id(&format!("{a}{b}"))?));
        }
        let names = vocab.iter().map(|(name, id)| (*id, name.clone())).collect();
        Ok(Bpe { vocab, names, merges, unknown })
    }

    pub fn largest_id(&self) -> u32 {
        self.names.keys().copied().max().unwrap_or(0)
    }

    /// Appends the ids of one word (not empty).
    pub fn encode(&self, word: &str, out: &mut Vec<u32>) {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(word.len());
        let mut name = String::new();
        for (i, byte) in word.bytes().enumerate() {
            name.clear();
            name.push(letter(byte));
            let last = i + 1 == word.len();
            if last {
                name.push_str(END_OF_WORD);
            }
            let id = self.vocab.get(&name).copied().unwrap_or(self.unknown);
            let next = if last { NONE } else { i + 1 };
            symbols.push(Symbol { id, previous: i.wrapping_sub(1), next, alive: true });
        }
        // The lowest rank first, the leftmost of equals.
        let mut queue = BinaryHeap::new();
        let offer = |queue: &mut BinaryHeap<_>, symbols: &[Symbol], left: usize| {
            let right = symbols[left].next;
            if right != NONE {
                let pair = (symbols[left].id, symbols[right].id);
                if let Some((rank, merged)) = self.merges.get(&pair) {
                    queue.push(Reverse((*rank, left, pair, *merged)));
                }
            }
        };
        for left in 0..symbols.len() {
            offer(&mut queue, &symbols, left);
        }
        while let Some(Reverse((_, left, pair, merged))) = queue.pop() {
            let right = symbols[left].next;
            // Offers outlive their pair.
            if !symbols[left].alive || right == NONE || (symbols[left].id, symbols[right].id) != pair {
                continue;
            }
            symbols[right].alive = false;
            let next = symbols[right].next;
            symbols[left].id = merged;
            symbols[left].next = next;
            if next != NONE {
                symbols[next].previous = left;
            }
            offer(&mut queue, &symbols, left);
            if symbols[left].previous != NONE {
                offer(&mut queue, &symbols, symbols[left].previous);
            }
        }
        out.extend(symbols.iter().filter(|s| s.alive).map(|s| s.id));
    }

    /// Appends the bytes of one symbol, a space for the end of a word.
    pub fn decode(&self, id: u32, out: &mut Vec<u8>) {
        let Some(name) = self.names.get(&id) else { return };
        let (name, end) = match name.strip_suffix(END_OF_WORD) {
            Some(name) => (name, " "),
            None => (name.as_str(), ""),
        };
        for c in name.chars() {
            match byte(c) {
                Some(b) => out.push(b),
                None => out.extend(c.encode_utf8(&mut [0; 4]).bytes()),
            }
        }
        out.extend(end.bytes());
    }
}

/// Bytes that stand for themselves as a letter; the others, in order, are the letters from U+0100 on (GPT-2's
/// `bytes_to_unicode`).
fn printable(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

/// The letter of a byte.
pub(super) fn letter(byte: u8) -> char {
    let code = match byte {
        b if printable(b) => b as u32,
        0..=b' ' => 0x100 + byte as u32,
        0x7f..=0xa0 => 0x100 + 33 + (byte - 0x7f) as u32,
        _ => 0x100 + 67,
    };
    char::from_u32(code).unwrap_or('\u{fffd}')
}

/// The byte of a letter.
fn byte(letter: char) -> Option<u8> {
    match letter as u32 {
        c @ 0..=0xff => Some(c as u8).filter(|b| printable(*b)),
        c @ 0x100..=0x120 => Some((c - 0x100) as u8),
        c @ 0x121..=0x142 => Some((c - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_and_bytes_are_one_to_one() {
        let letters: std::collections::BTreeSet<char> = (0..=255).map(letter).collect();
        assert_eq!(letters.len(), 256);
        assert_eq!(letter(b' '), 'Ġ');
        for b in 0..=255 {
            assert_eq!(byte(letter(b)), Some(b));
        }
    }

    #[test]
    fn lower_ranks_merge_first() {
        let names = ["a", "b", "c</w>", "ab", "bc</w>", "abc</w>"];
        let vocab: HashMap<String, u32> = names.iter().zip(0..).map(|(n, i)| (n.to_string(), i)).collect();
        let encode = |pairs: &[(&'static str, &'static str)]| {
            let mut out = Vec::new();
            Bpe::new(vocab.clone(), pairs.iter().copied(), 9).unwrap().encode("abc", &mut out);
            out
        };
        assert_eq!(encode(&[("b", "c</w>"), ("a", "b")]), [0, 4]);
        assert_eq!(encode(&[("a", "b"), ("b", "c</w>")]), [3, 2]);
        assert_eq!(encode(&[("a", "b"), ("ab", "c</w>")]), [5]);
        assert!(Bpe::new(vocab.clone(), [("c</w>", "a")].into_iter(), 9).is_err());
    }
}
