"""Every command without the server, key, file or directory that it needs: one line that says what to do, no traceback.

Commands that are programs of their own (`generate`, `vllm-args`, `dedupe`, `ray`) are tested with these programs.
"""

import asyncio
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
from sharecap_client.cli import app as cli

from service.access.api_keys import ApiKeyStore, KeyLimits
from service.contract.store.store import Store
from service.local.up import free_port
from tests.client.conftest import ROOT, Sharecap
from tests.conftest import needs_worker
from tests.service.scripted import Serve

NOWHERE = "127.0.0.1:9"
OF_A_SERVICE: dict[str, tuple[str, ...]] = {
    "caption": ("LICENSE",),
    "recaption": ("a fox",),
    "clip": ("cap_1", "--start", "0", "--end", "1"),
    "jobs": (),
    "show": ("cap_1",),
    "clips": ("cap_1",),
    "watch": ("cap_1",),
    "cancel": ("cap_1",),
    "rm": ("cap_1",),
    "batch": ("LICENSE", "--out", "/tmp/never-created"),
}
OTHERS: dict[str, tuple[tuple[str, str], ...]] = {
    "batch": (("--status missing", "missing has no captions yet: `sharecap batch INPUT"),),
    "export": (
        ("missing --for srt --to x", "`sharecap batch INPUT --out missing` makes them"),
        ("missing --for nothing --to x", "unknown trainer nothing: choose one of musubi"),
    ),
    "edit": (("missing --trigger x", "`sharecap batch INPUT --out missing` makes them"),),
    "stats": (("missing", "missing: no such file or directory"),),
    "eval": (
        ("missing --reference missing.jsonl", "missing.jsonl: No such file"),
        ("missing --reference LICENSE", "LICENSE"),
        ("missing --reference x --judge-url y", "--judge-url and --judge-model belong together"),
    ),
    "up": (
        ("--port PORT --redis-url redis://127.0.0.1:9", "Start it, or name another one with --redis-url or REDIS_URL"),
        ("--port PORT --data-dir /proc/x", "choose another --data-dir"),
        ("--port PORT --model ./missing", "--model takes a directory with a config.json, or a hub id"),
    ),
    "serve": (("--redis-url redis://127.0.0.1:9", "Start it, or name another one with --redis-url or REDIS_URL"),),
    "worker": (("--redis-url redis://127.0.0.1:9", "Start it, or name another one with --redis-url or REDIS_URL"),),
    "demo": (("--model ./missing", "--model takes a directory with a config.json, or a hub id"),),
    "doctor": (("--model ./missing", ""),),
    "keys": (
        ("list --data-dir missing", "use `sharecap keys add --create`"),
        ("list --redis-url redis://127.0.0.1:9", "Start it, or correct --redis-url or REDIS_URL"),
        ("add x --redis-url nonsense", "Start it, or correct --redis-url or REDIS_URL"),
        ("revoke x --data-dir missing", "use `sharecap keys add --create`"),
    ),
    "health": (
        ("gateway --port 9", "the gateway on port 9 is not healthy"),
        ("worker --redis-url redis://127.0.0.1:9", "the Redis server does not answer"),
    ),
    "deploy": (
        ("secrets /proc/x", "cannot write /proc/x"),
        ("first-key x --redis-url redis://127.0.0.1:9", "Start it, or correct --redis-url or REDIS_URL"),
    ),
}
PROGRAMS = {"generate", "vllm-args", "dedupe", "ray"}
OF_DATA_SETS = {"batch", "export", "edit", "stats", "eval"}
"""Commands that need the packages of the client's extras."""


def runnable(commands: Iterable[str]) -> list[str]:
    """Return the commands whose packages are installed. `make test` runs this file without them as well."""
    missing = OF_DATA_SETS if find_spec("pyarrow") is None else set()
    return [command for command in commands if command not in missing]


def test_every_command_is_in_this_list() -> None:
    client = typer.main.get_group(cli.create_app())
    assert {*client.commands, *cli.SERVER_COMMANDS} - PROGRAMS == {*OF_A_SERVICE, *OTHERS}


@pytest.mark.parametrize("command", runnable(OF_A_SERVICE))
def test_without_a_service(sharecap: Sharecap, command: str) -> None:
    result = sharecap(command, *OF_A_SERVICE[command], "--url", NOWHERE)
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1)
    assert result.err.startswith(f"error: cannot reach http://{NOWHERE}: ")
    assert "`sharecap up`" in result.err and "--url or SHARECAP_URL" in result.err
    assert not Path("/tmp/never-created").exists()


async def test_without_a_valid_key(sharecap: Sharecap, serve: Serve, store: Store) -> None:
    await ApiKeyStore(store.redis).add("somebody", KeyLimits())
    async with serve() as gateway:
        for command in runnable(OF_A_SERVICE):
            arguments = OF_A_SERVICE[command]
            for key in ((), ("--api-key", "sc_wrong")):
                result = await asyncio.to_thread(sharecap, command, *arguments, "--url", gateway.url, *key)
                assert (result.status, result.out, result.err.count("\n")) == (1, "", 1), command
                assert "(unauthorized) Give a key with --api-key or SHARECAP_API_KEY" in result.err


@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=needs_worker) if c == "worker" else c for c in runnable(OTHERS)]
)
def test_without_what_it_needs(
    sharecap: Sharecap, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "LICENSE").symlink_to(ROOT / "LICENSE")
    for arguments, words in OTHERS[command]:
        result = sharecap(command, *arguments.replace("PORT", str(free_port())).split())
        assert result.status == 1, arguments
        assert words in result.err and "Traceback" not in result.err
        assert command == "doctor" or (result.out, result.err.count("\n")) == ("", 1), result.err
    assert [path.name for path in tmp_path.iterdir()] == ["LICENSE"]
