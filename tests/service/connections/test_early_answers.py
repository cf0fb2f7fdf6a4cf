"""Requests that are answered before their body was read: the connection is closed, and the answer arrives."""

import asyncio
from pathlib import Path

import httpx
import pytest
from sharecap_client.api import AsyncClient
from sharecap_client.errors import Unauthorized

from service.access.api_keys import ApiKeyStore, KeyLimits
from service.contract.store.store import Store
from tests.service.connections.raw_http import connection, exchange, send_endlessly, status_of
from tests.service.scripted import Serve, Served

GIB = 1 << 30
MIB = 1 << 20
UPLOAD = (
    b"POST /captions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer sc_wrong_key\r\n"
    b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: %d\r\n\r\n"
)


async def test_an_upload_with_a_wrong_key_is_closed_after_a_few_megabytes(serve: Serve, store: Store) -> None:
    await ApiKeyStore(store.redis).add("somebody", KeyLimits())
    async with serve() as gateway:
        sent, answer = await send_endlessly(gateway.url, UPLOAD % GIB, b"y" * 65_536, GIB)
    assert status_of(answer) == 401
    assert b"connection: close" in answer.lower()
    assert sent < 16 * MIB, "most of it lies in the socket buffers of both sides"


async def test_a_client_that_waits_for_100_continue_gets_the_error_instead(serve: Serve, store: Store) -> None:
    await ApiKeyStore(store.redis).add("somebody", KeyLimits())
    async with serve() as gateway:
        answer = await exchange(gateway.url, (UPLOAD % GIB).replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
    assert status_of(answer) == 401


async def test_a_client_that_only_sends_is_closed_soon(serve: Serve, store: Store) -> None:
    """A client that keeps the connection open after an early answer is closed within seconds."""
    await ApiKeyStore(store.redis).add("somebody", KeyLimits())
    async with serve() as gateway, connection(gateway.url) as (reader, writer):
        writer.write(UPLOAD % GIB)
        async with asyncio.timeout(1.5):
            assert b"401" in await reader.readline()
            await reader.read()
        async with asyncio.timeout(5):
            while not writer.transport.is_closing():
                writer.write(b"y")
                await asyncio.sleep(0.1)


async def test_a_client_library_reads_the_error_of_a_large_upload(serve: Serve, store: Store) -> None:
    await ApiKeyStore(store.redis).add("somebody", KeyLimits())

    def upload(url: str, size: int) -> httpx.Response:
        headers = {"Authorization": "Bearer sc_wrong_key"}
        with httpx.Client(base_url=url, trust_env=False, headers=headers) as client:
            return client.post("/captions", files={"file": ("a.mp4", bytes(size))})

    async with serve() as gateway:
        for size in (1000, MIB // 2, 32 * MIB):
            answer = await asyncio.to_thread(upload, gateway.url, size)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


async def test_the_client_reports_why_an_upload_was_refused(serve: Serve, store: Store, tmp_path: Path) -> None:
    await ApiKeyStore(store.redis).add("somebody", KeyLimits())
    path = tmp_path / "a.mp4"
    path.write_bytes(bytes(32 * MIB))
    async with serve() as gateway, AsyncClient(gateway.url, "sc_wrong_key") as client:
        with pytest.raises(Unauthorized, match="API key") as failure:
            await client.caption(path)
    assert failure.value.status == 401


async def test_complete_requests_keep_their_connection(gateway: Served) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as client:
        for _ in range(2):
            answer = await client.post("/recaption", json={"prompt": ""})
            assert answer.status_code == 422
            assert "connection" not in answer.headers
