"""Python client of the sharecap video captioning service."""

from sharecap_client.api import Client, RequestFailed

__all__ = ["Client", "RequestFailed"]
