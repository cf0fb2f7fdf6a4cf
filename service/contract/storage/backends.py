"""Selects the storage backend of a process. The local data directory is the only one so far."""

from service.contract.settings import SharedSettings
from service.contract.storage.interface import Storage
from service.contract.storage.local import LocalStorage


def open_storage(settings: SharedSettings) -> Storage:
    """Return the storage that the settings select."""
    return LocalStorage(settings.data_dir, settings.min_free_bytes)
