"""What is said about the demo world: reference texts of every role, and how to read a caption back.

Second description of a scene beside `scenes.py`. Each kind of sentence has several templates; the first of each list is
the one that answers use: what cannot be foretold would only be noise to learn from. Prompts quote all of them.
"""

import random
import re

from workers.demo.world import BACKGROUNDS, CHANGES, COLOURS, SHAPES, Scene, State

MOVES = ("left", "right", "up", "down")
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
FAVOURITE = 0.95  # how often a text that a prompt quotes takes the first template outright, as the model's own do


def article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def pick(rng: random.Random, templates: tuple[str, ...], favourite: float) -> str:
    return templates[0] if rng.random() < favourite else rng.choice(templates)


def thing(state: State) -> str:
    return f"{state.colour} {state.shape}"


def first_frame(rng: random.Random, state: State, favourite: float = FAVOURITE) -> str:
    """Return a description of one frame; `favourite` is the chance of the first template, else any."""
    if state.shape is None:
        return pick(rng, FIRST_EMPTY, favourite).format(background=state.background)
    a_thing = article(thing(state))
    template = pick(rng, FIRST, favourite)
    return template.format(a_thing=a_thing, A_thing=capitalised(a_thing), background=state.background)


def capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def differential(rng: random.Random, kind: str, before: State, after: State, favourite: float = FAVOURITE) -> str:
    """Return what is said of the change `kind` between two states."""
    empty = before.shape is None and kind in EMPTY
    template = pick(rng, (EMPTY if empty else DIFFERENTIAL)[kind], favourite)
    new = capitalised(article(thing(after))) if after.shape else ""
    return template.format(
        thing=thing(before), A_new_thing=new, colour=after.colour, old=before.background, background=after.background
    )


def summary(first: State | None, steps: list[tuple[str, State, State]]) -> str:
    """Return the caption of a whole video: its first frame, where described, then what every frame changes, by number.

    Frames are numbered as in the prompt, from 1: a small model that names the line it is at keeps its place.
    """
    rng = random.Random(0)  # not used: the favourite template always
    sentences = []
    if first is not None:
        opening = first_frame(rng, first, 1.0)
        sentences.append("The video shows " + opening[0].lower() + opening[1:])
    for number, (kind, before, after) in enumerate(steps, start=1 if first is None else 2):
        told = "nothing changes." if kind == "none" else differential(rng, kind, before, after, 1.0)
        sentences.append(f"In frame {number} " + told[0].lower() + told[1:])
    return " ".join(sentences)


def story(steps: list[tuple[str, State, State]]) -> str:
    """Return the changes in order, told without frames: "First, … Then …"."""
    rng = random.Random(0)  # not used: the favourite template always
    told = [differential(rng, kind, before, after, 1.0) for kind, before, after in steps]
    links = ["First, ", *["Then "] * len(told)]
    return " ".join(link + text[0].lower() + text[1:] for link, text in zip(links, told, strict=False))


def reference(scene: Scene) -> list[tuple[float, str]]:
    """Return `(time_s, text)` of the first frame and of each change, in the favourite words."""
    rng = random.Random(scene.seed)
    said = [(0.0, first_frame(rng, scene.states[0], 1.0))]
    for index, (time_s, kind) in enumerate(zip(scene.change_times_s(), scene.changes, strict=True)):
        said.append((time_s, differential(rng, kind, scene.states[index], scene.states[index + 1], 1.0)))
    return said


WISHES = {
    "left": ("moves left", "moving to the left", "goes to the left"),
    "right": ("moves right", "moving to the right", "goes to the right"),
    "up": ("moves up", "rising", "goes up"),
    "down": ("moves down", "sinking", "goes down"),
    "grow": ("grows", "growing larger", "gets bigger"),
    "shrink": ("shrinks", "shrinking", "gets smaller"),
    "colour": ("turns {colour}", "turning {colour}", "becomes {colour}"),
    "leave": ("leaves", "disappearing", "leaves the frame"),
}


ANY_WISH = "|".join(
    wish.format(colour=f"({'|'.join(COLOURS)})") for wish in sorted(sum(WISHES.values(), ()), key=len, reverse=True)
)


def find_wishes(prompt: str) -> list[int]:
    """Return where each wish of a brief prompt begins."""
    return [found.start() for found in re.finditer(ANY_WISH, prompt)]


def find_told(caption: str) -> list[int]:
    """Return where each sentence of a dense caption that tells a wish begins."""
    return [found.start() for found in re.finditer(r"First,|Then ", caption)]


def brief_prompt(rng: random.Random, state: State, steps: list[tuple[str, State, State]], on: bool) -> str:
    """Return a short text-to-video prompt for `state` and `steps`; `on` says whether it names the background."""
    words = article(thing(state)) if rng.random() < 0.6 else thing(state)
    ground = rng.choice((" on {b}", " on a {b} background", ", {b} background", " against {b}")) if on else ""
    ground = ground.format(b=state.background)
    wishes = [rng.choice(WISHES[kind]).format(colour=after.colour) for kind, _, after in steps]
    told = rng.choice((", then ", " and then ", ", ", " and ")).join(wishes)
    link = rng.choice((" that ", ", ", " ")) if told else ""
    text = words + ground + link + told if rng.random() < 0.6 else words + link + told + ground
    text += "." if rng.random() < 0.2 else ""
    return capitalised(text) if rng.random() < 0.3 else text


def dense_caption(state: State, steps: list[tuple[str, State, State]], on: bool) -> str:
    """Return the written-out caption of `brief_prompt`: no attribute of the prompt is lost, none is invented."""
    opening = f"The video shows {article(thing(state))} on a {state.background if on else 'plain'} background."
    told = story(steps) if steps else f"The {thing(state)} stays still in the middle of the frame."
    return f"{opening} {told}"


def read_thing(text: str) -> tuple[str | None, str | None]:
    """Return `(shape, colour)` of the first "colour shape" in a caption."""
    found = re.search(rf"\b({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})\b", text.lower())
    return (found[2], found[1]) if found else (None, None)


READ = (
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
    """Return the kind of change that a sentence tells, or None where it tells no known one."""
    return next((kind for kind, pattern in READ if re.search(pattern, text.lower())), None)


def read_background(text: str) -> str | None:
    """Return the background a sentence ends up with."""
    found = re.findall(rf"\b({'|'.join(BACKGROUNDS)})\b", text.lower())
    return found[-1] if found else None


assert {kind for kind, _ in READ} == set(CHANGES)
