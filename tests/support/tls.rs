//! Certificates that are made for a test, and a TLS front before a server without TLS.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
};
use testkit::folder::Folder;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Names and addresses of this machine.
const NAMES: [&str; 2] = ["localhost", "127.0.0.1"];

/// A certificate and its key, as files.
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// An authority, and certificates of it.
pub struct Certificates {
    pub authority: PathBuf,
    pub server: Identity,
    pub client: Identity,
    folder: Folder,
}

impl Certificates {
    /// Makes all of them.
    pub fn make() -> Self {
        let folder = Folder::temporary().expect("a folder");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([]).expect("parameters");
        params.distinguished_name = called("authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority =
            write(&folder, "authority.pem", &params.self_signed(&key).expect("signed").pem());
        let issuer = Issuer::new(params, key);
        let signed = |name: &str| {
            let key = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::new(NAMES.map(str::to_owned)).expect("parameters");
            // A certificate of the authority's own name would count as signed by itself.
            params.distinguished_name = called(name);
            let certificate = params.signed_by(&key, &issuer).expect("signed").pem();
            Identity {
                certificate: write(&folder, &format!("{name}.pem"), &certificate),
                key: write(&folder, &format!("{name}.key"), &key.serialize_pem()),
            }
        };
        let (server, client) = (signed("server"), signed("client"));
        Self { authority, server, client, folder }
    }

    /// Writes another file beside the certificates.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        write(&self.folder, name, text)
    }
}

fn write(folder: &Folder, name: &str, text: &str) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, text).expect("a file");
    path
}

fn called(name: &str) -> DistinguishedName {
    let mut called = DistinguishedName::new();
    called.push(DnType::CommonName, name);
    called
}

/// Returns a path as text.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path of text")
}

/// A TLS front before a server. It ends with the value.
pub struct Front {
    pub url: String,
    /// The head of the first request of each connection.
    pub heads: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Front {
    /// Starts a front that passes the connections of clients on which the head of the first request
    /// has this line, in lower case.
    pub async fn start(identity: &Identity, upstream: &str, line: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("https://{}", listener.local_addr().expect("an address"));
        let chain = CertificateDer::pem_file_iter(&identity.certificate).expect("a file");
        let chain = chain.collect::<Result<Vec<_>, _>>().expect("certificates");
        let key = PrivateKeyDer::from_pem_file(&identity.key).expect("a key");
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
        let acceptor = TlsAcceptor::from(Arc::new(config.expect("a configuration")));
        let upstream = upstream.trim_start_matches("http://").to_owned();
        let heads = Arc::<Mutex<Vec<String>>>::default();
        let seen = Arc::clone(&heads);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, upstream, seen) =
                    (acceptor.clone(), upstream.clone(), Arc::clone(&seen));
                tokio::spawn(async move {
                    let Ok(mut client) = acceptor.accept(stream).await else { return };
                    let mut head = Vec::new();
                    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
                        match client.read_buf(&mut head).await {
                            Ok(read) if read > 0 => {}
                            _ => return,
                        }
                    }
                    let text = String::from_utf8_lossy(&head).to_lowercase();
                    let is_admitted = text.lines().any(|found| found == line);
                    seen.lock().expect("no panic").push(text);
                    if !is_admitted {
                        let refusal = "HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n";
                        let _ = client.write_all(refusal.as_bytes()).await;
                        let _ = client.shutdown().await;
                        return;
                    }
                    let Ok(mut server) = TcpStream::connect(upstream).await else { return };
                    if server.write_all(&head).await.is_ok() {
                        let _ = copy_bidirectional(&mut client, &mut server).await;
                    }
                });
            }
        });
        Self { url, heads, task }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}
