"""`sharecap keys` with a Redis server, and with the data directory's Valkey server, running or not."""

import asyncio
import re
import sys
from pathlib import Path

import httpx
import pytest

from service.access import authentication as auth
from service.access.api_keys import ApiKeyStore
from service.contract.store.connection import connect
from service.local import key_commands as cli_keys
from service.local.up import CannotStart, embedded_valkey
from tests.client.conftest import Sharecap, sharecap
from tests.service.scripted import Served, eventually

__all__ = ["sharecap"]


def test_a_key_is_created_listed_and_revoked(sharecap: Sharecap, redis_url: str) -> None:
    server = ("--redis-url", redis_url)
    created = sharecap("keys", "add", "the lab", "--jobs", "3", "--streams", "0", *server)
    text = created.out.strip()
    assert created.status == 0 and re.fullmatch(r"sc_[0-9a-f]{12}_[0-9a-f]{64}", text), (
        "stdout contains only the key, for scripts"
    )
    key_id = text.rpartition("_")[0]
    assert key_id in created.err
    listed = sharecap("keys", "list", *server).out
    assert "the lab" in listed and key_id in listed and text not in listed
    assert re.search(r"600 +107374182400 +3 +1000 +536870912 +unlimited", listed)
    assert sharecap("keys", "revoke", key_id, *server).status == 0
    assert re.search(rf"{key_id}.*\d\d:\d\d.*\d\d:\d\d", sharecap("keys", "list", *server).out), "created and revoked"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("list", "--redis-url", "redis://127.0.0.1:9/0"), "the Redis server of the service does not answer"),
        (("list", "--redis-url", "nonsense"), "the Redis server of the service does not answer"),
        (("add", "x", "--data-dir", "/proc/nowhere"), "no service has used the data directory /proc/nowhere"),
        (("add", "x", "--create", "--data-dir", "/proc/nowhere"), "cannot write to the data directory /proc/nowhere"),
        (("list", "--data-dir", "/tmp"), "no service has used the data directory /tmp"),
    ],
)
def test_an_expected_error_is_one_line(sharecap: Sharecap, arguments: tuple[str, ...], words: str) -> None:
    ended = sharecap("keys", *arguments)
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert ended.err.startswith(f"error: {words}")


def test_an_unknown_key(sharecap: Sharecap, redis_url: str) -> None:
    ended = sharecap("keys", "revoke", "sc_000000000000", "--redis-url", redis_url)
    assert (ended.status, ended.err.count("\n")) == (1, 1)
    assert "unknown key sc_000000000000" in ended.err


async def test_a_key_created_on_the_command_line_is_accepted_by_a_running_service(
    gateway: Served, redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(auth, "CACHE_S", 0.1)
    await asyncio.to_thread(cli_keys.add, name="me", redis_url=redis_url)
    text = capsys.readouterr().out.strip()

    async def key_is_required() -> bool:
        return (await gateway.client.get("/captions")).status_code == 401

    await eventually(key_is_required)

    async def key_is_accepted() -> bool:
        response: httpx.Response = await gateway.client.get("/captions", headers={"Authorization": f"Bearer {text}"})
        return response.status_code == 200

    assert await key_is_accepted()
    await asyncio.to_thread(cli_keys.revoke, key_id=text.rpartition("_")[0], redis_url=redis_url)

    async def key_is_refused() -> bool:
        return not await key_is_accepted()

    await eventually(key_is_refused)


def test_the_valkey_server_of_a_data_directory_is_found_or_started(sharecap: Sharecap, tmp_path: Path) -> None:
    data_dir = tmp_path / ("x" * 90)  # too long for the path of a socket
    own = ("--data-dir", str(data_dir))
    assert sharecap("keys", "add", "before", *own).status == 1 and not data_dir.exists()  # a mistyped directory
    assert sharecap("keys", "add", "before", "--create", *own).status == 0  # no server is running
    before, after, succeeded = asyncio.run(add_key_while_running(data_dir))
    assert (before, after, succeeded) == (["before"], ["before", "meanwhile"], True)
    listed = sharecap("keys", "list", *own).out
    assert "before" in listed and "meanwhile" in listed


async def add_key_while_running(data_dir: Path) -> tuple[list[str], list[str], bool]:
    """Add a key from another process while the server runs. Returns the names before and after, and its success."""
    command = [sys.executable, "-m", "sharecap_client.cli", "keys", "add", "meanwhile", "--data-dir", str(data_dir)]
    async with embedded_valkey(data_dir) as url, connect(url) as redis:
        before = [key.name for key in await ApiKeyStore(redis).all()]
        adding = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
        status = await adding.wait()
        return before, [key.name for key in await ApiKeyStore(redis).all()], status == 0


async def test_a_data_directory_used_by_a_sharecap_with_another_server(tmp_path: Path) -> None:
    async with embedded_valkey(tmp_path):
        (tmp_path / "lock").write_text("")
        with pytest.raises(CannotStart, match="set REDIS_URL"):
            await asyncio.to_thread(cli_keys.show, data_dir=tmp_path)
