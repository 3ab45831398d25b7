//! One named array of a checkpoint, in the bytes of its file.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};
use half::{bf16, f16};
use memmap2::Mmap;

use crate::error::{Error, Result};

#[cfg(target_endian = "big")]
compile_error!("safetensors data is little-endian and is used without conversion");

/// Element types of safetensors 0.8.
///
/// Declared in the order of the reference implementation: its writer lays tensors out by descending
/// `Dtype`, then by name, so that wide types come first and every tensor is aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dtype {
    Bool,
    F4,
    F6E2M3,
    F6E3M2,
    U8,
    I8,
    F8E5M2,
    F8E4M3,
    F8E8M0,
    F8E4M3Fnuz,
    F8E5M2Fnuz,
    I16,
    U16,
    F16,
    BF16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

impl Dtype {
    /// Every dtype with its name in a header and its bits per element.
    const TABLE: [(Dtype, &'static str, usize); 22] = [
        (Dtype::Bool, "BOOL", 8),
        (Dtype::F4, "F4", 4),
        (Dtype::F6E2M3, "F6_E2M3", 6),
        (Dtype::F6E3M2, "F6_E3M2", 6),
        (Dtype::U8, "U8", 8),
        (Dtype::I8, "I8", 8),
        (Dtype::F8E5M2, "F8_E5M2", 8),
        (Dtype::F8E4M3, "F8_E4M3", 8),
        (Dtype::F8E8M0, "F8_E8M0", 8),
        (Dtype::F8E4M3Fnuz, "F8_E4M3FNUZ", 8),
        (Dtype::F8E5M2Fnuz, "F8_E5M2FNUZ", 8),
        (Dtype::I16, "I16", 16),
        (Dtype::U16, "U16", 16),
        (Dtype::F16, "F16", 16),
        (Dtype::BF16, "BF16", 16),
        (Dtype::I32, "I32", 32),
        (Dtype::U32, "U32", 32),
        (Dtype::F32, "F32", 32),
        (Dtype::C64, "C64", 64),
        (Dtype::F64, "F64", 64),
        (Dtype::I64, "I64", 64),
        (Dtype::U64, "U64", 64),
    ];

    pub fn all() -> impl Iterator<Item = Dtype> {
        Dtype::TABLE.iter().map(|&(dtype, _, _)| dtype)
    }

    /// The dtype a header calls `name`: upper case, as in `F8_E4M3`.
    pub fn named(name: &str) -> Option<Dtype> {
        Dtype::TABLE.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    pub fn name(self) -> &'static str {
        Dtype::TABLE[self as usize].1
    }

    /// Bits of one element: 4 or 6 for the packed types, else a multiple of 8.
    pub fn bits(self) -> usize {
        Dtype::TABLE[self as usize].2
    }

    /// Bytes of a tensor of this `shape`; `None` if that overflows or ends inside a byte.
    pub fn byte_len(self, shape: &[usize]) -> Option<usize> {
        let numel = shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim))?;
        let bits = numel.checked_mul(self.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A named array: row-major, little-endian, `dtype.byte_len(&shape)` bytes.
///
/// The bytes are a view into a mapped file or shared on the heap, so that a clone costs nothing
/// and a tensor nobody changed is written as it was read. A plan has tensors without any.
#[derive(Clone)]
pub struct Tensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    data: Data,
}

#[derive(Clone)]
enum Data {
    Mapped {
        map: Arc<Mmap>,
        range: Range<usize>,
    },
    Owned(Arc<[u8]>),
    /// So many bytes that nobody has.
    Blank(usize),
}

impl Tensor {
    /// A tensor that owns a copy of `bytes`.
    ///
    /// # Panics
    /// If `bytes` is not as long as `dtype` and `shape` say: a bug in the caller.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: &[usize], bytes: &[u8]) -> Tensor {
        let data = Data::Owned(bytes.into());
        Tensor { name: name.into(), dtype, shape: shape.to_vec(), data }.checked()
    }

    /// Name, type and shape alone: it takes no memory, and whoever reads it finds nothing.
    ///
    /// # Panics
    /// If its bytes cannot be counted: a bug in the caller.
    pub fn blank(name: impl Into<String>, dtype: Dtype, shape: &[usize]) -> Tensor {
        let bytes = dtype.byte_len(shape).expect("the shape of a tensor that could be stored");
        Tensor { name: name.into(), dtype, shape: shape.to_vec(), data: Data::Blank(bytes) }
    }

    /// The same without data.
    pub fn blanked(&self) -> Tensor {
        Tensor::blank(self.name.clone(), self.dtype, &self.shape)
    }

    pub fn is_blank(&self) -> bool {
        matches!(self.data, Data::Blank(_))
    }

    /// A view of the bytes at `range` of a mapped file.
    ///
    /// # Panics
    /// If `range` is outside of `map` or not as long as `dtype` and `shape` say.
    pub(super) fn mapped(
        name: String,
        dtype: Dtype,
        shape: Vec<usize>,
        map: Arc<Mmap>,
        range: Range<usize>,
    ) -> Tensor {
        Tensor { name, dtype, shape, data: Data::Mapped { map, range } }.checked()
    }

    /// `values` stored as `dtype`, rounded to nearest even. F16 turns what is above 65504 into
    /// infinity: call [`Tensor::check_finite`] where that can happen.
    ///
    /// # Panics
    /// If `dtype` is not F32, F16 or BF16, or `values` does not fill `shape`.
    pub fn from_f32(
        name: impl Into<String>,
        shape: &[usize],
        values: &[f32],
        dtype: Dtype,
    ) -> Tensor {
        match dtype {
            Dtype::F32 => Tensor::new(name, dtype, shape, bytemuck::cast_slice(values)),
            Dtype::F16 => {
                let mut halves = vec![f16::ZERO; values.len()];
                halves.convert_from_f32_slice(values);
                Tensor::from_f16(name, shape, &halves)
            }
            Dtype::BF16 => {
                let mut halves = vec![bf16::ZERO; values.len()];
                halves.convert_from_f32_slice(values);
                Tensor::from_bf16(name, shape, &halves)
            }
            other => panic!("f32 values are stored as F32, F16 or BF16, never as {other}"),
        }
    }

    pub fn from_f16(name: impl Into<String>, shape: &[usize], values: &[f16]) -> Tensor {
        let bits: &[u16] = values.reinterpret_cast();
        Tensor::new(name, Dtype::F16, shape, bytemuck::cast_slice(bits))
    }

    pub fn from_bf16(name: impl Into<String>, shape: &[usize], values: &[bf16]) -> Tensor {
        let bits: &[u16] = values.reinterpret_cast();
        Tensor::new(name, Dtype::BF16, shape, bytemuck::cast_slice(bits))
    }

    pub fn from_i32(name: impl Into<String>, shape: &[usize], values: &[i32]) -> Tensor {
        Tensor::new(name, Dtype::I32, shape, bytemuck::cast_slice(values))
    }

    pub fn from_i64(name: impl Into<String>, shape: &[usize], values: &[i64]) -> Tensor {
        Tensor::new(name, Dtype::I64, shape, bytemuck::cast_slice(values))
    }

    pub fn from_i8(name: impl Into<String>, shape: &[usize], values: &[i8]) -> Tensor {
        Tensor::new(name, Dtype::I8, shape, bytemuck::cast_slice(values))
    }

    pub fn from_u8(name: impl Into<String>, shape: &[usize], values: &[u8]) -> Tensor {
        Tensor::new(name, Dtype::U8, shape, values)
    }

    pub fn from_u16(name: impl Into<String>, shape: &[usize], values: &[u16]) -> Tensor {
        Tensor::new(name, Dtype::U16, shape, bytemuck::cast_slice(values))
    }

    pub fn from_u32(name: impl Into<String>, shape: &[usize], values: &[u32]) -> Tensor {
        Tensor::new(name, Dtype::U32, shape, bytemuck::cast_slice(values))
    }

    /// The same bytes under another name.
    pub fn renamed(mut self, name: impl Into<String>) -> Tensor {
        self.name = name.into();
        self
    }

    /// The same bytes in another shape.
    ///
    /// # Panics
    /// If they do not fill it: a bug in the caller.
    pub fn reshaped(mut self, shape: &[usize]) -> Tensor {
        self.shape = shape.to_vec();
        self.checked()
    }

    /// The rows of `range`, as a tensor of this name: a view where this is one.
    ///
    /// # Panics
    /// If there are no such rows, or they end inside a byte.
    pub fn rows(&self, name: impl Into<String>, rows: Range<usize>) -> Tensor {
        let size = self.byte_len() / self.shape[0].max(1);
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        let part = rows.start * size..rows.end * size;
        let data = match &self.data {
            Data::Mapped { map, range } => {
                let range = range.start + part.start..range.start + part.end;
                Data::Mapped { map: map.clone(), range }
            }
            Data::Owned(bytes) => Data::Owned(bytes[part].into()),
            Data::Blank(_) => Data::Blank(part.len()),
        };
        Tensor { name: name.into(), dtype: self.dtype, shape, data }.checked()
    }

    /// The rows of all `parts`, one below the other; `None` where their types or widths differ. A view where they are
    /// views that follow each other.
    pub fn joined(name: impl Into<String>, parts: &[&Tensor]) -> Option<Tensor> {
        let first = *parts.first()?;
        let like = |t: &&&Tensor| t.dtype == first.dtype && t.shape[1..] == first.shape[1..];
        if parts.iter().filter(like).count() < parts.len() {
            return None;
        }
        let mut shape = first.shape.clone();
        shape[0] = parts.iter().map(|t| t.shape[0]).sum();
        let mut view = Some(first.data.clone());
        for part in &parts[1..] {
            view = match (view, &part.data) {
                (Some(Data::Mapped { map, range }), Data::Mapped { map: other, range: next })
                    if Arc::ptr_eq(&map, other) && range.end == next.start =>
                {
                    Some(Data::Mapped { map, range: range.start..next.end })
                }
                _ => None,
            };
        }
        if parts.iter().any(|t| t.is_blank()) {
            view = Some(Data::Blank(parts.iter().map(|t| t.byte_len()).sum()));
        }
        let data = view.unwrap_or_else(|| {
            let bytes: Vec<u8> = parts.iter().flat_map(|t| t.bytes()).copied().collect();
            Data::Owned(bytes.into())
        });
        Some(Tensor { name: name.into(), dtype: first.dtype, shape, data }.checked())
    }

    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::Mapped { map, range } => &map[range.clone()],
            Data::Owned(bytes) => bytes,
            Data::Blank(_) => &[],
        }
    }

    /// How many bytes it is stored in, whether they are there or not.
    pub fn byte_len(&self) -> usize {
        match &self.data {
            Data::Blank(bytes) => *bytes,
            _ => self.bytes().len(),
        }
    }

    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// The values as f32: borrowed for F32, converted (exactly) for F16 and BF16.
    ///
    /// # Errors
    /// [`Error::Dtype`] for every other dtype.
    pub fn to_f32(&self) -> Result<Cow<'_, [f32]>> {
        match self.dtype {
            Dtype::F32 => Ok(self.cast()),
            Dtype::F16 => Ok(Cow::Owned(self.cast::<u16>().reinterpret_cast::<f16>().to_f32_vec())),
            Dtype::BF16 => {
                Ok(Cow::Owned(self.cast::<u16>().reinterpret_cast::<bf16>().to_f32_vec()))
            }
            _ => Err(self.unexpected_dtype("F32, F16 or BF16")),
        }
    }

    /// Hands row `row` of `[rows, cols]` to `read` as f32, without converting the rest.
    ///
    /// # Errors
    /// As [`Tensor::to_f32`].
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row_f32(&self, row: usize, read: impl FnOnce(&[f32])) -> Result<()> {
        let bytes = self.bytes().len() / self.shape[0];
        let part = &self.bytes()[row * bytes..(row + 1) * bytes];
        if let (Dtype::F32, Ok(values)) = (self.dtype, bytemuck::try_cast_slice(part)) {
            read(values);
            return Ok(());
        }
        let line = Tensor::new("", self.dtype, &self.shape[1..], part);
        read(&line.to_f32()?);
        Ok(())
    }

    /// # Errors
    /// [`Error::Dtype`] unless this is I8.
    pub fn to_i8(&self) -> Result<Cow<'_, [i8]>> {
        self.cast_if(Dtype::I8, "I8")
    }

    /// # Errors
    /// [`Error::Dtype`] unless this is I32.
    pub fn to_i32(&self) -> Result<Cow<'_, [i32]>> {
        self.cast_if(Dtype::I32, "I32")
    }

    /// # Errors
    /// [`Error::Dtype`] unless this is I64.
    pub fn to_i64(&self) -> Result<Cow<'_, [i64]>> {
        self.cast_if(Dtype::I64, "I64")
    }

    /// # Errors
    /// [`Error::Dtype`] unless this is U16.
    pub fn to_u16(&self) -> Result<Cow<'_, [u16]>> {
        self.cast_if(Dtype::U16, "U16")
    }

    /// # Errors
    /// [`Error::Dtype`] unless this is U32.
    pub fn to_u32(&self) -> Result<Cow<'_, [u32]>> {
        self.cast_if(Dtype::U32, "U32")
    }

    /// Refuses NaN and infinities in F32, F16 and BF16; every other dtype passes.
    ///
    /// # Errors
    /// [`Error::NonFinite`] with the first one.
    pub fn check_finite(&self) -> Result<()> {
        // A float is not finite exactly when all bits of its exponent are set.
        let bytes = self.bytes();
        let index = match self.dtype {
            Dtype::F32 => first(bytes, |w| u32::from_le_bytes(w) & 0x7f80_0000 == 0x7f80_0000),
            Dtype::F16 => first(bytes, |w| u16::from_le_bytes(w) & 0x7c00 == 0x7c00),
            Dtype::BF16 => first(bytes, |w| u16::from_le_bytes(w) & 0x7f80 == 0x7f80),
            _ => None,
        };
        let Some(index) = index else { return Ok(()) };
        let found = self.to_f32()?[index];
        Err(Error::NonFinite { name: self.name.clone(), found, index })
    }

    /// Whether the bytes are a view into a file: the one that was read, or one of [`super::Spill`].
    pub fn is_mapped(&self) -> bool {
        matches!(self.data, Data::Mapped { .. })
    }

    /// Whether the bytes are on the heap.
    pub fn is_owned(&self) -> bool {
        matches!(self.data, Data::Owned(_))
    }

    /// Gives the memory of a mapped tensor back; the next access reads the file again. Nothing
    /// happens to an owned tensor, or where the system has no `madvise`.
    pub fn release(&self) {
        self.release_part(0..self.bytes().len());
    }

    /// [`Tensor::release`] for a part of the bytes. Pages shared with a neighbour go too, which
    /// costs that neighbour a page fault and nothing else.
    #[cfg_attr(not(unix), allow(unused_variables))]
    pub(super) fn release_part(&self, part: Range<usize>) {
        #[cfg(unix)]
        if let Data::Mapped { map, range } = &self.data
            && !part.is_empty()
        {
            // SAFETY: the mapping is a read-only view of a file, so that dropping its pages changes
            // no byte: they are read again from the file. Failing only costs memory.
            let _ = unsafe {
                map.unchecked_advise_range(
                    memmap2::UncheckedAdvice::DontNeed,
                    range.start + part.start,
                    part.len(),
                )
            };
        }
    }

    fn checked(self) -> Tensor {
        assert_eq!(
            self.dtype.byte_len(&self.shape),
            Some(self.byte_len()),
            "tensor `{}`: the bytes fill shape {:?} of {}",
            self.name,
            self.shape,
            self.dtype
        );
        self
    }

    fn cast_if<T: Pod>(&self, dtype: Dtype, expected: &'static str) -> Result<Cow<'_, [T]>> {
        if self.dtype == dtype { Ok(self.cast()) } else { Err(self.unexpected_dtype(expected)) }
    }

    fn cast<T: Pod>(&self) -> Cow<'_, [T]> {
        let bytes = self.bytes();
        // Files by other writers may start their data at any byte.
        bytemuck::try_cast_slice(bytes).map_or_else(
            |_| {
                let mut values = vec![T::zeroed(); bytes.len() / size_of::<T>()];
                bytemuck::cast_slice_mut(&mut values).copy_from_slice(bytes);
                Cow::Owned(values)
            },
            Cow::Borrowed,
        )
    }

    fn unexpected_dtype(&self, expected: &'static str) -> Error {
        Error::Dtype { name: self.name.clone(), found: self.dtype.to_string(), expected }
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = match self.data {
            Data::Mapped { .. } => "mapped",
            Data::Owned(_) => "owned",
            Data::Blank(_) => "blank",
        };
        write!(f, "Tensor({:?} {} {:?} {from})", self.name, self.dtype, self.shape)
    }
}

/// Index of the first `N`-byte element that `is_bad`. Blocks are tested without a branch, so that
/// the loop is vectorised and runs at the speed of memory.
fn first<const N: usize>(bytes: &[u8], is_bad: impl Fn([u8; N]) -> bool) -> Option<usize> {
    const BLOCK: usize = 4096;
    let (elements, _) = bytes.as_chunks::<N>();
    let block = elements
        .chunks(BLOCK)
        .position(|block| block.iter().fold(false, |bad, &element| bad | is_bad(element)))?;
    let start = block * BLOCK;
    elements[start..].iter().position(|&element| is_bad(element)).map(|i| start + i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dtype_table_is_in_the_order_of_the_enum() {
        for (i, dtype) in Dtype::all().enumerate() {
            assert_eq!(dtype as usize, i);
            assert_eq!(Dtype::named(dtype.name()), Some(dtype));
        }
    }

    #[test]
    fn dtypes_agree_with_the_reference_in_name_size_and_order() {
        use safetensors::Dtype as Theirs;
        let theirs: Vec<Theirs> = Dtype::all()
            .map(|d| serde_json::from_value(d.name().into()).expect("the reference knows it"))
            .collect();
        assert!(theirs.is_sorted());
        for (ours, theirs) in Dtype::all().zip(theirs) {
            assert_eq!(ours.bits(), theirs.bitsize(), "{ours}");
        }
    }

    #[test]
    fn byte_len_is_none_on_overflow_and_inside_a_byte() {
        assert_eq!(Dtype::F32.byte_len(&[2, 3]), Some(24));
        assert_eq!(Dtype::F32.byte_len(&[]), Some(4));
        assert_eq!(Dtype::F32.byte_len(&[0, 7]), Some(0));
        assert_eq!(Dtype::F4.byte_len(&[4]), Some(2));
        assert_eq!(Dtype::F4.byte_len(&[3]), None);
        assert_eq!(Dtype::F32.byte_len(&[usize::MAX, 2]), None);
        assert_eq!(Dtype::F32.byte_len(&[usize::MAX]), None);
    }

    #[test]
    fn f32_is_borrowed_and_halves_are_converted() {
        let values = [1.0, -2.5, 0.0, 65504.0];
        let f32s = Tensor::from_f32("a", &[2, 2], &values, Dtype::F32);
        assert!(matches!(f32s.to_f32().unwrap(), Cow::Borrowed(v) if v == values));
        for dtype in [Dtype::F16, Dtype::BF16] {
            let halves = Tensor::from_f32("a", &[4], &values, dtype);
            assert_eq!(halves.bytes().len(), 8);
            assert_eq!(halves.to_f32().unwrap()[..3], values[..3]);
        }
    }

    #[test]
    fn integers_come_back_and_refuse_other_dtypes() {
        let ints = Tensor::from_i32("a", &[2], &[i32::MIN, 7]);
        assert_eq!(*ints.to_i32().unwrap(), [i32::MIN, 7]);
        assert_eq!(*Tensor::from_i64("a", &[1], &[-1]).to_i64().unwrap(), [-1]);
        assert_eq!(*Tensor::from_u16("a", &[1], &[9]).to_u16().unwrap(), [9]);
        assert_eq!(*Tensor::from_u32("a", &[1], &[u32::MAX]).to_u32().unwrap(), [u32::MAX]);
        let error = ints.to_f32().unwrap_err().to_string();
        assert!(error.contains("`a` has dtype I32, expected F32, F16 or BF16"), "{error}");
        assert!(ints.to_i64().is_err());
    }

    #[test]
    fn unaligned_bytes_are_copied() {
        let file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut &file, &[&[0u8][..], &1.5f32.to_le_bytes()].concat())
            .unwrap();
        // SAFETY: nobody else knows this file.
        let map = Arc::new(unsafe { Mmap::map(&file) }.unwrap());
        let tensor = Tensor::mapped("a".into(), Dtype::F32, vec![1], map, 1..5);
        assert!(matches!(tensor.to_f32().unwrap(), Cow::Owned(v) if v == [1.5]));
        tensor.release();
        assert_eq!(*tensor.to_f32().unwrap(), [1.5]);
    }

    #[test]
    fn the_first_non_finite_value_is_named() {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut values = vec![1.0; 10_000];
                assert!(Tensor::from_f32("w", &[10_000], &values, dtype).check_finite().is_ok());
                values[9_000] = bad;
                values[9_500] = f32::NAN;
                let error = Tensor::from_f32("w", &[10_000], &values, dtype).check_finite();
                match error.unwrap_err() {
                    Error::NonFinite { name, found, index } => {
                        assert_eq!((name.as_str(), index), ("w", 9_000));
                        assert_eq!(found.to_bits() >> 23, bad.to_bits() >> 23);
                    }
                    other => panic!("{other}"),
                }
            }
        }
        let extremes = [f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45, -0.0];
        assert!(Tensor::from_f32("w", &[5], &extremes, Dtype::F32).check_finite().is_ok());
        assert!(Tensor::from_i32("w", &[1], &[-1]).check_finite().is_ok());
    }

    #[test]
    #[should_panic = "the bytes fill shape [3] of F32"]
    fn a_shape_that_disagrees_with_the_bytes_is_a_bug() {
        let _ = Tensor::new("a", Dtype::F32, &[3], &[0; 8]);
    }

    #[test]
    fn a_blank_has_a_length_and_no_bytes() {
        let blank = Tensor::blank("a", Dtype::F16, &[1 << 20, 1 << 20]);
        assert_eq!((blank.byte_len(), blank.bytes().len()), (2 << 40, 0));
        assert!(blank.is_blank() && !blank.is_mapped() && blank.check_finite().is_ok());
        assert!(blank.to_f32().unwrap().is_empty());
        let full = Tensor::from_u8("a", &[3], &[1, 2, 3]);
        assert_eq!((full.byte_len(), full.blanked().byte_len()), (3, 3));
    }

    #[test]
    fn clones_share_their_bytes() {
        let tensor = Tensor::from_u8("a", &[3], &[1, 2, 3]);
        let clone = tensor.clone().renamed("b");
        assert_eq!(clone.name, "b");
        assert_eq!(clone.bytes().as_ptr(), tensor.bytes().as_ptr());
    }
}
