"""The check of `Host` and `Origin`, which keeps pages of other sites away from a service without API keys.

A browser on this machine can reach the service, and so can every page that it shows: by submitting a form, or by DNS
rebinding, in which the page's own host name resolves to this machine. Until the first key is created, `Host` must
therefore name this machine, and a request from a page must come from the service's own page: its `Origin` has the same
host and port as `Host`. The same host with another port is another site. Browsers send no `Origin` when a page embeds
an image or a script; then `Sec-Fetch-Site` says where the page is from. `TRUSTED_HOSTS` and `ALLOWED_ORIGINS` add
exceptions. A service with keys does not need the check, because pages of other sites do not know a key.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Annotated

from pydantic import BeforeValidator
from pydantic_settings import NoDecode
from starlette.datastructures import Headers

_NAME = r"(?:\[[0-9a-f:.]+\]|[0-9a-z_.-]+)"
_HOST = re.compile(rf"({_NAME})(?::[0-9]{{1,5}})?")
_ORIGIN = re.compile(rf"https?://{_NAME}(?::[0-9]{{1,5}})?")


def is_loopback(host: str) -> bool:
    """Return whether a socket bound to `host`, an address or a name, can be reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _split(value: object, pattern: str, form: str) -> object:
    """Return the set of entries of a comma-separated setting. Raises ValueError unless each matches `pattern`."""
    if not isinstance(value, str):
        return value
    entries = {part.strip().lower() for part in value.split(",")} - {""}
    for entry in entries:
        if not re.fullmatch(pattern, entry):
            raise ValueError(f"{entry} is not {form}")
    return frozenset(entries)


TrustedHosts = Annotated[
    frozenset[str], NoDecode, BeforeValidator(lambda value: _split(value, _NAME, "a host name without a port"))
]
"""A setting, written `host,…`."""
AllowedOrigins = Annotated[
    frozenset[str], NoDecode, BeforeValidator(lambda value: _split(value, _ORIGIN.pattern, "scheme://host[:port]"))
]
"""A setting, written `scheme://host[:port],…`."""


@dataclass(frozen=True)
class OriginCheck:
    """Decides whether a request without an API key may come from a browser on this machine, or from no browser."""

    trusted_hosts: frozenset[str] = frozenset()
    allowed_origins: frozenset[str] = frozenset()

    def admits(self, headers: Headers) -> bool:
        """Return whether the request has one `Host`, which is trusted, and at most one `Origin`, which is allowed."""
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or len(origins) > 1:
            return False
        host = hosts[0].lower()
        if not self._trusts(host) or not all(self._allows(origin.lower(), host) for origin in origins):
            return False
        return bool(origins) or not _is_embedded_by_another_site(headers)

    def _trusts(self, host: str) -> bool:
        match = _HOST.fullmatch(host)
        return match is not None and (match[1] in self.trusted_hosts or is_loopback(match[1].strip("[]")))

    def _allows(self, origin: str, host: str) -> bool:
        return origin in {f"http://{host}", f"https://{host}"} | self.allowed_origins


def _is_embedded_by_another_site(headers: Headers) -> bool:
    """Return whether a browser sends the request for a page of another site, and not because a link was followed."""
    if headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return False
    return headers.get("sec-fetch-dest") != "document"
