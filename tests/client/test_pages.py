"""The commands and examples of `docs/command-line.md` and `docs/client.md` work as they are printed."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from string import Template

import pytest
import typer
from sharecap_client.cli.app import SERVER_COMMANDS, create_app

from tests.client.conftest import ROOT, Sharecap
from tests.client.live_service import LiveService


@pytest.fixture
def folder(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a file `clip.mp4`."""
    folder = tmp_path / "page"
    folder.mkdir()
    shutil.copy(clip, folder / "clip.mp4")
    monkeypatch.chdir(folder)
    return folder


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language} tested: \S*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_examples_of_the_client_run(live: LiveService, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {"__name__": "example"}
    for block in blocks("client.md", "python"):
        exec(block.replace("http://localhost:8000", live.url), names)
    printed = capsys.readouterr().out
    assert printed.count("A light square moves to the right.") >= 3
    assert "interval_s" in printed and "refused: the header webhook-id is missing" in printed
    assert Path("clip.srt").read_text().startswith("1\n00:00:00,000")


class Shell:
    """Runs commands as bash does, with `sharecap` in this process, because starting it takes longer than running it."""

    def __init__(self, sharecap: Sharecap, monkeypatch: pytest.MonkeyPatch) -> None:
        self._sharecap, self._monkeypatch = sharecap, monkeypatch
        self.names: dict[str, str] = {}
        self.out = self.err = ""

    def run(self, line: str) -> None:
        if match := re.fullmatch(r"export (\w+)=(\S+)", line):
            self._monkeypatch.setenv(*match.groups())
        elif match := re.fullmatch(r"(\w+)=\$\((.*)\)", line):
            self.names[match[1]] = self._command(match[2]).strip()
        else:
            self.out += self._command(line)

    def _command(self, line: str) -> str:
        """Return the standard output of a command, which may end with `< FILE` or `> FILE`."""
        words = shlex.split(Template(line).substitute(self.names))
        if words[0] != "sharecap":
            return subprocess.run(words, capture_output=True, text=True, check=True).stdout
        redirection, file = words[-2:] if words[-2] in "<>" else ("", os.devnull)
        arguments = words[1:-2] if redirection else words[1:]
        with Path(os.devnull if redirection == ">" else file).open() as stdin:
            self._monkeypatch.setattr(sys, "stdin", stdin)
            result = self._sharecap(*arguments)
        assert result.status == 0, (line, result.err)
        self.err += result.err
        if redirection == ">":
            Path(file).write_text(result.out)
            return ""
        return result.out


def test_the_page_lists_every_command() -> None:
    text = (ROOT / "docs" / "command-line.md").read_text()
    for command in {*typer.main.get_group(create_app()).commands, *SERVER_COMMANDS}:
        assert re.search(rf"sharecap {command}\b", text), command


def test_the_commands_of_the_command_line_run(
    live: LiveService, sharecap: Sharecap, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)  # the fixture `sharecap` has changed it
    shell = Shell(sharecap, monkeypatch)
    for line in "\n".join(blocks("command-line.md", "console")).splitlines():
        if line.startswith("$ "):
            shell.run(line[2:].replace("localhost:8000", live.url.removeprefix("http://")))
    assert shell.out.count("A light square moves to the right.") >= 4 and "A red fox." in shell.out
    assert "is deleted" in shell.err
    assert "complete" in Path("completion.bash").read_text()
