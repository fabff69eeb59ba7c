//! `MessagePack` as it lies in memory: one value at a time, nothing copied, no recursion.

use rmp::Marker;

/// One value; of a list or a map only how much is in it, which follows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Nil,
    Bool(bool),
    Uint(u64),
    /// Below zero.
    Int(i64),
    Float(f64),
    Text(&'a [u8]),
    Bin(&'a [u8]),
    Array(u32),
    Map(u32),
    Ext(&'a [u8]),
}

/// What is not read yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

// === impl Value ===

impl<'a> Value<'a> {
    pub(super) fn text(self) -> Option<&'a str> {
        match self {
            Value::Text(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    pub(super) fn u32(self) -> Option<u32> {
        match self {
            Value::Uint(number) => u32::try_from(number).ok(),
            _ => None,
        }
    }

    /// How many values follow that belong to it.
    fn inner(self) -> u64 {
        match self {
            Value::Array(len) => len.into(),
            Value::Map(len) => 2 * u64::from(len),
            _ => 0,
        }
    }
}

// === impl Reader ===

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { rest: bytes }
    }

    pub(super) fn is_empty(self) -> bool {
        self.rest.is_empty()
    }

    /// Upper bound of the values that are still there: each takes a byte.
    pub(super) fn at_most(self) -> usize {
        self.rest.len()
    }

    /// The next value; `None` if it is cut off or none at all.
    pub(super) fn value(&mut self) -> Option<Value<'a>> {
        let marker = Marker::from_u8(*self.rest.first()?);
        self.rest = &self.rest[1..];
        Some(match marker {
            Marker::Null => Value::Nil,
            Marker::True => Value::Bool(true),
            Marker::False => Value::Bool(false),
            Marker::FixPos(number) => Value::Uint(number.into()),
            Marker::FixNeg(number) => Value::Int(number.into()),
            Marker::U8 => Value::Uint(self.number::<1>()?),
            Marker::U16 => Value::Uint(self.number::<2>()?),
            Marker::U32 => Value::Uint(self.number::<4>()?),
            Marker::U64 => Value::Uint(self.number::<8>()?),
            Marker::I8 => self.signed::<1>()?,
            Marker::I16 => self.signed::<2>()?,
            Marker::I32 => self.signed::<4>()?,
            Marker::I64 => self.signed::<8>()?,
            Marker::F32 => Value::Float(f32::from_be_bytes(self.array()?).into()),
            Marker::F64 => Value::Float(f64::from_be_bytes(self.array()?)),
            Marker::FixStr(len) => Value::Text(self.bytes(len.into())?),
            Marker::Str8 => Value::Text(self.sized::<1>()?),
            Marker::Str16 => Value::Text(self.sized::<2>()?),
            Marker::Str32 => Value::Text(self.sized::<4>()?),
            Marker::Bin8 => Value::Bin(self.sized::<1>()?),
            Marker::Bin16 => Value::Bin(self.sized::<2>()?),
            Marker::Bin32 => Value::Bin(self.sized::<4>()?),
            Marker::FixArray(len) => Value::Array(len.into()),
            Marker::Array16 => Value::Array(self.len::<2>()?),
            Marker::Array32 => Value::Array(self.len::<4>()?),
            Marker::FixMap(len) => Value::Map(len.into()),
            Marker::Map16 => Value::Map(self.len::<2>()?),
            Marker::Map32 => Value::Map(self.len::<4>()?),
            Marker::FixExt1 => Value::Ext(self.bytes(2)?),
            Marker::FixExt2 => Value::Ext(self.bytes(3)?),
            Marker::FixExt4 => Value::Ext(self.bytes(5)?),
            Marker::FixExt8 => Value::Ext(self.bytes(9)?),
            Marker::FixExt16 => Value::Ext(self.bytes(17)?),
            Marker::Ext8 => Value::Ext(self.extension::<1>()?),
            Marker::Ext16 => Value::Ext(self.extension::<2>()?),
            Marker::Ext32 => Value::Ext(self.extension::<4>()?),
            Marker::Reserved => return None,
        })
    }

    /// The bytes of the next value with all that is in it.
    pub(super) fn skip(&mut self) -> Option<&'a [u8]> {
        let start = self.rest;
        let mut open = 1_u64;
        while open > 0 {
            open = open - 1 + self.value()?.inner();
        }
        Some(&start[..start.len() - self.rest.len()])
    }

    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    fn number<const N: usize>(&mut self) -> Option<u64> {
        Some(self.array::<N>()?.iter().fold(0, |high, &byte| high << 8 | u64::from(byte)))
    }

    fn signed<const N: usize>(&mut self) -> Option<Value<'a>> {
        let unused = 64 - 8 * N;
        let number = (self.number::<N>()? << unused).cast_signed() >> unused;
        Some(u64::try_from(number).map_or(Value::Int(number), Value::Uint))
    }

    fn len<const N: usize>(&mut self) -> Option<u32> {
        u32::try_from(self.number::<N>()?).ok()
    }

    fn sized<const N: usize>(&mut self) -> Option<&'a [u8]> {
        let len = self.len::<N>()?;
        self.bytes(len as usize)
    }

    /// One byte of type stands before the data.
    fn extension<const N: usize>(&mut self) -> Option<&'a [u8]> {
        let len = self.len::<N>()?;
        self.bytes(len as usize + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> Option<Value<'_>> {
        Reader::new(bytes).value()
    }

    #[test]
    fn numbers_of_every_width_keep_their_value() {
        assert_eq!(read(&[0x7F]), Some(Value::Uint(127)));
        assert_eq!(read(&[0xE0]), Some(Value::Int(-32)));
        assert_eq!(read(&[0xCC, 0xFF]), Some(Value::Uint(255)));
        assert_eq!(read(&[0xD0, 0x80]), Some(Value::Int(-128)));
        assert_eq!(read(&[0xD1, 0x00, 0x80]), Some(Value::Uint(128)), "signed by type only");
        assert_eq!(read(&[0xD3; 9]), Some(Value::Int(i64::from_be_bytes([0xD3; 8]))));
        assert_eq!(read(&[0xCF; 9]), Some(Value::Uint(u64::from_be_bytes([0xCF; 8]))));
    }

    #[test]
    fn what_is_cut_off_is_no_value() {
        for cut in [&[][..], &[0xCF, 0, 0], &[0xA3, b'a'], &[0xC5, 0, 9, 1], &[0xC1], &[0xC7, 4, 0]]
        {
            assert_eq!(read(cut), None, "{cut:?}");
        }
    }

    #[test]
    fn a_value_is_skipped_with_all_that_is_in_it() {
        let bytes = [0x93, 0x81, 0xA1, b'k', 0x92, 1, 2, 0xC0, 0xC4, 1, 9, 0x05];
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.skip(), Some(&bytes[..11]));
        assert_eq!(reader.value(), Some(Value::Uint(5)));
        assert!(reader.is_empty());
    }

    #[test]
    fn nesting_of_any_depth_takes_no_stack() {
        assert_eq!(Reader::new(&vec![0x91; 1 << 20]).skip(), None);
        let claims_much = [0xDD, 0xFF, 0xFF, 0xFF, 0xFF, 0xDF, 0xFF, 0xFF, 0xFF, 0xFF];
        assert_eq!(Reader::new(&claims_much).skip(), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_skipped_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut reader = Reader::new(&bytes);
            let before = reader.at_most();
            if let Some(skipped) = reader.skip() {
                prop_assert_eq!(skipped.len() + reader.at_most(), before);
            }
        }
    }
}
