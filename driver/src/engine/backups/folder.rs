//! The files with the copies of one volume group's metadata: `<state>/lvm-backup/<vg>/<UTC time>-<seqno>.vg`.
//!
//! **Invariant.** A file with such a name is whole and on disk; names sort by age whatever the clock does; files of
//! another name are nobody's business here.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::durable::sync_folder;

use super::thinning::{Kept, superfluous};

/// Ends the files' names.
const ENDING: &str = ".vg";
/// The name of a file that is being written.
const UNFINISHED: &str = "unfinished";
/// The time in the files' names.
const TIME: &str = "%Y%m%dT%H%M%SZ";

/// Bytes compared at a time.
const PIECE: usize = 64 << 10;

/// A text to keep.
#[derive(Debug)]
pub struct Copy {
    /// The group's name.
    pub vg: String,
    /// Its UUID.
    pub vg_uuid: String,
    /// The text's number.
    pub seqno: u64,
    /// The text as LVM wrote it.
    pub text: Arc<[u8]>,
}

/// The folder of one group.
#[derive(Debug)]
pub struct BackupFolder {
    path: PathBuf,
}

/// A file in it.
#[derive(Debug)]
struct Present {
    name: String,
    kept: Kept,
}

impl BackupFolder {
    /// Of the group with that name, which LVM keeps free of slashes.
    #[must_use]
    pub fn new(backups: &Path, vg: &str) -> Self {
        Self { path: backups.join(vg) }
    }

    /// Adds a copy, durably, and removes older ones that are not needed any more. `None` when the newest file has that
    /// text already, as at each start of the driver.
    ///
    /// # Errors
    /// The system's, with the file's name.
    pub fn add(&self, copy: &Copy, now: Timestamp) -> io::Result<Option<PathBuf>> {
        self.make()?;
        let mut present = self.present()?;
        if let Some(newest) = present.last()
            && self.has(newest, &copy.text)?
        {
            return Ok(None);
        }
        // A clock that was set back must not make the newest look old.
        let second = present.last().map_or(now.as_second(), |newest| now.as_second().max(newest.kept.second + 1));
        let time = Timestamp::from_second(second).map_err(io::Error::other)?;
        let name = format!("{}-{:010}{ENDING}", time.strftime(TIME), copy.seqno);
        let heading = heading(copy, now);
        self.write(&name, &[heading.as_bytes(), &copy.text, b"\n"])?;
        let kept = Kept { second, bytes: (heading.len() + copy.text.len() + 1) as u64 };
        present.push(Present { name: name.clone(), kept });
        let all: Vec<Kept> = present.iter().map(|file| file.kept).collect();
        for place in superfluous(&all) {
            let path = self.path.join(&present[place].name);
            fs::remove_file(&path).map_err(|error| named(&path, &error))?;
        }
        Ok(Some(self.path.join(name)))
    }

    fn make(&self) -> io::Result<()> {
        if self.path.is_dir() {
            return Ok(());
        }
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.path);
        made.map_err(|error| named(&self.path, &error))?;
        // The folder itself, the one of all groups and that one in the state folder.
        self.path.ancestors().skip(1).take(2).try_for_each(sync)
    }

    /// The copies that are there, from the oldest to the newest.
    fn present(&self) -> io::Result<Vec<Present>> {
        let mut present = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(|error| named(&self.path, &error))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(second) = second_of(&name) {
                present.push(Present { name, kept: Kept { second, bytes: entry.metadata()?.len() } });
            }
        }
        present.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(present)
    }

    /// Whether a file ends with that text. Piece by piece: it may be as long as the group has volumes.
    fn has(&self, file: &Present, text: &[u8]) -> io::Result<bool> {
        let path = self.path.join(&file.name);
        let Some(begin) = file.kept.bytes.checked_sub(text.len() as u64 + 1) else { return Ok(false) };
        let compare = || {
            let opened = File::open(&path)?;
            let (mut piece, mut at) = (vec![0; PIECE], begin);
            for wanted in text.chunks(PIECE) {
                let found = &mut piece[..wanted.len()];
                opened.read_exact_at(found, at)?;
                if found != wanted {
                    return Ok(false);
                }
                at += wanted.len() as u64;
            }
            Ok(true)
        };
        compare().map_err(|error| named(&path, &error))
    }

    fn write(&self, name: &str, parts: &[&[u8]]) -> io::Result<()> {
        let (unfinished, path) = (self.path.join(UNFINISHED), self.path.join(name));
        let write = || {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
            parts.iter().try_for_each(|part| file.write_all(part))?;
            file.sync_all()?;
            fs::rename(&unfinished, &path)
        };
        write().map_err(|error| named(&path, &error))?;
        sync(&self.path)
    }
}

/// Two lines before LVM's text, for whoever opens the file. LVM passes over comments, and takes its own closing lines
/// (`contents`, `version`) as well behind the group as before it.
fn heading(copy: &Copy, now: Timestamp) -> String {
    let Copy { vg, vg_uuid, seqno, .. } = copy;
    format!(
        "# Metadata of volume group {vg} ({vg_uuid}), change {seqno}, kept by Quarry at {}.\n\
         # To restore it see \"Restoring a volume group's metadata\" in Quarry's docs/reliability.md.\n\n",
        now.strftime("%Y-%m-%d %H:%M:%S UTC")
    )
}

/// The time in a copy's name; none in another file's.
fn second_of(name: &str) -> Option<i64> {
    let (time, seqno) = name.strip_suffix(ENDING)?.split_once('-')?;
    seqno.parse::<u64>().ok()?;
    let time = DateTime::strptime(TIME, time).ok()?.to_zoned(TimeZone::UTC).ok()?;
    Some(time.timestamp().as_second())
}

fn sync(folder: &Path) -> io::Result<()> {
    sync_folder(folder).map_err(|error| named(folder, &error))
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(seqno: u64) -> Copy {
        let text = format!("vg {{\nseqno = {seqno}\n}}\n").into_bytes().into();
        Copy { vg: "vg".to_owned(), vg_uuid: "u".to_owned(), seqno, text }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn names_sort_by_age_even_when_the_clock_goes_back_and_numbers_repeat() {
        let dir = tempfile::tempdir().unwrap();
        let folder = BackupFolder::new(dir.path(), "vg");
        let mut names = Vec::new();
        for (seqno, second) in [(41, 1_800_000_000), (42, 1_700_000_000), (9, 1_800_000_001), (10, 1_800_000_500)] {
            names.push(folder.add(&copy(seqno), at(second)).unwrap().unwrap());
        }
        assert!(names.is_sorted(), "{names:?}");
        assert!(names[0].ends_with("vg/20270115T080000Z-0000000041.vg"), "{names:?}");
        assert!(names[2].ends_with("vg/20270115T080002Z-0000000009.vg"), "{names:?}");
    }

    #[test]
    fn an_unchanged_text_is_not_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let folder = BackupFolder::new(dir.path(), "vg");
        let path = folder.add(&copy(5), at(1_800_000_000)).unwrap().unwrap();
        assert_eq!(folder.add(&copy(5), at(1_800_000_100)).unwrap(), None);
        let mut long = copy(5);
        long.text = vec![b'x'; 3 * PIECE + 1].into();
        assert!(folder.add(&long, at(1_800_000_200)).unwrap().is_some());
        assert_eq!(folder.add(&long, at(1_800_000_300)).unwrap(), None);
        long.text = [vec![b'x'; 3 * PIECE], b"y".to_vec()].concat().into();
        assert!(folder.add(&long, at(1_800_000_400)).unwrap().is_some());
        let text = fs::read_to_string(path).unwrap();
        assert!(
            text.starts_with(
                "# Metadata of volume group vg (u), change 5, kept by Quarry at 2027-01-15 08:00:00 UTC.\n"
            )
        );
        assert!(text.ends_with("vg {\nseqno = 5\n}\n\n"), "{text}");
    }

    #[test]
    fn old_copies_go_and_other_files_stay() {
        let dir = tempfile::tempdir().unwrap();
        let folder = BackupFolder::new(dir.path(), "vg");
        fs::create_dir(dir.path().join("vg")).unwrap();
        let theirs = ["before-upgrade.vg", "20270115T080000Z-1.vg.mine", "notes"];
        theirs.iter().for_each(|name| fs::write(dir.path().join("vg").join(name), "x").unwrap());
        for seqno in 0..200 {
            folder.add(&copy(seqno), at(1_800_000_000 + i64::try_from(seqno).unwrap())).unwrap().unwrap();
        }
        let names: Vec<String> = fs::read_dir(dir.path().join("vg"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        assert!(theirs.iter().all(|name| names.iter().any(|found| found == name)), "{names:?}");
        assert!(names.iter().any(|name| name.ends_with("-0000000199.vg")));
        assert!(names.len() < 20, "{names:?}");
    }
}
