"""What an operator may set, read once from the environment at the process's start."""

import ipaddress
from base64 import b64decode
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.contract.outbound.ssrf import Hosts
from service.contract.sandbox.probe import Limits

GIB = 1 << 30
SECRET_PREFIX = "whsec_"


class Settings(BaseSettings):
    """Every name is an environment variable, in capitals: `MAX_UPLOAD_BYTES=…`."""

    model_config = SettingsConfigDict(frozen=True, hide_input_in_errors=True)

    redis_url: str = "redis://127.0.0.1:6379/0"
    redis_patience_s: Annotated[float, Field(ge=0)] = 8.0
    """How long a request waits for a Redis that does not answer, before it is told `queue_unavailable`."""
    data_dir: Path = Path("data")
    """Uploads and keyframes; the workers must see the same directory."""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    allow_public_bind: bool = False
    """Let `host` be more than loopback though there is no API key, for something else keeps strangers out: a proxy,
    a container's network."""

    max_upload_bytes: Annotated[int, Field(gt=0)] = 4 * GIB
    max_duration_s: Annotated[float, Field(gt=0)] = 12 * 3600.0
    max_pixels: Annotated[int, Field(gt=0)] = 8192 * 4352
    """Width times height of one frame."""
    max_keyframes: Annotated[int, Field(ge=1, le=100_000)] = 2000
    """The cap on `max_keyframes`, and its default."""
    max_deadline_s: Annotated[float, Field(gt=0)] = 24 * 3600.0
    """The cap on `deadline_s`, and its default: no job goes on for longer."""
    min_free_bytes: Annotated[int, Field(ge=0)] = GIB
    """An upload that would leave less room on the data directory's disk is refused."""
    allowed_hosts: Hosts = frozenset()
    """`host[:port],…`: URLs may lead there though it is no public address, or another port than 80 and 443."""
    webhook_secret: SecretStr | None = None
    """What webhooks are signed with: `whsec_…`, or several with spaces between, while one follows another."""
    retention_s: Annotated[float, Field(ge=0)] = 7 * 24 * 3600.0
    """An ended job, with all of its results, goes so long after its end; 0: it stays until it is deleted."""
    probe_timeout_s: Annotated[float, Field(gt=0)] = 20.0
    heartbeat_s: Annotated[float, Field(gt=0)] = 15.0
    """A comment goes out on a silent event stream this often."""
    unread_s: Annotated[float, Field(ge=1, le=3600)] = 20.0
    """A client that leaves what was sent to it unread for so long is cut off."""

    @field_validator("webhook_secret")
    @classmethod
    def _are_secrets(cls, told: SecretStr | None) -> SecretStr | None:
        secrets = told.get_secret_value().split() if told else []
        for secret in secrets:
            try:
                size = len(b64decode(secret.removeprefix(SECRET_PREFIX), validate=True))
            except ValueError:
                size = 0
            if not (secret.startswith(SECRET_PREFIX) and 24 <= size <= 64):
                raise ValueError(f"a secret is {SECRET_PREFIX} and the base64 text of 24 to 64 random bytes")
        return told if secrets else None

    @property
    def video_limits(self) -> Limits:
        return Limits(self.max_pixels, self.max_duration_s, self.probe_timeout_s)

    @property
    def local(self) -> bool:
        """Whether only this machine is meant to reach the service, and no proxy on it is said to stand before it."""
        return is_loopback(self.host) and not self.allow_public_bind

    @property
    def exposed(self) -> bool:
        """Whether others than this machine may reach the service, with nothing but keys to keep them out."""
        return not (self.allow_public_bind or is_loopback(self.host))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a socket bound to `host`, an address or a name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
