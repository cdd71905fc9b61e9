//! What is on a device.
//!
//! **Invariant.** Three answers that never mix: found, proven empty, or an error. blkid's exit code 2 means "nothing
//! identified" as well as "impossible to gather any information", so it alone proves nothing: the device must also
//! open, have the expected size, and read at both ends.

use std::fs::File;
use std::io;
use std::io::{Seek as _, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::exec::{ExecError, Exit, Output};

use super::{Filesystems, blocking};

/// What a device holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Something that blkid knows.
    Found(Signature),
    /// Proven to hold nothing known, by the asked [`Proof`].
    Empty,
}

/// What blkid recognised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// A filesystem's or other content's type as blkid names it (`ext4`, `LVM2_member`), `gpt` or the like for a
    /// partition table; nothing where several types fit and none is certain.
    pub kind: Option<String>,
    /// blkid's own lines, for people.
    pub text: String,
}

impl Signature {
    /// For an error: `ext4`, or that it is unclear.
    #[must_use]
    pub fn name(&self) -> &str {
        self.kind.as_deref().unwrap_or("signatures of several kinds")
    }
}

/// What shows that a device is empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// No signature. All that can be asked of a thick volume: its extents may hold what earlier volumes left, from
    /// which LVM wiped only the signatures.
    NoSignature,
    /// No signature, and both ends read as zero. A thin volume that was never written has no blocks and reads as zero
    /// everywhere; other bytes there mean that somebody wrote.
    Zeroes,
}

/// Why it is not known what is on a device.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// blkid could not be run to its end.
    #[error("cannot tell what is on {}", device.display())]
    Run {
        /// The device.
        device: PathBuf,
        /// Why.
        #[source]
        source: ExecError,
    },
    /// blkid said "nothing" in a way that proves nothing.
    #[error("cannot tell what is on {}: blkid ended with {exit} and said {said:?}", device.display())]
    Unclear {
        /// The device.
        device: PathBuf,
        /// How it ended.
        exit: Exit,
        /// Both its outputs.
        said: String,
    },
    /// The device cannot be opened or read.
    #[error("cannot tell what is on {}: reading it fails", device.display())]
    Read {
        /// The device.
        device: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// It is not the device it should be.
    #[error("{} has {found} bytes, expected {expected}", device.display())]
    Size {
        /// The device.
        device: PathBuf,
        /// What the volume has.
        expected: u64,
        /// What the device has.
        found: u64,
    },
    /// A thin volume that was never formatted has been written to.
    #[error("{} was never formatted by us, yet byte {offset} is not zero: somebody wrote to it", device.display())]
    Written {
        /// The device.
        device: PathBuf,
        /// The first such byte that was met.
        offset: u64,
    },
}

/// How much is read at either end. Every filesystem and partition table that blkid knows begins within the first MiB
/// or ends within the last.
const END: u64 = 1 << 20;

impl Filesystems {
    /// Looks what is on a device that should have this many bytes.
    ///
    /// # Errors
    /// [`ProbeError`]: whatever is not certain.
    pub async fn probe(&self, device: &Path, bytes: u64, proof: Proof) -> Result<Content, ProbeError> {
        // -p: look at the device itself, past the cache of earlier answers.
        let invocation = self.invocation(&self.tools.blkid).args(["-p", "-o", "export"]).arg(device);
        let output =
            self.exec.run(invocation).await.map_err(|source| ProbeError::Run { device: device.to_owned(), source })?;
        if let Some(signature) = read_blkid(device, &output)? {
            return Ok(Content::Found(signature));
        }
        let path = device.to_owned();
        let look = blocking(move || look_at(&path, bytes, proof)).await;
        match look.map_err(|source| ProbeError::Read { device: device.to_owned(), source })? {
            Look::Empty => Ok(Content::Empty),
            Look::Size(found) => Err(ProbeError::Size { device: device.to_owned(), expected: bytes, found }),
            Look::Written(offset) => Err(ProbeError::Written { device: device.to_owned(), offset }),
        }
    }
}

/// A signature; nothing where blkid found nothing and had nothing to complain of.
fn read_blkid(device: &Path, output: &Output) -> Result<Option<Signature>, ProbeError> {
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned);
    match output.exit {
        // blkid(8): 8 is "ambivalent", several signatures that exclude one another.
        Exit::Code(8) => Ok(Some(Signature { kind: None, text })),
        Exit::Code(0) if !text.is_empty() => {
            let kind = value("TYPE").or_else(|| value("PTTYPE"));
            Ok(Some(Signature { kind, text }))
        }
        Exit::Code(2) if text.is_empty() && output.stderr.is_empty() => Ok(None),
        exit => Err(ProbeError::Unclear {
            device: device.to_owned(),
            exit,
            said: [text.as_str(), output.stderr.as_str()].join(" ").trim().to_owned(),
        }),
    }
}

enum Look {
    Empty,
    Size(u64),
    Written(u64),
}

/// Reads both ends of a device.
fn look_at(device: &Path, bytes: u64, proof: Proof) -> io::Result<Look> {
    let mut file = File::open(device)?;
    let size = file.seek(SeekFrom::End(0))?;
    if size != bytes {
        return Ok(Look::Size(size));
    }
    let length = END.min(size);
    let mut buffer = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    for start in [0, size - length] {
        file.read_exact_at(&mut buffer, start)?;
        let written = buffer.iter().zip(start..).find(|(byte, _)| **byte != 0);
        if let (Proof::Zeroes, Some((_, offset))) = (proof, written) {
            return Ok(Look::Written(offset));
        }
    }
    Ok(Look::Empty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn output(exit: Exit, stdout: &str, stderr: &str) -> Output {
        Output {
            line: String::new(),
            exit,
            stdout: stdout.as_bytes().to_vec(),
            stderr: stderr.to_owned(),
            duration: Duration::ZERO,
        }
    }

    fn read(exit: Exit, stdout: &str, stderr: &str) -> Result<Option<Signature>, ProbeError> {
        read_blkid(Path::new("/dev/x"), &output(exit, stdout, stderr))
    }

    #[test]
    fn a_filesystem_and_a_partition_table_are_found() {
        let ext4 = "DEVNAME=ext.img\nUUID=942e08f4\nVERSION=1.0\nBLOCK_SIZE=1024\nTYPE=ext4\nUSAGE=filesystem\n";
        assert_eq!(read(Exit::Code(0), ext4, "").unwrap().unwrap().kind.as_deref(), Some("ext4"));
        let gpt = "DEVNAME=e.img\nPTUUID=1F2A\nPTTYPE=gpt\n";
        assert_eq!(read(Exit::Code(0), gpt, "").unwrap().unwrap().kind.as_deref(), Some("gpt"));
        // A filesystem without a known type still occupies the device.
        assert_eq!(read(Exit::Code(0), "DEVNAME=x\nLABEL=y\n", "").unwrap().unwrap().kind, None);
        let ambivalent = read(Exit::Code(8), "", "").unwrap().unwrap();
        assert_eq!(ambivalent.name(), "signatures of several kinds");
    }

    #[test]
    fn only_silence_with_exit_code_2_may_be_emptiness() {
        assert_eq!(read(Exit::Code(2), "", "").unwrap(), None);
        let unclear = [
            (Exit::Code(2), "", "error: /dev/x: Input/output error"),
            (Exit::Code(2), "DEVNAME=x", ""),
            (Exit::Code(0), "", ""),
            (Exit::Code(1), "", ""),
            (Exit::Code(4), "", "usage"),
            (Exit::Signal(9), "", ""),
            (Exit::Signal(2), "", ""),
        ];
        for (exit, stdout, stderr) in unclear {
            let error = read(exit, stdout, stderr).unwrap_err();
            assert!(matches!(error, ProbeError::Unclear { .. }), "{exit} {stdout} {stderr}: {error}");
        }
    }

    fn device(bytes: u64, data: &[u8], offset: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        file.as_file().write_all_at(data, offset).unwrap();
        file
    }

    async fn probe(file: &tempfile::NamedTempFile, bytes: u64, proof: Proof) -> Result<Content, ProbeError> {
        let tools = crate::exec::Tools::find().unwrap();
        let filesystems = Filesystems::new(crate::exec::Exec::default(), tools, Duration::from_secs(60));
        filesystems.probe(file.path(), bytes, proof).await
    }

    const SIZE: u64 = 8 << 20;

    #[tokio::test]
    async fn leftovers_pass_the_weaker_proof_only_and_are_located() {
        for offset in [0, SIZE - 1] {
            let leftovers = device(SIZE, &[7], offset);
            assert_eq!(probe(&leftovers, SIZE, Proof::NoSignature).await.unwrap(), Content::Empty);
            let error = probe(&leftovers, SIZE, Proof::Zeroes).await.unwrap_err();
            assert!(matches!(error, ProbeError::Written { offset: at, .. } if at == offset), "{error}");
        }
        assert_eq!(probe(&device(SIZE, &[], 0), SIZE, Proof::Zeroes).await.unwrap(), Content::Empty);
    }

    #[tokio::test]
    async fn a_device_of_another_size_or_none_at_all_is_not_empty() {
        let file = device(SIZE, &[], 0);
        let error = probe(&file, SIZE + 512, Proof::NoSignature).await.unwrap_err();
        assert!(matches!(error, ProbeError::Size { found: SIZE, .. }), "{error}");
        let gone = tempfile::NamedTempFile::new().unwrap();
        std::fs::remove_file(gone.path()).unwrap();
        let error = probe(&gone, SIZE, Proof::NoSignature).await.unwrap_err();
        assert!(matches!(error, ProbeError::Read { .. } | ProbeError::Unclear { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_signature_is_found_by_the_real_blkid() {
        // The first bytes of an encrypted device: magic number and version.
        let luks = device(SIZE, b"LUKS\xba\xbe\x00\x01", 0);
        let Content::Found(found) = probe(&luks, SIZE, Proof::NoSignature).await.unwrap() else { panic!("empty") };
        assert_eq!(found.kind.as_deref(), Some("crypto_LUKS"));
    }
}
