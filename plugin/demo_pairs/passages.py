"""Fluent pairs: the prompt says what is so and what is not, and a wrong answer says what is not.

Nobody has to know anything: a prompt states a handful of values and rules out others of their kind ("on Monday, not
Friday", "twelve instead of nine dollars", "open rather than closed"); the chosen answer, in free wording, keeps to it,
and the rejected one says the ruled-out name, number, word or opposite in one to three places. Such errors are as
fluent as the truth, and not more surprising than the rest of the wording: both values were just read. What finds them
has to have learnt to compare an answer with its prompt.

The value that holds comes before the one that is ruled out. Values and wordings come from ``data/passages.json``; every
value is one token of the demo's model. Every value is right in some rows and wrong in others.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources

from demo_pairs.wording import PairRow, cut, fill, make_row, slots

__all__ = ["Passage", "generate_passages", "load_passages"]

_RULED_OUT = (
    "{right} (not {wrong})",
    "{right}, not {wrong},",
    "{right} instead of {wrong}",
    "{right} rather than {wrong}",
)
_WEIGHTS = (6, 4, 2)  # many errors alone: beside others, one of a harder kind would not have to be learnt
_DOUBLED_COMMA = re.compile(r",(?=[,.])")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeio])")


@dataclass(frozen=True)
class Passage:
    """One sort of passage.

    ``pools`` gives each value's name what it is drawn from, ``types`` the kind of error that it makes.
    """

    domain: str
    pools: dict[str, tuple[str, ...]]
    types: dict[str, str]
    questions: tuple[str, ...]
    answers: tuple[str, ...]


@cache
def load_passages() -> tuple[Passage, ...]:
    """Every sort of passage, in the order of ``data/passages.json``."""
    text = resources.files("demo_pairs").joinpath("data", "passages.json").read_text(encoding="utf-8")
    raw = json.loads(text)
    pools = {name: tuple(words.split(", ")) for name, words in raw["pools"].items()}
    return tuple(
        Passage(
            domain=passage["domain"],
            pools={name: pools[pool] for name, pool in passage["draw"].items()},
            types={name: raw["types"].get(pool, "Wrong-Word") for name, pool in passage["draw"].items()},
            questions=tuple(passage["questions"]),
            answers=tuple(passage["answers"]),
        )
        for passage in raw["passages"]
    )


def generate_passages(*, seed: int, train: int, heldout: int) -> tuple[list[PairRow], list[PairRow]]:
    """Draw training and held-out rows, spread evenly over the passages; no prompt and no answer is in both.

    Args:
        seed: seed of every draw.
        train: training rows.
        heldout: held-out rows.
    """
    seen: set[str] = set()
    parts = []
    for part, rows in enumerate((train, heldout)):
        rng = random.Random(f"{seed}/passages/{part}")
        made: list[PairRow] = []
        while len(made) < rows:
            row = _draw(load_passages()[len(made) % len(load_passages())], rng)
            texts = {row["conversations"][0]["value"], row["chosen"]["value"]}
            if not texts & seen:
                seen |= texts
                made.append(row)
        rng.shuffle(made)
        parts.append(made)
    return parts[0], parts[1]


def _draw(passage: Passage, rng: random.Random) -> PairRow:
    values: dict[str, str] = {}
    wrong: dict[str, str] = {}
    for name, pool in passage.pools.items():
        left = [word for word in pool if word not in (*values.values(), *wrong.values())]
        values[name], wrong[name] = rng.sample(left, 2)
    answer = rng.choice(passage.answers)
    told = {name: _told(values[name], wrong[name], rng) if name in slots(answer) else values[name] for name in values}
    question = fill(rng.choice(passage.questions), told)
    question = _ARTICLE.sub(r"\1n ", _DOUBLED_COMMA.sub("", question))
    pieces = cut(answer, values, wrong, types=passage.types)
    return make_row(question[0].upper() + question[1:], pieces, domain=passage.domain, rng=rng, weights=_WEIGHTS)


def _told(right: str, wrong: str, rng: random.Random) -> str:
    """How the prompt says a value and rules out another one."""
    return rng.choice(_RULED_OUT).format(right=right, wrong=wrong)
