//! The frame of an ONNX file: protocol buffers, messages in messages. The runtime trusts the lengths of fields (one of more than
//! an i64 makes it read the same bytes for ever) and nests calls as deep as messages are nested: both are checked here first.

/// Messages in messages, at most: a network in a branch of a network takes four.
const MAX_DEPTH: usize = 64;

/// Kinds of messages that hold others, in <https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>.
#[derive(Clone, Copy)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Value,
    Type,
    TensorType,
    /// The type of a sequence or of what may be missing.
    Wrapped,
    Shape,
    /// Holds no other.
    Plain,
}

impl Message {
    /// What the field of this number is, where it is a message.
    fn field(self, number: u64) -> Option<Message> {
        Some(match (self, number) {
            (Message::Model, 7) => Message::Graph,
            (Message::Model, 8 | 14) => Message::Plain,
            (Message::Graph, 1) => Message::Node,
            (Message::Graph, 5) => Message::Tensor,
            (Message::Graph, 11..=13) => Message::Value,
            (Message::Node, 5) => Message::Attribute,
            (Message::Attribute, 5 | 10) => Message::Tensor,
            (Message::Attribute, 6 | 11) => Message::Graph,
            (Message::Tensor, 13) => Message::Plain,
            (Message::Value, 2) => Message::Type,
            (Message::Type, 1) => Message::TensorType,
            (Message::Type, 4 | 9) => Message::Wrapped,
            (Message::Wrapped, 1) => Message::Type,
            (Message::TensorType, 2) => Message::Shape,
            (Message::Shape, 1) => Message::Plain,
            _ => return None,
        })
    }
}

/// Checks that each field ends where what holds it ends, or before.
///
/// # Errors
/// What is wrong.
pub fn check(file: &[u8]) -> Result<(), &'static str> {
    message(file, Message::Model, 0)
}

fn message(mut bytes: &[u8], kind: Message, depth: usize) -> Result<(), &'static str> {
    if depth > MAX_DEPTH {
        return Err("messages nested too deeply");
    }
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let (number, wire) = (key >> 3, key & 7);
        let length = match wire {
            0 => {
                varint(&mut bytes)?;
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes)?,
            5 => 4,
            _ => return Err("a field of an unknown kind"),
        };
        let inside = usize::try_from(length).ok().and_then(|n| bytes.split_at_checked(n));
        let (field, rest) = inside.ok_or("a field longer than the file")?;
        bytes = rest;
        if let Some(inner) = kind.field(number).filter(|_| wire == 2) {
            message(field, inner, depth + 1)?;
        }
    }
    Ok(())
}

/// Seven bits a byte, the lowest first.
fn varint(bytes: &mut &[u8]) -> Result<u64, &'static str> {
    let mut value = 0;
    for shift in (0..70).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or("it ends within a number")?;
        *bytes = rest;
        // What goes beyond 64 bits is cut off, as everywhere.
        value |= u64::from(byte & 127).checked_shl(shift).unwrap_or(0);
        if *byte < 128 {
            return Ok(value);
        }
    }
    Err("a number of more than ten bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field of bytes.
    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2];
        let mut length = bytes.len();
        while length > 127 {
            out.push(length as u8 | 128);
            length >>= 7;
        }
        out.push(length as u8);
        out.extend(bytes);
        out
    }

    #[test]
    fn lengths_and_depths_are_checked() {
        for file in ["depth", "people", "pose", "softedge_hed"] {
            let path = testkit::fixtures().join("maps").join(format!("{file}.onnx"));
            let whole = std::fs::read(path).expect("a fixture");
            assert_eq!(check(&whole), Ok(()), "{file}");
            // Cut anywhere, it ends too early or is a shorter file.
            assert!((1..200).any(|n| check(&whole[..whole.len() - n]).is_err()));
        }
        // A length that is negative as an i64, which the runtime would go back by: at the top, and in a graph.
        let back = [&[2 << 3 | 2][..], &[255; 9], &[1]].concat();
        assert_eq!(check(&back), Err("a field longer than the file"));
        assert_eq!(check(&field(7, &back)), Err("a field longer than the file"));
        // Longer than the graph that holds it, but not than the file.
        let long = [field(7, &[1 << 3 | 2, 3]), vec![0; 9]].concat();
        assert_eq!(check(&long), Err("a field longer than the file"));
        assert_eq!(check(&[8]), Err("it ends within a number"));
        assert_eq!(check(&[255; 12]), Err("a number of more than ten bytes"));
        assert_eq!(check(&[3]), Err("a field of an unknown kind"));
        // Graphs in attributes of nodes in graphs; types of sequences of sequences.
        let mut graph = Vec::new();
        (0..30).for_each(|_| graph = field(1, &field(5, &field(6, &graph))));
        assert_eq!(check(&field(7, &graph)), Err("messages nested too deeply"));
        let mut sequence = Vec::new();
        (0..40).for_each(|_| sequence = field(4, &field(1, &sequence)));
        assert!(check(&field(7, &field(11, &field(2, &sequence)))).is_err());
    }
}
