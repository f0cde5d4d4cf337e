//! Bits, Huffman codes and coefficients (T.81, annexes F and G).

use super::ZIGZAG;

const END: &str = "the JPEG is incomplete or damaged (its data end early)";
const DAMAGED: &str = "the JPEG is damaged (a code that does not exist)";

/// A Huffman table: codes of up to eight bits at a glance, longer ones by length.
pub(super) struct Table {
    /// Length << 8 | symbol; 0 for longer codes.
    short: [u16; 256],
    /// Per length 1..=16: first code, one past the last, and the place of the first symbol.
    long: [(u32, u32, usize); 17],
    symbols: Vec<u8>,
}

impl Table {
    /// `None` if the counts are impossible.
    pub fn new(counts: &[u8; 16], symbols: &[u8]) -> Option<Self> {
        let mut table = Table { short: [0; 256], long: [(0, 0, 0); 17], symbols: symbols.to_vec() };
        let (mut code, mut place) = (0u32, 0);
        for length in 1..=16 {
            let count = counts[length - 1] as usize;
            table.long[length] = (code, code + count as u32, place);
            for symbol in &symbols[place..place + count] {
                if length <= 8 {
                    let from = (code as usize) << (8 - length);
                    let cells = table.short.get_mut(from..from + (1 << (8 - length)))?;
                    cells.fill((length as u16) << 8 | *symbol as u16);
                }
                code += 1;
            }
            if code > 1 << length {
                return None;
            }
            code <<= 1;
            place += count;
        }
        Some(table)
    }
}

/// The bits of a scan: stuffed zeros are removed, a marker ends them.
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    store: u64,
    count: u32,
    /// Of `count`, how many are zeros made up after the end.
    made_up: u32,
}

impl<'a> Bits<'a> {
    pub fn new(bytes: &'a [u8], at: usize) -> Self {
        Bits { bytes, at, store: 0, count: 0, made_up: 0 }
    }

    /// Where the marker after the scan is to be looked for.
    pub fn position(&self) -> usize {
        self.at
    }

    fn fill(&mut self) {
        while self.count <= 48 {
            let byte = match self.bytes.get(self.at) {
                Some(0xff) => match self.bytes.get(self.at + 1) {
                    Some(0) => {
                        self.at += 2;
                        0xff
                    }
                    _ => {
                        self.made_up += 8;
                        0
                    }
                },
                Some(&byte) => {
                    self.at += 1;
                    byte
                }
                None => {
                    self.made_up += 8;
                    0
                }
            };
            self.store = self.store << 8 | byte as u64;
            self.count += 8;
        }
    }

    /// The next 16 bits, without taking them.
    fn peek(&mut self) -> u32 {
        if self.count < 16 {
            self.fill();
        }
        (self.store >> (self.count - 16)) as u32 & 0xffff
    }

    fn skip(&mut self, n: u32) -> Result<(), String> {
        self.count -= n;
        if self.made_up > self.count { Err(END.into()) } else { Ok(()) }
    }

    /// `n` bits, at most 16.
    fn take(&mut self, n: u32) -> Result<u32, String> {
        let value = self.peek() >> (16 - n);
        self.skip(n)?;
        Ok(value)
    }

    pub fn bit(&mut self) -> Result<bool, String> {
        Ok(self.take(1)? != 0)
    }

    fn symbol(&mut self, table: &Table) -> Result<u8, String> {
        let next = self.peek();
        let short = table.short[(next >> 8) as usize];
        if short != 0 {
            self.skip((short >> 8) as u32)?;
            return Ok(short as u8);
        }
        for length in 9..=16 {
            let code = next >> (16 - length);
            let (first, end, place) = table.long[length as usize];
            if code >= first && code < end {
                self.skip(length)?;
                return table
                    .symbols
                    .get(place + (code - first) as usize)
                    .copied()
                    .ok_or_else(|| DAMAGED.into());
            }
        }
        Err(if self.made_up > 0 { END.into() } else { DAMAGED.into() })
    }

    /// A signed value of `n` bits, at most 15.
    fn signed(&mut self, n: u32) -> Result<i32, String> {
        if n == 0 {
            return Ok(0);
        }
        let value = self.take(n)? as i32;
        Ok(if value < 1 << (n - 1) { value - (1 << n) + 1 } else { value })
    }

    /// The difference of a DC value.
    pub fn difference(&mut self, table: &Table) -> Result<i32, String> {
        let n = self.symbol(table)? as u32;
        if n > 15 { Err(DAMAGED.into()) } else { self.signed(n) }
    }

    /// The AC values of a baseline block.
    pub fn baseline(&mut self, table: &Table, values: &mut [i16; 64]) -> Result<(), String> {
        let mut k = 1;
        while k < 64 {
            let symbol = self.symbol(table)?;
            let (run, n) = ((symbol >> 4) as usize, (symbol & 15) as u32);
            if n == 0 {
                if run < 15 {
                    break;
                }
                k += 16;
                continue;
            }
            k += run;
            let place = *ZIGZAG.get(k).ok_or(DAMAGED)?;
            values[place as usize] = self.signed(n)? as i16;
            k += 1;
        }
        Ok(())
    }

    /// The first bits of AC values `from..=to`.
    pub fn first(
        &mut self,
        table: &Table,
        from: usize,
        to: usize,
        low: u8,
        skip: &mut u32,
        values: &mut [i16; 64],
    ) -> Result<(), String> {
        if *skip > 0 {
            *skip -= 1;
            return Ok(());
        }
        let mut k = from;
        while k <= to {
            let symbol = self.symbol(table)?;
            let (run, n) = ((symbol >> 4) as usize, (symbol & 15) as u32);
            if n == 0 {
                if run < 15 {
                    *skip = (1 << run) - 1 + self.take(run as u32)?;
                    break;
                }
                k += 16;
                continue;
            }
            k += run;
            let place = *ZIGZAG.get(k).ok_or(DAMAGED)?;
            values[place as usize] = (self.signed(n)? << low) as i16;
            k += 1;
        }
        Ok(())
    }

    /// One more bit of AC values `from..=to`.
    pub fn refine(
        &mut self,
        table: &Table,
        from: usize,
        to: usize,
        low: u8,
        skip: &mut u32,
        values: &mut [i16; 64],
    ) -> Result<(), String> {
        let step = 1i16 << low;
        let mut k = from;
        if *skip == 0 {
            while k <= to {
                let symbol = self.symbol(table)?;
                let (mut run, n) = ((symbol >> 4) as usize, (symbol & 15) as u32);
                let mut new = 0;
                if n == 0 {
                    if run < 15 {
                        // This block counts too.
                        *skip = (1 << run) + self.take(run as u32)?;
                        break;
                    }
                } else {
                    new = if self.bit()? { step } else { -step };
                }
                // Values already known get their bit; `run` unknown ones stay zero; the next one is new.
                while k <= to {
                    let value = &mut values[ZIGZAG[k] as usize];
                    k += 1;
                    if *value != 0 {
                        self.correct(value, step)?;
                    } else if run == 0 {
                        *value = new;
                        break;
                    } else {
                        run -= 1;
                    }
                }
            }
        }
        if *skip > 0 {
            while k <= to {
                let value = &mut values[ZIGZAG[k] as usize];
                k += 1;
                if *value != 0 {
                    self.correct(value, step)?;
                }
            }
            *skip -= 1;
        }
        Ok(())
    }

    fn correct(&mut self, value: &mut i16, step: i16) -> Result<(), String> {
        if self.bit()? && *value & step == 0 {
            *value = value.wrapping_add(if *value > 0 { step } else { -step });
        }
        Ok(())
    }

    /// Goes past the next restart marker.
    pub fn restart(&mut self) -> Result<(), String> {
        match self.bytes.get(self.at..) {
            Some(&[0xff, 0xd0..=0xd7, ..]) => {}
            _ => {
                // Fill bytes may stand before a marker.
                while let Some(&[0xff, 0xff, ..]) = self.bytes.get(self.at..) {
                    self.at += 1;
                }
                if !matches!(self.bytes.get(self.at..), Some(&[0xff, 0xd0..=0xd7, ..])) {
                    return Err("the JPEG is damaged (a restart marker is missing)".into());
                }
            }
        }
        *self = Bits::new(self.bytes, self.at + 2);
        Ok(())
    }
}
