"""Writes a job's captions as text, JSON, SRT, WebVTT, Markdown or CSV. All functions return the content of a file.

A differential caption is in force from its keyframe to the next one. A job without differential captions (fast mode, a
clip) has one part: its caption, from the start to the end of what was captioned. A recaption has no times.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from sharecap_client.models import Job

Format = Literal["txt", "json", "srt", "vtt", "md", "csv"]
FORMATS: tuple[Format, ...] = get_args(Format)
TIMED_FORMATS: tuple[Format, ...] = ("srt", "vtt", "csv")
"""Formats that a job without times cannot be written in."""
MIN_LAST_S = 1.0
"""The last part lasts at least this long: the last keyframe is often the last frame of the video."""
UNKNOWN_LENGTH_S = 5.0
"""How long the last part lasts if the length of the video is not known."""
MAX_NAME_CHARS = 80
CSV_COLUMNS = ("job", "name", "keyframe", "start_s", "end_s", "text")

_CONTROL = re.compile(r"[^\S\n]|[\x00-\x09\x0b-\x1f\x7f]")
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~])")


@dataclass(frozen=True)
class Part:
    """A text and the time, in seconds of the video, at which it is in force. `keyframe` is None for a caption."""

    start_s: float
    end_s: float
    text: str
    keyframe: int | None = None


def render(job: Job, output: Format) -> str:
    """Return the job's captions in this format. Raises ValueError if the job has no times and the format needs them."""
    if output in TIMED_FORMATS and job.kind == "recaption":
        raise ValueError(f"a recaption has no times, which {output} needs: choose txt, json or md")
    return WRITERS[output](job)


def name_of(job: Job) -> str:
    """Return a short name: of the file, the URL or the prompt, and of the part of a video."""
    source = job.source
    name = (source and (source.filename or source.url)) or job.options.get("prompt") or job.parent or job.id
    start_s, end_s = job.options.get("start_s"), job.options.get("end_s")
    part = "" if start_s is None and end_s is None else f" ({clock(start_s or 0)}–{clock(end_s) if end_s else 'end'})"
    return " ".join(str(name).split())[:MAX_NAME_CHARS] + part


def parts(job: Job) -> list[Part]:
    """Return the timed texts of a job in order."""
    if not job.differentials:
        start_s = float(job.options.get("start_s") or 0)
        return [] if job.caption is None else [Part(start_s, _end_s(job, start_s), job.caption)]
    texts = job.differentials
    ends_s = [*(following.time_s for following in texts[1:]), _end_s(job, texts[-1].time_s)]
    return [Part(one.time_s, end_s, one.text, one.keyframe) for one, end_s in zip(texts, ends_s, strict=True)]


def clock(seconds: float) -> str:
    """Return a time as people write it: 1:02.500."""
    minutes, ms = divmod(round(seconds * 1000), 60_000)
    hours = f"{minutes // 60}:{minutes % 60:02d}" if minutes >= 60 else f"{minutes}"
    return f"{hours}:{ms // 1000:02d}.{ms % 1000:03d}"


def timestamp(seconds: float, point: str) -> str:
    """Return a time as subtitles write it, for example 00:01:02,500; `point` is "," or "."."""
    minutes, ms = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{ms // 1000:02d}{point}{ms % 1000:03d}"


def as_text(job: Job) -> str:
    """Return one line for each differential caption, and the caption as the last paragraph."""
    lines = [f"{part.start_s:8.2f} s  {_one_line(part.text)}" for part in parts(job) if part.keyframe is not None]
    caption = [*([""] if lines else []), job.caption] if job.caption is not None else []
    return "\n".join([*lines, *caption, ""])


def as_json(job: Job) -> str:
    """Return the job with all its fields."""
    return job.model_dump_json(indent=2) + "\n"


def as_srt(job: Job) -> str:
    """Return SubRip subtitles."""
    return "".join(
        f"{number}\n{timestamp(part.start_s, ',')} --> {timestamp(part.end_s, ',')}\n{_cue(part.text)}\n\n"
        for number, part in enumerate(parts(job), 1)
    )


def as_vtt(job: Job) -> str:
    """Return WebVTT subtitles."""
    cues = (
        f"\n{timestamp(part.start_s, '.')} --> {timestamp(part.end_s, '.')}\n{_vtt_escape(_cue(part.text))}\n"
        for part in parts(job)
    )
    return "WEBVTT\n" + "".join(cues)


def as_markdown(job: Job) -> str:
    """Return a heading, the caption, and a list of the differential captions with their times."""
    lines = [f"# {_escape(name_of(job))}"]
    if job.caption is not None:
        lines += ["", _escape(job.caption)]
    listed = [part for part in parts(job) if part.keyframe is not None]
    if listed:
        lines += ["", *(f"- **{clock(part.start_s)}** {_escape(_one_line(part.text))}" for part in listed)]
    return "\n".join(lines) + "\n"


def as_csv(job: Job) -> str:
    """Return a header and the rows of one job."""
    return csv_text([job])


def csv_text(jobs: Iterable[Job]) -> str:
    """Return a header and the rows of all jobs: one for each differential caption, and one for the caption."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for job in jobs:
        rows = [part for part in parts(job) if part.keyframe is not None]
        if job.caption is not None:
            start_s = rows[0].start_s if rows else float(job.options.get("start_s") or 0)
            rows.append(Part(start_s, _end_s(job, start_s), job.caption))
        for part in rows:
            keyframe = "" if part.keyframe is None else part.keyframe
            writer.writerow((job.id, name_of(job), keyframe, f"{part.start_s:.3f}", f"{part.end_s:.3f}", part.text))
    return file.getvalue()


WRITERS: dict[Format, Callable[[Job], str]] = {
    "txt": as_text,
    "json": as_json,
    "srt": as_srt,
    "vtt": as_vtt,
    "md": as_markdown,
    "csv": as_csv,
}


def _end_s(job: Job, start_s: float) -> float:
    """Return the end of what was captioned, and at least a moment after `start_s`."""
    duration_s = job.source.duration_s if job.source else None
    limits = [float(end_s) for end_s in (job.options.get("end_s"), duration_s) if end_s is not None]
    return max(min(limits, default=start_s + UNKNOWN_LENGTH_S), start_s + MIN_LAST_S)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _cue(text: str) -> str:
    """Return a text that cannot end its cue: without empty lines, control characters and arrows."""
    lines = (_CONTROL.sub(" ", line).strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line).replace("-->", "→") or "…"


def _vtt_escape(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _escape(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", text)
