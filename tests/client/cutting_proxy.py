"""A proxy in front of a gateway that cuts event streams and loses answers, as unreliable networks do."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass

from tests.tcp_proxy import READ_BYTES, Connection, TcpProxy


@dataclass
class Allowance:
    """How many more bytes of answers may pass on one connection; all of them if negative."""

    left: int = -1


class CuttingProxy(TcpProxy):
    """Closes the first `cuts` connections with an event stream after `cut_after` bytes of the answer.

    The answers to the first `losses` requests that create a job are lost: the service has executed them.
    """

    def __init__(self, target_port: int, cuts: int = 0, cut_after: int = 600, losses: int = 0) -> None:
        super().__init__("127.0.0.1", target_port)
        self._cuts, self._cut_after, self._losses = cuts, cut_after, losses
        self.resumed_after: list[bytes] = []
        """The `Last-Event-ID` of each request for events, empty without one."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def forward(self, client: Connection, server: Connection) -> None:
        allowance = Allowance()
        answers = asyncio.create_task(_forward_answers(server[0], client[1], allowance))
        try:
            while request := await client[0].read(READ_BYTES):
                self._inspect(request, allowance)
                server[1].write(request)
        finally:
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)

    def _inspect(self, request: bytes, allowance: Allowance) -> None:
        head, _, _ = request.partition(b"\r\n\r\n")
        if b"/events HTTP" in head:
            values = [line[14:].strip() for line in head.lower().split(b"\r\n") if line.startswith(b"last-event-id:")]
            self.resumed_after += values or [b""]
            allowance.left = self._cut_after if self._cuts > 0 else -1
            self._cuts -= 1
        elif head.startswith((b"POST /captions HTTP", b"POST /recaption HTTP")):
            allowance.left = 0 if self._losses > 0 else -1
            self._losses -= 1


async def _forward_answers(server: asyncio.StreamReader, to_client: asyncio.StreamWriter, allowance: Allowance) -> None:
    with suppress(ConnectionError):
        while answer := await server.read(READ_BYTES):
            if allowance.left >= 0:
                answer = answer[: allowance.left]
                allowance.left -= len(answer)
            to_client.write(answer)
            await to_client.drain()
            if allowance.left == 0:
                break
    to_client.close()
