"""An HTTP server whose replies are written byte for byte, so that tests can make them as malformed as they like."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class HostileServer:
    """Answers each path as `answers` says, and any other path with 404. Records the head and body of each request."""

    host: str
    port: int = 0
    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    max_open: int = 0

    def url(self, path: str) -> str:
        return f"http://{self.host}:{self.port}{path}"

    @property
    def hosts(self) -> str:
        """The value of ALLOWED_HOSTS that allows this server."""
        return f"{self.host}:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.max_open = max(self.max_open, self.open)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                head = await reader.readuntil(b"\r\n\r\n")
                length = next((int(v) for k, _, v in _fields(head) if k == b"content-length"), 0)
                self.requests.append((head, await reader.readexactly(length)))
                path = head.split(b" ", 2)[1].decode()
                await self.answers.get(path, status(404))(writer)
                await writer.drain()
        finally:
            self.open -= 1
            writer.close()


def _fields(head: bytes) -> list[tuple[bytes, bytes, bytes]]:
    return [line.lower().partition(b": ") for line in head.splitlines()]


def raw(text: str | bytes, *more: bytes) -> Answer:
    """Answer with exactly these bytes and close the connection."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(text.encode() if isinstance(text, str) else text)
        for each in more:
            writer.write(each)

    return answer


def status(code: int, *headers: str, body: bytes = b"") -> Answer:
    """Answer with a well-formed response."""
    lines = [f"HTTP/1.1 {code} So", f"Content-Length: {len(body)}", *headers]
    return raw("\r\n".join(lines) + "\r\n\r\n", body)


def redirect(url: str, code: int = 302) -> Answer:
    return status(code, f"Location: {url}")


def file(data: bytes) -> Answer:
    return status(200, body=data)


def endless(head: str, piece: bytes, pause_s: float = 0.0) -> Answer:
    """Answer with `head`, then repeat `piece` until the client disconnects."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(head.encode())
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return answer


@asynccontextmanager
async def hostile_server(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[HostileServer]:
    """Run a hostile server; by default on a free port."""
    served = HostileServer(host)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            with suppress(asyncio.CancelledError):
                await served.serve(reader, writer)
        finally:
            tasks.discard(task)

    server = await asyncio.start_server(serve, host, port)
    served.port = server.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
