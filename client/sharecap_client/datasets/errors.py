"""The error of everything that works on a data set."""

from sharecap_client.errors import SharecapError


class StoreError(SharecapError):
    """The directory is not a store, is in use, or does not fit the request. `detail` says what to do."""
