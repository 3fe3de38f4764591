//! The sockets of `serve`, and how many connections they may have.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use anyhow::Context as _;
use rustix::io::Errno;
use tokio::net::{TcpListener, TcpSocket};

use crate::{
    admission::handler::{MAX_UNKNOWN, MAX_WAITING},
    process::file_descriptors::{self, DescriptorNeeds},
    server::accept::MAX_CONNECTIONS,
};

/// The most connections of the admin listener, from kubelets and metrics scrapers.
pub(super) const MAX_ADMIN_CONNECTIONS: usize = 64;
/// The most connections that wait to be accepted, as far as the kernel allows
/// (`net.core.somaxconn`).
const BACKLOG: u32 = 1024;
/// File descriptors that do not depend on connections: watches, the leader's calls, AWS, files.
const OTHER_FILES: usize = 64;

/// Returns the most connections of the admission listener: fewer if the limit of file descriptors
/// is low.
pub(super) fn max_connections() -> usize {
    let files = file_descriptors::raise_limit();
    let needs = DescriptorNeeds {
        connections: MAX_CONNECTIONS,
        calls: MAX_WAITING + MAX_UNKNOWN,
        others: MAX_ADMIN_CONNECTIONS + OTHER_FILES,
    };
    let connections = needs.max_connections(files);
    if connections < MAX_CONNECTIONS {
        tracing::warn!(
            limit = files,
            connections,
            "file descriptor limit is low; reducing max connections"
        );
    }
    connections
}

/// Binds a listening socket; falls back to all IPv4 addresses if there is no IPv6.
pub(super) fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    // The default queue has 128 entries: of a larger burst, the kernel drops connections silently.
    let listen = |address| {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    let listener = listen(address).or_else(|error| {
        let fallback = without_ipv6(address, &error).ok_or(error)?;
        tracing::info!(%address, instead = %fallback, "IPv6 is not available; listening on all IPv4 addresses");
        listen(fallback)
    });
    listener.with_context(|| format!("{flag} {address}: can't listen there"))
}

/// Returns all IPv4 addresses in place of all addresses, if the kernel has no IPv6
/// (`ipv6.disable=1`).
fn without_ipv6(address: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    let is_missing = error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error());
    let is_all = address.is_ipv6() && address.ip().is_unspecified();
    (is_missing && is_all).then(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_of_ipv4_replaces_all_addresses_only_without_ipv6() {
        let no_ipv6 = io::Error::from_raw_os_error(Errno::AFNOSUPPORT.raw_os_error());
        let in_use = io::Error::from_raw_os_error(Errno::ADDRINUSE.raw_os_error());
        for (address, error, fallback) in [
            ("[::]:8443", &no_ipv6, Some("0.0.0.0:8443")),
            ("[::]:8443", &in_use, None),
            ("[::1]:8443", &no_ipv6, None),
            ("0.0.0.0:8443", &no_ipv6, None),
        ] {
            let address: SocketAddr = address.parse().expect("valid");
            let found = without_ipv6(address, error).map(|fallback| fallback.to_string());
            assert_eq!(found.as_deref(), fallback, "{address}");
        }
    }
}
