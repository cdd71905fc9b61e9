//! Where slow things are kept between runs, and where a run may write.
//!
//! The cache is outside the checkout, so a clean checkout starts warm: `QUARRY_CACHE`, else `$XDG_CACHE_HOME/quarry`,
//! else `~/.cache/quarry`. Whatever is in it is complete: it is built beside its place and renamed into it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The cache folder itself, made if missing.
///
/// # Errors
/// If neither variable nor `HOME` is set, or it cannot be made.
pub fn root() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let root = match (set("QUARRY_CACHE"), set("XDG_CACHE_HOME"), set("HOME")) {
        (Some(path), _, _) => path,
        (None, Some(base), _) => base.join("quarry"),
        (None, None, Some(home)) => home.join(".cache/quarry"),
        (None, None, None) => bail!("no place for the cache: set QUARRY_CACHE or HOME"),
    };
    made(std::path::absolute(root).context("QUARRY_CACHE is no path")?)
}

/// A folder in the cache, made if missing.
///
/// # Errors
/// As [`root`].
pub fn folder(name: &str) -> Result<PathBuf> {
    made(root()?.join(name))
}

/// Cargo's output folder of this workspace.
#[must_use]
pub fn target() -> PathBuf {
    let set = std::env::var_os("CARGO_TARGET_DIR").filter(|value| !value.is_empty());
    set.map_or_else(|| workspace().join("target"), PathBuf::from)
}

/// The checkout that the test bed was built from.
#[must_use]
pub fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// Makes `place` with `build` unless it is there: `build` gets an empty folder beside it, which is renamed to `place`
/// when it is done. Two builders at once both build; the first one's result stays.
///
/// # Errors
/// Of `build`, or if folders cannot be made or renamed.
pub fn ensure(place: &Path, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if place.exists() {
        return Ok(());
    }
    let parent = place.parent().with_context(|| format!("{} has no parent", place.display()))?;
    let parent = made(parent.to_owned())?;
    let scratch = tempfile::Builder::new().prefix(".new-").tempdir_in(&parent);
    let scratch = scratch.with_context(|| format!("cannot make a folder in {}", parent.display()))?;
    build(scratch.path())?;
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(scratch.path(), std::fs::Permissions::from_mode(0o755))?;
    match std::fs::rename(scratch.path(), place) {
        Ok(()) => {
            let _moved = scratch.keep();
            Ok(())
        }
        Err(_) if place.exists() => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot put {} in its place", place.display())),
    }
}

fn made(path: PathBuf) -> Result<PathBuf> {
    std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_built_once_and_never_half() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("a/b");
        assert!(ensure(&place, |_| bail!("no")).is_err());
        assert!(!place.exists());
        ensure(&place, |scratch| Ok(std::fs::write(scratch.join("x"), "1")?)).unwrap();
        ensure(&place, |_| bail!("built twice")).unwrap();
        assert_eq!(std::fs::read(place.join("x")).unwrap(), b"1");
        assert_eq!(std::fs::read_dir(dir.path().join("a")).unwrap().count(), 1, "scratch folder left behind");
    }
}
