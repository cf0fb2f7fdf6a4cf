"""The gateway's settings, read once from the environment when the process starts."""

from base64 import b64decode
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from service.access.origins import AllowedOrigins, TrustedHosts, is_loopback
from service.connections.addresses import Networks
from service.contract.settings import SharedSettings

SECRET_PREFIX = "whsec_"


class Settings(SharedSettings):
    """Settings of the gateway, in addition to those that it shares with the workers."""

    model_config = SettingsConfigDict(frozen=True, hide_input_in_errors=True)

    redis_patience_s: Annotated[float, Field(ge=0)] = 8.0
    """How long a request waits for an unreachable Redis before it fails with `queue_unavailable`."""
    host: str = "127.0.0.1"
    """Address to listen on. Other addresses than loopback need an API key or `ALLOW_PUBLIC_BIND`."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """TCP port to listen on; 0 selects a free one."""
    allow_public_bind: bool = False
    """Allow a `host` other than loopback without any API key. Set this only if something else restricts access, such
    as a proxy or a container network."""
    trusted_hosts: TrustedHosts = frozenset()
    """`host,…`: names besides loopback's under which the service may be addressed while no API key exists."""
    allowed_origins: AllowedOrigins = frozenset()
    """`scheme://host[:port],…`: other sites whose pages may send requests while no API key exists."""

    cors_origins: AllowedOrigins = frozenset()
    """`scheme://host[:port],…`: other sites whose pages may use the API, with an API key or, while no key exists,
    without one. Their scripts may read the responses (CORS)."""

    max_deadline_s: Annotated[float, Field(gt=0)] = 24 * 3600.0
    """Upper bound of the option `deadline_s`, and its default."""
    webhook_secret: SecretStr | None = None
    """Secret that signs webhooks: `whsec_…`. Several secrets, separated by spaces, allow rotation."""
    retention_s: Annotated[float, Field(ge=0)] = 7 * 24 * 3600.0
    """Time after its end at which a job is deleted with all its results. 0 keeps jobs until a client deletes them."""
    text_retention_s: Annotated[float, Field(ge=0)] = 24 * 3600.0
    """The same for recaptions and clips, which are not kept longer than `retention_s` either."""
    heartbeat_s: Annotated[float, Field(gt=0)] = 15.0
    """Interval of the comments sent on an event stream without events."""
    unread_s: Annotated[float, Field(ge=1, le=3600)] = 20.0
    """A client that does not read data sent to it for this long is disconnected."""

    max_connections: Annotated[int, Field(ge=16)] = 4096
    """Open connections in all, and at most half of the limit on open files (`ulimit -n`). When the bound is reached, a
    new connection replaces the one that has waited longest without a request in progress."""
    max_connections_per_address: Annotated[int, Field(ge=1)] = 1024
    """Open connections of one client address, or of one IPv6 /64 network; at most half of all connections."""
    trusted_proxies: Networks = ()
    """`address-or-network,…`: connections from these proxies do not count towards `max_connections_per_address`.
    Instead, requests in progress count for the client that `X-Forwarded-For` names. Never list addresses from which
    clients connect directly."""
    head_timeout_s: Annotated[float, Field(ge=0.1, le=600)] = 10.0
    """A connection is closed if a request head is incomplete this long after its first byte, or if a new connection
    sends no request in this time."""
    idle_timeout_s: Annotated[int, Field(ge=1, le=3600)] = 5
    """A connection without a request is closed this long after the last response. Behind a proxy, use a longer time
    than the proxy's."""
    min_bytes_per_s: Annotated[int, Field(ge=1)] = 1024
    """Least rate at which a client must send a request body and take a response while data is waiting."""
    rate_window_s: Annotated[float, Field(ge=0.1, le=3600)] = 20.0
    """The time over which `min_bytes_per_s` is judged."""

    @field_validator("webhook_secret")
    @classmethod
    def _check_secrets(cls, value: SecretStr | None) -> SecretStr | None:
        secrets = value.get_secret_value().split() if value else []
        if not all(_is_webhook_secret(secret) for secret in secrets):
            raise ValueError(f"a secret consists of {SECRET_PREFIX} and 24 to 64 random bytes in base64")
        return value if secrets else None

    @property
    def exposed(self) -> bool:
        """Whether other machines can reach the service and only API keys restrict access."""
        return not (self.allow_public_bind or is_loopback(self.host))


def _is_webhook_secret(text: str) -> bool:
    try:
        size = len(b64decode(text.removeprefix(SECRET_PREFIX), validate=True))
    except ValueError:
        return False
    return text.startswith(SECRET_PREFIX) and 24 <= size <= 64
