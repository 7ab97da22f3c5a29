//! TLS with the manager's CA on both sides.

use super::{
    Purpose,
    identity::{Identity, IdentityError, MANAGER_NAME, Peer, certificate_hash, vm_name},
};
use faasnet_actors::id::VmId;
use rustix::net::sockopt;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::WebPkiClientVerifier,
    version::TLS13,
};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// Why a connection did not come about.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("no answer within {} ms", .0.as_millis())]
    Deadline(Duration),
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    #[error("the other side did not show whom it was expected to be")]
    Peer,
    #[error("the other side does not offer this kind of connection")]
    Purpose,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn invalid(error: impl std::fmt::Display) -> IdentityError {
    IdentityError::Certificate(error.to_string())
}

fn roots(ca: &CertificateDer<'static>) -> Result<Arc<RootCertStore>, IdentityError> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone()).map_err(invalid)?;
    Ok(Arc::new(roots))
}

/// Silence of a machine after which its connections end. A machine that has vanished, or a network that
/// is cut, says nothing; TCP by itself goes on for a quarter of an hour. Far above any pause of a busy VM.
const VANISHED: Duration = Duration::from_secs(10);

/// Ends a connection whose other machine has vanished, and one whose other side does not read: an agent
/// must come back to its manager, and a child must not keep its place for nothing. The speed of requests
/// is their callers' own matter, these are only probed.
fn end_when_vanished(stream: &TcpStream, purpose: Purpose) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, VANISHED / 2)?;
    sockopt::set_tcp_keepintvl(stream, VANISHED / 5)?;
    if matches!(purpose, Purpose::Control | Purpose::Blocks) {
        let millis = u32::try_from(VANISHED.as_millis()).expect("some seconds");
        sockopt::set_tcp_user_timeout(stream, millis)?;
    }
    Ok(())
}

/// Accepts connections for some purposes.
#[derive(Clone)]
pub struct Acceptor {
    tls: TlsAcceptor,
    handshake: Duration,
}

/// A connection that was accepted.
pub struct Accepted {
    pub stream: server::TlsStream<TcpStream>,
    pub purpose: Purpose,
    /// Absent only for [`Purpose::Join`].
    pub peer: Option<Peer>,
}

impl Acceptor {
    /// For the manager: joins without a certificate, everything else with one.
    pub fn manager(identity: &Identity, handshake: Duration) -> Result<Self, IdentityError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(roots(&identity.ca)?, provider())
            .allow_unauthenticated()
            .build()
            .map_err(invalid)?;
        Self::new(identity, verifier, &[Purpose::Join, Purpose::Control], handshake)
    }

    /// For an agent: nobody without a certificate.
    pub fn agent(identity: &Identity, handshake: Duration) -> Result<Self, IdentityError> {
        let verifier = WebPkiClientVerifier::builder_with_provider(roots(&identity.ca)?, provider())
            .build()
            .map_err(invalid)?;
        Self::new(identity, verifier, &[Purpose::Blocks, Purpose::Request], handshake)
    }

    fn new(
        identity: &Identity,
        verifier: Arc<dyn rustls::server::danger::ClientCertVerifier>,
        purposes: &[Purpose],
        handshake: Duration,
    ) -> Result<Self, IdentityError> {
        let chain = vec![identity.certificate.clone(), identity.ca.clone()];
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(invalid)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, identity.key.clone_key())
            .map_err(invalid)?;
        config.alpn_protocols = purposes.iter().map(|purpose| purpose.alpn().to_vec()).collect();
        Ok(Self { tls: TlsAcceptor::from(Arc::new(config)), handshake })
    }

    /// Does the handshake on a fresh TCP connection and says who came for what.
    pub async fn accept(&self, stream: TcpStream) -> Result<Accepted, ConnectError> {
        stream.set_nodelay(true)?;
        let stream = tokio::time::timeout(self.handshake, self.tls.accept(stream))
            .await
            .map_err(|_| ConnectError::Deadline(self.handshake))??;
        let session = stream.get_ref().1;
        let purpose = session.alpn_protocol().and_then(Purpose::from_alpn).ok_or(ConnectError::Purpose)?;
        let certificate = session.peer_certificates().and_then(|chain| chain.first());
        let peer = certificate.map(Peer::of).transpose().map_err(|_| ConnectError::Peer)?;
        if peer.is_none() && purpose != Purpose::Join {
            return Err(ConnectError::Peer);
        }
        end_when_vanished(stream.get_ref().0, purpose)?;
        Ok(Accepted { stream, purpose, peer })
    }
}

/// Opens connections with the identity of this process.
#[derive(Clone)]
pub struct Dialer {
    /// One for each purpose, in the order of [`Purpose::ALL`]: rustls keeps the ALPN list in its
    /// configuration, and sessions are resumed within one.
    tls: [TlsConnector; 4],
    deadline: Duration,
}

impl Dialer {
    pub fn new(identity: &Identity, deadline: Duration) -> Result<Self, IdentityError> {
        let chain = vec![identity.certificate.clone(), identity.ca.clone()];
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(invalid)?
            .with_root_certificates(roots(&identity.ca)?)
            .with_client_auth_cert(chain, identity.key.clone_key())
            .map_err(invalid)?;
        let for_purpose = |purpose: Purpose| {
            let mut config = config.clone();
            config.alpn_protocols = vec![purpose.alpn().to_vec()];
            TlsConnector::from(Arc::new(config))
        };
        Ok(Self { tls: Purpose::ALL.map(for_purpose), deadline })
    }

    /// Connects to a VM's agent; whoever answers must have that VM's certificate.
    pub async fn vm(
        &self,
        vm: &VmId,
        address: SocketAddr,
        purpose: Purpose,
    ) -> Result<client::TlsStream<TcpStream>, ConnectError> {
        self.connect(&vm_name(vm), address, purpose).await
    }

    /// Connects to the manager.
    pub async fn manager(&self, address: SocketAddr) -> Result<client::TlsStream<TcpStream>, ConnectError> {
        self.connect(MANAGER_NAME, address, Purpose::Control).await
    }

    async fn connect(
        &self,
        name: &str,
        address: SocketAddr,
        purpose: Purpose,
    ) -> Result<client::TlsStream<TcpStream>, ConnectError> {
        let place = Purpose::ALL.iter().position(|each| *each == purpose).expect("ALL names every purpose");
        let stream = connect(&self.tls[place], name, address, self.deadline).await?;
        end_when_vanished(stream.get_ref().0, purpose)?;
        Ok(stream)
    }
}

/// Connects to a manager that is known only by the hash of its CA (from the join token). Returns the
/// CA's certificate too.
pub async fn connect_to_join(
    address: SocketAddr,
    ca_hash: [u8; 32],
    deadline: Duration,
) -> Result<(client::TlsStream<TcpStream>, CertificateDer<'static>), ConnectError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .expect("ring offers TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinnedCa { ca_hash, provider: provider() }))
        .with_no_client_auth();
    config.alpn_protocols = vec![Purpose::Join.alpn().to_vec()];
    let stream = connect(&TlsConnector::from(Arc::new(config)), MANAGER_NAME, address, deadline).await?;
    let ca =
        stream.get_ref().1.peer_certificates().and_then(|chain| chain.last()).ok_or(ConnectError::Peer)?;
    let ca = ca.clone().into_owned();
    Ok((stream, ca))
}

async fn connect(
    tls: &TlsConnector,
    name: &str,
    address: SocketAddr,
    deadline: Duration,
) -> Result<client::TlsStream<TcpStream>, ConnectError> {
    let name = ServerName::try_from(name.to_owned()).expect("our names are DNS names");
    let attempt = async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let stream = tls.connect(name, stream).await?;
        if stream.get_ref().1.alpn_protocol().is_none() {
            return Err(ConnectError::Purpose);
        }
        Ok(stream)
    };
    tokio::time::timeout(deadline, attempt).await.unwrap_or(Err(ConnectError::Deadline(deadline)))
}

/// Accepts a chain whose last certificate has the expected hash and vouches for the first.
#[derive(Debug)]
struct PinnedCa {
    ca_hash: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = || rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let ca =
            intermediates.last().filter(|ca| certificate_hash(ca) == self.ca_hash).ok_or_else(unknown)?;
        let roots = roots(&ca.clone().into_owned()).map_err(|_| unknown())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&self.provider))
            .build()
            .map_err(|_| unknown())?;
        verifier.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::identity::{Authority, new_request};
    use std::time::SystemTime;
    use tokio::net::TcpListener;

    const DEADLINE: Duration = Duration::from_secs(10);
    const LIFE: Duration = Duration::from_secs(3600);

    struct Site {
        folder: tempfile::TempDir,
        authority: Authority,
    }

    fn site() -> Site {
        let folder = tempfile::tempdir().expect("temporary folder");
        let authority = Authority::open(folder.path(), SystemTime::now()).expect("a CA");
        Site { folder, authority }
    }

    fn vm_identity(site: &Site, vm: &str) -> Identity {
        let (key, request) = new_request().expect("a request");
        let vm: VmId = vm.parse().expect("valid");
        let (certificate, _) =
            site.authority.issue_vm(&vm, &request, SystemTime::now(), LIFE).expect("a certificate");
        Identity::store(site.folder.path(), &key, &certificate, site.authority.certificate_pem())
            .expect("stored")
    }

    /// Serves one connection and returns what both sides saw.
    async fn meet(
        acceptor: Acceptor,
        dial: impl AsyncFnOnce(SocketAddr) -> Result<client::TlsStream<TcpStream>, ConnectError>,
    ) -> (Result<Accepted, ConnectError>, Result<client::TlsStream<TcpStream>, ConnectError>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let server = async { acceptor.accept(listener.accept().await.expect("a connection").0).await };
        tokio::join!(server, dial(address))
    }

    #[tokio::test]
    async fn vms_know_each_other_by_name_and_purpose() {
        let site = site();
        let (one, two) = (vm_identity(&site, "vm-1"), vm_identity(&site, "vm-2"));
        let dialer = Dialer::new(&one, DEADLINE).expect("a dialer");
        let acceptor = Acceptor::agent(&two, DEADLINE).expect("an acceptor");
        let vm = "vm-2".parse().expect("valid");
        let (accepted, dialled) = meet(acceptor, async |to| dialer.vm(&vm, to, Purpose::Blocks).await).await;
        let accepted = accepted.expect("accepted");
        assert_eq!(accepted.purpose, Purpose::Blocks);
        let dialled = dialled.expect("connected");
        for end in [dialled.get_ref().0, accepted.stream.get_ref().0] {
            assert_eq!(sockopt::tcp_user_timeout(end), Ok(10_000));
        }
        assert_eq!(accepted.peer, Some(Peer::of(&one.certificate).expect("a name")));
        assert_eq!(accepted.peer.and_then(|peer| peer.vm()), Some("vm-1".parse().expect("valid")));
    }

    #[tokio::test]
    async fn another_vm_at_the_expected_address_is_refused() {
        let site = site();
        let dialer = Dialer::new(&vm_identity(&site, "vm-1"), DEADLINE).expect("a dialer");
        let acceptor = Acceptor::agent(&vm_identity(&site, "vm-3"), DEADLINE).expect("an acceptor");
        let vm = "vm-2".parse().expect("valid");
        let (_, dialled) = meet(acceptor, async |to| dialer.vm(&vm, to, Purpose::Blocks).await).await;
        assert!(dialled.is_err());
    }

    #[tokio::test]
    async fn a_certificate_of_another_ca_is_refused() {
        let (ours, theirs) = (site(), site());
        let dialer = Dialer::new(&vm_identity(&theirs, "vm-1"), DEADLINE).expect("a dialer");
        let acceptor = Acceptor::agent(&vm_identity(&ours, "vm-2"), DEADLINE).expect("an acceptor");
        let vm = "vm-2".parse().expect("valid");
        let (accepted, _) = meet(acceptor, async |to| dialer.vm(&vm, to, Purpose::Blocks).await).await;
        assert!(accepted.is_err());
    }

    #[tokio::test]
    async fn a_join_trusts_only_the_ca_of_its_token() {
        let site = site();
        let manager = site.authority.issue_manager(SystemTime::now(), LIFE).expect("an identity");
        for (hash, is_joined) in [(site.authority.hash(), true), ([0; 32], false)] {
            let acceptor = Acceptor::manager(&manager, DEADLINE).expect("an acceptor");
            let (accepted, dialled) = meet(acceptor, async |to| {
                connect_to_join(to, hash, DEADLINE).await.map(|(stream, ca)| {
                    assert_eq!(&ca, site.authority.certificate());
                    stream
                })
            })
            .await;
            assert_eq!((accepted.is_ok(), dialled.is_ok()), (is_joined, is_joined));
        }
    }

    #[tokio::test]
    async fn control_without_a_certificate_is_refused() {
        let site = site();
        let manager = site.authority.issue_manager(SystemTime::now(), LIFE).expect("an identity");
        let acceptor = Acceptor::manager(&manager, DEADLINE).expect("an acceptor");
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots(site.authority.certificate()).expect("roots"))
            .with_no_client_auth();
        config.alpn_protocols = vec![Purpose::Control.alpn().to_vec()];
        let tls = TlsConnector::from(Arc::new(config));
        let (accepted, _) = meet(acceptor, async |to| connect(&tls, MANAGER_NAME, to, DEADLINE).await).await;
        assert!(matches!(accepted, Err(ConnectError::Peer)));
    }
}
