"""Which addresses a client may have asked: what can be told from the text of a URL, and from an address connected to.

A text tells little, for a name may lead anywhere: `net.py` asks `is_public` of each address as it connects to it.
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
"""All that is given out to the public; mapped IPv4 addresses and NAT64 lie outside of it."""
_REFUSED = tuple(
    ipaddress.ip_network(network)
    for network in (
        "100.64.0.0/10",  # carriers' own
        "168.63.129.16/32",  # a cloud's services for its machines, though not private by number
        "192.0.0.0/24",  # protocols
        "192.88.99.0/24",  # relays into 6to4
        "2001::/23",  # protocols; Teredo, which holds an IPv4 address, is one
        "2002::/16",  # 6to4, which holds an IPv4 address
        "3fff::/20",  # documentation
    )
)
_NUMBER_AT_THE_END = re.compile(r"(.*\.)?(\d+|0x[0-9a-f]*)")
"""Hosts that resolvers read as IPv4 addresses in one of their old spellings, such as 127.1."""

HostAndPort = tuple[str, int]


def _parse_hosts(told: object) -> object:
    """Return the pairs of host and port of `host[:port],…`; no port stands for all that are allowed anyway."""
    if not isinstance(told, str):
        return told
    found: list[HostAndPort] = []
    for entry in filter(None, (part.strip() for part in told.split(","))):
        try:
            url = URL(f"//{entry}")
            port = url.explicit_port
        except ValueError:
            raise ValueError(f"{entry} is not host[:port]") from None
        if url.raw_host is None or url.raw_path not in ("", "/") or "@" in entry:
            raise ValueError(f"{entry} is not host[:port]")
        found += [(_plain(url.raw_host), each) for each in ([port] if port is not None else sorted(PORTS))]
    return frozenset(found)


Hosts = Annotated[frozenset[HostAndPort], NoDecode, BeforeValidator(_parse_hosts)]
"""A setting, written `host[:port],…`: what is asked whatever its address and port are."""


def is_public(address: str) -> bool:
    """Whether an IP address is one that anybody on the internet could be asked by."""
    ip = ipaddress.ip_address(address)
    if ip.version == 6 and ip not in _GLOBAL_IPV6:
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _REFUSED)


def is_named(url: URL, hosts: Set[HostAndPort]) -> bool:
    """Whether the URL's host and port are among `hosts`."""
    return (_plain(url.raw_host or ""), url.port or 0) in hosts


def checked(text: str, hosts: Set[HostAndPort] = frozenset()) -> URL:
    """Return the URL that `text` is, without its fragment. Raises UrlForbidden for what would never be asked.

    `hosts` may be asked wherever they are.
    """
    if len(text) > MAX_URL_CHARS:
        raise UrlForbidden(f"The address is longer than {MAX_URL_CHARS} characters.")
    try:
        if any(char <= " " or char in "\\\x7f" for char in text):
            raise ValueError("a character that no address has")
        url = URL(text).with_fragment(None)
        host, port = _plain(url.raw_host or ""), url.port
        url.host  # noqa: B018  a punycode that stands for nothing raises UnicodeError, a ValueError
    except ValueError:
        raise UrlForbidden("This is no address.") from None
    if url.scheme not in ("http", "https") or not host:
        raise UrlForbidden("Only addresses of http:// and https:// are asked.")
    if "@" in url.raw_authority:
        raise UrlForbidden("An address with a user name or a password is not asked.")
    if not is_named(url, hosts):
        _check_place(host, port)
    return url


def _check_place(host: str, port: int | None) -> None:
    if port not in PORTS:
        raise UrlForbidden(f"Only the ports {' and '.join(map(str, sorted(PORTS)))} are asked.")
    try:
        public = is_public(host)
    except ValueError:
        public = not (host.endswith("localhost") or _NUMBER_AT_THE_END.fullmatch(host))
    if not public:
        raise UrlForbidden("The address does not lie on the public internet.")


def _plain(host: str) -> str:
    return host.lower().removesuffix(".")
