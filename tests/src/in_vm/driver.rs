//! The real `quarry-driver` as a process under test, and a client for its socket.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use hyper_util::rt::TokioIo;
use quarry_proto::csi::v1::controller_client::ControllerClient;
use quarry_proto::csi::v1::identity_client::IdentityClient;
use quarry_proto::csi::v1::node_client::NodeClient;
use quarry_proto::quarry::v1::admin_client::AdminClient;
use quarry_proto::quarry::v1::capacity_client::CapacityClient;
use rustix::process::Signal;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use super::require;
use crate::command::{Command, Exit};
use crate::process::{self, Child, Log};
use crate::wait;

/// The environment variable with the path of the driver's binary, set by the suite's runner.
pub const BINARY: &str = "QUARRY_DRIVER_BIN";

/// How long the driver may take until it serves: it asks LVM about every volume group first.
const START: Duration = Duration::from_secs(120);
/// Measuring all disks of a machine.
const CALIBRATION: Duration = Duration::from_secs(600);
/// How long it may take to end after SIGTERM.
const STOP: Duration = Duration::from_secs(60);

/// How to start the driver.
#[derive(Debug, Clone)]
pub struct DriverSpec {
    /// `--node-name`.
    pub node_name: String,
    /// Contents of its configuration file; `None` is no file at all.
    pub config: Option<String>,
    /// Its state folder; `None` is one of its own.
    pub state_dir: Option<PathBuf>,
    /// More arguments after `run`.
    pub arguments: Vec<String>,
    /// More environment variables.
    pub env: Vec<(String, String)>,
}

impl DriverSpec {
    /// A driver of node `node-1`, one class `default` on this volume group, with a thin pool `quarry-pool`.
    #[must_use]
    pub fn for_group(volume_group: &str) -> Self {
        // An emulated machine on a busy host is slow; the caller waits for the work, not for the driver's patience.
        Self::with_config(&format!(
            "deviceClasses:\n  - name: default\n    volumeGroup: {volume_group}\n\
             timeouts: {{answerSeconds: 300, nodeAnswerSeconds: 300}}\n"
        ))
    }

    /// A driver of node `node-1` with this configuration file.
    #[must_use]
    pub fn with_config(config: &str) -> Self {
        Self {
            node_name: "node-1".to_owned(),
            config: Some(config.to_owned()),
            state_dir: None,
            arguments: Vec::new(),
            env: Vec::new(),
        }
    }
}

/// A running driver with a socket, a configuration and a state folder of its own. Dropping it kills it; if the test is
/// failing, its log is printed.
#[derive(Debug)]
pub struct DriverUnderTest {
    spec: DriverSpec,
    folder: TempDir,
    process: Option<Child>,
}

impl DriverUnderTest {
    /// Starts the driver and waits until its socket is served.
    ///
    /// # Errors
    /// Outside a machine, without `QUARRY_DRIVER_BIN`, or if it ends or does not serve in time; its log is told.
    pub fn start(spec: DriverSpec) -> Result<Self> {
        let mut driver = Self::prepare(spec)?;
        driver.launch()?;
        Ok(driver)
    }

    /// Starts a driver that is to end by itself, and tells how it ended and what it logged.
    ///
    /// # Errors
    /// If it still runs after two minutes.
    pub fn start_to_fail(spec: DriverSpec) -> Result<(Exit, String)> {
        let driver = Self::prepare(spec)?;
        let exit = driver.spawn()?.wait(START)?;
        Ok((exit, driver.log()))
    }

    fn prepare(spec: DriverSpec) -> Result<Self> {
        require()?;
        let folder =
            tempfile::Builder::new().prefix("driver-").tempdir_in("/run").context("cannot make a folder in /run")?;
        if let Some(config) = &spec.config {
            std::fs::write(folder.path().join("config.yaml"), config)?;
        }
        Ok(Self { spec, folder, process: None })
    }

    fn spawn(&self) -> Result<Child> {
        let mut command = Command::new(binary()?).args(["run", "--node-name", &self.spec.node_name]);
        if self.spec.config.is_some() {
            command = command.arg("--config").arg(self.path("config.yaml"));
        }
        command = command.arg("--csi-socket").arg(self.socket()).arg("--state-dir").arg(self.state_dir());
        command = command.args(["--log-format", "text"]).args(&self.spec.arguments);
        command.env.extend(self.spec.env.iter().cloned());
        process::start(&command, Log::Append(&self.path("log")))
    }

    /// Starts it again after [`DriverUnderTest::kill`] or [`DriverUnderTest::stop`], on the same socket and state.
    ///
    /// # Errors
    /// As [`DriverUnderTest::start`].
    pub fn launch(&mut self) -> Result<()> {
        let process = self.process.insert(self.spawn()?);
        let socket = self.folder.path().join("csi.sock");
        let served = wait::until("the driver's socket", START, Duration::from_millis(50), || {
            if let Some(exit) = process.try_wait()? {
                bail!("the driver ended with {exit}");
            }
            Ok(UnixStream::connect(&socket).ok().map(drop))
        });
        served.with_context(|| format!("the driver does not serve; its log:\n{}", self.log()))
    }

    /// Starts it again, where it is to end by itself; tells how it ended and what it logged, over all its starts.
    ///
    /// # Errors
    /// If it still runs after two minutes.
    pub fn launch_to_fail(&mut self) -> Result<(Exit, String)> {
        let exit = self.spawn()?.wait(START)?;
        Ok((exit, self.log()))
    }

    /// Its CSI socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.path("csi.sock")
    }

    /// Its state folder.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.spec.state_dir.clone().unwrap_or_else(|| self.path("state"))
    }

    /// A path in its own folder, which is gone with it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Its process id while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<i32> {
        self.process.as_ref().map(Child::pid)
    }

    /// Everything it has logged, over all its starts.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read(self.path("log")).map(|log| String::from_utf8_lossy(&log).into_owned()).unwrap_or_default()
    }

    /// The last lines that it has logged.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].iter().map(|line| format!("{line}\n")).collect()
    }

    /// Kills the driver alone, as a crash would: commands that it started go on.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn crash(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.crash().map(drop))
    }

    /// Kills the driver with every command that it started, as the end of its container would.
    ///
    /// # Errors
    /// If it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().map_or(Ok(()), |mut process| process.kill_tree().map(drop))
    }

    /// Waits until it has ended by itself, as at a crash point: commands that it started go on.
    ///
    /// # Errors
    /// If it is not running, or does not end within two minutes.
    pub fn wait_for_end(&mut self) -> Result<Exit> {
        let process = self.process.as_ref().context("the driver is not running")?;
        let exit = process.wait(START).context("the driver goes on")?;
        self.process = None;
        Ok(exit)
    }

    /// Asks it to end, as the kubelet would (SIGTERM), and tells how it ended.
    ///
    /// # Errors
    /// If it is not running, or not gone after a minute, when it is killed.
    pub fn stop(&mut self) -> Result<Exit> {
        let process = self.process.take().context("the driver is not running")?;
        process.signal(Signal::TERM)?;
        process.wait(STOP).context("the driver does not end on SIGTERM")
    }

    /// Runs the driver's command line against it (`volumes`, `forget` ...); what it prints.
    ///
    /// # Errors
    /// If the command fails; what it says is in the error.
    pub fn ask(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(binary()?).args(words).arg("--csi-socket").arg(self.socket());
        if words.first() == Some(&"volumes") {
            command = command.args(["--node-name", &self.spec.node_name]).arg("--state-dir").arg(self.state_dir());
            if self.spec.config.is_some() {
                command = command.arg("--config").arg(self.path("config.yaml"));
            }
        }
        Ok(process::run(&command, START)?.success()?.stdout_text())
    }

    /// Has what it changed on disks and cgroups put back; by itself, where it runs.
    ///
    /// # Errors
    /// If the command fails.
    pub fn restore_io(&self) -> Result<String> {
        let command = Command::new(binary()?).arg("restore-io").arg("--csi-socket").arg(self.socket());
        let command = command.arg("--state-dir").arg(self.state_dir());
        Ok(process::run(&command, START)?.success()?.stdout_text())
    }

    /// Has the driver measure all disks; what `quarry-driver calibrate` says.
    ///
    /// # Errors
    /// If a disk is not calibrated: with what it says.
    pub fn calibrate(&self) -> Result<String> {
        let command = Command::new(binary()?).arg("calibrate").arg("--csi-socket").arg(self.socket());
        Ok(process::run(&command, CALIBRATION)?.success()?.stdout_text())
    }

    /// What `quarry-driver volumes -o json` says, whether it runs or not.
    ///
    /// # Errors
    /// If the command fails.
    pub fn volumes(&self) -> Result<serde_json::Value> {
        let said = self.ask(&["volumes", "-o", "json"])?;
        serde_json::from_str(&said).with_context(|| format!("not JSON: {said}"))
    }

    /// Sends the driver a signal and does not wait for anything.
    ///
    /// # Errors
    /// If it is not running.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.as_ref().context("the driver is not running")?.signal(signal)
    }

    /// Waits until it has ended by itself, and tells how.
    ///
    /// # Errors
    /// If it is not running, or still runs after a minute.
    pub fn wait(&mut self) -> Result<Exit> {
        let process = self.process.take().context("the driver is not running")?;
        process.wait(STOP).context("the driver does not end")
    }

    /// Connects to its socket.
    ///
    /// # Errors
    /// If nobody answers.
    pub async fn connect(&self) -> Result<Csi> {
        Csi::connect(&self.socket()).await
    }
}

fn binary() -> Result<std::ffi::OsString> {
    std::env::var_os(BINARY).ok_or_else(|| anyhow!("{BINARY} is not set: use `testbed suite NAME`"))
}

impl Drop for DriverUnderTest {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("cannot kill the driver: {error:#}");
        }
        if std::thread::panicking() {
            eprintln!("---- log of the driver ----\n{}---- end of the log ----", self.log());
        }
    }
}

/// Clients of the three CSI services, and of the driver's own, on one connection.
#[derive(Debug, Clone)]
pub struct Csi {
    /// Identity.
    pub identity: IdentityClient<Channel>,
    /// Controller.
    pub controller: ControllerClient<Channel>,
    /// Node.
    pub node: NodeClient<Channel>,
    /// What the driver's own command line asks.
    pub admin: AdminClient<Channel>,
    /// What the capacity-reporter asks.
    pub capacity: CapacityClient<Channel>,
}

impl Csi {
    /// Connects to a unix socket with authority `localhost`, as the kubelet and the sidecars do.
    ///
    /// # Errors
    /// If nobody answers.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { tokio::net::UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost").connect_with_connector(connector).await;
        let channel = channel.with_context(|| format!("cannot connect to {}", socket.display()))?;
        Ok(Self {
            identity: IdentityClient::new(channel.clone()),
            controller: ControllerClient::new(channel.clone()),
            node: NodeClient::new(channel.clone()),
            admin: AdminClient::new(channel.clone()),
            capacity: CapacityClient::new(channel),
        })
    }
}
