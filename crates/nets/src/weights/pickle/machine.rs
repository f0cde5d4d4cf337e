//! The pickle stack machine without the code: data instructions of protocols 0–4 that `torch.save` writes.
//! Reference: CPython `Lib/pickletools.py`.
//!
//! Values live in one arena and refer to each other by index, so that cycles and deep nesting cost nothing and
//! nothing is ever dropped recursively.

use super::torch::{self, Function, Storage, Tensor};
use std::collections::HashMap;

/// Index into the arena.
pub(super) type Id = u32;

/// Real checkpoints need some hundred thousand.
const MAX_NODES: usize = 4_000_000;

/// Why the machine stopped.
#[derive(Debug)]
pub(super) enum Fault {
    /// A name outside the list.
    Refused(String),
    /// Not a pickle, or a damaged one.
    Broken(String),
}

pub(super) fn broken<T>(message: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Broken(message.into()))
}

/// A value.
#[derive(Debug)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 64 bits, little-endian.
    Big(Vec<u8>),
    Str(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Function(Function),
    Storage(Storage),
    Tensor(Tensor),
    /// Something that cannot matter: a float, bytes, an object of a known harmless class.
    Opaque,
}

/// The machine and everything it has made.
#[derive(Default)]
pub(super) struct Machine {
    nodes: Vec<Node>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

/// The unread part of a pickle.
struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Fault> {
        match self.rest.split_at_checked(n) {
            Some((head, rest)) => {
                self.rest = rest;
                Ok(head)
            }
            None => broken("it ends in the middle"),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u8(&mut self) -> Result<usize, Fault> {
        Ok(self.array::<1>()?[0] as usize)
    }

    fn u32(&mut self) -> Result<u32, Fault> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<usize, Fault> {
        usize::try_from(u64::from_le_bytes(self.array()?))
            .or_else(|_| broken("a length of more than this machine's"))
    }

    fn line(&mut self) -> Result<String, Fault> {
        match self.rest.iter().position(|b| *b == b'\n') {
            Some(n) => Ok(String::from_utf8_lossy(&self.take(n + 1)?[..n]).into_owned()),
            None => broken("it ends in the middle"),
        }
    }

    fn text(&mut self, n: usize) -> Result<Node, Fault> {
        match std::str::from_utf8(self.take(n)?) {
            Ok(s) => Ok(Node::Str(s.to_owned())),
            Err(_) => broken("a text that is not UTF-8"),
        }
    }

    /// A string of Python 2: text if it can be.
    fn string(&mut self, n: usize) -> Result<Node, Fault> {
        Ok(std::str::from_utf8(self.take(n)?).map_or(Node::Opaque, |s| Node::Str(s.to_owned())))
    }

    fn long(&mut self, n: usize) -> Result<Node, Fault> {
        let bytes = self.take(n)?;
        if n > 8 {
            return Ok(Node::Big(bytes.to_vec()));
        }
        let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut wide = [fill; 8];
        wide[..n].copy_from_slice(bytes);
        Ok(Node::Int(i64::from_le_bytes(wide)))
    }
}

impl Machine {
    /// The value of `id`.
    pub fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    /// All values.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Runs one pickle from the beginning of `bytes`; the result and how many bytes it took.
    pub fn run(&mut self, bytes: &[u8]) -> Result<(Id, usize), Fault> {
        let mut input = Input { rest: bytes };
        loop {
            let op = input.array::<1>()?[0];
            if op == b'.' {
                return Ok((self.pop()?, bytes.len() - input.rest.len()));
            }
            self.step(op, &mut input)?;
        }
    }

    fn step(&mut self, op: u8, input: &mut Input) -> Result<(), Fault> {
        match op {
            // PROTO, FRAME: nothing to know.
            0x80 => drop(input.take(1)?),
            0x95 => drop(input.take(8)?),
            b'(' => {
                if self.marks.len() >= MAX_NODES {
                    return broken("it is too large");
                }
                self.marks.push(self.stack.len());
            }
            // POP, POP_MARK, DUP
            b'0' => {
                if self.stack.len() > self.base() {
                    self.pop()?;
                } else if self.marks.pop().is_none() {
                    return broken("its stack is empty");
                }
            }
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.push_id(top)?;
            }
            b'N' => self.push(Node::None)?,
            0x88 => self.push(Node::Bool(true))?,
            0x89 => self.push(Node::Bool(false))?,
            // BININT, BININT1, BININT2, LONG1, LONG4
            b'J' => self.push(Node::Int(i32::from_le_bytes(input.array()?) as i64))?,
            b'K' => self.push(Node::Int(input.u8()? as i64))?,
            b'M' => self.push(Node::Int(u16::from_le_bytes(input.array()?) as i64))?,
            0x8a => {
                let n = input.u8()?;
                self.push(input.long(n)?)?;
            }
            0x8b => {
                let n = input.u32()? as usize;
                self.push(input.long(n)?)?;
            }
            // BINFLOAT
            b'G' => {
                input.take(8)?;
                self.push(Node::Opaque)?;
            }
            // BINUNICODE, SHORT_BINUNICODE, BINUNICODE8
            b'X' => {
                let n = input.u32()? as usize;
                self.push(input.text(n)?)?;
            }
            0x8c => {
                let n = input.u8()?;
                self.push(input.text(n)?)?;
            }
            0x8d => {
                let n = input.u64()?;
                self.push(input.text(n)?)?;
            }
            // SHORT_BINSTRING, BINSTRING, and the protocol-0 texts UNICODE and STRING (a quoted literal)
            b'U' => {
                let n = input.u8()?;
                self.push(input.string(n)?)?;
            }
            b'T' => {
                let n = input.u32()? as usize;
                self.push(input.string(n)?)?;
            }
            b'V' | b'S' => {
                let line = input.line()?;
                self.push(Node::Str(line.trim_matches(['\'', '"']).to_owned()))?;
            }
            // SHORT_BINBYTES, BINBYTES, BINBYTES8
            b'C' | b'B' | 0x8e => {
                let n = match op {
                    b'C' => input.u8()?,
                    b'B' => input.u32()? as usize,
                    _ => input.u64()?,
                };
                input.take(n)?;
                self.push(Node::Opaque)?;
            }
            b')' => self.push(Node::Tuple(Vec::new()))?,
            b't' => {
                let items = self.pop_mark()?;
                self.push(Node::Tuple(items))?;
            }
            0x85..=0x87 => {
                let at = self.stack.len().checked_sub(op as usize - 0x84).filter(|at| *at >= self.base());
                let Some(at) = at else { return broken("its stack is empty") };
                let items = self.stack.split_off(at);
                self.push(Node::Tuple(items))?;
            }
            b']' => self.push(Node::List(Vec::new()))?,
            b'l' => {
                let items = self.pop_mark()?;
                self.push(Node::List(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.append(vec![item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.append(items)?;
            }
            b'}' => self.push(Node::Dict(Vec::new()))?,
            b'd' => {
                let items = self.pop_mark()?;
                self.push(Node::Dict(Vec::new()))?;
                self.set(items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.set(vec![key, value])?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set(items)?;
            }
            // BINPUT, LONG_BINPUT, MEMOIZE; PUT
            b'q' => {
                let n = input.u8()? as u32;
                self.remember(n)?;
            }
            b'r' => {
                let n = input.u32()?;
                self.remember(n)?;
            }
            0x94 => {
                let n = self.memo.len() as u32;
                self.remember(n)?;
            }
            b'p' => {
                let n = number(&input.line()?)?;
                self.remember(n)?;
            }
            // BINGET, LONG_BINGET; GET
            b'h' | b'j' | b'g' => {
                let n = match op {
                    b'h' => input.u8()? as u32,
                    b'j' => input.u32()?,
                    _ => number(&input.line()?)?,
                };
                let Some(id) = self.memo.get(&n) else { return broken("a reference to nothing") };
                self.push_id(*id)?;
            }
            // GLOBAL, STACK_GLOBAL: a name is only ever looked up in our own table.
            b'c' => {
                let (module, name) = (input.line()?, input.line()?);
                self.push(Node::Function(Function::named(&module, &name)?))?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Node::Str(module), Node::Str(name)) = (self.node(module), self.node(name)) else {
                    return broken("a name that is not a text");
                };
                let function = Function::named(module, name)?;
                self.push(Node::Function(function))?;
            }
            // INST names a class and runs it.
            b'i' => {
                let (module, name) = (input.line()?, input.line()?);
                return Err(Fault::Refused(format!("{module}.{name}")));
            }
            // REDUCE, NEWOBJ: calls.
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let node = torch::call(self, function, arguments)?;
                self.push(node)?;
            }
            // BUILD sets attributes, which hold no weights.
            b'b' => {
                self.pop()?;
                self.top()?;
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = torch::storage(self, id)?;
                self.push(Node::Storage(storage))?;
            }
            _ => return broken(format!("the instruction 0x{op:02x}, which torch.save never writes")),
        }
        Ok(())
    }

    fn push(&mut self, node: Node) -> Result<(), Fault> {
        if self.nodes.len() >= MAX_NODES {
            return broken("it is too large");
        }
        self.nodes.push(node);
        self.push_id(self.nodes.len() as Id - 1)
    }

    fn push_id(&mut self, id: Id) -> Result<(), Fault> {
        if self.stack.len() >= MAX_NODES {
            return broken("it is too large");
        }
        self.stack.push(id);
        Ok(())
    }

    /// Nothing below the last mark may be touched.
    fn base(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<Id, Fault> {
        if self.stack.len() <= self.base() {
            return broken("its stack is empty");
        }
        self.stack.pop().map_or_else(|| broken("its stack is empty"), Ok)
    }

    fn top(&self) -> Result<Id, Fault> {
        match self.stack.last() {
            Some(id) if self.stack.len() > self.base() => Ok(*id),
            _ => broken("its stack is empty"),
        }
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, Fault> {
        match self.marks.pop() {
            // `base` kept the stack from sinking below the mark.
            Some(at) => Ok(self.stack.split_off(at)),
            None => broken("a mark is missing"),
        }
    }

    fn remember(&mut self, n: u32) -> Result<(), Fault> {
        let top = self.top()?;
        if self.memo.len() >= MAX_NODES {
            return broken("it is too large");
        }
        self.memo.insert(n, top);
        Ok(())
    }

    fn append(&mut self, items: Vec<Id>) -> Result<(), Fault> {
        let top = self.top()?;
        match &mut self.nodes[top as usize] {
            Node::List(list) => list.extend(items),
            Node::Opaque => {}
            _ => return broken("an item for something that is not a list"),
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<Id>) -> Result<(), Fault> {
        let top = self.top()?;
        if !items.len().is_multiple_of(2) {
            return broken("a key without a value");
        }
        match &mut self.nodes[top as usize] {
            Node::Dict(dict) => dict.extend(items.as_chunks::<2>().0.iter().map(|[k, v]| (*k, *v))),
            Node::Opaque => {}
            _ => return broken("an entry for something that is not a dictionary"),
        }
        Ok(())
    }
}

fn number(line: &str) -> Result<u32, Fault> {
    line.parse().or_else(|_| broken("a damaged number"))
}
