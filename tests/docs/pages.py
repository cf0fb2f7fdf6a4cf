"""Reads the fences of the pages, and runs their commands. `docs/contributing.md` describes the fences."""

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "deploy").glob("*.md")])
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MARK = "=== next command ==="
TIMEOUT_S = 240
STOP = "kill $(jobs -p) 2> /dev/null || true"
VARIES = re.compile(
    r'^(id: \d+|retry: \d+|…)$|"of":"(differential|caption)"|^event: (delta|keyframes)$|"complete":(true|false)}$'
)
"""Lines of a transcript that depend on timing: how text is cut into deltas, and keyframes into events."""


@dataclass
class Command:
    """A command of a page and the lines that the page shows as its output."""

    text: str
    output: list[str] = field(default_factory=list)


def fences(page: Path) -> list[tuple[str, str]]:
    """Return the info string and the text of each fence of a page, in order."""
    return FENCE.findall(page.read_text())


def commands(page: Path, console: str = "console run") -> list[Command]:
    """Return what a page's fences run, in order: commands, Python programs, and Python files that are written.

    `console` is the info string of the fences with commands.
    """
    listed: list[Command] = []
    for info, text in fences(page):
        if info == console:
            listed += _console(text)
        elif info == "python run":
            listed.append(Command(f"python - <<'END'\n{text}END"))
        elif file := re.fullmatch(r"python (\w+\.py)", info):
            listed.append(Command(f"cat > {file[1]} <<'END'\n{text}END"))
    return listed


def _console(text: str) -> list[Command]:
    listed: list[Command] = []
    for line in text.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            listed.append(Command(line[2:]))
        else:
            listed[-1].output.append(line)
    return listed


def run(texts: list[str], folder: Path, environment: dict[str, str]) -> list[str]:
    """Run commands in one bash, which stops at the first one that fails. Return what each command prints.

    Commands that a page starts in the background end with the shell.
    """
    script = "\n".join(f"{text}\necho; echo '{MARK}'" for text in texts)
    result = subprocess.run(
        ["timeout", "-k", "9", str(TIMEOUT_S), "bash", "-c", f"exec 2>&1; set -e; trap '{STOP}' EXIT\n{script}"],
        cwd=folder,
        env={"HOME": str(folder), "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    outputs = result.stdout.split(MARK)
    assert result.returncode == 0, (texts[len(outputs) - 1], result.stdout[-2000:])
    return outputs[:-1]


def check(command: Command, output: str) -> None:
    """Check that the lines that a page shows occur in the output, in their order."""
    lines = iter([line.rstrip() for line in output.splitlines()])
    for expected in command.output:
        if expected.strip() and not VARIES.search(expected):
            pattern = re.compile(_pattern(expected.rstrip()))
            assert any(pattern.fullmatch(line) for line in lines), f"{command.text} prints no {expected}:\n{output}"


def _pattern(line: str) -> str:
    """Return the regular expression for a line of a page."""
    text = re.escape(line).replace("…", ".*")
    text = re.sub(r"(cap|sc)_[0-9a-f]+", r"\1_[0-9a-f]+", text)
    text = re.sub(r'"similarity":\\ 0\\\.\d+', r'"similarity": 0[.][0-9]+', text)
    text = re.sub(r"\d{4}\\-\d\d\\-\d\d\\ \d\d:\d\d", r"[0-9-]+ [0-9:]+", text)
    return re.sub(r'"(queued|decode|keyframes|captioning|summary)":[0-9]+(\\\.[0-9]+)?', r'"\1":[0-9.]+', text)
