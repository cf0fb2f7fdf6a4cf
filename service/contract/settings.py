"""Settings that the gateway and the workers both read, declared once.

Both processes subclass `SharedSettings`. A setting declared here has the same name and default in both; the operator
must give both processes the same value.

A secret need not be in the environment: `SECRETS_DIR` names directories, separated by colons, in which the file
`redis_url` contains `REDIS_URL`, and likewise for every other setting. The environment takes precedence.
"""

import os
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from service.contract.jobs import MAX_KEYFRAMES_LIMIT
from service.contract.outbound.ssrf import Hosts
from service.contract.sandbox.formats import CODECS, FORMATS
from service.contract.sandbox.probe import VideoLimits

GIB = 1 << 30
WORKER_ADVICE = "Workers and their commands need the packages in requirements/cpu.txt or requirements/gpu.txt."
"""Shown if a package of the worker is not installed."""


def split_names(value: object) -> object:
    """Return the names in `name,…`; another value unchanged."""
    return frozenset(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


def check_names(kind: str, known: Collection[str], names: frozenset[str]) -> frozenset[str]:
    """Return `names` if all are known and there is at least one. Raises ValueError."""
    if unknown := names - set(known):
        raise ValueError(f"no {kind} is named {', '.join(sorted(unknown))}; the names are {', '.join(known)}")
    if not names:
        raise ValueError(f"at least one {kind} must be accepted")
    return names


Names = Annotated[frozenset[str], NoDecode, BeforeValidator(split_names)]
"""A setting, written `name,…`."""


class RedisSettings(BaseSettings):
    """Each field is read from the environment variable of the same name in capitals, or from a file of that name."""

    model_config = SettingsConfigDict(frozen=True, use_attribute_docstrings=True)

    redis_url: str = "redis://127.0.0.1:6379/0"
    """URL of the Redis or Valkey server: `redis://[user:password@]host[:port]/database`."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        directories: list[Path | str] = [name for name in os.environ.get("SECRETS_DIR", "").split(os.pathsep) if name]
        return init_settings, env_settings, SecretsSettingsSource(settings_cls, directories or None)


def configured_redis_url() -> str | None:
    """Return the value of the setting `redis_url`, None if neither the environment nor a file contains it."""
    settings = RedisSettings()
    return settings.redis_url if "redis_url" in settings.model_fields_set else None


class SharedSettings(RedisSettings):
    """Settings of both processes."""

    data_dir: Path = Path("data")
    """Directory of uploads and keyframes; the gateway and the workers must see the same directory."""

    max_upload_bytes: Annotated[int, Field(gt=0)] = 4 * GIB
    """Maximum size of a video file, uploaded or fetched from a URL."""
    max_duration_s: Annotated[float, Field(gt=0)] = VideoLimits.max_duration_s
    """Maximum length of a video in seconds."""
    max_pixels: Annotated[int, Field(gt=0)] = VideoLimits.max_pixels
    """Maximum width times height of a frame."""
    formats: Annotated[Names, AfterValidator(partial(check_names, "format", FORMATS))] = frozenset(FORMATS)
    """Accepted containers, `name,…`: names of `FORMATS` in `sandbox/formats.py`. Other files are refused unopened."""
    codecs: Annotated[Names, AfterValidator(partial(check_names, "codec", CODECS))] = frozenset(CODECS)
    """Accepted video codecs, likewise."""
    probe_timeout_s: Annotated[float, Field(gt=0)] = VideoLimits.wall_s
    """Time limit for opening a video and reading its properties."""
    max_keyframes: Annotated[int, Field(ge=1, le=MAX_KEYFRAMES_LIMIT)] = 2000
    """Upper bound of the option `max_keyframes`, and its default."""
    min_free_bytes: Annotated[int, Field(ge=0)] = GIB
    """Reserve on the disk of `data_dir`: no job is accepted and no video stored that would leave less free space.
    Keyframes of accepted jobs may use half of the reserve; the rest is for the Redis server's file."""
    allowed_hosts: Hosts = frozenset()
    """`host[:port],…`: these hosts may be fetched even if their address is private or their port is not 80 or 443."""

    @property
    def video_limits(self) -> VideoLimits:
        return VideoLimits(self.max_pixels, self.max_duration_s, self.probe_timeout_s, self.formats, self.codecs)
