//! A certificate authority in memory, and the serving certificates that it signs.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// A CA with an ECDSA P-256 key.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key as PEM files; the key's mode is 0600.
#[derive(Clone, Debug)]
pub struct ServingCertificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// A certificate and its key as PEM.
pub struct Leaf {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    pub fn new(common_name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        Self(CertifiedIssuer::self_signed(params, new_key()).unwrap())
    }

    /// The CA certificate, as `caBundle` and trust stores take it.
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// A serving certificate for DNS names and IP addresses, written as `<name>.crt` and `<name>.key` into `folder`.
    pub fn serving(&self, names: &[&str], folder: &Path, name: &str) -> ServingCertificate {
        let leaf = self.server(names, name);
        let files = ServingCertificate {
            certificate: folder.join(format!("{name}.crt")),
            key: folder.join(format!("{name}.key")),
        };
        fs::write(&files.certificate, leaf.certificate).unwrap();
        write_private(&files.key, &leaf.key);
        files
    }

    /// A TLS server that speaks HTTP/1.1 and has a certificate for these DNS names and IP addresses.
    pub fn server_config(&self, names: &[&str]) -> Arc<ServerConfig> {
        super::crypto();
        let leaf = self.server(names, "server");
        let chain = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![chain], key)
            .unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Arc::new(config)
    }

    /// A client certificate: to the API server the common name is the user, the organization the group.
    pub fn client(&self, user: &str, group: &str) -> Leaf {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params
            .distinguished_name
            .push(DnType::OrganizationName, group);
        self.sign(params, user)
    }

    fn server(&self, names: &[&str], common_name: &str) -> Leaf {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params, common_name)
    }

    fn sign(&self, mut params: CertificateParams, common_name: &str) -> Leaf {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        let key = new_key();
        Leaf {
            certificate: params.signed_by(&key, &self.0).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }
}

/// A new ECDSA P-256 key as PEM: its private part, and its public part.
pub fn key_pair() -> (String, String) {
    let key = new_key();
    (key.serialize_pem(), key.public_key_pem())
}

/// Writes a file that only its owner may read.
pub fn write_private(path: &Path, content: &str) {
    let mut file = fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    file.write_all(content.as_bytes()).unwrap();
}

fn new_key() -> KeyPair {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap()
}
