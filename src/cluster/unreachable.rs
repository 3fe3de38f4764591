//! Advice on a server that can't be reached: which part of the connection failed, and what to check
//! there.

use std::{error::Error, io, iter::successors};

use rustls::{CertificateError, Error as TlsError};

use crate::telemetry::error_chain::error_chain;

/// The text of the HTTP client's error for a name that can't be resolved. Its type is private.
const DNS: &str = "dns error";

/// Returns the text of an error and its causes, with the advice on it, if there is any.
pub(crate) fn explained(error: &(dyn Error + 'static)) -> String {
    let text = error_chain(error);
    match advice(error) {
        Some(advice) => format!("{text}; {advice}"),
        None => text,
    }
}

/// Returns what to check if the connection to the server failed.
pub(crate) fn advice(error: &(dyn Error + 'static)) -> Option<&'static str> {
    successors(Some(error), |&error| error.source()).find_map(of_cause)
}

fn of_cause(error: &(dyn Error + 'static)) -> Option<&'static str> {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        // Its own source is that of the error within.
        return match error.get_ref() {
            Some(inner) => of_cause(inner),
            None => of_kind(error.kind()),
        };
    }
    if let Some(error) = error.downcast_ref::<TlsError>() {
        return Some(of_tls(error));
    }
    (error.to_string() == DNS).then_some(
        "its name is unknown here: check the server in the kubeconfig for typing errors, the DNS of \
         this machine, and whether a VPN has to be on",
    )
}

fn of_kind(kind: io::ErrorKind) -> Option<&'static str> {
    match kind {
        io::ErrorKind::ConnectionRefused => Some(
            "nothing listens there: check host and port of the server in the kubeconfig, and whether \
             the API server runs",
        ),
        io::ErrorKind::TimedOut
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable => {
            Some("no answer came: check the route, the firewalls and whether a VPN has to be on")
        }
        _ => None,
    }
}

fn of_tls(error: &TlsError) -> &'static str {
    match error {
        TlsError::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::BadSignature,
        ) => {
            "its certificate is not of the certificate-authority in the kubeconfig: fetch the \
             kubeconfig again, or look for a proxy that intercepts TLS"
        }
        TlsError::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            "its certificate is for other names: use one of these in the kubeconfig, or set \
             tls-server-name there"
        }
        TlsError::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => {
            "its certificate is not valid now: check the clock of this machine, else renew the \
             certificate of the API server"
        }
        TlsError::InvalidMessage(_) => {
            "what listens there does not speak TLS: check the port and https:// in the kubeconfig"
        }
        _ => "TLS failed: check host, port and certificate-authority in the kubeconfig",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Wraps an error the way in which the HTTP client does.
    fn wrapped(error: TlsError) -> io::Error {
        io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error))
    }

    #[test]
    fn each_part_of_a_connection_has_its_advice() {
        let unknown = wrapped(TlsError::InvalidCertificate(
            CertificateError::UnknownIssuer,
        ));
        let other = wrapped(TlsError::InvalidCertificate(
            CertificateError::NotValidForName,
        ));
        let late = wrapped(TlsError::InvalidCertificate(CertificateError::Expired));
        for (error, expected) in [
            (unknown, "certificate-authority"),
            (other, "tls-server-name"),
            (late, "clock of this machine"),
            (io::ErrorKind::ConnectionRefused.into(), "nothing listens"),
            (io::ErrorKind::NetworkUnreachable.into(), "no answer came"),
        ] {
            let found = explained(&error);
            assert!(found.contains(expected), "{found}");
        }
        for error in [io::Error::other("x"), io::ErrorKind::NotFound.into()] {
            assert_eq!(advice(&error), None);
            assert_eq!(explained(&error), error_chain(&error));
        }
    }
}
