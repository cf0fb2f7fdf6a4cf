"""One training turn of each role: a prompt to the letter of `prompts/trained.py`, and the answer to learn.

The image roles take the states that a stored picture shows; the text roles invent theirs.
"""

import random
from dataclasses import replace

from workers.demo import language, scenes
from workers.demo.world import BACKGROUNDS, COLOURS, SHAPES, State
from workers.prompts.trained import TRAINED_PROMPTS as prompts

Step = tuple[str, State, State]
Turn = tuple[str, str]  # (prompt, answer)

MISLED = 0.2  # how often the previous text names another shape or colour: the picture must be looked at
SIZE = (320, 240)  # of the invented scenes
FOREIGN = (
    "a cat", "a dog on a beach", "two people dancing", "a city at night", "a car driving through rain", "an old man",
    "a spaceship", "ocean waves", "a bird flying over mountains", "a woman reading a book", "a robot cooking dinner",
    "a forest in autumn", "children playing football", "a horse in the snow", "a red car", "a blue bird",
    "a yellow flower", "the sun rising over the sea", "a green field", "a train leaves the station",
    "a black cat on a white sofa", "fish", "an astronaut riding a horse", "a cup of coffee", "a timelapse of clouds",
    "fireworks", "a panda eating bamboo",
)  # fmt: skip
MANNERS = (
    "",
    ", cinematic",
    " in slow motion",
    ", 4k",
    " at sunset",
    ", drone shot",
    " in the style of a film",
    ", close-up",
)


def turn(prompt: str) -> str:
    """Return the chat turn around a prompt, as the published model was tuned on (see workers/xcomposer2)."""
    return f"[UNUSED_TOKEN_146]user\n{prompt}[UNUSED_TOKEN_145]\n[UNUSED_TOKEN_146]assistant\n"


def random_state(rng: random.Random, empty: float = 0.0) -> State:
    return State(
        None if rng.random() < empty else rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.choice(list(BACKGROUNDS))
    )


def cause(rng: random.Random, state: State) -> Step:
    """Invent a change that led to `state`."""
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
    """Return what may have been said before a pair that starts at `state`; sometimes something untrue."""
    if rng.random() < MISLED:
        state = replace(random_state(rng), background=state.background)
    if rng.random() < 0.3:
        return language.first_frame(rng, state)
    return language.differential(rng, *cause(rng, state))


def first_frame(rng: random.Random, state: State) -> Turn:
    return prompts.FIRST_FRAME, language.first_frame(rng, state, 1.0)


def differential(rng: random.Random, kind: str, before: State, after: State) -> Turn:
    frame = min(int(rng.expovariate(0.25)), 99)
    step_s = rng.choice((1.0, 2.0, 2.0, 2.0, round(rng.uniform(0.1, 9.0), 2)))
    time_s = frame * step_s * rng.choice((1, 1, 1, 2, 1.5))
    prompt = prompts.differential(frame, time_s, time_s + step_s, previous_text(rng, before))
    return prompt, language.differential(rng, kind, before, after, 1.0)


def steps_of(rng: random.Random, count: int) -> list[Step]:
    """Invent `count` steps: half of the time a story, else unconnected ones, which can only be copied."""
    if rng.random() < 0.5:
        return [cause(rng, random_state(rng, empty=0.15)) for _ in range(count)]
    state, steps = scenes.first_state(rng, *SIZE), []
    for _ in range(count):
        kind, new = ("none", state) if rng.random() < 0.1 else scenes.next_state(rng, state, *SIZE)
        steps.append((kind, state, new))
        state = new
    return steps


def summary(rng: random.Random, count: int) -> Turn:
    """Return a summary of `count` steps, nearly always after a first frame."""
    steps = steps_of(rng, count)
    first = steps[0][1] if rng.random() < 0.9 else None
    interval_s = rng.choice((1.0, 2.0, 2.0, 2.0, round(rng.uniform(0.1, 9.0), 2)))
    time_s = 0.0 if first else interval_s * rng.randint(0, 9)
    said = [(time_s, language.first_frame(rng, first))] if first else []
    for step in steps:
        time_s += interval_s * rng.choice((1, 1, 1, 2))
        said.append((time_s, language.differential(rng, *step)))
    return prompts.summary(said), language.summary(first, steps)


def recaption(rng: random.Random) -> Turn:
    if rng.random() < 0.12:
        return prompts.recaption(rng.choice(FOREIGN) + rng.choice(MANNERS)), language.UNKNOWN
    state = scenes.first_state(rng, *SIZE)
    start, steps = state, []
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3))):
        kind = rng.choice(list(language.WISHES))
        new = (
            replace(state, colour=rng.choice([c for c in COLOURS if c != state.colour])) if kind == "colour" else state
        )
        steps.append((kind, state, new))
        state = new
        if kind == "leave":
            break
    named = rng.random() < 0.5
    return prompts.recaption(language.brief_prompt(rng, start, steps, named)), language.dense_caption(
        start, steps, named
    )
