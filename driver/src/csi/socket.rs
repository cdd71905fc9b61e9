//! Unix sockets to serve on.
//!
//! **Invariant.** From the first moment at which its path exists, nobody but root may connect; and a path is taken over
//! only from a driver that is gone, never from one that answers.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::Mode;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;

/// Why a socket is not there to serve on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process answers on it.
    #[error("another process serves on {}; only one driver may run on a node", .0.display())]
    Taken(PathBuf),
    /// Something else is in its place.
    #[error("{} is not a socket, and is left alone; remove it or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// Its folder is missing.
    #[error("the folder {} for the socket does not exist", .0.display())]
    NoFolder(PathBuf),
    /// The system refused.
    #[error("cannot {action} the socket {}", path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
}

/// A socket that is listened on.
#[derive(Debug)]
pub struct Socket {
    /// For the server.
    pub listener: UnixListener,
    /// Its path, for whoever watches and removes it.
    pub path: BoundPath,
}

/// The path of a socket of ours.
#[derive(Debug, Clone)]
pub struct BoundPath {
    path: PathBuf,
    /// Device and inode: the path may come to name another file.
    identity: (u64, u64),
}

impl Socket {
    /// Listens on a path; a socket left there by a process that is gone is replaced.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |action| {
            move |source: rustix::io::Errno| SocketError::System {
                action,
                path: path.to_owned(),
                source: source.into(),
            }
        };
        clear(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let socket = socket.map_err(failed("make"))?;
        // The mode of a socket before it is bound becomes the mode of its path.
        rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR).map_err(failed("protect"))?;
        let address = SocketAddrUnix::new(path).map_err(failed("name"))?;
        rustix::net::bind(&socket, &address).map_err(|errno| match errno {
            rustix::io::Errno::ADDRINUSE => SocketError::Taken(path.to_owned()),
            other => failed("bind")(other),
        })?;
        rustix::net::listen(&socket, 128).map_err(failed("listen on"))?;
        Self::from_bound(socket, path).map_err(|source| SocketError::System {
            action: "serve on",
            path: path.to_owned(),
            source,
        })
    }

    fn from_bound(socket: OwnedFd, path: &Path) -> io::Result<Self> {
        let metadata = std::fs::symlink_metadata(path)?;
        let listener = UnixListener::from_std(StdListener::from(socket))?;
        let identity = (metadata.dev(), metadata.ino());
        Ok(Self { listener, path: BoundPath { path: path.to_owned(), identity } })
    }
}

/// Makes way for a new socket.
fn clear(path: &Path) -> Result<(), SocketError> {
    let failed = |action| move |source: io::Error| SocketError::System { action, path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Err(SocketError::NotASocket(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return match path.parent() {
                Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
                    Err(SocketError::NoFolder(folder.to_owned()))
                }
                _ => Ok(()),
            };
        }
        Err(error) => return Err(failed("look at")(error)),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
        .and_then(|socket| Ok((socket, SocketAddrUnix::new(path)?)))
        .map_err(|errno| failed("try")(errno.into()))?;
    match rustix::net::connect(&probe.0, &probe.1) {
        // AGAIN: somebody listens, whose queue is full.
        Ok(()) | Err(rustix::io::Errno::AGAIN) => Err(SocketError::Taken(path.to_owned())),
        Err(rustix::io::Errno::CONNREFUSED) => {
            tracing::info!(socket = %path.display(), "removing a socket that an earlier process left");
            std::fs::remove_file(path).map_err(failed("remove the old"))
        }
        Err(errno) => Err(failed("try")(errno.into())),
    }
}

impl BoundPath {
    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the path still leads to our socket. Nobody can reach us once it does not, and nothing else would tell.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        std::fs::symlink_metadata(&self.path).is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity)
    }

    /// Ends when the path no longer leads to our socket: somebody wiped the folder.
    pub async fn lost(&self) {
        const PAUSE: Duration = Duration::from_secs(2);
        while self.is_ours() {
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Removes the path, if it still leads to our socket.
    pub fn remove(&self) {
        if self.is_ours()
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(socket = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::time::Instant;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[tokio::test]
    async fn only_root_may_connect_from_the_first_moment() {
        // Somebody looks at the path as fast as possible while it is bound again and again, until that was often.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("csi.sock");
        let (seen, wrong, end) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        let begin = Instant::now();
        let is_time = || begin.elapsed() < Duration::from_secs(60);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) && is_time() {
                    if let Ok(metadata) = std::fs::metadata(&path) {
                        seen.fetch_add(1, Ordering::Relaxed);
                        wrong.fetch_add(u64::from(metadata.permissions().mode() & 0o7777 != 0o600), Ordering::Relaxed);
                    }
                }
            });
            while seen.load(Ordering::Relaxed) < 500 && is_time() {
                let socket = Socket::bind(&path).unwrap();
                assert_eq!(mode(&path), 0o600);
                socket.path.remove();
            }
            end.store(true, Ordering::Relaxed);
        });
        let (seen, wrong) = (seen.into_inner(), wrong.into_inner());
        assert!(seen >= 500, "the watcher saw it {seen} times only");
        assert_eq!(wrong, 0, "of {seen} looks");
    }

    #[tokio::test]
    async fn a_second_driver_is_told_of_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("csi.sock");
        let first = Socket::bind(&path).unwrap();
        let error = Socket::bind(&path).unwrap_err();
        assert!(matches!(error, SocketError::Taken(_)), "{error}");
        assert!(error.to_string().contains("only one driver may run"), "{error}");
        assert!(first.path.is_ours(), "the first one's socket was taken away");
        drop(first);
        let second = Socket::bind(&path).unwrap();
        assert!(second.path.is_ours(), "a socket that nobody answers on is replaced");
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone_and_a_missing_folder_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("csi.sock");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Socket::bind(&path), Err(SocketError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        let error = Socket::bind(&folder.path().join("no/csi.sock")).unwrap_err();
        assert!(matches!(&error, SocketError::NoFolder(missing) if missing.ends_with("no")), "{error}");
        let long = folder.path().join("x".repeat(120));
        assert!(matches!(Socket::bind(&long), Err(SocketError::System { action: "name", .. })));
    }

    #[tokio::test]
    async fn nothing_but_the_socket_is_made_and_only_our_own_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("csi.sock");
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        std::fs::remove_file(&path).unwrap();
        tokio::time::timeout(Duration::from_secs(10), socket.path.lost()).await.unwrap();
        std::fs::write(&path, "another's").unwrap();
        socket.path.remove();
        assert!(path.exists());
    }
}
