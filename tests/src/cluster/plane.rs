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

const READY_LIMIT: Duration = Duration::from_secs(180);
const API_SERVER: &str = "apiserver";

/// The running control plane.
#[derive(Debug)]
pub struct ControlPlane {
    services: Mutex<Vec<Service>>,
    /// Ask whether each API server is ready.
    probes: Vec<Command>,
}

/// Where and with what the parts are started.
#[derive(Debug, Clone, Copy)]
pub(super) struct Setup<'a> {
    pub binaries: &'a Binaries,
    pub network: &'a Network,
    pub authority: &'a Authority,
    pub folder: &'a Path,
}

impl Setup<'_> {
    fn kubeconfig(&self, name: &str, user: &str, group: Option<&str>) -> Result<PathBuf> {
        let path = self.folder.join(format!("{name}.kubeconfig"));
        let identity = self.authority.client(name, user, group)?;
        certificates::write_kubeconfig(&path, &address(API_PORT), &self.authority.certificate(), &identity)?;
        Ok(path)
    }

    fn service(&self, name: &str, program: &str, arguments: &[(&str, String)]) -> Result<Service> {
        let flags = arguments.iter().map(|(flag, value)| format!("--{flag}={value}"));
        let command = self.network.inside(Command::new(self.binaries.path(program)?).args(flags));
        Service::start(name, &command, &self.folder.join(format!("{name}.log")))
    }
}

/// Where the API server on this port answers.
pub(super) fn address(port: u16) -> String {
    format!("https://{GATEWAY}:{port}")
}

fn show(path: &Path) -> String {
    path.display().to_string()
}

impl ControlPlane {
    /// Starts a control plane with an empty etcd in `folder`; it is ready when this returns.
    ///
    /// # Errors
    /// When a part ends or does not become ready in time; the error quotes its log.
    pub fn start(binaries: &Binaries, network: &Network, authority: &Authority, folder: &Path) -> Result<Self> {
        let setup = Setup { binaries, network, authority, folder };
        let controllers = setup.kubeconfig("controller-manager", "system:kube-controller-manager", None)?;
        let scheduler = setup.kubeconfig("scheduler", "system:kube-scheduler", None)?;
        let (plane, token_private) = Self::start_api(&setup, 1)?;
        plane.services().push(setup.service(
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
                ("root-ca-file", show(&authority.certificate())),
            ],
        )?);
        plane.services().push(setup.service(
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

    /// Starts etcd and so many API servers on ports from [`API_PORT`] on, and nothing else: no controller acts, no pod is
    /// placed. They are ready when this returns. With it comes the key that signs service accounts' tokens.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub(super) fn start_api(setup: &Setup<'_>, api_servers: u16) -> Result<(Self, PathBuf)> {
        let Setup { binaries, network, authority, folder } = *setup;
        let admin = setup.kubeconfig("admin", "admin", Some("system:masters"))?;
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

        // Nothing of a test cluster outlives this machine's power, so etcd need not sync.
        let etcd = setup.service(
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
        let mut services = vec![etcd];
        for port in (API_PORT..).take(api_servers.into()) {
            let name = if port == API_PORT { API_SERVER.to_owned() } else { format!("{API_SERVER}-{port}") };
            services.push(setup.service(
                &name,
                "kube-apiserver",
                &[
                    ("etcd-servers", "http://127.0.0.1:2379".into()),
                    ("bind-address", "0.0.0.0".into()),
                    ("advertise-address", GATEWAY.to_string()),
                    ("secure-port", port.to_string()),
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
            )?);
        }
        let probe = |port: u16| -> Result<Command> {
            let probe = Command::new(binaries.path("kubectl")?)
                .arg(format!("--kubeconfig={}", admin.display()))
                .arg(format!("--server={}", address(port)))
                .args(["get", "--raw", "/readyz"]);
            Ok(network.inside(probe))
        };
        let probes = (API_PORT..).take(api_servers.into()).map(probe).collect::<Result<_>>()?;
        let plane = Self { services: Mutex::new(services), probes };
        plane.wait_for_api()?;
        Ok((plane, token_private))
    }

    /// The process ids of the parts, by their names.
    #[must_use]
    pub fn processes(&self) -> Vec<(String, i32)> {
        self.services().iter().map(|service| (service.name().to_owned(), service.pid())).collect()
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
            let ready = |probe| process::run(probe, Duration::from_secs(10)).is_ok_and(|a| a.exit.success());
            Ok(self.probes.iter().all(ready).then_some(()))
        })
    }
}
