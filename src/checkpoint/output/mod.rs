//! An output folder that appears when it is complete, or not at all.

mod ours;
pub use ours::SIDE_FILES;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::checkpoint::Spill;
use crate::checkpoint::shards::INDEX;
use crate::checkpoint::tensor::Tensor;
use crate::checkpoint::writer::{self, HashedFile, WrittenFile};
use crate::checkpoint::{malformed, open_regular, read_error, relative};
use crate::error::{Error, Result};

/// A folder being written under a hidden name beside its target: `.NAME.tmp-PID-N`.
///
/// [`OutputFolder::commit`] gives it its name; dropping it removes it. A killed process leaves it
/// behind, and the next run for the same target removes it.
#[derive(Debug)]
pub struct OutputFolder {
    /// Absolute, links resolved.
    target: PathBuf,
    temp: PathBuf,
    replace: Replace,
    /// Missing parents of the target that were made, outermost first.
    made_parents: Vec<PathBuf>,
    /// Folders inside of `temp`, for [`OutputFolder::commit`] to sync.
    folders: BTreeSet<PathBuf>,
    committed: bool,
    /// Held until the end: a folder that is locked is in use, whatever its PID says elsewhere.
    _lock: Option<File>,
}

/// What may be in the place of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Replace {
    /// An empty folder.
    Nothing,
    /// A checkpoint, and nothing beside it.
    Checkpoint,
    /// A checkpoint with whatever lies beside it: the caller carries that over.
    All,
}

impl Replace {
    fn forced(force: bool) -> Replace {
        if force { Replace::Checkpoint } else { Replace::Nothing }
    }
}

impl OutputFolder {
    /// Starts an output at `target` for a run that reads `input`.
    ///
    /// # Errors
    /// [`Error::Usage`] if `target` is, contains or lies in `input`; contains the current folder; is
    /// no folder; or has content, unless `force` is set and all of it belongs to a checkpoint.
    pub fn create(target: &Path, input: &Path, force: bool) -> Result<OutputFolder> {
        OutputFolder::start(target, Some(input), Replace::forced(force))
    }

    /// Refuses what [`OutputFolder::create`] would, and writes nothing.
    ///
    /// # Errors
    /// As [`OutputFolder::create`].
    pub fn check(target: &Path, input: &Path, force: bool) -> Result<()> {
        let (target, _) = free(target, Some(input))?;
        check_replaceable(&target, Replace::forced(force))
    }

    /// Refuses a folder `target` to write to that is the checkpoint `input`, or lies in it.
    ///
    /// # Errors
    /// [`Error::Usage`], and [`Error::Read`] for an input that is not there.
    pub fn check_outside(target: &Path, input: &Path) -> Result<()> {
        let (target, _) = resolve(target)?;
        let input = fs::canonicalize(input).map_err(|source| read_error(input, source))?;
        match target.starts_with(&input) {
            false => Ok(()),
            true => Err(usage(
                format!("{} lies in the model's folder {}", target.display(), input.display()),
                "choose a place beside it: inputs are never written to",
            )),
        }
    }

    fn start(target: &Path, input: Option<&Path>, replace: Replace) -> Result<OutputFolder> {
        let (target, missing) = free(target, input)?;
        remove_stale(&target); // first: it may give a half-replaced target its name back
        check_replaceable(&target, replace)?;

        let parent = parent(&target);
        fs::create_dir_all(parent).map_err(|source| write_error(parent, source))?;
        let mut folder = OutputFolder {
            temp: PathBuf::new(),
            target,
            replace,
            made_parents: missing,
            folders: BTreeSet::new(),
            committed: false,
            _lock: None,
        };
        folder.temp = hidden_sibling(&folder.target, "tmp", |path| fs::create_dir(path))?;
        // Not every file system can lock; then only the PID protects us.
        folder._lock = File::open(&folder.temp).ok().filter(|dir| dir.try_lock().is_ok());
        Ok(folder)
    }

    /// Starts a new version of the output at `target`, which replaces the one that is there. What else lies in it goes,
    /// if the caller does not copy it.
    ///
    /// # Errors
    /// As [`OutputFolder::create`]; content is refused where none of it is of a checkpoint.
    pub fn replace(target: &Path) -> Result<OutputFolder> {
        OutputFolder::start(target, None, Replace::All)
    }

    /// Where what is to be written may wait, on the same disk.
    pub fn spill(&self) -> Spill {
        Spill::new(&self.temp)
    }

    /// Writes a file. `name` is relative, with `/`; sub-folders are made.
    ///
    /// # Errors
    /// [`Error::Malformed`] if `name` leaves the folder, [`Error::Write`] if it exists or the disk is
    /// full.
    pub fn add_file(&mut self, name: &str, bytes: &[u8]) -> Result<WrittenFile> {
        let path = self.place(name)?;
        let write = || {
            let mut file = HashedFile::create(&path)?;
            file.write(bytes)?;
            file.finish(name.to_owned())
        };
        write().map_err(|source| write_error(&path, source))
    }

    /// Copies the content of the file at `from`, links followed, permissions not.
    ///
    /// # Errors
    /// Those of [`OutputFolder::add_file`], and [`Error::Read`].
    pub fn copy_file(&mut self, from: &Path, name: &str) -> Result<WrittenFile> {
        let path = self.place(name)?;
        let failed = |source| write_error(&path, source);
        let mut input = open_regular(from)?;
        let mut file = HashedFile::create(&path).map_err(failed)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match input.read(&mut buffer) {
                Ok(0) => return file.finish(name.to_owned()).map_err(failed),
                Ok(n) => file.write(&buffer[..n]).map_err(failed)?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(read_error(from, source)),
            }
        }
    }

    /// Writes a file piece by piece: `write` gets what takes a piece, in order.
    ///
    /// # Errors
    /// Those of [`OutputFolder::add_file`], and those of `write`.
    pub fn add_pieces(
        &mut self,
        name: &str,
        write: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
    ) -> Result<WrittenFile> {
        let path = self.place(name)?;
        let failed = |source| write_error(&path, source);
        let mut file = HashedFile::create(&path).map_err(failed)?;
        write(&mut |piece| file.write(piece).map_err(failed))?;
        file.finish(name.to_owned()).map_err(failed)
    }

    /// Copies a file that was written before to another name.
    ///
    /// # Errors
    /// Those of [`OutputFolder::copy_file`].
    pub fn copy_within(&mut self, from: &str, name: &str) -> Result<WrittenFile> {
        let from = self.place(from)?;
        self.copy_file(&from, name)
    }

    /// Writes `model.safetensors`, or shards of at most `max_shard_bytes` of data with an index. The
    /// bytes depend on nothing but tensors, metadata and limit.
    ///
    /// `interrupted` is asked between tensors, and inside of large ones.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if two tensors have the same name, [`Error::Write`],
    /// [`Error::Interrupted`].
    pub fn write_tensors(
        &mut self,
        tensors: &[Tensor],
        metadata: &BTreeMap<String, String>,
        max_shard_bytes: u64,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Vec<WrittenFile>> {
        self.write_tensors_under("", tensors, metadata, max_shard_bytes, interrupted)
    }

    /// As [`OutputFolder::write_tensors`], in the sub-folder `under`; of an empty name in the folder itself.
    ///
    /// # Errors
    /// Those of [`OutputFolder::write_tensors`].
    pub fn write_tensors_under(
        &mut self,
        under: &str,
        tensors: &[Tensor],
        metadata: &BTreeMap<String, String>,
        max_shard_bytes: u64,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<Vec<WrittenFile>> {
        let at = |name: &str| match under {
            "" => name.to_owned(),
            under => format!("{under}/{name}"),
        };
        let ordered = writer::ordered(tensors)?;
        let named = writer::named(&ordered, max_shard_bytes);
        let mut written = Vec::new();
        for (name, shard) in &named {
            let path = self.place(&at(name))?;
            let file = writer::write_tensors(&path, at(name), shard, metadata, interrupted)?;
            written.push(file);
        }
        if named.len() > 1 {
            written.push(self.add_file(&at(INDEX), &writer::index(&named))?);
        }
        Ok(written)
    }

    /// Writes one safetensors file besides the weights.
    ///
    /// # Errors
    /// Those of [`OutputFolder::write_tensors`].
    pub fn add_tensors(
        &mut self,
        name: &str,
        tensors: &[Tensor],
        metadata: &BTreeMap<String, String>,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<WrittenFile> {
        let path = self.place(name)?;
        let ordered = writer::ordered(tensors)?;
        writer::write_tensors(&path, name.to_owned(), &ordered, metadata, interrupted)
    }

    /// Waits until the disk has everything, then gives the folder its name, and returns its path. A
    /// folder that is replaced stays until the new one is in its place.
    ///
    /// # Errors
    /// [`Error::Write`], [`Error::Interrupted`], or [`Error::Usage`] if the target has meanwhile got
    /// content that must not be replaced. What was there before is then there again.
    pub fn commit(mut self, interrupted: &dyn Fn() -> bool) -> Result<PathBuf> {
        for folder in self.folders.iter().rev().chain([&self.temp]) {
            sync_folder(folder).map_err(|source| write_error(folder, source))?;
        }
        if interrupted() {
            return Err(Error::Interrupted);
        }
        let target = &self.target;
        check_replaceable(target, self.replace)?;
        let replaced = match fs::symlink_metadata(target) {
            Ok(_) => Some(hidden_sibling(target, "old", |aside| {
                // `rename` would replace an empty folder.
                if aside.exists() {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                fs::rename(target, aside)
            })?),
            Err(_) => None,
        };
        let put_back = || {
            if let Some(old) = &replaced {
                let _ = fs::rename(old, target); // else `remove_stale` of the next run does it
            }
        };
        if let Err(source) = fs::rename(&self.temp, target) {
            put_back();
            return Err(write_error(target, source));
        }
        for folder in self.made_parents.iter().filter_map(|p| p.parent()).chain([parent(target)]) {
            if let Err(source) = sync_folder(folder) {
                let _ = fs::rename(target, &self.temp);
                put_back();
                return Err(write_error(folder, source));
            }
        }
        self.committed = true;
        if let Some(old) = replaced {
            // The output is complete; leftovers of the old one go with the next run.
            let _ = fs::remove_dir_all(old);
        }
        Ok(target.clone())
    }

    /// The path of a new file `name`, its folder made.
    fn place(&mut self, name: &str) -> Result<PathBuf> {
        let Some(relative) = relative(name) else {
            let found = format!("the file name {name:?}");
            let expected = "a relative path inside the folder";
            return Err(malformed(&self.target, found, expected, "rename the file in the input"));
        };
        let path = self.temp.join(relative);
        let folder = parent(&path);
        if folder != self.temp {
            fs::create_dir_all(folder).map_err(|source| write_error(folder, source))?;
            let below = folder.ancestors().take_while(|dir| **dir != self.temp);
            self.folders.extend(below.map(Path::to_owned));
        }
        Ok(path)
    }
}

impl Drop for OutputFolder {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        if self.temp != Path::new("") {
            let _ = fs::remove_dir_all(&self.temp);
        }
        for made in self.made_parents.iter().rev() {
            let _ = fs::remove_dir(made); // not if somebody else has put something there
        }
    }
}

/// Removes what killed runs for `target` left beside it. A folder that was being replaced when its
/// run was killed gets its name back.
///
/// Touched are only folders with exactly our names, whose process is gone and whose lock is free:
/// the PID may be that of another container. Failures are left to the next run.
pub fn remove_stale(target: &Path) {
    let Ok((target, _)) = resolve(target) else { return };
    let Ok(siblings) = fs::read_dir(parent(&target)) else { return };
    for sibling in siblings.flatten() {
        let Some((kind, pid)) = parse_hidden(&target, &sibling.file_name()) else { continue };
        let path = sibling.path();
        if !sibling.file_type().is_ok_and(|t| t.is_dir()) || is_running(pid) || !is_free(&path) {
            continue;
        }
        if kind == "old" && fs::symlink_metadata(&target).is_err() {
            let _ = fs::rename(&path, &target);
        } else {
            let _ = fs::remove_dir_all(&path);
        }
    }
}

/// As [`resolve`], of a target that neither the input nor the current folder is in the way of.
fn free(target: &Path, input: Option<&Path>) -> Result<(PathBuf, Vec<PathBuf>)> {
    let (target, missing) = resolve(target)?;
    if let Some(input) = input {
        let input = fs::canonicalize(input).map_err(|source| read_error(input, source))?;
        if target.starts_with(&input) || input.starts_with(&target) {
            return Err(usage(
                format!("output {} and input {} overlap", target.display(), input.display()),
                "choose an output folder beside the input",
            ));
        }
    }
    if std::env::current_dir().is_ok_and(|cwd| cwd.starts_with(&target)) {
        return Err(usage(
            format!("output {} holds the current folder", target.display()),
            "choose an output folder that can be replaced",
        ));
    }
    Ok((target, missing))
}

/// Absolute path of `target` with links resolved, and the parents it lacks, outermost first.
fn resolve(target: &Path) -> Result<(PathBuf, Vec<PathBuf>)> {
    let shown = target.display();
    let absolute = std::path::absolute(target)
        .map_err(|_| usage("the output path is empty".to_owned(), "name a folder"))?;
    let is_there = |path: &&Path| fs::symlink_metadata(path).is_ok();
    let existing = absolute.ancestors().find(is_there).unwrap_or(&absolute);
    let missing = absolute.strip_prefix(existing).expect("an ancestor is a prefix");
    let real = fs::canonicalize(existing).map_err(|source| write_error(existing, source))?;
    if missing.components().any(|part| part == std::path::Component::ParentDir) {
        let found = format!("the output path {shown} goes up from a folder that does not exist");
        return Err(usage(found, "name the folder without `..`"));
    }
    let mut made = Vec::new();
    let mut path = real;
    for part in missing.components() {
        path.push(part);
        made.push(path.clone());
    }
    made.pop(); // the target itself
    if path.file_name().is_none() {
        return Err(usage(format!("the output {shown} has no name"), "name a folder"));
    }
    Ok((path, made))
}

/// Refuses to write to `target` if something is there that we must not replace.
fn check_replaceable(target: &Path, replace: Replace) -> Result<()> {
    let shown = target.display();
    let entries = match fs::read_dir(target) {
        Ok(entries) => entries.collect::<io::Result<Vec<_>>>(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            return Err(usage(format!("the output {shown} is a file, or in one"), "name a folder"));
        }
        Err(source) => return Err(write_error(target, source)),
    };
    let entries = entries.map_err(|source| write_error(target, source))?;
    if entries.is_empty() {
        return Ok(());
    }
    if replace == Replace::Nothing {
        let found = format!("the output folder {shown} is not empty");
        return Err(usage(found, "choose another, or replace it with `--force`"));
    }
    if !entries.iter().any(|entry| ours::is_mark(&entry.file_name())) {
        let found = format!("the output folder {shown} holds files but no checkpoint");
        return Err(usage(
            found,
            "choose another folder: even `--force` replaces only checkpoints",
        ));
    }
    if replace == Replace::All {
        return Ok(());
    }
    match ours::foreign(target)? {
        None => Ok(()),
        Some(name) => Err(usage(
            format!(
                "the output folder {shown} holds `{}`, which is no file of a checkpoint",
                name.display()
            ),
            "choose another folder, or move that away: `--force` replaces checkpoints and deletes nothing else",
        )),
    }
}

/// Makes a path beside `target` that `take` succeeds in taking: `.NAME.KIND-PID-N`, N counting up
/// from 0 while names are in use.
fn hidden_sibling(
    target: &Path,
    kind: &str,
    take: impl Fn(&Path) -> io::Result<()>,
) -> Result<PathBuf> {
    let pid = std::process::id();
    for n in 0u64.. {
        let mut name = OsString::from(".");
        name.push(target.file_name().expect("`resolve` gave it a name"));
        name.push(format!(".{kind}-{pid}-{n}"));
        let path = target.with_file_name(name);
        match take(&path) {
            Ok(()) => return Ok(path),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(write_error(&path, source)),
        }
    }
    unreachable!("a folder holds fewer than 2^64 names")
}

/// Kind and PID if `name` is exactly one that [`hidden_sibling`] gives for `target`.
fn parse_hidden(target: &Path, name: &OsStr) -> Option<(&'static str, u32)> {
    let rest = name
        .as_encoded_bytes()
        .strip_prefix(b".")?
        .strip_prefix(target.file_name()?.as_encoded_bytes())?;
    let rest = std::str::from_utf8(rest).ok()?;
    let (kind, numbers) = match rest.strip_prefix(".tmp-") {
        Some(numbers) => ("tmp", numbers),
        None => ("old", rest.strip_prefix(".old-")?),
    };
    let (pid, n) = numbers.split_once('-')?;
    let (pid, n): (u32, u64) = (pid.parse().ok()?, n.parse().ok()?);
    (numbers == format!("{pid}-{n}")).then_some((kind, pid)) // no signs, no leading zeros
}

/// Whether a process with this PID exists, where the system says so; elsewhere the lock decides.
fn is_running(pid: u32) -> bool {
    pid == std::process::id() || Path::new("/proc").join(pid.to_string()).exists()
}

fn is_free(folder: &Path) -> bool {
    File::open(folder).is_ok_and(|dir| dir.try_lock().is_ok())
}

/// Makes the names in a folder last; a file system that cannot is not an error.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(not(unix)) {
        return Ok(());
    }
    match File::open(folder)?.sync_all() {
        Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
            Ok(())
        }
        result => result,
    }
}

fn parent(path: &Path) -> &Path {
    path.parent().expect("an absolute path with a name has a parent")
}

fn write_error(path: &Path, source: io::Error) -> Error {
    Error::Write { path: path.to_owned(), source }
}

fn usage(found: String, advice: &str) -> Error {
    Error::Usage { found, advice: advice.to_owned() }
}
