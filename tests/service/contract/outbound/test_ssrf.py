"""SSRF rules: which URLs are refused by their text alone, and which addresses are public."""

import pytest
from pydantic import TypeAdapter, ValidationError
from yarl import URL

from service.contract.errors import UrlForbidden
from service.contract.outbound.ssrf import PORTS, Hosts, check_url, is_public

HOSTS: TypeAdapter[frozenset[tuple[str, int]]] = TypeAdapter(Hosts)

PRIVATE = [
    *("0.0.0.0", "10.0.0.1", "100.64.0.1", "127.0.0.1", "169.254.169.254", "172.16.0.1", "192.168.1.1"),
    *("168.63.129.16", "192.0.0.8", "192.0.2.1", "192.88.99.1", "198.18.0.1", "224.0.1.1", "240.0.0.1"),
    "255.255.255.255",
    *("::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"),
    *("64:ff9b:1::8.8.8.8", "100::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1"),
    *("2002:7f00:1::", "2002:808:808::", "3fff::1", "5f00::1", "fc00::1", "fe80::1", "fec0::1", "ff02::1", "ff0e::1"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses_are_refused(address: str) -> None:
    assert not is_public(address)
    with pytest.raises(UrlForbidden, match="public internet"):
        check_url(f"http://[{address}]/" if ":" in address else f"http://{address}/")


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.215.14", "192.0.1.1", "2606:4700:4700::1111", "2a00:1450::1"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


REFUSED = [
    ("ftp://example.com/a.mp4", "Only http:// and https://"),
    ("file:///etc/passwd", "Only http:// and https://"),
    ("//example.com/a.mp4", "Only http:// and https://"),
    ("example.com", "Only http:// and https://"),
    ("http:///a.mp4", "Only http:// and https://"),
    ("http://user:secret@example.com/", "password"),
    ("https://user@example.com/", "password"),
    ("http://127.0.0.1%2f@example.com/", "password"),
    ("http://example.com:8080/", "ports 80 and 443"),
    ("http://example.com:0/", "ports 80 and 443"),
    ("http://example.com:22/", "ports 80 and 443"),
    ("http://example.com:99999/", "not a valid URL"),
    ("http://example.com/a b", "not a valid URL"),
    ("http://example.com/\r\nHost: x", "not a valid URL"),
    ("http://example.com\\@127.0.0.1/", "not a valid URL"),
    ("http://[::1/", "not a valid URL"),
    ("http://[fe80::1%25eth0]/", "public internet"),
    ("http://localhost/", "public internet"),
    ("http://LOCALHOST./", "public internet"),
    ("http://api.localhost/", "public internet"),
    ("http://2130706433/", "public internet"),
    ("http://0x7f000001/", "public internet"),
    ("http://0177.0.0.1/", "public internet"),
    ("http://127.1/", "public internet"),
    ("http://127.0.0.1./", "public internet"),
    ("http://１２７.0.0.1/", "public internet"),
    ("http://example.com/" + "a" * 2048, "longer than 2048"),
    ("", "Only http:// and https://"),
]


@pytest.mark.parametrize(("text", "detail"), REFUSED, ids=lambda text: text[:40])
def test_refused_urls(text: str, detail: str) -> None:
    with pytest.raises(UrlForbidden, match=detail):
        check_url(text)


def test_accepted_urls_are_normalised() -> None:
    assert check_url("HTTP://Example.COM/a%20b.mp4?x=1#t=3") == URL("http://example.com/a%20b.mp4?x=1")
    assert check_url("https://bücher.example:443/ä").raw_host == "xn--bcher-kva.example"
    assert check_url("http://[2606:4700:4700::1111]/").port == 80


def test_allowed_hosts_open_only_the_listed_ports() -> None:
    hosts = HOSTS.validate_python(" files.internal:9000, [::1]:8080,media.lan ,")
    assert hosts == {("files.internal", 9000), ("::1", 8080), *(("media.lan", port) for port in PORTS)}
    for text in ("http://files.internal:9000/a", "http://[::1]:8080/", "https://MEDIA.lan./"):
        check_url(text, hosts)
    for text in ("http://files.internal:9001/", "http://[::1]/", "http://media.lan:8080/", "http://x.media.lan:81/"):
        with pytest.raises(UrlForbidden):
            check_url(text, hosts)
    with pytest.raises(UrlForbidden):
        check_url("http://user@files.internal:9000/", hosts)


@pytest.mark.parametrize("value", ["http://a.example", "a.example:http", "a.example/path", "user@a.example", "[::1"])
def test_an_invalid_allowed_hosts_setting_is_refused(value: str) -> None:
    with pytest.raises(ValidationError, match="is not host"):
        HOSTS.validate_python(value)
