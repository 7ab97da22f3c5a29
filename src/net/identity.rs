//! The manager's CA and the certificates of VMs.
//!
//! A key never leaves the machine it was made on: a VM sends a signing request, of which only the
//! public key is used; the names in a certificate are the manager's choice.

use faasnet_actors::id::VmId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use sha2::{Digest as _, Sha256};
use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::{Duration, SystemTime},
};

/// The name in the manager's certificate.
pub const MANAGER_NAME: &str = "manager.faasnet";

/// Ten years: the CA is replaced by hand, together with every join token.
const CA_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Certificates are valid from a little before now, because clocks differ.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// Why an identity cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("file {path} of the identity cannot be used: {source}")]
    File { path: String, source: io::Error },
    #[error("the key or certificate is not valid: {0}")]
    Certificate(String),
    #[error("the certificate request is not valid")]
    Request,
}

impl From<rcgen::Error> for IdentityError {
    fn from(error: rcgen::Error) -> Self {
        Self::Certificate(error.to_string())
    }
}

/// The name in a VM's certificate.
pub fn vm_name(vm: &VmId) -> String {
    format!("{vm}.vm.faasnet")
}

/// The VM of a certificate's name, if it is one.
pub fn vm_of_name(name: &str) -> Option<VmId> {
    name.strip_suffix(".vm.faasnet")?.parse().ok()
}

/// A private key, the certificate for it, and the CA that both sides of a connection trust.
pub struct Identity {
    pub key: PrivateKeyDer<'static>,
    pub certificate: CertificateDer<'static>,
    pub ca: CertificateDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { key: self.key.clone_key(), certificate: self.certificate.clone(), ca: self.ca.clone() }
    }
}

impl Identity {
    /// Reads `key.pem`, `certificate.pem` and `ca.pem`; `None` when there is no certificate yet.
    pub fn load(folder: &Path) -> Result<Option<Self>, IdentityError> {
        if !folder.join("certificate.pem").exists() {
            return Ok(None);
        }
        let damaged = |error| IdentityError::Certificate(format!("{error}, in {}", folder.display()));
        let certificate_in =
            |name| CertificateDer::from_pem_slice(&read(&folder.join(name))?).map_err(damaged);
        let key = PrivateKeyDer::from_pem_slice(&read(&folder.join("key.pem"))?).map_err(damaged)?;
        Ok(Some(Self { key, certificate: certificate_in("certificate.pem")?, ca: certificate_in("ca.pem")? }))
    }

    /// Makes an identity of a key pair and certificates in PEM, and keeps it in the folder.
    pub fn store(folder: &Path, key: &KeyPair, certificate: &str, ca: &str) -> Result<Self, IdentityError> {
        let damaged = |error: rustls::pki_types::pem::Error| IdentityError::Certificate(error.to_string());
        let identity = Self {
            key: PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).map_err(damaged)?,
            certificate: CertificateDer::from_pem_slice(certificate.as_bytes()).map_err(damaged)?,
            ca: CertificateDer::from_pem_slice(ca.as_bytes()).map_err(damaged)?,
        };
        write_secret(&folder.join("key.pem"), key.serialize_pem().as_bytes())?;
        write_secret(&folder.join("ca.pem"), ca.as_bytes())?;
        // The last file: its presence says that the identity is whole.
        write_secret(&folder.join("certificate.pem"), certificate.as_bytes())?;
        Ok(identity)
    }
}

/// The manager's certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
    certificate: CertificateDer<'static>,
}

impl Authority {
    /// Reads the CA from the folder, or makes one there.
    pub fn open(folder: &Path, now: SystemTime) -> Result<Self, IdentityError> {
        let (key_path, certificate_path) = (folder.join("ca-key.pem"), folder.join("ca.pem"));
        if !certificate_path.exists() {
            let key = KeyPair::generate()?;
            write_secret(&key_path, key.serialize_pem().as_bytes())?;
            let certificate = ca_params(now)?.self_signed(&key)?;
            write_secret(&certificate_path, certificate.pem().as_bytes())?;
        }
        let text = |path: &Path| {
            String::from_utf8(read(path)?).map_err(|_| IdentityError::Certificate("not text".into()))
        };
        let certificate_pem = text(&certificate_path)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, KeyPair::from_pem(&text(&key_path)?)?)?;
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|error| IdentityError::Certificate(error.to_string()))?;
        Ok(Self { issuer, certificate_pem, certificate })
    }

    /// SHA-256 of the CA's certificate (DER): what a join token carries.
    pub fn hash(&self) -> [u8; 32] {
        certificate_hash(&self.certificate)
    }

    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Makes the manager's own identity: a fresh key at each start, so that none is kept on disk.
    pub fn issue_manager(&self, now: SystemTime, life: Duration) -> Result<Identity, IdentityError> {
        let key = KeyPair::generate()?;
        let certificate = leaf_params(MANAGER_NAME, now, life)?.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::try_from(key.serialize_der())
            .map_err(|error| IdentityError::Certificate(error.to_owned()))?;
        Ok(Identity { key, certificate: certificate.der().clone(), ca: self.certificate.clone() })
    }

    /// Certifies the public key of a signing request for a VM. Returns the certificate in PEM and the
    /// hash of the key, as it will be seen on the VM's connections.
    pub fn issue_vm(
        &self,
        vm: &VmId,
        signing_request: &str,
        now: SystemTime,
        life: Duration,
    ) -> Result<(String, [u8; 32]), IdentityError> {
        let request =
            CertificateSigningRequestParams::from_pem(signing_request).map_err(|_| IdentityError::Request)?;
        let certificate =
            leaf_params(&vm_name(vm), now, life)?.signed_by(&request.public_key, &self.issuer)?;
        let peer = Peer::of(certificate.der())?;
        Ok((certificate.pem(), peer.key_hash))
    }
}

/// A new key and the signing request for it, in PEM.
pub fn new_request() -> Result<(KeyPair, String), IdentityError> {
    let key = KeyPair::generate()?;
    let request = CertificateParams::new(Vec::new())?.serialize_request(&key)?.pem()?;
    Ok((key, request))
}

/// Who is on the other side of a connection, read from its verified certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The only DNS name of the certificate.
    pub name: String,
    /// SHA-256 of the certificate's SubjectPublicKeyInfo.
    pub key_hash: [u8; 32],
}

impl Peer {
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, IdentityError> {
        let bad = |what: &str| IdentityError::Certificate(what.to_owned());
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|_| bad("the certificate is not X.509"))?;
        let names =
            parsed.subject_alternative_name().map_err(|_| bad("the certificate's names are damaged"))?;
        let names = names.map(|extension| extension.value.general_names.as_slice()).unwrap_or_default();
        let [x509_parser::extensions::GeneralName::DNSName(name)] = names else {
            return Err(bad("the certificate must have exactly one DNS name"));
        };
        let key_hash = Sha256::digest(parsed.public_key().raw).into();
        Ok(Self { name: (*name).to_owned(), key_hash })
    }

    pub fn vm(&self) -> Option<VmId> {
        vm_of_name(&self.name)
    }
}

pub fn certificate_hash(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate).into()
}

fn ca_params(now: SystemTime) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "FaaSNet CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + CA_LIFE).into();
    Ok(params)
}

fn leaf_params(name: &str, now: SystemTime, life: Duration) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = (now - CLOCK_SKEW).into();
    params.not_after = (now + life).into();
    Ok(params)
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    fs::read(path).map_err(|source| IdentityError::File { path: path.display().to_string(), source })
}

/// Writes a file that only its owner may read, whole or not at all.
fn write_secret(path: &Path, content: &[u8]) -> Result<(), IdentityError> {
    let attempt = || -> io::Result<()> {
        let temporary = path.with_extension("new");
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(temporary, path)
    };
    attempt().map_err(|source| IdentityError::File { path: path.display().to_string(), source })
}
