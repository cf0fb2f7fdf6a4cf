"""A trailing slash redirects relative to the requested path, whatever host the client names."""

from urllib.parse import urljoin

import pytest

from tests.service.scripted import Serve, Served


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/captions/", "/captions"),
        ("/captions/?limit=2&kind=clip", "/captions?limit=2&kind=clip"),
        ("/captions/a%20b:c/", "/captions/a%20b%3Ac"),
        ("/captions/x/events/", "/captions/x/events"),
        ("/healthz/", "/healthz"),
    ],
)
async def test_a_redirect_stays_on_the_host(serve: Serve, path: str, target: str) -> None:
    async with serve(trusted_hosts="evil.example") as gateway:
        answer = await gateway.client.get(path, headers={"Host": "evil.example"})
    location = answer.headers["location"]
    assert answer.status_code == 307 and location.startswith("../") and "evil" not in location
    for base in ("https://captions.example", "https://captions.example/behind/a/proxy"):
        assert urljoin(base + path, location) == base + target


@pytest.mark.parametrize("path", ["/nowhere/", "//evil.example/", "/captions//", "/web/a/b/"])
async def test_unknown_paths_are_not_redirected(gateway: Served, path: str) -> None:
    answer = await gateway.client.get(gateway.url + path)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_a_redirected_post_keeps_its_method(gateway: Served) -> None:
    answer = await gateway.client.post("/recaption/", json={"prompt": "A fox"}, headers={"Prefer": "wait=0"})
    assert (answer.status_code, answer.headers["location"]) == (307, "../recaption")
