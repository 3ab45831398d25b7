//! Where finished weights wait for the end of a run without taking memory.

use super::Tensor;
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// A file without a name, which is gone when nobody uses it any more: what is put into it becomes a view of it, whose
/// pages the system may drop and read again. It is made when it is first needed.
#[derive(Debug)]
pub struct Spill {
    folder: PathBuf,
    #[cfg_attr(not(unix), allow(dead_code))]
    file: Mutex<Option<std::fs::File>>,
}

impl Spill {
    /// In `folder`, which has room for as much as is put there.
    pub fn new(folder: &Path) -> Spill {
        Spill { folder: folder.to_owned(), file: Mutex::new(None) }
    }

    /// Moves the bytes of a tensor that owns them to the file. Nothing happens to others, or where open files cannot be
    /// removed.
    ///
    /// # Errors
    /// [`Error::Write`], and [`Error::NonFinite`] for a tensor that nobody should ever see: from here on it looks like one
    /// that was read, and checked.
    #[cfg_attr(not(unix), allow(unused_variables))]
    pub fn put(&self, tensor: &mut Tensor) -> Result<()> {
        #[cfg(unix)]
        if tensor.is_owned() && tensor.byte_len() > 0 {
            tensor.check_finite()?;
            let path = self.folder.join(".spilled");
            let moved = self.moved(tensor, &path);
            *tensor = moved.map_err(|source| Error::Write { path, source })?;
        }
        Ok(())
    }

    #[cfg(unix)]
    fn moved(&self, tensor: &Tensor, path: &Path) -> std::io::Result<Tensor> {
        use std::io::{Seek, SeekFrom, Write};
        /// Vectors of any type may be read where they lie.
        const ALIGN: u64 = 64;

        let mut file = self.file.lock().unwrap_or_else(|e| e.into_inner());
        if file.is_none() {
            let mut options = std::fs::OpenOptions::new();
            let made = options.read(true).write(true).create_new(true).open(path)?;
            std::fs::remove_file(path)?;
            *file = Some(made);
        }
        let file = file.as_mut().expect("made above");
        let start = file.seek(SeekFrom::End(0))?.next_multiple_of(ALIGN);
        file.seek(SeekFrom::Start(start))?;
        file.write_all(tensor.bytes())?;
        let len = tensor.byte_len();
        // SAFETY: the file has no name, so that nobody else cuts it off, and what was written is never written again.
        let map = unsafe { memmap2::MmapOptions::new().offset(start).len(len).map(&*file)? };
        let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
        Ok(Tensor::mapped(name, tensor.dtype, shape, std::sync::Arc::new(map), 0..len))
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::super::Dtype;
    use super::*;

    #[test]
    fn what_was_put_away_is_what_it_was_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let spill = Spill::new(dir.path());
        let bytes: Vec<u8> = (0..100_003u32).map(|i| (i * 7) as u8).collect();
        let mut odd = Tensor::from_u8("odd", &[bytes.len()], &bytes);
        let mut floats = Tensor::from_f32("w", &[2, 3], &[1., 2., 3., 4., 5., -6.], Dtype::F32);
        let mut none = Tensor::from_f32("none", &[0, 3], &[], Dtype::F32);
        for tensor in [&mut odd, &mut floats, &mut none] {
            spill.put(tensor).unwrap();
        }
        assert!(odd.is_mapped() && floats.is_mapped() && !none.is_mapped());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        drop(spill);
        assert_eq!(
            (odd.bytes(), &odd.name[..], &odd.shape[..]),
            (&bytes[..], "odd", &[100_003][..])
        );
        assert_eq!(floats.to_f32().unwrap()[..], [1., 2., 3., 4., 5., -6.]);
        assert!(matches!(floats.to_f32().unwrap(), std::borrow::Cow::Borrowed(_)), "aligned");
    }

    #[test]
    fn numbers_that_are_none_are_refused_and_so_is_a_folder_that_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let mut nan = Tensor::from_f32("w", &[2], &[1.0, f32::NAN], Dtype::F32);
        let refused = Spill::new(dir.path()).put(&mut nan);
        assert!(matches!(refused, Err(Error::NonFinite { index: 1, .. })), "{refused:?}");
        let mut fine = Tensor::from_f32("w", &[1], &[1.0], Dtype::F32);
        let refused = Spill::new(&dir.path().join("missing")).put(&mut fine);
        assert!(matches!(refused, Err(Error::Write { .. })), "{refused:?}");
        assert!(!fine.is_mapped() && fine.bytes().len() == 4);
    }
}
