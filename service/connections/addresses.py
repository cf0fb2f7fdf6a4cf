"""Client addresses: whose connection is counted, also behind a trusted proxy (`TRUSTED_PROXIES`)."""

import ipaddress
from typing import Annotated

from pydantic import BeforeValidator
from pydantic_settings import NoDecode

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Headers = list[tuple[bytes, bytes]]
IPV6_CLIENT_PREFIX = 64
"""One IPv6 client usually has a whole network of this prefix length, so its addresses are counted together."""


def _parse_networks(value: object) -> object:
    if not isinstance(value, str):
        return value
    return tuple(ipaddress.ip_network(part.strip()) for part in value.split(",") if part.strip())


Networks = Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_parse_networks)]
"""A setting, written `address-or-network,…`, such as `127.0.0.1,10.0.0.0/8`."""


def client_of(address: str) -> str:
    """Return the client to which `address` belongs: the address itself, or the /64 network of an IPv6 address."""
    ip = _parse(address)
    if ip is None:
        return address
    return str(ipaddress.ip_network((ip, IPV6_CLIENT_PREFIX), strict=False)) if ip.version == 6 else str(ip)


def is_trusted(address: str, proxies: tuple[Network, ...]) -> bool:
    """Return whether `address` is one of the trusted proxies."""
    ip = _parse(address)
    return ip is not None and any(ip in network for network in proxies)


def forwarded_client(headers: Headers, proxies: tuple[Network, ...]) -> str | None:
    """Return the client that the trusted proxies name: the last address in X-Forwarded-For that is not theirs.

    A client can write anything before the address that the first trusted proxy appends, so those parts are ignored.
    """
    values = b",".join(value for name, value in headers if name == b"x-forwarded-for").decode("latin-1")
    addresses = reversed([part.strip() for part in values.split(",") if part.strip()])
    address = next((address for address in addresses if not is_trusted(address, proxies)), None)
    return client_of(address) if address else None


def _parse(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address without a zone; an IPv4 address mapped into IPv6 as the IPv4 address."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip
