"""Whose connection is counted: addresses, IPv6 networks, and clients behind trusted proxies."""

import pytest
from pydantic import ValidationError

from service.connections.addresses import client_of, forwarded_client, is_trusted
from service.settings import Settings


def test_ipv6_addresses_of_one_network_are_one_client() -> None:
    assert client_of("2001:db8::1") == client_of("2001:db8::ffff:1") != client_of("2001:db8:0:1::1")
    assert client_of("::ffff:192.0.2.1") == client_of("192.0.2.1") != client_of("192.0.2.2")
    assert client_of("fe80::1%eth0") == "fe80::/64"
    assert client_of("not an address") == "not an address"


def test_the_last_address_that_is_not_a_proxy_is_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUSTED_PROXIES", "127.0.0.1, 10.0.0.0/8")
    proxies = Settings().trusted_proxies
    assert is_trusted("10.1.2.3", proxies) and is_trusted("::ffff:10.1.2.3", proxies)
    assert not is_trusted("11.0.0.1", proxies) and not is_trusted("", proxies)
    for value, client in (
        ("192.0.2.1", "192.0.2.1"),
        ("198.51.100.9, 192.0.2.1", "192.0.2.1"),  # the client wrote the first address itself
        ("192.0.2.1, 10.0.0.7", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("unknown", "unknown"),
        ("10.0.0.7", None),
        (" , ", None),
    ):
        assert forwarded_client([(b"x-forwarded-for", value.encode())], proxies) == client, value
    separate = [(b"x-forwarded-for", b"198.51.100.9"), (b"host", b"x"), (b"x-forwarded-for", b"192.0.2.1")]
    assert forwarded_client(separate, proxies) == "192.0.2.1"
    assert forwarded_client([], proxies) is None


def test_no_proxy_is_trusted_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings().trusted_proxies == ()
    monkeypatch.setenv("TRUSTED_PROXIES", "example.com")
    with pytest.raises(ValidationError):
        Settings()
