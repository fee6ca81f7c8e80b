"""Public IP addresses: a table of its own, since that of Python's ipaddress changes from version to version."""

import ipaddress
from typing import Final

# IANA's registries of special-purpose addresses (RFC 6890 and later), whole blocks without their exceptions.
_SPECIAL_IPV4: Final = tuple(
    ipaddress.IPv4Network(block)
    for block in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # shared by a provider's customers
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local; clouds serve credentials there
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # multicast tunnelling
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)
_GLOBAL_IPV6: Final = ipaddress.IPv6Network("2000::/3")  # allocated; mapped, local, … lie outside
_SPECIAL_IPV6: Final = tuple(
    ipaddress.IPv6Network(block)
    for block in (
        "2001::/23",  # protocol assignments: Teredo, benchmarking, ORCHID, …
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4 carries an IPv4 address
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


def is_global(address: str) -> bool:
    """Return whether an IP address, in its usual notation and without a zone, is public.

    An address behind the well-known prefix of NAT64 counts as the IPv4 address that it holds: networks without IPv4
    reach all of IPv4 that way. All other wrapped addresses are not public.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:  # no address, or in a notation that few programs read
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        if "%" in address:
            return False
        if parsed in _NAT64:
            parsed = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        else:
            return parsed in _GLOBAL_IPV6 and not any(parsed in block for block in _SPECIAL_IPV6)
    return not any(parsed in block for block in _SPECIAL_IPV4)
