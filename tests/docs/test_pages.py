"""What the pages say is true: their commands run and print what is shown, and their tables agree with the code."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import httpx
import psutil
import pytest
import yaml

from service.app import create_app
from service.local.up import free_port
from service.metrics import Metrics
from service.settings import Settings
from tests.conftest import needs_worker
from tests.docs.pages import PAGES, ROOT, check, commands, fences, run
from workers.demo import scenes

START_TIMEOUT_S = 240
DOCS = ROOT / "docs"
ACCESS, DATASETS, WEBHOOKS = DOCS / "access.md", DOCS / "datasets.md", DOCS / "webhooks.md"
ABOUT_RUNS = {DOCS / name for name in ("exports.md", "caption-statistics.md", "caption-evaluation.md")}
"""Pages whose commands work on the captions that the commands of `DATASETS` make."""
PAGES_TO_RUN = [page for page in PAGES if "console run" in dict(fences(page)) and page not in (ACCESS, DATASETS)]
BIN = Path(sys.executable).parent
LIKE_A_COMMAND = re.compile(
    r"(\$ |(sharecap|docker|python\S*|make|git|curl|pip|vllm|ffmpeg|ffprobe|export) |[A-Z_]+=\S+ )"
)
NOT_RUN = {
    "needs a GPU",
    "needs Docker and a GPU",
    "needs several hosts",
    "needs a judge",
    "takes hours",
    "downloads an encoder",
    "changes the checkout",
    "they run the tests",
}
"""Why the commands of a fence are not run by any test."""


@pytest.fixture(scope="module")
def webhooks() -> dict[str, str]:
    """What stands for the two ports and the secret of the page about webhooks."""
    make_secret, *_ = commands(WEBHOOKS)
    [secret] = run([f"{make_secret.text}; echo $SECRET"], ROOT, {"PATH": os.environ["PATH"]})
    return {"9000": str(free_port()), "9001": str(free_port()), "SECRET": secret.strip()}


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, webhooks: dict[str, str]) -> Iterator[str]:
    """`localhost:PORT` of the service of this module, which runs everything as `make serve` does."""
    if missing := [tool for tool in ("curl", "jq") if shutil.which(tool) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    port, data_dir = free_port(), tmp_path_factory.mktemp("service")
    command = [sys.executable, "-m", "sharecap_client.cli", "up", "--port", str(port), "--data-dir", str(data_dir)]
    hosts = f"127.0.0.1:{webhooks['9000']},127.0.0.1:{webhooks['9001']}"
    changes = {"ALLOWED_HOSTS": hosts, "WEBHOOK_SECRET": webhooks["SECRET"]}
    process = psutil.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **changes})
    try:
        line = process.stderr.readline()
        assert "sharecap is ready" in line, line
        yield f"localhost:{port}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        if process.is_running():
            process.kill()
        process.stderr.close()


@pytest.fixture(scope="module")
def captioned(address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the commands of the page about captioning folders were run."""
    folder = tmp_path_factory.mktemp("captioned")
    run_page(DATASETS, address, folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scenes.write_clip(tmp_path / "clip.mp4", scenes.sample_clip())
    return tmp_path


@pytest.fixture
def closed_gateway(redis_url: str, tmp_path: Path) -> Iterator[str]:
    """`localhost:PORT` of a gateway of its own, for the page whose commands create an API key. Its jobs stay queued."""
    port = free_port()
    changes = {"REDIS_URL": redis_url, "PORT": str(port), "DATA_DIR": str(tmp_path / "data"), "MIN_FREE_BYTES": "0"}
    process = subprocess.Popen([sys.executable, "-m", "service"], env={**os.environ, **changes}, cwd=ROOT)
    try:
        with httpx.Client(transport=httpx.HTTPTransport(retries=8)) as http:
            http.get(f"http://localhost:{port}/healthz")
        yield f"localhost:{port}"
    finally:
        process.terminate()
        process.wait(30)


def run_page(page: Path, address: str, folder: Path, changes: dict[str, str] | None = None, **environment: str) -> None:
    """Run the commands of a page with the service at `address`, and check what they print.

    `changes` are words to replace, and values of the variables that the page sets.
    """
    listed = [command for command in commands(page) if not starts_the_service(command.text)]
    standing_for = {"localhost:8000": address, "make serve": make_serve(), "URL": clone_url(folder), **(changes or {})}
    texts = [changed(command.text, standing_for) for command in listed]
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    outputs = run(texts, folder, {"PATH": path, "SHARECAP_URL": address, **environment})
    for command, output in zip(listed, outputs, strict=True):
        check(command, output)


@needs_worker
@pytest.mark.parametrize("page", PAGES_TO_RUN, ids=lambda page: page.name)
def test_the_commands_of_a_page_run_and_print_what_it_shows(
    page: Path, address: str, folder: Path, webhooks: dict[str, str], request: pytest.FixtureRequest
) -> None:
    if page in ABOUT_RUNS:
        shutil.copytree(request.getfixturevalue("captioned") / "captions", folder / "captions")
    run_page(page, address, folder, webhooks if page == WEBHOOKS else {})


@needs_worker
def test_the_commands_about_captioning_a_folder_run_and_print_what_is_shown(captioned: Path) -> None:
    assert (captioned / "captions" / "run.json").exists()


def test_the_commands_about_access_run_and_print_what_is_shown(
    closed_gateway: str, redis_url: str, folder: Path
) -> None:
    run_page(ACCESS, closed_gateway, folder, REDIS_URL=redis_url)


def test_every_command_is_run_or_the_page_says_why_not() -> None:
    """A fence says `run`, names the test that runs it, or the reason why none does."""
    for page in [*PAGES, ROOT / "client" / "README.md"]:
        for info, text in fences(page):
            where = f"{page.name}: ```{info}\n{text}"
            if tested := re.fullmatch(r"(?:console|python) tested: (\S+)", info):
                assert (ROOT / tested[1]).is_file(), where
            elif not_run := re.fullmatch(r"console not run: (.+)", info):
                assert not_run[1] in NOT_RUN, where
                print(f"{page.name}, {not_run[1]}: {text.splitlines()[0]}")
            elif not re.fullmatch(r"(console|python) run|python \w+\.py|json|yaml", info):
                assert not info and not any(map(LIKE_A_COMMAND.match, text.splitlines())), where


@needs_worker
@pytest.mark.skipif("SOAK" not in os.environ, reason="installs another virtual environment; `make soak` runs it")
def test_the_first_commands_of_the_readme_work(tmp_path: Path) -> None:
    [text] = [text for _, text in fences(ROOT / "README.md") if "make demo" in text]
    script = "set -e\n" + changed(text, {"URL": clone_url(tmp_path)})
    shown = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=1200, check=True
    )
    assert "The video shows a red star" in shown.stdout and "Recaptioning" in shown.stdout


def changed(text: str, changes: dict[str, str]) -> str:
    for name, value in changes.items():
        if text.startswith(f"{name}=$("):
            text = f"{name}={value}"
        elif name == "URL" or not name.isidentifier():
            text = re.sub(rf"\b{name}\b", value, text)
    return text


def starts_the_service(text: str) -> bool:
    """Whether a command starts the service, which this test has done already."""
    return text.endswith(" sharecap up &")


def make_serve() -> str:
    """What is run instead of `make serve`: the environment that it would install is that of this test."""
    assert re.search(r"^serve: .*\n\t@\$\(BIN\)/sharecap up$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return f"ln -s {BIN.parent} .venv"


def clone_url(folder: Path) -> str:
    """Return a URL of this repository that ends with its name."""
    url = folder / "origin" / "sharecap"
    url.parent.mkdir()
    url.symlink_to(ROOT)
    return str(url)


def settings_table() -> ModuleType:
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import settings_table  # noqa: PLC0415 (a script beside the pages)
    finally:
        sys.path.pop(0)
    return settings_table


@needs_worker
def test_the_tables_of_settings_are_those_of_the_classes() -> None:
    table = settings_table()
    page = table.PAGE.read_text()
    assert page == table.updated(page), "run `python docs/settings_table.py`"
    for _, _, settings, _ in table.TABLES:
        for name, setting in settings.model_fields.items():
            assert setting.description and f"| `{name.upper()}` |" in page, name


def test_the_table_of_metrics_lists_every_metric_with_its_labels() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(sharecap_\w+)` \|([^|]*)\|", page, re.MULTILINE)
    metrics = [value for value in vars(Metrics()).values() if hasattr(value, "collect") and hasattr(value, "_name")]
    names = {m._name + ("_total" if m._type == "counter" else ""): set(m._labelnames) for m in metrics}
    assert {name: set(re.findall(r"\w+", labels)) for name, labels in rows} == names


def test_alerts_use_metrics_that_exist() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    documents = [yaml.safe_load(text) for text in re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)]
    rules = documents[1]["groups"][0]["rules"]
    names = {name for rule in rules for name in re.findall(r"sharecap_\w+", rule["expr"])}
    listed = set(re.findall(r"^\| `(sharecap_\w+)`", page, re.MULTILINE))
    assert len(rules) >= 8 and {name.removesuffix("_bucket") for name in names} <= listed


def test_every_request_of_the_api_is_on_the_page_of_examples() -> None:
    curls = "\n".join(command.text for command in commands(ROOT / "docs" / "api.md"))
    for path, methods in create_app(Settings()).openapi()["paths"].items():
        address = re.sub(r"\\{\w+\\}", r"[^/ ]+", re.escape(f"localhost:8000{path}"))
        for method in methods:
            requests = [line for line in curls.splitlines() if re.search(rf"{address}[\"?]*([ ?&]|$)", line + " ")]
            posts = [line for line in requests if re.search(r" -F | --json |-X POST", line)]
            deletes = [line for line in requests if "-X DELETE" in line]
            by_method = {"post": posts, "delete": deletes, "get": [x for x in requests if x not in [*posts, *deletes]]}
            assert by_method[method], f"{method.upper()} {path}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{target}#{anchor}"


def test_every_page_is_listed() -> None:
    listed = set(re.findall(r"\]\(([\w.-]+\.md)\)", (ROOT / "docs" / "README.md").read_text()))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"} <= listed
