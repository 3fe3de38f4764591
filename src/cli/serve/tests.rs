//! Unit tests of `serve`.

use super::*;

#[test]
fn all_of_ipv4_takes_the_place_of_all_addresses_only_where_there_is_no_ipv6() {
    let no_ipv6 = io::Error::from_raw_os_error(Errno::AFNOSUPPORT.raw_os_error());
    let in_use = io::Error::from_raw_os_error(Errno::ADDRINUSE.raw_os_error());
    for (address, error, instead) in [
        ("[::]:8443", &no_ipv6, Some("0.0.0.0:8443")),
        ("[::]:8443", &in_use, None),
        ("[::1]:8443", &no_ipv6, None),
        ("0.0.0.0:8443", &no_ipv6, None),
    ] {
        let address: SocketAddr = address.parse().expect("valid");
        let found = without_ipv6(address, error).map(|instead| instead.to_string());
        assert_eq!(found.as_deref(), instead, "{address}");
    }
}
