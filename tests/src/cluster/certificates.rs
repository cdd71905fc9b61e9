//! The keys and certificates of one cluster, made new for each, as a real cluster has them.
//!
//! **Invariant.** Nobody skips verification: API server, kubelets, controllers and pods all trust the one authority
//! of their cluster and nothing else. Private keys are readable by their owner only.

use std::fs;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// The authority of one cluster and the folder that holds all it issued.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// The files of one certificate.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate, PEM.
    pub certificate: PathBuf,
    /// Its private key, PKCS 8 in PEM, mode 0600.
    pub key: PathBuf,
}

impl Authority {
    /// Makes a new authority; its certificate is `ca.crt` in `folder`. Its own key is never written.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn create(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "quarry test cluster");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key)?;
        write(&folder.join("ca.crt"), &certificate.pem(), 0o644)?;
        Ok(Self { folder: folder.to_owned(), issuer: Issuer::new(params, key) })
    }

    /// The authority's certificate, PEM.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// Issues a server's certificate for `names` (DNS names and addresses).
    ///
    /// # Errors
    /// When a name is not a DNS name, or the folder cannot be written.
    pub fn server(&self, name: &str, names: &[&str]) -> Result<Identity> {
        let mut params = CertificateParams::new(names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>())?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(name, params)
    }

    /// Issues a client's certificate: Kubernetes takes the user from `user` and one group from `group`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn client(&self, name: &str, user: &str, group: Option<&str>) -> Result<Identity> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(name, params)
    }

    /// Makes the key pair that signs service account tokens: `(private, public)`.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn token_keys(&self) -> Result<(PathBuf, PathBuf)> {
        let key = KeyPair::generate()?;
        let (private, public) = (self.folder.join("tokens.key"), self.folder.join("tokens.pub"));
        write(&private, &key.serialize_pem(), 0o600)?;
        write(&public, &key.public_key_pem(), 0o644)?;
        Ok((private, public))
    }

    fn issue(&self, name: &str, mut params: CertificateParams) -> Result<Identity> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let identity = Identity {
            certificate: self.folder.join(format!("{name}.crt")),
            key: self.folder.join(format!("{name}.key")),
        };
        write(&identity.certificate, &certificate.pem(), 0o644)?;
        write(&identity.key, &key.serialize_pem(), 0o600)?;
        Ok(identity)
    }
}

fn write(path: &Path, text: &str, mode: u32) -> Result<()> {
    use std::io::Write as _;
    fs::OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Writes a kubeconfig that reaches `server` as `identity` and trusts `authority` alone.
///
/// # Errors
/// When the file cannot be written.
pub fn write_kubeconfig(path: &Path, server: &str, authority: &Path, identity: &Identity) -> Result<()> {
    let text = serde_json::json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "quarry", "cluster": {"server": server, "certificate-authority": authority}}],
        "users": [{"name": "quarry", "user": {"client-certificate": identity.certificate, "client-key": identity.key}}],
        "contexts": [{"name": "quarry", "context": {"cluster": "quarry", "user": "quarry"}}],
        "current-context": "quarry",
    });
    write(path, &text.to_string(), 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn keys_are_private_and_certificates_are_there() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(folder.path()).unwrap();
        let server = authority.server("apiserver", &["kubernetes.default.svc", "10.96.0.1"]).unwrap();
        let client = authority.client("admin", "admin", Some("system:masters")).unwrap();
        let (private, _) = authority.token_keys().unwrap();
        for key in [&server.key, &client.key, &private] {
            assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600, "{}", key.display());
            assert!(fs::read_to_string(key).unwrap().contains("PRIVATE KEY"));
        }
        assert!(fs::read_to_string(&server.certificate).unwrap().contains("BEGIN CERTIFICATE"));
    }

    #[test]
    fn a_name_that_is_no_dns_name_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(folder.path()).unwrap();
        assert!(authority.server("x", &["schön"]).is_err());
    }
}
