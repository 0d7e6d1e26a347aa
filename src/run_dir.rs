//! The folder of a pid file or a pipe: made when it is missing, removed again when
//! it is dropped empty, if it was made here.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use log::warn;

use crate::error::{Error, Result};

/// A folder that exists; remembers whether glowd made it.
#[derive(Debug)]
pub struct RunDir {
    made: Option<PathBuf>,
}

impl RunDir {
    /// Sees to it that the folder of `file` exists. Only the last part of its path
    /// is made: more than that missing is more likely a typing error.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn for_file(file: &Path) -> Result<Self> {
        let Some(dir) = file.parent().filter(|dir| *dir != Path::new("")) else {
            return Ok(RunDir { made: None });
        };
        match fs::DirBuilder::new().mode(0o755).create(dir) {
            Ok(()) => Ok(RunDir { made: Some(dir.to_owned()) }),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(RunDir { made: None }),
            // It may exist and not be ours to write to: the file's opening tells.
            Err(_) if dir.is_dir() => Ok(RunDir { made: None }),
            Err(error) => {
                Err(Error::os(format!("cannot create folder \"{}\"", dir.display()), error))
            }
        }
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let Some(dir) = &self.made else { return };
        match fs::remove_dir(dir) {
            Ok(()) => {}
            // Somebody else uses it by now, or has removed it.
            Err(error)
                if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound) => {}
            Err(error) => warn!("cannot remove the folder {dir:?}: {error}"),
        }
    }
}
