"""One training example of each role: a trained prompt, letter for letter, and the reference answer.

The image roles describe the states that a picture shows; the text roles invent theirs.
"""

import random
from dataclasses import replace
from typing import NamedTuple

from workers.demo import language, scenes
from workers.demo.language import Step
from workers.demo.world import BACKGROUNDS, COLOURS, SHAPES, State
from workers.prompts.style import Description
from workers.prompts.trained import TRAINED_PROMPTS


class Example(NamedTuple):
    prompt: str
    answer: str


MISLEADING = 0.2  # share of previous texts that name another shape or colour, so that the model must look at the image
SIZE = (320, 240)  # (width, height) in pixels of the invented scenes
INTERVALS_S = (1.0, 2.0, 2.0, 2.0)
SUBJECTS_OUTSIDE_THE_WORLD = (
    "a cat", "a dog on a beach", "two people dancing", "a city at night", "a car driving through rain", "an old man",
    "a spaceship", "ocean waves", "a bird flying over mountains", "a woman reading a book", "a robot cooking dinner",
    "a forest in autumn", "children playing football", "a horse in the snow", "a red car", "a blue bird",
    "a yellow flower", "the sun rising over the sea", "a green field", "a train leaves the station",
    "a black cat on a white sofa", "fish", "an astronaut riding a horse", "a cup of coffee", "a timelapse of clouds",
    "fireworks", "a panda eating bamboo",
)  # fmt: skip
STYLES = ("", ", cinematic", " in slow motion", ", 4k", " at sunset", ", drone shot", " in the style of a film",
          ", close-up")  # fmt: skip


def chat_turn(prompt: str) -> str:
    """Return the chat turn around a prompt, in the published model's format (see workers/xcomposer2)."""
    return f"[UNUSED_TOKEN_146]user\n{prompt}[UNUSED_TOKEN_145]\n[UNUSED_TOKEN_146]assistant\n"


def random_state(rng: random.Random, empty: float = 0.0) -> State:
    """Return a random state. `empty` is the probability that it has no shape."""
    shape = None if rng.random() < empty else rng.choice(SHAPES)
    return State(shape, rng.choice(list(COLOURS)), rng.choice(list(BACKGROUNDS)))


def step_to(rng: random.Random, state: State) -> Step:
    """Invent a change that leads to `state`."""
    if state.shape is None:
        kind = rng.choice(("leave", "background", "none"))
    else:
        kind = rng.choice(("left", "right", "up", "down", "grow", "shrink", "colour", "appear", "background", "none"))
    before = state
    if kind == "leave":
        before = replace(random_state(rng), background=state.background)
    elif kind == "appear":
        before = replace(state, shape=None)
    elif kind == "colour":
        before = replace(state, colour=rng.choice([c for c in COLOURS if c != state.colour]))
    elif kind == "background":
        before = replace(state, background=rng.choice([b for b in BACKGROUNDS if b != state.background]))
    return kind, before, state


def previous_text(rng: random.Random, state: State) -> str:
    """Return the text that precedes a pair starting at `state`. A share of them, `MISLEADING`, is wrong."""
    if rng.random() < MISLEADING:
        state = replace(random_state(rng), background=state.background)
    if rng.random() < 0.3:
        return language.first_frame(rng, state)
    return language.differential(rng, *step_to(rng, state))


def random_interval_s(rng: random.Random) -> float:
    return rng.choice((*INTERVALS_S, round(rng.uniform(0.1, 9.0), 2)))


def first_frame(rng: random.Random, state: State) -> Example:
    return Example(TRAINED_PROMPTS.FIRST_FRAME, language.first_frame(rng, state, 1.0))


def differential(rng: random.Random, kind: str, before: State, after: State) -> Example:
    frame = min(int(rng.expovariate(0.25)), 99)
    interval_s = random_interval_s(rng)
    time_s = frame * interval_s * rng.choice((1, 1, 1, 2, 1.5))
    prompt = TRAINED_PROMPTS.differential(frame, time_s, time_s + interval_s, previous_text(rng, before))
    return Example(prompt, language.differential(rng, kind, before, after, 1.0))


def fast(first: State, steps: list[Step]) -> Example:
    """Return the fast role's example: the caption of all keyframes, numbered as in a summary."""
    return Example(TRAINED_PROMPTS.FAST, language.summary(first, steps))


def random_steps(rng: random.Random, count: int) -> list[Step]:
    """Invent `count` steps. Half of the lists are a story; the others are unconnected, so they can only be copied."""
    if rng.random() < 0.5:
        return [step_to(rng, random_state(rng, empty=0.15)) for _ in range(count)]
    state, steps = scenes.first_state(rng, *SIZE), []
    for _ in range(count):
        kind, new = ("none", state) if rng.random() < 0.1 else scenes.next_state(rng, state, *SIZE)
        steps.append((kind, state, new))
        state = new
    return steps


def summary(rng: random.Random, count: int) -> Example:
    """Return a summary of `count` steps. Nine in ten begin with a first frame."""
    steps = random_steps(rng, count)
    first = steps[0][1] if rng.random() < 0.9 else None
    interval_s = random_interval_s(rng)
    time_s = 0.0 if first else interval_s * rng.randint(0, 9)
    descriptions = [Description(time_s, language.first_frame(rng, first))] if first else []
    for step in steps:
        time_s += interval_s * rng.choice((1, 1, 1, 2))
        descriptions.append(Description(time_s, language.differential(rng, *step)))
    return Example(TRAINED_PROMPTS.summary(descriptions), language.summary(first, steps))


def requested_steps(rng: random.Random, state: State) -> list[Step]:
    """Invent zero to three changes that a brief prompt asks for. Nothing follows after the shape leaves."""
    steps: list[Step] = []
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3))):
        kind, new = rng.choice(list(language.REQUESTS)), state
        if kind == "colour":
            new = replace(state, colour=rng.choice([c for c in COLOURS if c != state.colour]))
        steps.append((kind, state, new))
        state = new
        if kind == "leave":
            break
    return steps


def recaption(rng: random.Random) -> Example:
    """Return a brief prompt with its dense caption. About one in eight asks for something outside the demo world."""
    if rng.random() < 0.12:
        brief = rng.choice(SUBJECTS_OUTSIDE_THE_WORLD) + rng.choice(STYLES)
        return Example(TRAINED_PROMPTS.recaption(brief), language.UNKNOWN)
    state = scenes.first_state(rng, *SIZE)
    steps = requested_steps(rng, state)
    with_background = rng.random() < 0.5
    brief = language.brief_prompt(rng, state, steps, with_background)
    return Example(TRAINED_PROMPTS.recaption(brief), language.dense_caption(state, steps, with_background))
