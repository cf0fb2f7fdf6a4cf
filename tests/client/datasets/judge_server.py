"""A judge for `sharecap eval` that is not a model: a server with OpenAI's API whose answers come from two functions."""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.client.conftest import Sharecap

Answer = dict[str, Any]
Figures = dict[str, Any]


@dataclass
class JudgeServer:
    """`extract` lists the events of a text, `relate` says how a text relates to an event.

    `change` alters an answer before it is sent. `statuses` are the HTTP statuses of the next answers, the last one
    first.
    """

    extract: Callable[[str], list[str]]
    relate: Callable[[str, str], str]
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    change: Callable[[dict[str, Any], Answer], Answer] = lambda body, answer: answer
    statuses: list[int] = field(default_factory=list)

    def answer(self, body: dict[str, Any]) -> Answer:
        self.bodies.append(body)
        prompt = body["messages"][0]["content"]
        text = prompt.split("Description:\n")[1].split("\n\n")[0]
        if "Events:\n" not in prompt:
            return self.change(body, {"events": self.extract(text)})
        events = re.findall(r"^\d+\. (.*)$", prompt.split("Events:\n")[1], re.MULTILINE)
        return self.change(body, {"relations": [self.relate(text, event.strip()) for event in events]})


@contextmanager
def serving(judge: JudgeServer) -> Iterator[JudgeServer]:
    """Serve `judge`, and set its `url`."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = judge.statuses.pop() if judge.statuses else 200
            content = json.dumps(judge.answer(body)) if self.path == "/v1/chat/completions" else ""
            reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        judge.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield judge
        finally:
            server.shutdown()
            thread.join()


def evaluate(sharecap: Sharecap, run: object, references: object, judge: JudgeServer, *more: object) -> Figures:
    """Run `sharecap eval` with this judge and return all figures."""
    result = sharecap(
        *("eval", run, "--reference", references, "--judge-url", judge.url, "--judge-model", "rule", "--json", *more)
    )
    assert result.status == 0, result.err
    report: Figures = json.loads(result.out)
    return {**report, **report["texts"], **report["events"]}
