//! Network interfaces by name.

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};

use nix::ifaddrs::getifaddrs;

/// The addresses of the interface with this name, without ports; empty if there is no such interface. As
/// libzmq does, IPv4 addresses come first.
pub(super) fn addresses(name: &str) -> io::Result<Vec<SocketAddr>> {
    let mut found: Vec<SocketAddr> = getifaddrs()?
        .filter(|interface| interface.interface_name == name)
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in();
            let v6 = address.as_sockaddr_in6();
            let v4 = v4.map(|v4| SocketAddr::V4(SocketAddrV4::new(v4.ip(), 0)));
            // A link-local address needs its zone.
            v4.or_else(|| v6.map(|v6| SocketAddrV6::new(v6.ip(), 0, 0, v6.scope_id()).into()))
        })
        .collect();
    found.sort_by_key(SocketAddr::is_ipv6);
    Ok(found)
}

/// The local addresses that a host stands for without a lookup: an address, `*`, or an interface. Empty if
/// it is another name.
pub(super) fn local_addresses(host: &str) -> io::Result<Vec<SocketAddr>> {
    if host == "*" {
        let any = [IpAddr::from([0; 4]), IpAddr::from([0; 16])];
        return Ok(any.map(|any| SocketAddr::new(any, 0)).to_vec());
    }
    match host.parse() {
        Ok(address) => Ok(vec![SocketAddr::new(address, 0)]),
        Err(_) => addresses(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_has_its_address() {
        // Linux and BSD name it differently.
        let found: Vec<_> = ["lo", "lo0"]
            .into_iter()
            .flat_map(|name| addresses(name).unwrap())
            .collect();
        assert_eq!(found.first(), Some(&"127.0.0.1:0".parse().unwrap()));
        assert!(addresses("no-such-interface").unwrap().is_empty());
    }
}
