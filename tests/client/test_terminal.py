"""A job in a terminal, with a real gateway and a scripted worker: what is printed, and when."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from sharecap_client import AsyncClient
from sharecap_client.cli.terminal import printable, show_job

from service.contract.errors import EngineFailed
from service.contract.events import Caption, Completed, Delta, Differential, Event, Failed, Started
from service.contract.jobs import Timings, Usage
from tests.client.test_api import working
from tests.service.scripted import ScriptedWorker, Served, recaption_events, video_events


@contextmanager
def console(terminal: bool = False) -> Iterator[tuple[Console, io.StringIO]]:
    file = io.StringIO()
    yield Console(file=file, force_terminal=terminal, width=100, highlight=False), file


async def shown(
    gateway: Served, worker: ScriptedWorker, script: Callable[[str], list[Event]], terminal: bool = False
) -> tuple[bool, str]:
    """Recaption a prompt with a worker that follows the script. Returns whether it completed, and the output."""
    with console(terminal) as (out, file):
        async with working(worker, script, 0.3 if terminal else 0), AsyncClient(gateway.url) as client:
            completed = await show_job(client, (await client.recaption("a fox")).id, out)
    return completed, file.getvalue()


async def test_captions_are_printed_line_by_line(gateway: Served, worker: ScriptedWorker) -> None:
    completed, text = await shown(gateway, worker, video_events)
    lines = [line.strip() for line in text.splitlines()]
    assert completed
    assert "0.00 s  A light square." in lines
    assert "2.00 s  Das Quadrat fährt nach rechts — 正方形 🟨." in lines
    assert "caption  A light square moves to the right." in lines
    assert lines[-1] == "completed: 100 prompt tokens (80 of them image tokens), 20 generated"


async def test_text_is_shown_while_it_is_generated(gateway: Served, worker: ScriptedWorker) -> None:
    completed, text = await shown(gateway, worker, recaption_events, terminal=True)
    assert completed
    assert text.index("A red ") < text.index("A red fox.")
    assert "caption" in text


async def test_a_failed_job_prints_the_reason(gateway: Served, worker: ScriptedWorker) -> None:
    failure = Failed.of(EngineFailed("The engine stopped."))
    completed, text = await shown(gateway, worker, lambda _: [Started(attempt=1), failure])
    assert not completed
    assert "The engine stopped. (engine_failed)" in text


async def test_a_new_attempt_discards_unfinished_text(gateway: Served, worker: ScriptedWorker) -> None:
    def script(job_id: str) -> list[Event]:
        start, *rest = video_events(job_id)
        half = Delta(of="differential", keyframe=0, text="A dark tri")
        return [start, half, Started(attempt=2), *rest]

    completed, text = await shown(gateway, worker, script)
    assert completed
    assert "dark" not in text


async def test_texts_that_were_cut_off_are_marked(gateway: Served, worker: ScriptedWorker) -> None:
    def script(_: str) -> list[Event]:
        start, end = Started(attempt=1), Completed(usage=Usage(), timings_s=Timings())
        differential = Differential(keyframe=0, time_s=0, text="A red", finish_reason="length")
        return [start, differential, Caption(text="A red star.", finish_reason="stop"), end]

    _, text = await shown(gateway, worker, script)
    assert "0.00 s  A red (cut off at max_tokens)\n" in text
    assert "caption  A red star.\n" in text


def test_control_characters_are_replaced() -> None:
    assert printable("a\x1b[2Jb\n\u202ec") == "a�[2Jb\n�c"
    event = Differential(keyframe=0, time_s=0, text="[red]x[/red]")
    assert printable(event.text) == event.text
