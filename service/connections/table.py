"""The table of open connections: bounds them in all and per client, and finds those that are too slow.

A connection is `idle` while no request of it is in progress: its head is incomplete, or it waits for the next request.
When a bound is reached, the connection that has been idle longest is closed in favour of the new one, so slow clients
cannot keep others out. If all are busy, the new connection is closed.
"""

from typing import Protocol

from prometheus_client import Counter


class BoundedConnection(Protocol):
    """What the table needs of a connection."""

    def drop(self) -> None:
        """Close the connection at once."""

    def check(self, now: float) -> None:
        """Close the connection if its client is too slow. `now` is the event loop's time."""


class ConnectionTable:
    """All open connections of this process. `most` and `most_per_client` are the bounds."""

    def __init__(self, most: int, most_per_client: int, closed: Counter) -> None:
        self._most, self._most_per_client, self._closed = most, most_per_client, closed
        self._clients: dict[BoundedConnection, str | None] = {}
        self._idle: dict[BoundedConnection, None] = {}
        self._by_client: dict[str, dict[BoundedConnection, None]] = {}

    def __len__(self) -> int:
        return len(self._clients)

    def admit(self, connection: BoundedConnection, client: str | None) -> bool:
        """Add a new, idle connection, and close another one if a bound is reached.

        Returns False if the bound is reached and no connection can be closed; then the caller closes the new one. A
        connection without a `client`, such as one of a trusted proxy, counts towards the bound in all only.
        """
        if not (self._has_room_for(client) and self._has_room()):
            self.count_closed("refused")
            return False
        self._clients[connection] = None
        self._idle[connection] = None
        self._assign(connection, client)
        return True

    def set_idle(self, connection: BoundedConnection) -> None:
        """Note that no request is in progress on this connection."""
        if connection in self._clients:
            self._idle[connection] = None

    def set_busy(self, connection: BoundedConnection) -> None:
        """Note that a request is in progress on this connection, so it is not closed in favour of others."""
        self._idle.pop(connection, None)

    def reassign(self, connection: BoundedConnection, client: str | None) -> bool:
        """Count the connection for another client. Returns False if that client has reached its bound."""
        if connection not in self._clients or self._clients[connection] == client:
            return True
        if not self._has_room_for(client):
            self.count_closed("refused")
            return False
        self._unassign(connection)
        self._assign(connection, client)
        return True

    def remove(self, connection: BoundedConnection) -> None:
        """Remove a closed connection. Removing it again has no effect."""
        if connection in self._clients:
            self._unassign(connection)
            del self._clients[connection]
            self._idle.pop(connection, None)

    def check(self, now: float) -> None:
        """Close all connections whose clients are too slow. Called at regular intervals."""
        for connection in list(self._clients):
            connection.check(now)

    def count_closed(self, reason: str) -> None:
        """Count a connection that the gateway closes because of its client."""
        self._closed.labels(reason).inc()

    def _has_room(self) -> bool:
        return len(self._clients) < self._most or self._drop(next(iter(self._idle), None))

    def _has_room_for(self, client: str | None) -> bool:
        own = self._by_client.get(client, {}) if client else {}
        if len(own) < self._most_per_client:
            return True
        return self._drop(next((connection for connection in own if connection in self._idle), None))

    def _drop(self, connection: BoundedConnection | None) -> bool:
        if connection is None:
            return False
        self.remove(connection)
        self.count_closed("displaced")
        connection.drop()
        return True

    def _assign(self, connection: BoundedConnection, client: str | None) -> None:
        self._clients[connection] = client
        if client is not None:
            self._by_client.setdefault(client, {})[connection] = None

    def _unassign(self, connection: BoundedConnection) -> None:
        client = self._clients[connection]
        if client is not None:
            del self._by_client[client][connection]
            if not self._by_client[client]:
                del self._by_client[client]
