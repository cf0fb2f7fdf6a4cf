"""A language model as judge, behind any server with OpenAI's API. Answers are cached by the hash of the question."""

import asyncio
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from sharecap_client.datasets.errors import StoreError
from sharecap_client.datasets.manifest import replace

CONCURRENCY = 8
ATTEMPTS = 4
BACKOFF_S = 0.5
TIMEOUT_S = 300.0
MAX_TOKENS = 1024
RETRIED = frozenset({408, 429, 500, 502, 503, 504})


@dataclass
class Judge:
    """Asks a model with temperature 0 for answers that fit a JSON schema."""

    url: str
    model: str
    cache: Path
    http: httpx.AsyncClient
    _places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(CONCURRENCY))

    @property
    def name(self) -> str:
        return f"{self.model} at {self.url}"

    async def ask(self, prompt: str, schema: dict[str, Any], repeat: int = 0) -> dict[str, Any]:
        """Return the answer. Each `repeat` is asked anew. Raises StoreError if the server does not answer."""
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "seed": repeat,
            "max_tokens": MAX_TOKENS,
            "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}},
        }
        path = self._path(body)
        if path.exists():
            return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]
        async with self._places:
            answer = await self._request(body, frozenset(schema["required"]))
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, json.dumps(answer).encode())
        return answer

    def _path(self, body: dict[str, Any]) -> Path:
        question = json.dumps([self.url, body], sort_keys=True)
        digest = hashlib.sha256(question.encode()).hexdigest()
        return self.cache / digest[:2] / f"{digest}.json"

    async def _request(self, body: dict[str, Any], required: frozenset[str]) -> dict[str, Any]:
        problem = ""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(BACKOFF_S * 2**attempt)
            try:
                response = await self.http.post(f"{self.url}/chat/completions", json=body, timeout=TIMEOUT_S)
            except (httpx.TransportError, httpx.InvalidURL) as error:
                problem = f"cannot be reached: {error or type(error).__name__}"
                continue
            if response.status_code == httpx.codes.OK:
                answer = _content(response)
                if answer is not None and required <= answer.keys():
                    return answer
                problem = "gave an answer that does not fit the schema"
                continue
            problem = f"answered {response.status_code}: {response.text[:200]}"
            if response.status_code not in RETRIED:
                break
        raise StoreError(f"the judge {self.name} {problem}. Answers so far are cached: run the command again")


def base_url(url: str) -> str:
    """Return the URL up to and with `/v1`, whether it was given or not."""
    url = url.rstrip("/")
    return url if url.endswith("/v1") else f"{url}/v1"


def _content(response: httpx.Response) -> dict[str, Any] | None:
    """Return the JSON object that the model wrote, or None if it wrote something else."""
    try:
        value = json.loads(response.json()["choices"][0]["message"]["content"])
    except (ValueError, KeyError, IndexError, TypeError):
        return None
    return value if isinstance(value, dict) else None
