//! TLS towards Redis and model hosts: which certificates are trusted, and which one is shown. One
//! provider of cryptography serves all connections.

use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// The certificates of connections to servers of one kind.
#[derive(Clone, Debug, Default)]
pub struct TlsOptions {
    /// The authorities that are trusted instead of the system's.
    pub authorities: Option<Authorities>,
    /// The certificate that is shown to the server.
    pub identity: Option<ClientIdentity>,
}

/// Certificates of authorities.
#[derive(Clone, Debug)]
pub struct Authorities(Arc<[CertificateDer<'static>]>);

/// A certificate with those that lead to its authority, and its private key.
#[derive(Clone, Debug)]
pub struct ClientIdentity {
    /// The certificates, the own one first.
    pub chain: Authorities,
    /// The key.
    pub key: ClientKey,
}

/// A private key. It is not shown.
#[derive(Clone)]
pub struct ClientKey(Arc<PrivateKeyDer<'static>>);

impl std::fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// Why TLS cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The system has no certificate of an authority.
    #[error("this system has no certificates of authorities; name a file with them")]
    NoAuthority,
    /// The certificate and the key cannot be used, or not together.
    #[error("the client certificate cannot be used: {0}")]
    Identity(rustls::Error),
    /// The provider lacks what TLS needs.
    #[error("TLS cannot be set up: {0}")]
    Setup(rustls::Error),
}

impl Authorities {
    /// Parses certificates in PEM.
    ///
    /// # Errors
    /// The fault.
    pub fn parse(pem: &str) -> Result<Self, String> {
        let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let certificates = parsed.map_err(|_| "the file is no PEM of certificates".to_owned())?;
        if certificates.is_empty() {
            return Err("the file has no certificate in PEM".to_owned());
        }
        let mut checked = RootCertStore::empty();
        for certificate in &certificates {
            let added = checked.add(certificate.clone());
            added.map_err(|error| format!("a certificate cannot be used: {error}"))?;
        }
        Ok(Self(certificates.into()))
    }
}

impl ClientKey {
    /// Parses a private key in PEM. The error does not quote it.
    ///
    /// # Errors
    /// The fault.
    pub fn parse(pem: &str) -> Result<Self, String> {
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes());
        key.map(|key| Self(Arc::new(key)))
            .map_err(|_| "the file has no private key in PEM".to_owned())
    }
}

impl TlsOptions {
    /// Returns the configuration of connections.
    ///
    /// # Errors
    /// Any [`TlsError`].
    pub fn client_config(&self) -> Result<ClientConfig, TlsError> {
        let mut roots = RootCertStore::empty();
        if let Some(authorities) = &self.authorities {
            roots.add_parsable_certificates(authorities.0.iter().cloned());
        } else {
            // Single certificates of a system are often unusable.
            let of_system = rustls_native_certs::load_native_certs().certs;
            roots.add_parsable_certificates(of_system);
        }
        if roots.is_empty() {
            return Err(TlsError::NoAuthority);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .with_root_certificates(roots);
        match &self.identity {
            None => Ok(builder.with_no_client_auth()),
            Some(ClientIdentity { chain, key }) => builder
                .with_client_auth_cert(chain.0.to_vec(), key.0.clone_key())
                .map_err(TlsError::Identity),
        }
    }
}
