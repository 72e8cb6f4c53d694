//! Which addresses are never dialled.
//!
//! The check runs on the address that is dialled, after resolution, so neither a name that points elsewhere since
//! (DNS rebinding) nor a literal gets past it. IPv6 addresses that carry an IPv4 address are judged by both.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The metadata services of AWS and Google Cloud over IPv6: unique local addresses, so no range names them.
const METADATA_V6: [Ipv6Addr; 2] =
    [Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254), Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)];

/// Why this address is not dialled; `None` if it may be.
pub(super) fn refusal(address: IpAddr, refuse_loopback: bool) -> Option<&'static str> {
    match address {
        IpAddr::V4(v4) => refusal_v4(v4, refuse_loopback),
        IpAddr::V6(v6) => refusal_v6(v6, refuse_loopback),
    }
}

fn refusal_v4(address: Ipv4Addr, refuse_loopback: bool) -> Option<&'static str> {
    if address.is_link_local() {
        Some("link-local")
    } else if address.octets()[0] == 0 {
        // Connecting to 0.0.0.0 reaches this host.
        Some("unspecified")
    } else if refuse_loopback && address.is_loopback() {
        Some("loopback")
    } else {
        None
    }
}

fn refusal_v6(address: Ipv6Addr, refuse_loopback: bool) -> Option<&'static str> {
    if address.is_loopback() {
        return refuse_loopback.then_some("loopback");
    }
    if address.is_unspecified() {
        return Some("unspecified");
    }
    if address.is_unicast_link_local() {
        return Some("link-local");
    }
    if METADATA_V6.contains(&address) {
        return Some("cloud metadata");
    }
    refusal_v4(embedded_v4(address)?, refuse_loopback)
}

/// The IPv4 address that a gateway, or this host itself, would make of an IPv6 address.
fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let (high, low) = match address.segments() {
        // ::a.b.c.d (compatible), ::ffff:a.b.c.d (mapped), ::ffff:0:a.b.c.d (translated)
        [0, 0, 0, 0, 0, 0 | 0xffff, high, low] | [0, 0, 0, 0, 0xffff, 0, high, low]
        // NAT64: the well-known prefix (RFC 6052) and the one for local use (RFC 8215)
        | [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x64, 0xff9b, 1, _, _, _, high, low]
        // 6to4 (RFC 3056)
        | [0x2002, high, low, ..]
        // ISATAP (RFC 5214)
        | [.., 0 | 0x200, 0x5efe, high, low] => (high, low),
        // Teredo (RFC 4380): the client's address, inverted
        [0x2001, 0, _, _, _, _, high, low] => (!high, !low),
        _ => return None,
    };
    Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judge(text: &str, refuse_loopback: bool) -> Option<&'static str> {
        refusal(text.parse().unwrap(), refuse_loopback)
    }

    #[test]
    fn link_local_and_metadata_addresses_are_refused_in_every_form() {
        for address in [
            "169.254.169.254",
            "169.254.0.1",
            "fe80::1",
            "febf::1",
            "::ffff:169.254.169.254",
            "::169.254.169.254",
            "::ffff:0:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b:1::169.254.169.254",
            "2002:a9fe:a9fe::1",
            "2001:0:1:2:3:4:5601:5601",
            "2001:db8::5efe:169.254.169.254",
        ] {
            assert_eq!(judge(address, false), Some("link-local"), "{address}");
        }
        assert_eq!(judge("fd00:ec2::254", false), Some("cloud metadata"));
        assert_eq!(judge("fd20:ce::254", false), Some("cloud metadata"));
    }

    #[test]
    fn unspecified_addresses_are_refused_because_they_reach_this_host() {
        for address in ["0.0.0.0", "0.1.2.3", "::", "::ffff:0.0.0.0", "64:ff9b::0.0.0.0"] {
            assert_eq!(judge(address, false), Some("unspecified"), "{address}");
        }
    }

    #[test]
    fn loopback_is_refused_only_on_request() {
        for address in ["127.0.0.1", "127.255.0.9", "::1", "::ffff:127.0.0.1", "64:ff9b::127.0.0.1"] {
            assert_eq!(judge(address, true), Some("loopback"), "{address}");
            assert_eq!(judge(address, false), None, "{address}");
        }
    }

    #[test]
    fn other_addresses_are_dialled() {
        for address in
            ["10.0.0.1", "192.168.1.1", "8.8.8.8", "172.16.0.1", "2606:4700::1111", "fd00::1", "::ffff:10.0.0.1"]
        {
            assert_eq!(judge(address, true), None, "{address}");
        }
    }
}
