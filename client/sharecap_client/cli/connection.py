"""Which service a command uses: the flags `--url` and `--api-key`, shared by all commands that need a service."""

import os
import shlex
from dataclasses import dataclass
from typing import Annotated

import typer

from sharecap_client.api import DEFAULT_URL, AsyncClient
from sharecap_client.transport import normal_url

URL_VARIABLE = "SHARECAP_URL"

Url = Annotated[str, typer.Option(envvar=URL_VARIABLE, help="URL of the service; http:// may be left out.")]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="SHARECAP_API_KEY", help="API key. Prefer the environment variable: others can see arguments."),
]


@dataclass(frozen=True)
class Service:
    """The service that a command uses."""

    url: str = DEFAULT_URL
    api_key: str | None = None

    def client(self) -> AsyncClient:
        return AsyncClient(self.url, self.api_key)

    def command(self, *words: str) -> str:
        """Return a command line that uses the same service, to be typed by the user."""
        url = normal_url(self.url)
        default = normal_url(os.environ.get(URL_VARIABLE) or DEFAULT_URL)
        return shlex.join(["sharecap", *words, *([] if url == default else ["--url", url])])
