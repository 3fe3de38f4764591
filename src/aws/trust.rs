//! The CA certificates that AWS's endpoints are verified with: the admin's own bundle, or the
//! system's.
//!
//! Of the system's store only the bundle is read, one file. The folder beside it
//! (`/etc/ssl/certs`) holds the same certificates once more as hundreds of files, and reading those
//! takes longer than a call to AWS.

use std::{
    env,
    ffi::OsString,
    fs::File,
    io::{self, BufReader},
    path::Path,
    sync::{Arc, OnceLock},
};

use aws_smithy_http_client::tls::TrustStore;
use pem::Pem;
use rustls::{
    RootCertStore,
    pki_types::{
        CertificateDer,
        pem::{Error as PemError, PemObject as _},
    },
};
use thiserror::Error;

use crate::process::files;

/// The bundles of Debian and Alpine, Fedora and RHEL, openSUSE, RHEL again, and the BSDs.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// The variables that name another bundle or folder, as for OpenSSL.
const FILE_VARIABLE: &str = "SSL_CERT_FILE";
const FOLDER_VARIABLE: &str = "SSL_CERT_DIR";

/// The bytes of a bundle that are read at a time: it has a quarter of a million.
const READ_AT_ONCE: usize = 32 * 1024;

/// Why the CA bundle can't be used.
#[derive(Debug, Error)]
pub enum AwsEnvironmentError {
    /// The bundle can't be read.
    #[error("reading the CA bundle {path}: check the path and its permissions")]
    ReadBundle {
        /// The file.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// The system has no CA certificate, or none that can be read.
    #[error(
        "no CA certificate to verify AWS with was found in {tried}: install the package \
         ca-certificates, or name a bundle in AWS_CA_BUNDLE or SSL_CERT_FILE"
    )]
    NoCertificates {
        /// The files and folders, each with the reason.
        tried: String,
    },
    /// The bundle holds no usable certificate.
    #[error(
        "the CA bundle {path} holds no usable certificate: {message}; expected PEM, one CERTIFICATE block each"
    )]
    Bundle {
        /// The file.
        path: String,
        /// The reason.
        message: String,
    },
}

/// The CA certificates that AWS's endpoints are verified with.
#[derive(Debug, Clone)]
pub struct Trust(Certificates);

#[derive(Debug, Clone)]
enum Certificates {
    /// A bundle of the admin's own, which was checked.
    Own(Arc<[u8]>, Arc<RootCertStore>),
    /// The system's bundle, read when it is first needed; `None`: there is none, or the
    /// environment names a folder, so the whole store is searched.
    System(Arc<OnceLock<Option<Arc<[u8]>>>>),
}

impl Default for Trust {
    /// Trusts the system's CA certificates.
    fn default() -> Self {
        Self(Certificates::System(Arc::default()))
    }
}

impl Trust {
    /// Trusts only the CA certificates of a PEM file (for a network whose proxy intercepts TLS, or
    /// a private endpoint), or else the system's.
    pub fn load(bundle: Option<&Path>) -> Result<Self, AwsEnvironmentError> {
        let Some(path) = bundle else {
            return Ok(Self::default());
        };
        let name = path.display().to_string();
        let pem = files::read(path).map_err(|source| AwsEnvironmentError::ReadBundle {
            path: name.clone(),
            source,
        })?;
        let unusable = |message: String| AwsEnvironmentError::Bundle {
            path: name.clone(),
            message,
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
            roots
                .add(certificate)
                .map_err(|error| unusable(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(unusable("it is empty".to_owned()));
        }
        Ok(Self(Certificates::Own(pem.into(), Arc::new(roots))))
    }

    /// Returns the certificates as TLS takes them. Of the system's one is read after the other, so
    /// that no more is in memory than what is kept of each. Without any it is an error, which says
    /// more than that the issuer of a server is unknown.
    pub(super) fn roots(&self) -> Result<Arc<RootCertStore>, AwsEnvironmentError> {
        match &self.0 {
            Certificates::Own(_, roots) => Ok(roots.clone()),
            Certificates::System(_) => {
                system_roots(|name| env::var_os(name), &BUNDLES).map(Arc::new)
            }
        }
    }

    /// Returns the certificates as the SDK's client takes them.
    pub(super) fn store(&self) -> TrustStore {
        let pem = match &self.0 {
            Certificates::Own(pem, _) => Some(pem.clone()),
            Certificates::System(read) => read.get_or_init(system_bundle).clone(),
        };
        match pem {
            Some(pem) => TrustStore::empty().with_pem_certificate(pem.to_vec()),
            None => TrustStore::default(),
        }
    }
}

/// Returns the certificates of the bundle and the folders that the environment names, or else of the
/// first bundle that is there and has any, or else of the whole store.
fn system_roots(
    variable: impl Fn(&str) -> Option<OsString>,
    bundles: &[&str],
) -> Result<RootCertStore, AwsEnvironmentError> {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    let (folder, named) = (set(FOLDER_VARIABLE), set(FILE_VARIABLE));
    let files: Vec<&Path> = match (&named, &folder) {
        (Some(path), _) => vec![Path::new(path)],
        (None, Some(_)) => vec![],
        (None, None) => bundles.iter().map(Path::new).collect(),
    };
    let mut roots = RootCertStore::empty();
    let mut tried = Vec::new();
    for path in files {
        match add_bundle(&mut roots, path) {
            Ok(()) => break,
            Err(reason) => tried.push(format!("{} ({reason})", path.display())),
        }
    }
    if let Some(folders) = &folder {
        for folder in env::split_paths(folders) {
            let found = rustls_native_certs::load_certs_from_paths(None, Some(&folder));
            roots.add_parsable_certificates(found.certs);
            tried.push(folder.display().to_string());
        }
    } else if roots.is_empty() && named.is_none() {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
    }
    if roots.is_empty() {
        let tried = tried.join(", ");
        return Err(AwsEnvironmentError::NoCertificates { tried });
    }
    Ok(roots)
}

/// Adds the certificates of a file that can be parsed: a system's bundle may hold a strange one. A
/// file without any is an error.
fn add_bundle(roots: &mut RootCertStore, path: &Path) -> io::Result<()> {
    // A volume that hangs ends with the process's deadline.
    let file = File::open(path)?;
    let file = BufReader::with_capacity(READ_AT_ONCE, file);
    for certificate in CertificateDer::pem_reader_iter(file) {
        match certificate {
            Ok(certificate) => {
                let _ = roots.add(certificate);
            }
            Err(PemError::Io(error)) => return Err(error),
            Err(_) => {}
        }
    }
    if roots.is_empty() {
        return Err(io::Error::other("no certificate is in it"));
    }
    Ok(())
}

fn system_bundle() -> Option<Arc<[u8]>> {
    first_bundle(|name| env::var_os(name), files::read)
}

/// Returns the usable certificates of the bundle that the environment names, or else of the first
/// that is there and has any. If the environment names a folder, or a bundle that can't be used,
/// there is none: then the whole store is searched, which also logs what is wrong with it.
fn first_bundle(
    variable: impl Fn(&str) -> Option<OsString>,
    read: impl Fn(&Path) -> io::Result<Vec<u8>>,
) -> Option<Arc<[u8]>> {
    if variable(FOLDER_VARIABLE).is_some() {
        return None;
    }
    let usable = |path: &Path| usable(read(path).ok()?);
    match variable(FILE_VARIABLE) {
        Some(path) => usable(Path::new(&path)),
        None => BUNDLES.into_iter().find_map(|path| usable(Path::new(path))),
    }
}

/// Returns a bundle without the certificates that can't be parsed: the SDK panics on one, and a
/// system's bundle may hold a strange one.
fn usable(pem: Vec<u8>) -> Option<Arc<[u8]>> {
    let mut roots = RootCertStore::empty();
    let (mut good, mut has_bad) = (Vec::new(), false);
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        match certificate {
            Ok(certificate) if roots.add(certificate.clone()).is_ok() => good.push(certificate),
            _ => has_bad = true,
        }
    }
    if good.is_empty() {
        None
    } else if has_bad {
        let good = good.iter().map(|der| Pem::new("CERTIFICATE", der.to_vec()));
        Some(
            pem::encode_many(&good.collect::<Vec<_>>())
                .into_bytes()
                .into(),
        )
    } else {
        Some(pem.into())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Returns a PEM of a CA certificate.
    fn authority() -> String {
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&key).expect("a certificate").pem()
    }

    /// Returns the bundle that is found where these files are, and which were read.
    fn found(variables: &[(&str, &str)], files: &[(&str, &str)]) -> (Option<String>, Vec<String>) {
        let opened = RefCell::new(Vec::new());
        let variable = |name: &str| {
            let set = variables.iter().find(|(set, _)| *set == name);
            set.map(|(_, value)| value.into())
        };
        let read = |path: &Path| {
            let path = path.to_str().expect("UTF-8");
            opened.borrow_mut().push(path.to_owned());
            let file = files.iter().find(|(name, _)| *name == path);
            file.map(|(_, text)| text.as_bytes().to_vec())
                .ok_or(io::Error::from(io::ErrorKind::NotFound))
        };
        let bundle = first_bundle(variable, read);
        let text = bundle.map(|pem| String::from_utf8(pem.to_vec()).expect("UTF-8"));
        (text, opened.into_inner())
    }

    #[test]
    fn first_bundle_of_the_system_is_the_only_file_that_is_read() {
        let ca = authority();
        for (at, path) in BUNDLES.into_iter().enumerate() {
            let (bundle, opened) = found(&[], &[(path, &ca)]);
            assert_eq!(bundle.as_deref(), Some(&*ca), "{path}");
            assert_eq!(opened, BUNDLES[..=at]);
        }
        let empty = found(&[], &[(BUNDLES[0], ""), (BUNDLES[1], &ca)]);
        assert_eq!(empty.0.as_deref(), Some(&*ca), "an empty bundle hides none");
        assert_eq!(found(&[], &[]).0, None);
    }

    #[test]
    fn variables_of_openssl_name_another_store() {
        let ca = authority();
        let files = [("/own.pem", &*ca), (BUNDLES[0], &*ca)];
        let (bundle, opened) = found(&[(FILE_VARIABLE, "/own.pem")], &files);
        assert!(bundle.is_some());
        assert_eq!(opened, ["/own.pem"]);
        let missing = found(&[(FILE_VARIABLE, "/missing.pem")], &files);
        assert_eq!(missing, (None, vec!["/missing.pem".to_owned()]));
        let folder = [(FILE_VARIABLE, "/own.pem"), (FOLDER_VARIABLE, "/certs")];
        assert_eq!(found(&folder, &files), (None, vec![]));
    }

    #[test]
    fn roots_are_those_of_the_first_bundle_or_of_what_the_environment_names() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let strange = pem::encode(&Pem::new("CERTIFICATE", b"no certificate".to_vec()));
        let (one, two) = (authority(), authority());
        std::fs::create_dir(path("folder")).expect("a folder");
        for (name, text) in [
            ("empty", String::new()),
            ("one", format!("# a comment\n{strange}{one}")),
            ("two", format!("{one}{two}")),
            ("folder/three", two.clone()),
        ] {
            std::fs::write(path(name), text).expect("written");
        }
        let bundles = ["missing", "empty", "one", "two"].map(path);
        let bundles = bundles.each_ref().map(|path| &**path);
        let count = |variables: &[(&str, &str)]| {
            let variable = |name: &str| {
                let set = variables.iter().find(|(set, _)| *set == name);
                set.map(|(_, value)| value.into())
            };
            system_roots(variable, &bundles).map(|roots| roots.len())
        };
        let count = |variables: &[(&str, &str)]| count(variables).expect("a certificate");
        assert_eq!(count(&[]), 1, "the first that has any");
        let (two, folder) = (path("two"), path("folder"));
        assert_eq!(count(&[(FILE_VARIABLE, &two)]), 2);
        assert_eq!(count(&[(FOLDER_VARIABLE, &folder)]), 1, "and no bundle");
        let both = [(FILE_VARIABLE, &*two), (FOLDER_VARIABLE, &*folder)];
        assert_eq!(count(&both), 3);
        assert_eq!(count(&[(FILE_VARIABLE, ""), (FOLDER_VARIABLE, "")]), 1);
    }

    #[test]
    fn store_without_a_certificate_is_an_error_that_names_what_was_tried() {
        let directory = tempfile::tempdir().expect("a folder");
        let path = |name: &str| directory.path().join(name).display().to_string();
        let (empty, folder, good) = (path("empty"), path("folder"), path("good"));
        std::fs::create_dir(&folder).expect("a folder");
        std::fs::write(&empty, "# nothing\n").expect("written");
        std::fs::write(&good, authority()).expect("written");
        let missing = path("missing");
        for (variables, expected) in [
            // Whoever names a bundle doesn't mean another.
            (vec![(FILE_VARIABLE, &missing)], "missing (No such file"),
            (
                vec![(FILE_VARIABLE, &empty)],
                "empty (no certificate is in it)",
            ),
            (vec![(FILE_VARIABLE, &folder)], "folder (Is a directory"),
            (vec![(FOLDER_VARIABLE, &folder)], "folder:"),
            (
                vec![(FILE_VARIABLE, &missing), (FOLDER_VARIABLE, &folder)],
                "missing (No such file or directory (os error 2)), ",
            ),
        ] {
            let variable = |name: &str| {
                let set = variables.iter().find(|(set, _)| *set == name);
                set.map(|(_, value)| value.into())
            };
            let error = system_roots(variable, &[&good]).expect_err("no certificate");
            let error = error.to_string();
            assert!(error.contains(expected), "{expected}: {error}");
            assert!(
                error.contains("install the package ca-certificates"),
                "{error}"
            );
        }
    }

    #[test]
    fn certificate_that_cannot_be_parsed_hides_no_other() {
        let ca = authority();
        let strange = pem::encode(&Pem::new("CERTIFICATE", b"no certificate".to_vec()));
        let bundle = format!("# a comment\n{strange}{ca}");
        let (usable, _) = found(&[], &[(BUNDLES[0], &bundle)]);
        let usable = usable.expect("the good one");
        assert!(!usable.contains(strange.trim()));
        let count = CertificateDer::pem_slice_iter(usable.as_bytes()).count();
        assert_eq!(count, 1);
    }
}
