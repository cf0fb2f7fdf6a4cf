"""A TCP proxy in front of a gateway that cuts event streams and loses answers, as unreliable networks do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

READ_BYTES = 1 << 16


class CuttingProxy:
    """Closes the first `cuts` connections with an event stream after `cut_after` bytes of the answer.

    The answers to the first `losses` requests that create a job are lost: the service has executed them.
    """

    def __init__(self, target_port: int, cuts: int = 0, cut_after: int = 600, losses: int = 0) -> None:
        self._target_port = target_port
        self._cuts, self._cut_after, self._losses = cuts, cut_after, losses
        self.resumed_after: list[bytes] = []
        """The `Last-Event-ID` of each request for events, empty without one."""
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator["CuttingProxy"]:
        """Run the proxy on a free port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._tasks = tasks = set[asyncio.Task[None]]()
        try:
            yield self
        finally:
            server.close()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        server, to_server = await asyncio.open_connection("127.0.0.1", self._target_port)
        self._allowed = -1
        answers = asyncio.create_task(self._forward_answers(server, to_client))
        try:
            while request := await client.read(READ_BYTES):
                self._inspect(request)
                to_server.write(request)
        except asyncio.CancelledError:
            pass  # `running` has ended
        finally:
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)
            to_server.close()
            to_client.close()
            self._tasks.discard(task)

    def _inspect(self, request: bytes) -> None:
        """Decide how many bytes of the answer to this request pass; all of them if the number is negative."""
        head, _, _ = request.partition(b"\r\n\r\n")
        if b"/events HTTP" in head:
            values = [line[14:].strip() for line in head.lower().split(b"\r\n") if line.startswith(b"last-event-id:")]
            self.resumed_after += values or [b""]
            self._allowed = self._cut_after if self._cuts > 0 else -1
            self._cuts -= 1
        elif head.startswith((b"POST /captions HTTP", b"POST /recaption HTTP")):
            self._allowed = 0 if self._losses > 0 else -1
            self._losses -= 1

    async def _forward_answers(self, server: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while answer := await server.read(READ_BYTES):
                if self._allowed >= 0:
                    answer = answer[: self._allowed]
                    self._allowed -= len(answer)
                to_client.write(answer)
                await to_client.drain()
                if self._allowed == 0:
                    break
        to_client.close()
