"""Tokens that can read one job, and the sites whose pages may use the API."""

import logging
from pathlib import Path

import pytest

from service.access.api_keys import ApiKeyStore, KeyLimits
from service.contract.store.keys import token_key
from service.contract.store.store import Store
from tests.service.scripted import Serve, Served

SITE = "https://gallery.example"


@pytest.fixture
async def keys(gateway: Served, store: Store) -> ApiKeyStore:
    """The API keys of a service that has one, which the client sends."""
    keys = ApiKeyStore(store.redis)
    _, text = await keys.add("owner", KeyLimits())
    gateway.client.headers["Authorization"] = f"Bearer {text}"
    return keys


async def new_job(gateway: Served) -> str:
    answer = await gateway.client.post("/recaption", json={"prompt": "a fox"}, headers={"Prefer": "wait=0"})
    return str(answer.json()["id"])


async def status(gateway: Served, path: str, token: str, method: str = "GET") -> int:
    """Return the status of a request that has only a token."""
    headers = {name: value for name, value in gateway.client.headers.items() if name != "authorization"}
    request = gateway.client.build_request(method, path, params={"token": token})
    request.headers.clear()
    request.headers.update({**headers, "host": gateway.url.removeprefix("http://")})
    return (await gateway.client.send(request)).status_code


async def test_a_token_reads_one_job_and_nothing_else(gateway: Served, keys: ApiKeyStore) -> None:
    job, other = await new_job(gateway), await new_job(gateway)
    token = (await gateway.client.post(f"/captions/{job}/token")).json()["token"]
    assert await status(gateway, f"/captions/{job}", token) == 200
    assert await status(gateway, f"/captions/{job}/clips", token) == 200
    assert await status(gateway, f"/captions/{job}/video", token) == 404  # admitted, but the video was not kept
    refused = [("GET", f"/captions/{other}"), ("GET", "/captions"), ("GET", "/metrics"), ("DELETE", f"/captions/{job}")]
    refused += [("POST", f"/captions/{job}/{action}") for action in ("cancel", "clips", "token")]
    for method, path in refused:
        assert await status(gateway, path, token, method) == 401, (method, path)
    for wrong in ("", "sct_", f"sct_{'0' * 64}", token[:-1], f"{token}0"):
        assert await status(gateway, f"/captions/{job}", wrong) == 401, wrong
    assert (await gateway.client.get(f"/captions/{job}", params=[("token", token)] * 2)).status_code == 200, "the key"


async def test_the_access_log_contains_no_token(
    gateway: Served, keys: ApiKeyStore, caplog: pytest.LogCaptureFixture
) -> None:
    job = await new_job(gateway)
    token = (await gateway.client.post(f"/captions/{job}/token")).json()["token"]
    logger = logging.getLogger("uvicorn.access")
    logger.addHandler(caplog.handler)
    logger.setLevel(logging.INFO)
    try:
        assert await status(gateway, f"/captions/{job}", token) == 200
    finally:
        logger.removeHandler(caplog.handler)
    assert f"/captions/{job}?token=sct_…" in caplog.text and token not in caplog.text


async def test_a_token_ends_with_its_time_and_with_its_key(gateway: Served, keys: ApiKeyStore, store: Store) -> None:
    job = await new_job(gateway)
    created = (await gateway.client.post(f"/captions/{job}/token")).json()
    [stored] = [key async for key in store.redis.scan_iter(token_key("*"))]
    assert created["token"] not in stored and 0 < await store.redis.ttl(stored) <= 600
    [key] = await keys.all()
    await keys.revoke(key.id)
    gateway.app.state.gateway.authenticator._cache.clear()  # instead of waiting until the entry expires
    assert await status(gateway, f"/captions/{job}", created["token"]) == 401


async def test_the_kept_video_is_sent_in_ranges_to_its_owner(
    gateway: Served, keys: ApiKeyStore, clip: Path, store: Store
) -> None:
    job = (await gateway.post_video(clip, keep_video="true")).json()["id"]
    lost = (await gateway.post_video(clip)).json()["id"]
    await gateway.client.post(f"/captions/{job}/cancel")  # the upload goes, the kept video stays
    whole = await gateway.client.get(f"/captions/{job}/video")
    assert (whole.status_code, whole.content) == (200, clip.read_bytes())
    assert whole.headers["content-type"] == "video/mp4" and "sandbox" in whole.headers["content-security-policy"]
    part = await gateway.client.get(f"/captions/{job}/video", headers={"Range": "bytes=4-7"})
    assert (part.status_code, part.content) == (206, b"ftyp")
    assert (await gateway.client.get(f"/captions/{lost}/video")).status_code == 404
    _, other = await keys.add("other", KeyLimits())
    foreign = await gateway.client.get(f"/captions/{job}/video", headers={"Authorization": f"Bearer {other}"})
    assert foreign.status_code == 404
    await gateway.client.delete(f"/captions/{job}")
    await gateway.client.delete(f"/captions/{lost}")
    assert gateway.files == []


async def test_only_an_upload_can_be_kept(gateway: Served) -> None:
    answer = await gateway.client.post("/captions", json={"url": "http://example.com/a.mp4", "keep_video": True})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_option")


@pytest.mark.parametrize("with_key", [False, True])
async def test_pages_of_the_sites_in_cors_origins_may_use_the_api(
    serve: Serve, store: Store, *, with_key: bool
) -> None:
    async with serve(cors_origins=SITE) as gateway:
        headers = {"Origin": SITE}
        if with_key:
            _, text = await ApiKeyStore(store.redis).add("site", KeyLimits())
            headers["Authorization"] = f"Bearer {text}"
        asked = {"Access-Control-Request-Method": "DELETE", "Access-Control-Request-Headers": "authorization"}
        preflight = await gateway.client.options("/captions/x", headers={"Origin": SITE, **asked})
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, SITE)
        answer = await gateway.client.get("/captions", headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, SITE)
        foreign = await gateway.client.get("/captions", headers={**headers, "Origin": "https://other.example"})
        assert "access-control-allow-origin" not in foreign.headers
        assert foreign.status_code == (200 if with_key else 401)
        assert "access-control-allow-credentials" not in answer.headers


async def test_without_cors_origins_no_page_of_another_site_may_read(gateway: Served, keys: ApiKeyStore) -> None:
    answer = await gateway.client.get("/captions", headers={"Origin": SITE})
    assert answer.status_code == 200 and "access-control-allow-origin" not in answer.headers
