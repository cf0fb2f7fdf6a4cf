"""The gateway as a process: imports, start time, bind address, shutdown; readiness, metrics and OpenAPI."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from service.access.origins import is_loopback
from service.contract.store.store import Store
from service.contract.store.worker_cards import WorkerCard
from service.local.up import free_port
from service.settings import Settings
from tests.service.processes import environment
from tests.service.scripted import ScriptedWorker, Serve, Served


@contextmanager
def starting_gateway(redis_url: str, data_dir: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start a gateway without waiting for it. Yields the process, whose output can be read, and its URL."""
    port = free_port()
    env = environment(REDIS_URL=redis_url, DATA_DIR=str(data_dir), PORT=str(port))
    command = [sys.executable, "-m", "service"]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def wait_until_alive(url: str, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            assert httpx.get(f"{url}/healthz", trust_env=False).json() == {"status": "ok"}
            return
        except httpx.TransportError:
            assert time.monotonic() < deadline, "the gateway does not answer"
            time.sleep(0.02)


def test_the_gateway_imports_no_heavy_modules_and_takes_less_than_two_seconds() -> None:
    """Measures CPU time, because the machine may be busy."""
    script = """
import resource, sys
from service.app import create_app
from service.settings import Settings
create_app(Settings()).openapi()
used = resource.getrusage(resource.RUSAGE_SELF)
heavy = {"torch", "vllm", "transformers", "numpy", "aiohttp", "av", "workers"} & set(sys.modules)
print(sorted(heavy))
print(used.ru_utime + used.ru_stime)
"""
    for _ in range(2):  # the first run after an installation also compiles every module
        result = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment(), check=True, timeout=120
        )
    heavy, seconds = result.stdout.split()
    assert heavy == "[]"
    assert float(seconds) < 2.0


def test_the_gateway_stops_cleanly_while_streams_are_open(redis_url: str, tmp_path: Path) -> None:
    with starting_gateway(redis_url, tmp_path) as (process, url):
        wait_until_alive(url, 60)
        with httpx.Client(base_url=url, trust_env=False, timeout=10) as client:
            job = client.post("/recaption", json={"prompt": "A fox"}, headers={"Prefer": "wait=0"}).json()
            with client.stream("GET", job["links"]["events"]) as stream:
                chunks = stream.iter_raw()
                assert next(chunks).startswith(b"retry")
                process.send_signal(signal.SIGTERM)
                list(chunks)  # ends without an error
        assert process.wait(20) == 0
        assert process.stdout is not None and "Traceback" not in process.stdout.read()


def test_an_invalid_setting_is_reported_without_a_traceback(redis_url: str, tmp_path: Path) -> None:
    public = {"HOST": "0.0.0.0", "REDIS_URL": redis_url}
    for env, message in (({"PORT": "x"}, "PORT: "), (public, "no API key exists")):
        result = subprocess.run(
            [sys.executable, "-m", "service"],
            capture_output=True,
            text=True,
            env=environment(DATA_DIR=str(tmp_path), **env),
            check=False,
            timeout=120,
        )
        assert result.returncode == 78
        assert message in result.stderr and "Traceback" not in result.stderr


def test_loopback_hosts_and_environment_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        assert is_loopback(host) and not Settings(host=host).exposed
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.com"):
        assert Settings(host=host).exposed
        assert not Settings(host=host, allow_public_bind=True).exposed
    monkeypatch.setenv("MAX_UPLOAD_BYTES", "123")
    monkeypatch.setenv("HEARTBEAT_S", "1.5")
    assert (Settings().max_upload_bytes, Settings().heartbeat_s) == (123, 1.5)


async def test_readiness_reports_each_check(gateway: Served, worker: ScriptedWorker) -> None:
    answer = await gateway.client.get("/readyz")
    readiness = answer.json()
    assert (answer.status_code, readiness["ready"]) == (503, False)
    assert {name: check["ok"] for name, check in readiness["checks"].items()} == {
        "redis": True,
        "disk": True,
        "workers": False,
    }
    await worker.show_card()
    answer = await gateway.client.get("/readyz")
    assert (answer.status_code, answer.json()["ready"]) == (200, True)
    assert answer.json()["checks"]["workers"]["detail"] == "1 worker with test/model"


async def test_readiness_and_metrics_report_an_engine_that_died(gateway: Served, store: Store) -> None:
    await store.show_worker(WorkerCard(id="w1", model="test/model", slots=4, engine="stalled"))
    answer = await gateway.client.get("/readyz")
    detail = "no worker has loaded its model; 1 whose engine stalled"
    assert (answer.status_code, answer.json()["checks"]["workers"]["detail"]) == (503, detail)
    lines = (await gateway.client.get("/metrics")).text.splitlines()
    assert {'sharecap_dead_engines{reason="stalled"} 1.0', "sharecap_workers 0.0"} <= set(lines)


async def test_readiness_without_redis_and_free_space(serve: Serve) -> None:
    async with serve(redis_url="redis://127.0.0.1:1/0", redis_patience_s=0.1, min_free_bytes=1 << 62) as gateway:
        answer = await gateway.client.get("/readyz")
        assert answer.status_code == 503
        assert not any(check["ok"] for check in answer.json()["checks"].values())
        assert (await gateway.client.get("/healthz")).status_code == 200


async def test_metrics_count_jobs_and_responses(gateway: Served, worker: ScriptedWorker, clip: Path) -> None:
    await worker.show_card()
    await gateway.post_video(clip)
    await gateway.client.get("/captions/nobody/made/this/up")
    await worker.claim((await gateway.post_video(clip)).json()["id"])
    answer = await gateway.client.get("/metrics")
    lines = answer.text.splitlines()
    assert answer.headers["content-type"].startswith("text/plain")
    for line in (
        'sharecap_jobs_accepted_total{kind="video"} 2.0',
        'sharecap_jobs_accepted_total{kind="recaption"} 0.0',
        f"sharecap_upload_bytes_total {2 * clip.stat().st_size:.1f}",
        'sharecap_http_responses_total{method="POST",route="/captions",status="202"} 2.0',
        'sharecap_http_responses_total{method="GET",route="none",status="404"} 1.0',
        'sharecap_jobs{state="queued"} 1.0',
        'sharecap_jobs{state="running"} 1.0',
        "sharecap_workers 1.0",
        "sharecap_worker_slots 4.0",
    ):
        assert line in lines, answer.text


async def test_the_openapi_document_describes_bodies_errors_and_security(gateway: Served) -> None:
    document = (await gateway.client.get("/openapi.json")).json()
    assert "HTTPValidationError" not in str(document)
    problem = document["components"]["schemas"]["Problem"]
    assert {"type", "title", "status", "detail", "code", "retryable"} <= set(problem["properties"])
    post = document["paths"]["/captions"]["post"]
    form = post["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["file"]
    assert {"file", "mode", "interval_s", "hd_num", "metadata", "seed"} <= set(form["properties"])
    statuses = {"200", "202", "401", "413", "415", "422", "429", "500", "502", "503", "504", "507"}
    assert set(post["responses"]) == statuses
    assert "application/problem+json" in post["responses"]["422"]["content"]
    assert "text/event-stream" in document["paths"]["/captions/{job_id}/events"]["get"]["responses"]["200"]["content"]
    assert {"Prefer", "Idempotency-Key"} <= {parameter["name"] for parameter in post["parameters"]}
    assert document["security"] == [{"key": []}, {}] and document["paths"]["/healthz"]["get"]["security"] == []
    assert (await gateway.client.get("/docs")).status_code == 200
