"""Lets fsspec, which reads inputs and videos, open `s3://` with pyarrow, so that `s3fs` need not be installed."""

import os
from importlib.util import find_spec
from typing import Any

import fsspec
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow.fs import S3FileSystem


class ArrowS3(ArrowFSWrapper):  # type: ignore[misc]
    """S3 through pyarrow, with the keys, the region and the endpoint in the environment (`AWS_ENDPOINT_URL`)."""

    protocol = "s3"

    def __init__(self, **_: Any) -> None:
        super().__init__(fs=S3FileSystem(endpoint_override=os.environ.get("AWS_ENDPOINT_URL")))

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        """Return the path without a slash at its end, which would become a part of the names below it."""
        return str(super()._strip_protocol(path)).rstrip("/")


def use_pyarrow_for_s3() -> None:
    """Make this process open `s3://` with pyarrow, unless `s3fs` is installed."""
    if find_spec("s3fs") is None:
        fsspec.register_implementation("s3", ArrowS3, clobber=True)
