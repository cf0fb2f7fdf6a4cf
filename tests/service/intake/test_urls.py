"""Videos given by URL: which URLs are accepted, and which are refused before a job is created."""

import pytest

from service.contract.jobs import JobKind
from service.contract.store.store import Store
from tests.service.intake.test_uploads import nothing_stored, problem
from tests.service.scripted import Serve, Served


async def test_a_url_creates_a_job(gateway: Served, store: Store) -> None:
    url = "https://files.example/a%20day.mp4?signature=x"
    answer = await gateway.client.post("/captions", json={"url": f"{url}#t=3", "interval_s": 0.5})
    assert answer.status_code == 202
    job = answer.json()
    assert (job["status"], job["kind"], job["options"]["interval_s"]) == ("queued", "video", 0.5)
    assert job["options"]["max_keyframes"] == gateway.settings.max_keyframes
    known = {name: value for name, value in job["source"].items() if value is not None}
    assert known == {"url": url, "filename": "a day.mp4"}
    assert await store.kind_and_status(job["id"]) == (JobKind.VIDEO, "queued")
    assert gateway.files == []


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "http://127.0.0.1/a.mp4",
        "http://[::ffff:10.0.0.1]/a.mp4",
        "http://169.254.169.254/latest/meta-data/",
        "http://localhost/a.mp4",
        "https://files.example:8443/a.mp4",
        "https://user:secret@files.example/a.mp4",
        "https://files.example/" + "a" * 3000,
        "",
    ],
)
async def test_a_forbidden_url_creates_no_job(gateway: Served, store: Store, url: str) -> None:
    problem(await gateway.client.post("/captions", json={"url": url}), 422, "url_forbidden")
    await nothing_stored(gateway, store)


async def test_allowed_hosts_may_be_private(serve: Serve) -> None:
    async with serve(allowed_hosts="127.0.0.1:9000, media.lan") as gateway:
        for url, status in [
            ("http://127.0.0.1:9000/a.mp4", 202),
            ("http://media.lan/a.mp4", 202),
            ("http://127.0.0.1:9001/a.mp4", 422),
        ]:
            assert (await gateway.client.post("/captions", json={"url": url})).status_code == status
