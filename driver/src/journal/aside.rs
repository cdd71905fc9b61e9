//! Sets a damaged journal aside, with a name and a time, for whoever wants to know what happened.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::durable::sync_parent;

/// Renames `folder` to `<folder>.damaged.<UTC time>`; where that name is taken, to the next number behind it.
///
/// # Errors
/// The system's.
pub fn set_aside(folder: &Path, now: Timestamp) -> io::Result<PathBuf> {
    let time = now.strftime("%Y%m%dT%H%M%SZ");
    for attempt in 0..100 {
        let mut name = folder.as_os_str().to_owned();
        name.push(format!(".damaged.{time}"));
        if attempt > 0 {
            name.push(format!(".{attempt}"));
        }
        let aside = PathBuf::from(name);
        if aside.symlink_metadata().is_ok() {
            continue;
        }
        fs::rename(folder, &aside)?;
        sync_parent(folder)?;
        return Ok(aside);
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("too many {}.damaged.{time}", folder.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_in_the_same_second_gets_a_name_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, now) = (dir.path().join("journal"), Timestamp::from_second(1_800_000_000).unwrap());
        let names: Vec<String> = (0..2)
            .map(|_| {
                fs::create_dir(&folder).unwrap();
                set_aside(&folder, now).unwrap().file_name().unwrap().to_string_lossy().into_owned()
            })
            .collect();
        assert_eq!(names, ["journal.damaged.20270115T080000Z", "journal.damaged.20270115T080000Z.1"]);
    }
}
