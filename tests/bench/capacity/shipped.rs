//! A reporter as it is shipped: the release build as a process of its own, which finds its token where a pod has it. It
//! serves as the sample whose memory is measured.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use quarry_tests::cluster::nodeless::Access;
use quarry_tests::cluster::release::NAMESPACE;
use quarry_tests::command::Command;
use quarry_tests::process::{self, Child, Log};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::driver::Driver;
use crate::herd::{self, Counts, Member};
use crate::world::memory_kib;

/// Gives the process a `/run` of its own with the token in it, and becomes the reporter.
const AS_A_POD: &str = "mount -t tmpfs none /run; mkdir -p /run/secrets/kubernetes.io; \
     ln -s \"$0\" /run/secrets/kubernetes.io/serviceaccount; exec \"$@\"";

/// The running process.
pub struct Shipped {
    process: Child,
    driver: Driver,
    port: u16,
}

/// What it needs of memory, in KiB.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Now.
    pub resident: u64,
    /// At most so far.
    pub peak: u64,
}

impl Shipped {
    /// Starts it; it has published when this returns.
    ///
    /// # Errors
    /// When it ends or does not publish.
    pub async fn start(access: &Access, program: &Path, member: &Member, port: u16, more: &[&str]) -> Result<Self> {
        let folder = access.folder.join(format!("shipped-{}", member.node));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("token"), &member.token)?;
        std::fs::write(folder.join("namespace"), NAMESPACE)?;
        std::fs::copy(&access.authority, folder.join("ca.crt"))?;
        let driver = Driver::start(&folder.join("csi.sock"), &member.node);
        herd::say(&driver, member.room);
        let address = member.server.trim_start_matches("https://");
        let (host, api_port) = address.split_once(':').context("an address without a port")?;
        let command = Command::new("unshare")
            .args(["--mount", "--", "sh", "-euc", AS_A_POD])
            .arg(&folder)
            .arg(program)
            .args(["run", "--node-name", &member.node, "--namespace", NAMESPACE])
            .arg(format!("--http-address=127.0.0.1:{port}"))
            .arg("--csi-socket")
            .arg(driver.socket())
            .args(more)
            .env("KUBERNETES_SERVICE_HOST", host)
            .env("KUBERNETES_SERVICE_PORT", api_port);
        let process = process::start(&command, Log::File(&folder.join("log")))?;
        let shipped = Self { process, driver, port };
        for _ in 0..300 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            if shipped.ask("/readyz").await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                return Ok(shipped);
            }
        }
        let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
        anyhow::bail!("the reporter of {} does not become ready:\n{log}", member.node)
    }

    async fn ask(&self, path: &str) -> Result<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    /// What it asked of the API server so far.
    ///
    /// # Errors
    /// When it does not tell.
    pub async fn counts(&self) -> Result<Counts> {
        let mut counts = BTreeMap::new();
        herd::count(&self.ask("/metrics").await?, &mut counts)?;
        Ok(counts)
    }

    /// Has its driver say so many bytes of every class.
    pub fn say(&self, bytes: i64) {
        herd::say(&self.driver, bytes);
    }

    /// Its memory.
    ///
    /// # Errors
    /// When it has ended.
    pub fn memory(&self) -> Result<Memory> {
        let pid = self.process.pid();
        Ok(Memory { resident: memory_kib(pid, "VmRSS")?, peak: memory_kib(pid, "VmHWM")? })
    }

    /// Is killed.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn kill(mut self) -> Result<()> {
        self.process.crash()?;
        self.driver.end().await;
        Ok(())
    }
}
