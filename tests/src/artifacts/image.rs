//! Container images as docker-archive files, written without a registry or a Docker daemon.
//!
//! **Invariant.** The same content gives the same bytes: entries are sorted, times and owners are fixed. So the hash
//! of an archive names its content, and a node imports each content once.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::store::Key;

/// What one path of an image is.
#[derive(Debug, Clone)]
enum Entry {
    Folder { mode: u32 },
    Text { text: String },
    Program { from: PathBuf },
    Link { to: PathBuf },
}

/// An image of one layer.
#[derive(Debug, Clone)]
pub struct Image {
    name: String,
    entries: BTreeMap<PathBuf, Entry>,
    entrypoint: Vec<String>,
    command: Vec<String>,
}

impl Image {
    /// An empty image of this full name (registry, repository and tag).
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), entries: BTreeMap::new(), entrypoint: Vec::new(), command: Vec::new() }
    }

    /// The program that always runs.
    #[must_use]
    pub fn entrypoint(mut self, arguments: &[&str]) -> Self {
        self.entrypoint = arguments.iter().map(|a| (*a).to_owned()).collect();
        self
    }

    /// What runs unless the pod says otherwise.
    #[must_use]
    pub fn command(mut self, arguments: &[&str]) -> Self {
        self.command = arguments.iter().map(|a| (*a).to_owned()).collect();
        self
    }

    /// Adds an executable file of this machine under `path` (relative to the image's root).
    #[must_use]
    pub fn program(mut self, path: &str, from: &Path) -> Self {
        self.entries.insert(path.into(), Entry::Program { from: from.to_owned() });
        self
    }

    /// Adds a file with this text.
    #[must_use]
    pub fn text(mut self, path: &str, text: &str) -> Self {
        self.entries.insert(path.into(), Entry::Text { text: text.to_owned() });
        self
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn link(mut self, path: &str, to: &str) -> Self {
        self.entries.insert(path.into(), Entry::Link { to: to.into() });
        self
    }

    /// Adds a folder with this mode.
    #[must_use]
    pub fn folder(mut self, path: &str, mode: u32) -> Self {
        self.entries.insert(path.into(), Entry::Folder { mode });
        self
    }

    /// What decides the archive's content.
    ///
    /// # Errors
    /// When a program cannot be read.
    pub fn key(&self) -> Result<Key> {
        let described = format!("{:?} {:?} {:?} {:?}", self.name, self.entries, self.entrypoint, self.command);
        self.entries.values().try_fold(Key::default().with(described), |key, entry| match entry {
            Entry::Program { from } => key.with_file(from),
            _ => Ok(key),
        })
    }

    /// Writes the archive to `path`.
    ///
    /// # Errors
    /// When a program cannot be read or the archive cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let layer = self.layer()?;
        let layer_digest = hex(&Sha256::digest(&layer));
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Cmd": self.command, "Env": ["PATH=/bin:/usr/bin:/sbin:/usr/sbin"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_digest}")]},
        })
        .to_string()
        .into_bytes();
        let config_name = format!("{}.json", hex(&Sha256::digest(&config)));
        let layer_name = format!("{layer_digest}.tar");
        let manifest = json!([{"Config": config_name, "RepoTags": [self.name], "Layers": [layer_name]}]).to_string();

        let file = fs::File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
        let mut archive = tar::Builder::new(std::io::BufWriter::new(file));
        for (name, data) in [
            (config_name.as_str(), &config[..]),
            (layer_name.as_str(), &layer[..]),
            ("manifest.json", manifest.as_bytes()),
        ] {
            archive.append_data(&mut header(data.len() as u64, 0o644), name, data)?;
        }
        archive.into_inner()?.flush().with_context(|| format!("cannot write {}", path.display()))
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut layer = tar::Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            match entry {
                Entry::Folder { mode } => {
                    let mut header = header(0, *mode);
                    header.set_entry_type(tar::EntryType::Directory);
                    layer.append_data(&mut header, path, &[][..])?;
                }
                Entry::Text { text } => {
                    layer.append_data(&mut header(text.len() as u64, 0o644), path, text.as_bytes())?
                }
                Entry::Program { from } => {
                    let data = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
                    layer.append_data(&mut header(data.len() as u64, 0o755), path, &data[..])?;
                }
                Entry::Link { to } => {
                    let mut header = header(0, 0o777);
                    header.set_entry_type(tar::EntryType::Symlink);
                    layer.append_link(&mut header, path, to)?;
                }
            }
        }
        Ok(layer.into_inner()?)
    }
}

fn header(size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;
    use std::io::Read as _;

    fn sample() -> Image {
        Image::new("localhost/sample:1")
            .program("bin/tool", Path::new("/bin/true"))
            .text("etc/passwd", "root:x:0:0::/:/bin/sh\n")
            .link("bin/alias", "tool")
            .folder("tmp", 0o1777)
            .command(&["/bin/tool"])
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        sample().write(&a).unwrap();
        sample().write(&b).unwrap();
        assert_eq!(fs::read(&a).unwrap(), fs::read(&b).unwrap());
    }

    #[test]
    fn the_manifest_names_config_and_layer_by_their_digests() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.tar");
        sample().write(&path).unwrap();
        let mut files = HashMap::new();
        let mut archive = tar::Archive::new(fs::File::open(&path).unwrap());
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).unwrap();
            files.insert(entry.path().unwrap().to_string_lossy().into_owned(), data);
        }
        let manifest: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
        let layer = manifest[0]["Layers"][0].as_str().unwrap();
        let config = manifest[0]["Config"].as_str().unwrap();
        assert_eq!(layer, format!("{}.tar", hex(&Sha256::digest(&files[layer]))));
        assert_eq!(config, format!("{}.json", hex(&Sha256::digest(&files[config]))));
        let config: serde_json::Value = serde_json::from_slice(&files[config]).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", layer.trim_end_matches(".tar")));
        assert_eq!(config["config"]["Cmd"][0], "/bin/tool");
    }
}
