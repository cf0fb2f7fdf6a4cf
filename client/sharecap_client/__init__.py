"""Python client of the sharecap video captioning service."""

from sharecap_client.api import AsyncClient, RequestFailed

__all__ = ["AsyncClient", "RequestFailed"]
