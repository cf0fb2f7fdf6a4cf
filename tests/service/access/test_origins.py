"""Without API keys, requests must name a loopback host and must not come from pages of other sites."""

from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError
from starlette.datastructures import Headers

from service.access.origins import OriginCheck
from service.settings import Settings
from tests.service.scripted import Serve

SELF = "http://localhost:8000"


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


@pytest.mark.parametrize("allow_public_bind", [False, True])
@pytest.mark.parametrize(
    ("headers", "admitted"),
    [
        ([], True),
        ([("Host", "localhost:8000")], True),
        ([("Host", "LOCALHOST:8000"), ("Origin", SELF)], True),
        ([("Host", "[::1]:8000"), ("Origin", "http://[::1]:8000")], True),
        ([("Host", "localhost"), ("Origin", "https://localhost")], True),
        ([("Host", "evil.example:8000")], False),
        ([("Host", "evil.example:8000"), ("Origin", "http://evil.example:8000")], False),
        ([("Host", "evil.example:bad:8000")], False),
        ([("Host", "evil.example@localhost:8000")], False),
        ([("Host", "localhost.evil.example")], False),
        ([("Host", "localhost:8000"), ("Origin", "https://evil.example")], False),
        ([("Host", "localhost:8000"), ("Origin", "null")], False),
        ([("Host", "localhost:8000"), ("Origin", "")], False),
        ([("Host", "localhost:8000"), ("Origin", "http://localhost:3000")], False),
        ([("Host", "localhost:8000"), ("Origin", "http://localhost")], False),
        ([("Host", "localhost:8000"), ("Origin", "http://127.0.0.1:8000")], False),
        ([("Host", "localhost:8000"), ("Origin", "file://localhost:8000")], False),
        ([("Host", "localhost:8000"), ("Origin", SELF), ("Origin", "https://evil.example")], False),
    ],
)
async def test_only_the_services_own_page_is_admitted(
    serve: Serve, headers: list[tuple[str, str]], admitted: bool, allow_public_bind: bool
) -> None:
    async with serve(allow_public_bind=allow_public_bind) as gateway:
        listed = await gateway.client.get("/captions", headers=headers)
        posted = await gateway.client.post("/captions", headers=headers, data={"file": "x"})
    assert (listed.status_code, posted.status_code) == ((200, 415) if admitted else (401, 401))


@pytest.mark.parametrize(
    ("fetch", "admitted"),
    [
        ({"site": "cross-site", "mode": "no-cors"}, False),
        ({"site": "same-site", "mode": "no-cors"}, False),
        ({"site": "cross-site"}, False),
        ({"site": "same-origin", "mode": "no-cors"}, True),
        ({"site": "none", "mode": "navigate", "dest": "document"}, True),
        ({"site": "cross-site", "mode": "navigate", "dest": "document"}, True),
        ({"site": "cross-site", "mode": "navigate", "dest": "iframe"}, False),
    ],
)
def test_pages_of_other_sites_cannot_embed_anything(fetch: dict[str, str], admitted: bool) -> None:
    """Browsers send no `Origin` for images, scripts and `fetch` with the mode `no-cors`. A link may be followed."""
    headers = Headers({"host": "localhost:8000", **{f"sec-fetch-{name}": value for name, value in fetch.items()}})
    assert OriginCheck().admits(headers) is admitted


def test_an_allowed_origin_is_another_site() -> None:
    headers = {"host": "localhost:8000", "origin": "https://app.example", "sec-fetch-site": "cross-site"}
    assert OriginCheck(allowed_origins=frozenset({"https://app.example"})).admits(Headers(headers))
    assert not OriginCheck().admits(Headers(headers))


def test_a_repeated_or_missing_host_is_refused() -> None:
    local, foreign = (b"host", b"localhost:8000"), (b"host", b"evil.example")
    assert OriginCheck().admits(Headers(raw=[local]))
    for raw in ([], [local, foreign], [foreign, local], [local, local]):
        assert not OriginCheck().admits(Headers(raw=raw))


async def test_a_form_of_another_site_creates_no_job(serve: Serve, clip: Path) -> None:
    async with serve(allow_public_bind=True) as gateway:
        for origin in ("https://evil.example", "null", "http://localhost:3000"):
            answer = await gateway.client.post(
                "/captions", headers={"Origin": origin, "Host": "localhost:8000"}, files={"file": clip.read_bytes()}
            )
            assert code(answer) == (401, "unauthorized")
        assert (await gateway.client.get("/captions")).json()["jobs"] == []
        assert gateway.files == []


async def test_settings_admit_other_hosts_and_origins(serve: Serve) -> None:
    async with serve(trusted_hosts="captions.example", allowed_origins="https://app.example") as gateway:

        async def status(host: str, origin: str | None = None) -> int:
            headers = {"Host": host} | ({"Origin": origin} if origin else {})
            return (await gateway.client.get("/captions", headers=headers)).status_code

        assert await status("captions.example") == await status("Captions.Example:8443") == 200
        assert await status("captions.example", "https://captions.example") == 200
        assert await status("captions.example", "https://app.example") == 200
        assert await status("localhost:8000", "https://app.example") == 200
        assert await status("captions.example", "http://app.example") == 401
        assert await status("app.example", "https://app.example") == 401
        assert await status("captions.example", "http://localhost:8000") == 401


@pytest.mark.parametrize(
    "values",
    [
        {"trusted_hosts": "captions.example:8000"},
        {"trusted_hosts": "*"},
        {"trusted_hosts": "http://captions.example"},
        {"allowed_origins": "captions.example"},
        {"allowed_origins": "https://captions.example/"},
        {"allowed_origins": "null"},
        {"allowed_origins": "*"},
    ],
)
def test_settings_that_would_not_work_are_refused(values: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="is not"):
        Settings.model_validate(values)


def test_the_environment_sets_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUSTED_HOSTS", " captions.example, [fd00::1] ,")
    monkeypatch.setenv("ALLOWED_ORIGINS", "https://app.example, http://localhost:3000")
    settings = Settings()
    assert settings.trusted_hosts == {"captions.example", "[fd00::1]"}
    assert settings.allowed_origins == {"https://app.example", "http://localhost:3000"}
