//! The control plane: etcd, API server, controller manager and scheduler, set up as in a real cluster.
//!
//! **Invariant.** Nothing is made easy for the driver: RBAC, node authorisation and the `NodeRestriction` admission
//! are on, every connection is verified, and only features that are on by default in this Kubernetes are on.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::certificates::{self, Authority};
use super::network::{API_PORT, GATEWAY, Network, SERVICE_ADDRESS, SERVICE_RANGE};
use super::service::Service;
use crate::artifacts::Binaries;
use crate::command::Command;
use crate::{process, wait};

const READY_LIMIT: Duration = Duration::from_secs(90);
const API_SERVER: &str = "apiserver";

/// The running control plane.
#[derive(Debug)]
pub struct ControlPlane {
    services: Mutex<Vec<Service>>,
    /// Asks whether the API server is ready.
    probe: Command,
}

impl ControlPlane {
    /// Starts a control plane with an empty etcd in `folder`; it is ready when this returns.
    ///
    /// # Errors
    /// When a part ends or does not become ready in time; the error quotes its log.
    pub fn start(binaries: &Binaries, network: &Network, authority: &Authority, folder: &Path) -> Result<Self> {
        let api = format!("https://{GATEWAY}:{API_PORT}");
        let kubeconfig = |name: &str, user: &str, group: Option<&str>| -> Result<PathBuf> {
            let path = folder.join(format!("{name}.kubeconfig"));
            let identity = authority.client(name, user, group)?;
            certificates::write_kubeconfig(&path, &api, &authority.certificate(), &identity)?;
            Ok(path)
        };
        let admin = kubeconfig("admin", "admin", Some("system:masters"))?;
        let controllers = kubeconfig("controller-manager", "system:kube-controller-manager", None)?;
        let scheduler = kubeconfig("scheduler", "system:kube-scheduler", None)?;
        let serving = authority.server(
            "apiserver",
            &[
                &SERVICE_ADDRESS.to_string(),
                &GATEWAY.to_string(),
                "127.0.0.1",
                "localhost",
                "kubernetes",
                "kubernetes.default",
                "kubernetes.default.svc",
                "kubernetes.default.svc.cluster.local",
            ],
        )?;
        let to_kubelets =
            authority.client("apiserver-kubelet", "kube-apiserver-kubelet-client", Some("system:masters"))?;
        let (token_private, token_public) = authority.token_keys()?;
        let ca = authority.certificate();

        let start = |name: &str, program: &str, arguments: &[(&str, String)]| -> Result<Service> {
            let flags = arguments.iter().map(|(flag, value)| format!("--{flag}={value}"));
            let command = network.inside(Command::new(binaries.path(program)?).args(flags));
            Service::start(name, &command, &folder.join(format!("{name}.log")))
        };
        let show = |path: &Path| path.display().to_string();

        // Nothing of a test cluster outlives this machine's power, so etcd need not sync.
        let etcd = start(
            "etcd",
            "etcd",
            &[
                ("data-dir", show(&folder.join("etcd"))),
                ("unsafe-no-fsync", "true".into()),
                ("listen-client-urls", "http://127.0.0.1:2379".into()),
                ("advertise-client-urls", "http://127.0.0.1:2379".into()),
                ("listen-peer-urls", "http://127.0.0.1:2380".into()),
                ("initial-advertise-peer-urls", "http://127.0.0.1:2380".into()),
                ("initial-cluster", "default=http://127.0.0.1:2380".into()),
                ("log-level", "warn".into()),
            ],
        )?;
        let api_server = start(
            API_SERVER,
            "kube-apiserver",
            &[
                ("etcd-servers", "http://127.0.0.1:2379".into()),
                ("bind-address", "0.0.0.0".into()),
                ("advertise-address", GATEWAY.to_string()),
                ("secure-port", API_PORT.to_string()),
                ("tls-cert-file", show(&serving.certificate)),
                ("tls-private-key-file", show(&serving.key)),
                ("client-ca-file", show(&ca)),
                ("kubelet-certificate-authority", show(&ca)),
                ("kubelet-client-certificate", show(&to_kubelets.certificate)),
                ("kubelet-client-key", show(&to_kubelets.key)),
                ("kubelet-preferred-address-types", "InternalIP".into()),
                ("service-account-issuer", "https://kubernetes.default.svc".into()),
                ("service-account-key-file", show(&token_public)),
                ("service-account-signing-key-file", show(&token_private)),
                ("authorization-mode", "Node,RBAC".into()),
                ("enable-admission-plugins", "NodeRestriction".into()),
                ("service-cluster-ip-range", SERVICE_RANGE.into()),
                ("allow-privileged", "true".into()),
            ],
        )?;
        let probe = Command::new(binaries.path("kubectl")?)
            .arg(format!("--kubeconfig={}", admin.display()))
            .args(["get", "--raw", "/readyz"]);
        let plane = Self { services: Mutex::new(vec![etcd, api_server]), probe: network.inside(probe) };
        plane.wait_for_api()?;
        plane.services().push(start(
            "controller-manager",
            "kube-controller-manager",
            &[
                ("kubeconfig", show(&controllers)),
                ("authentication-kubeconfig", show(&controllers)),
                ("authorization-kubeconfig", show(&controllers)),
                ("bind-address", "127.0.0.1".into()),
                ("leader-elect", "false".into()),
                ("use-service-account-credentials", "true".into()),
                ("service-account-private-key-file", show(&token_private)),
                ("root-ca-file", show(&ca)),
            ],
        )?);
        plane.services().push(start(
            "scheduler",
            "kube-scheduler",
            &[
                ("kubeconfig", show(&scheduler)),
                ("authentication-kubeconfig", show(&scheduler)),
                ("authorization-kubeconfig", show(&scheduler)),
                ("bind-address", "127.0.0.1".into()),
                ("leader-elect", "false".into()),
            ],
        )?);
        Ok(plane)
    }

    fn services(&self) -> MutexGuard<'_, Vec<Service>> {
        self.services.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails, quoting the log, when a part has ended.
    ///
    /// # Errors
    /// When a part is not running any more.
    pub fn check(&self) -> Result<()> {
        self.services().iter().try_for_each(Service::check)
    }

    /// Stops the API server and starts it again; it is ready when this returns.
    ///
    /// # Errors
    /// When it does not end or does not become ready in time.
    pub fn restart_api_server(&self) -> Result<()> {
        let mut services = self.services();
        let server = services.iter_mut().find(|service| service.name() == API_SERVER);
        server.context("there is no API server")?.restart()?;
        drop(services);
        self.wait_for_api()
    }

    /// Stops all parts, the last started first.
    ///
    /// # Errors
    /// When a part does not end.
    pub fn stop(self) -> Result<()> {
        let mut services = self.services.into_inner().unwrap_or_else(PoisonError::into_inner);
        while let Some(service) = services.pop() {
            service.stop()?;
        }
        Ok(())
    }

    fn wait_for_api(&self) -> Result<()> {
        wait::until("the API server", READY_LIMIT, Duration::from_millis(300), || {
            self.check()?;
            let answer = process::run(&self.probe, Duration::from_secs(10));
            Ok(answer.is_ok_and(|a| a.exit.success()).then_some(()))
        })
    }
}
