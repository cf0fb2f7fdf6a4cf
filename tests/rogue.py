"""A server that answers as badly as it is told to: what it says is written byte for byte."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Rogue:
    """`answers`: by path; no other path is known. `requests`: each request's head and body, as they came."""

    host: str
    port: int = 0
    answers: dict[str, Answer] = field(default_factory=dict)
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    most_open: int = 0

    def url(self, path: str) -> str:
        return f"http://{self.host}:{self.port}{path}"

    @property
    def hosts(self) -> str:
        """The setting that allows it."""
        return f"{self.host}:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
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


def says(text: str | bytes, *more: bytes) -> Answer:
    """An answer that is these bytes; the connection closes after them."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(text.encode() if isinstance(text, str) else text)
        for each in more:
            writer.write(each)

    return answer


def status(code: int, *headers: str, body: bytes = b"") -> Answer:
    lines = [f"HTTP/1.1 {code} So", f"Content-Length: {len(body)}", *headers]
    return says("\r\n".join(lines) + "\r\n\r\n", body)


def leads_to(url: str, code: int = 302) -> Answer:
    return status(code, f"Location: {url}")


def file(data: bytes) -> Answer:
    return status(200, body=data)


def endless(head: str, piece: bytes, pause_s: float = 0.0) -> Answer:
    """An answer that goes on with `piece` until nobody takes it."""

    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(head.encode())
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return answer


@asynccontextmanager
async def rogue(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Rogue]:
    """A rogue server on a port of its own."""
    served = Rogue(host)
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
