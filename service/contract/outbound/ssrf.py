"""SSRF rules: which URLs may be fetched, judged by the text of a URL and by the IP address that it leads to.

The text alone is not enough, because a host name may resolve to any address: `http.py` calls `is_public` for each
address that it connects to.
"""

import ipaddress
import re
from collections.abc import Set
from typing import Annotated

from pydantic import BeforeValidator
from pydantic_settings import NoDecode
from yarl import URL

from service.contract.errors import UrlForbidden
from service.contract.jobs import MAX_URL_CHARS

PORTS = frozenset({80, 443})

_GLOBAL_IPV6 = ipaddress.ip_network("2000::/3")
"""All public IPv6 addresses. Mapped IPv4 addresses and NAT64 lie outside this network."""
_REFUSED_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        "100.64.0.0/10",  # carrier-grade NAT
        "168.63.129.16/32",  # a cloud provider's service for its virtual machines, on a public address
        "192.0.0.0/24",  # IETF protocol assignments
        "192.88.99.0/24",  # 6to4 relays
        "2001::/23",  # IETF protocol assignments, including Teredo, which embeds an IPv4 address
        "2002::/16",  # 6to4, which embeds an IPv4 address
        "3fff::/20",  # documentation
    )
)
_LEGACY_IPV4 = re.compile(r"(.*\.)?(\d+|0x[0-9a-f]*)")
"""Hosts that resolvers read as IPv4 addresses in a legacy notation, such as 127.1."""

HostAndPort = tuple[str, int]


def _parse_hosts(value: object) -> object:
    """Return the pairs of host and port in `host[:port],…`; without a port, every port in `PORTS` is allowed."""
    if not isinstance(value, str):
        return value
    entries = filter(None, (part.strip() for part in value.split(",")))
    return frozenset(pair for entry in entries for pair in _parse_host(entry))


def _parse_host(entry: str) -> list[HostAndPort]:
    try:
        url = URL(f"//{entry}")
        port = url.explicit_port
    except ValueError:
        raise ValueError(f"{entry} is not host[:port]") from None
    if url.raw_host is None or url.raw_path not in ("", "/") or "@" in entry:
        raise ValueError(f"{entry} is not host[:port]")
    host = _normalise(url.raw_host)
    return [(host, port)] if port is not None else [(host, each) for each in sorted(PORTS)]


Hosts = Annotated[frozenset[HostAndPort], NoDecode, BeforeValidator(_parse_hosts)]
"""A setting, written `host[:port],…`: these hosts may be fetched whatever their address and port are."""


def is_public(address: str) -> bool:
    """Return whether an IP address is reachable from the public internet. Raises ValueError for other text."""
    ip = ipaddress.ip_address(address)
    if ip.version == 6 and ip not in _GLOBAL_IPV6:
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _REFUSED_NETWORKS)


def is_allowed_host(url: URL, hosts: Set[HostAndPort]) -> bool:
    """Return whether the URL's host and port are among `hosts`."""
    return (_normalise(url.raw_host or ""), url.port or 0) in hosts


def check_url(text: str, hosts: Set[HostAndPort] = frozenset()) -> URL:
    """Return the URL in `text` without its fragment. Raises UrlForbidden if it must not be fetched.

    URLs of `hosts` may lead to any address and port.
    """
    if len(text) > MAX_URL_CHARS:
        raise UrlForbidden(f"The URL is longer than {MAX_URL_CHARS} characters.")
    url = _parse_url(text)
    if url.scheme not in ("http", "https") or not url.raw_host:
        raise UrlForbidden("Only http:// and https:// URLs are accepted.")
    if "@" in url.raw_authority:
        raise UrlForbidden("A URL with a user name or password is not accepted.")
    if not is_allowed_host(url, hosts):
        _check_host(_normalise(url.raw_host), url.port)
    return url


def _parse_url(text: str) -> URL:
    try:
        if any(char <= " " or char in "\\\x7f" for char in text):
            raise ValueError("a character that is not allowed in a URL")
        url = URL(text).with_fragment(None)
        url.port, url.host  # noqa: B018  invalid ports and invalid punycode (a UnicodeError) raise ValueError here
    except ValueError:
        raise UrlForbidden("This is not a valid URL.") from None
    return url


def _check_host(host: str, port: int | None) -> None:
    if port not in PORTS:
        raise UrlForbidden(f"Only the ports {' and '.join(map(str, sorted(PORTS)))} are accepted.")
    try:
        public = is_public(host)
    except ValueError:  # a name, which is judged by its address when it is connected to
        public = not (host.endswith("localhost") or _LEGACY_IPV4.fullmatch(host))
    if not public:
        raise UrlForbidden("The URL does not lead to the public internet.")


def _normalise(host: str) -> str:
    return host.lower().removesuffix(".")
