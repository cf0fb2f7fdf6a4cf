"""The bounds on open connections, and which connection makes room for another."""

import pytest
from prometheus_client import CollectorRegistry, Counter

from service.connections.table import ConnectionTable


class FakeConnection:
    def __init__(self, name: str) -> None:
        self.name, self.dropped, self.checked_at = name, False, 0.0

    def drop(self) -> None:
        self.dropped = True

    def check(self, now: float) -> None:
        self.checked_at = now


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def table(registry: CollectorRegistry) -> ConnectionTable:
    return ConnectionTable(4, 2, Counter("closed", "…", ["reason"], registry=registry))


def admit(table: ConnectionTable, name: str, client: str | None, *, busy: bool = False) -> FakeConnection:
    connection = FakeConnection(name)
    assert table.admit(connection, client)
    if busy:
        table.set_busy(connection)
    return connection


def test_a_client_at_its_bound_loses_its_own_oldest_idle_connection(table: ConnectionTable) -> None:
    other = admit(table, "other", "b")
    busy, idle = admit(table, "busy", "a", busy=True), admit(table, "idle", "a")
    newest = admit(table, "newest", "a")
    assert idle.dropped and not (busy.dropped or other.dropped or newest.dropped)
    assert len(table) == 3


def test_when_the_table_is_full_the_connection_that_is_idle_longest_makes_room(table: ConnectionTable) -> None:
    connections = [admit(table, name, name) for name in "abcd"]
    table.set_busy(connections[0])
    table.set_busy(connections[1])
    table.set_idle(connections[0])  # idle again, but for a shorter time than c and d
    for name in "efg":
        admit(table, name, name)
    assert [connection.name for connection in connections if connection.dropped] == ["a", "c", "d"]
    assert len(table) == 4


def test_a_new_connection_is_refused_while_all_are_busy(table: ConnectionTable, registry: CollectorRegistry) -> None:
    connections = [admit(table, name, name, busy=True) for name in "abcd"]
    assert not table.admit(FakeConnection("e"), "e")
    assert not any(connection.dropped for connection in connections)
    assert registry.get_sample_value("closed_total", {"reason": "refused"}) == 1
    table.remove(connections[0])
    table.remove(connections[0])
    assert table.admit(FakeConnection("f"), "f")


def test_connections_of_a_proxy_count_for_the_client_of_their_request(table: ConnectionTable) -> None:
    proxied = [admit(table, name, None) for name in "abc"]
    assert table.reassign(proxied[0], "client") and table.reassign(proxied[1], "client")
    for connection in proxied:
        table.set_busy(connection)
    assert not table.reassign(proxied[2], "client"), "the client has two requests in progress"
    assert table.reassign(proxied[2], "another client")
    assert table.reassign(proxied[0], None) and table.reassign(proxied[2], "client")


def test_every_connection_is_checked(table: ConnectionTable) -> None:
    connections = [admit(table, name, name) for name in "ab"]
    table.remove(connections[0])
    table.check(5.0)
    assert [connection.checked_at for connection in connections] == [0.0, 5.0]
