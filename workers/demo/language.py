"""The language of the demo world: reference texts for every role, and functions that read captions back.

Each kind of sentence has several templates. Answers use the first of each list, because a model cannot predict which
wording was drawn. Texts quoted in prompts use all of them.
"""

import random
import re

from workers.demo.world import BACKGROUNDS, CHANGES, COLOURS, SHAPES, Scene, State

Step = tuple[str, State, State]
"""A change: its kind, the state before, the state after."""

FIRST = (
    "{A_thing} on a {background} background.",
    "The first frame shows {a_thing} on a {background} background.",
    "{A_thing} stands against a plain {background} background.",
)
FIRST_EMPTY = ("An empty {background} background.", "There is nothing but a {background} background.")
DIFFERENTIAL = {
    "left": ("The {thing} moves to the left.", "The {thing} slides left."),
    "right": ("The {thing} moves to the right.", "The {thing} slides right."),
    "up": ("The {thing} moves up.", "The {thing} rises upwards."),
    "down": ("The {thing} moves down.", "The {thing} sinks downwards."),
    "grow": ("The {thing} grows larger.", "The {thing} becomes bigger."),
    "shrink": ("The {thing} shrinks.", "The {thing} becomes smaller."),
    "colour": ("The {thing} turns {colour}.", "The {thing} changes its colour to {colour}."),
    "leave": ("The {thing} leaves the frame.", "The {thing} disappears from view."),
    "appear": (
        "{A_new_thing} appears on the {background} background.",
        "{A_new_thing} enters on the {background} background.",
    ),
    "background": (
        "The background turns from {old} to {background} behind the {thing}.",
        "Behind the {thing}, the background changes from {old} to {background}.",
    ),
    "none": ("Nothing changes: the {thing} stays as it is.", "The {thing} stays still."),
}
EMPTY = {
    "background": ("The empty background turns from {old} to {background}.",),
    "none": ("Nothing changes: the {background} background stays empty.", "The {background} background stays empty."),
}
UNKNOWN = (
    "This demo model only knows coloured circles, squares, triangles and stars, so it cannot write out this prompt."
)
FAVOURITE = 0.95
"""Share of quoted texts that use the first template. The model's own answers always do."""


def article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def uncapitalised(text: str) -> str:
    return text[0].lower() + text[1:]


def pick(rng: random.Random, templates: tuple[str, ...], favourite: float) -> str:
    """Return the first template with probability `favourite`, else a random one (possibly also the first)."""
    return templates[0] if rng.random() < favourite else rng.choice(templates)


def thing(state: State) -> str:
    return f"{state.colour} {state.shape}"


def first_frame(rng: random.Random, state: State, favourite: float = FAVOURITE) -> str:
    """Return a description of one frame. See `pick` for `favourite`."""
    if state.shape is None:
        return pick(rng, FIRST_EMPTY, favourite).format(background=state.background)
    a_thing = article(thing(state))
    template = pick(rng, FIRST, favourite)
    return template.format(a_thing=a_thing, A_thing=capitalised(a_thing), background=state.background)


def differential(rng: random.Random, kind: str, before: State, after: State, favourite: float = FAVOURITE) -> str:
    """Return the sentence that describes a change of this kind. See `pick` for `favourite`."""
    empty = before.shape is None and kind in EMPTY
    template = pick(rng, (EMPTY if empty else DIFFERENTIAL)[kind], favourite)
    new = capitalised(article(thing(after))) if after.shape else ""
    return template.format(
        thing=thing(before), A_new_thing=new, colour=after.colour, old=before.background, background=after.background
    )


def favourite_first_frame(state: State) -> str:
    return first_frame(random.Random(0), state, 1.0)


def favourite_differential(step: Step) -> str:
    return differential(random.Random(0), *step, 1.0)


def summary(first: State | None, steps: list[Step]) -> str:
    """Return the caption of a whole video: its first frame, if given, then the change in each frame, by number.

    Frames are numbered from 1, as in the prompt. A small model keeps its place better if it names the current line.
    """
    sentences = []
    if first is not None:
        sentences.append("The video shows " + uncapitalised(favourite_first_frame(first)))
    for number, step in enumerate(steps, start=1 if first is None else 2):
        text = "nothing changes." if step[0] == "none" else uncapitalised(favourite_differential(step))
        sentences.append(f"In frame {number} {text}")
    return " ".join(sentences)


def story(steps: list[Step]) -> str:
    """Return the changes in order without frame numbers: "First, ... Then ..."."""
    links = ["First, ", *["Then "] * len(steps)]
    texts = [uncapitalised(favourite_differential(step)) for step in steps]
    return " ".join(link + text for link, text in zip(links, texts, strict=False))


def reference(scene: Scene) -> list[tuple[float, str]]:
    """Return `(time_s, text)` of the first frame and of each change, in the favourite wording."""
    steps = zip(scene.changes, scene.states, scene.states[1:], strict=False)
    texts = [favourite_first_frame(scene.states[0]), *(favourite_differential(step) for step in steps)]
    return list(zip([0.0, *scene.change_times_s()], texts, strict=True))


REQUESTS = {
    "left": ("moves left", "moving to the left", "goes to the left"),
    "right": ("moves right", "moving to the right", "goes to the right"),
    "up": ("moves up", "rising", "goes up"),
    "down": ("moves down", "sinking", "goes down"),
    "grow": ("grows", "growing larger", "gets bigger"),
    "shrink": ("shrinks", "shrinking", "gets smaller"),
    "colour": ("turns {colour}", "turning {colour}", "becomes {colour}"),
    "leave": ("leaves", "disappearing", "leaves the frame"),
}
"""How a brief text-to-video prompt asks for each kind of change."""

ANY_REQUEST = "|".join(
    template.format(colour=f"({'|'.join(COLOURS)})")
    for template in sorted(sum(REQUESTS.values(), ()), key=len, reverse=True)
)


def request_starts(prompt: str) -> list[int]:
    """Return the index at which each requested change of a brief prompt begins."""
    return [match.start() for match in re.finditer(ANY_REQUEST, prompt)]


def sentence_starts(caption: str) -> list[int]:
    """Return the index at which each change sentence of a dense caption begins."""
    return [match.start() for match in re.finditer(r"First,|Then ", caption)]


def brief_prompt(rng: random.Random, state: State, steps: list[Step], with_background: bool) -> str:
    """Return a short text-to-video prompt for `state` and `steps`, which may also name the background."""
    words = article(thing(state)) if rng.random() < 0.6 else thing(state)
    ground = ""
    if with_background:
        ground = rng.choice((" on {b}", " on a {b} background", ", {b} background", " against {b}"))
    ground = ground.format(b=state.background)
    requests = [rng.choice(REQUESTS[kind]).format(colour=after.colour) for kind, _, after in steps]
    changes = rng.choice((", then ", " and then ", ", ", " and ")).join(requests)
    link = rng.choice((" that ", ", ", " ")) if changes else ""
    text = words + ground + link + changes if rng.random() < 0.6 else words + link + changes + ground
    text += "." if rng.random() < 0.2 else ""
    return capitalised(text) if rng.random() < 0.3 else text


def dense_caption(state: State, steps: list[Step], with_background: bool) -> str:
    """Return the dense caption of a `brief_prompt`: it keeps every attribute of the prompt and invents none."""
    background = state.background if with_background else "plain"
    opening = f"The video shows {article(thing(state))} on a {background} background."
    changes = story(steps) if steps else f"The {thing(state)} stays still in the middle of the frame."
    return f"{opening} {changes}"


def read_thing(text: str) -> tuple[str | None, str | None]:
    """Return `(shape, colour)` of the first "colour shape" in a caption."""
    match = re.search(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b", text.lower())
    return (match[2], match[1]) if match else (None, None)


CHANGE_PATTERNS = (
    ("none", r"nothing changes|stays"),
    ("background", r"background (turns|changes) from"),
    ("appear", r"\bappears|enters"),
    ("leave", r"leaves|disappears"),
    ("grow", r"grows|bigger"),
    ("shrink", r"shrinks|smaller"),
    ("colour", rf"turns ({'|'.join(COLOURS)})|changes its colour"),
    ("up", r"moves up|rises"),
    ("down", r"moves down|sinks"),
    ("left", r"(moves to the|slides) left"),
    ("right", r"(moves to the|slides) right"),
)


def read_change(text: str) -> str | None:
    """Return the kind of change that a sentence describes, or None if it describes no known kind."""
    return next((kind for kind, pattern in CHANGE_PATTERNS if re.search(pattern, text.lower())), None)


def read_background(text: str) -> str | None:
    """Return the last background that a sentence names."""
    names = re.findall(rf"\b({'|'.join(BACKGROUNDS)})\b", text.lower())
    return names[-1] if names else None


assert {kind for kind, _ in CHANGE_PATTERNS} == set(CHANGES)
