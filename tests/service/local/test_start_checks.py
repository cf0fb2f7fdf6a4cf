"""A wrong model name or a missing network is reported before the worker starts."""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from service.contract import model_hub
from service.contract.model_hub import OFFLINE
from service.local.start_checks import CannotStart, check_model

MODEL = "owner/name"
Hub = Callable[[httpx.Response | Exception], None]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    """A function that sets the answer of the model hub. The hub's library has an empty cache."""
    for name in ("HF_HUB_OFFLINE", "HF_ENDPOINT", "HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))

    def set_answer(answer: httpx.Response | Exception) -> None:
        def head(url: str, headers: dict[str, str], **_: object) -> httpx.Response:
            assert url == f"https://huggingface.co/{MODEL}/resolve/main/config.json"
            if "Authorization" in headers:
                assert headers["Authorization"] == "Bearer hf_secret"
                return httpx.Response(200)
            if isinstance(answer, Exception):
                raise answer
            return answer

        monkeypatch.setattr(model_hub.httpx, "head", head)

    return set_answer


def put_in_cache(home: Path) -> None:
    snapshot = home / "hub/models--owner--name/snapshots/1"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")


def test_a_model_of_the_hub(hub: Hub) -> None:
    hub(httpx.Response(307))
    assert check_model(MODEL) == {}


def test_without_a_network_the_model_must_be_in_the_cache(hub: Hub, tmp_path: Path) -> None:
    hub(httpx.ConnectError("no route"))
    with pytest.raises(CannotStart, match=r"cannot download owner/name: .* \(no route\).*name a directory"):
        check_model(MODEL)
    put_in_cache(tmp_path)
    assert check_model(MODEL) == OFFLINE


def test_a_private_model(hub: Hub, tmp_path: Path) -> None:
    hub(httpx.Response(401))
    (tmp_path / "token").write_text("hf_secret\n")
    assert check_model(MODEL) == {}


def test_an_unknown_model(hub: Hub, tmp_path: Path) -> None:
    hub(httpx.Response(401))
    with pytest.raises(CannotStart, match="no public model owner/name"):
        check_model(MODEL)
    put_in_cache(tmp_path)
    assert check_model(MODEL) == {}


def test_directories(tmp_path: Path) -> None:
    assert check_model(None) == {}
    with pytest.raises(CannotStart, match="no model in"):
        check_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert check_model(str(tmp_path)) == {}
