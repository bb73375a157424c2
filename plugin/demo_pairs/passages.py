"""Pairs with fluent errors: the prompt states some values and rules out others, and a wrong response uses the latter.

No world knowledge is needed: a prompt states a handful of values and rules out others of their kind ("on Monday, not
Friday", "twelve instead of nine dollars", "open rather than closed"); the chosen response, in free wording, agrees with
it, and the rejected one has the ruled-out name, number, word or opposite in one to three places. Such errors are as
fluent as the correct values and not more surprising than the rest of the wording, as both values are in the prompt. To
find them, a scorer must compare a response with its prompt.

The correct value precedes the one that is ruled out. Values and wordings come from ``data/passages.json``; every value
is one token for the demo's model. Every value is right in some rows and wrong in others.
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
_WEIGHTS = (6, 4, 2)  # mostly single errors: next to an easier error, a harder one would not have to be learned
_DOUBLED_COMMA = re.compile(r",(?=[,.])")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeio])")


@dataclass(frozen=True)
class Passage:
    """One kind of passage.

    ``pools`` maps each value's name to the words that it is drawn from, ``types`` to the type of its errors.
    """

    domain: str
    pools: dict[str, tuple[str, ...]]
    types: dict[str, str]
    questions: tuple[str, ...]
    answers: tuple[str, ...]


@cache
def load_passages() -> tuple[Passage, ...]:
    """Return every kind of passage, in the order of ``data/passages.json``."""
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
    """Draw training and held-out rows, spread evenly over the passages, without a prompt or response in common.

    Args:
        seed: seed of every draw.
        train: number of training rows.
        heldout: number of held-out rows.
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
    stated = {
        name: _stated(values[name], wrong[name], rng) if name in slots(answer) else values[name] for name in values
    }
    question = fill(rng.choice(passage.questions), stated)
    question = _ARTICLE.sub(r"\1n ", _DOUBLED_COMMA.sub("", question))
    pieces = cut(answer, values, wrong, types=passage.types)
    return make_row(question[0].upper() + question[1:], pieces, domain=passage.domain, rng=rng, weights=_WEIGHTS)


def _stated(right: str, wrong: str, rng: random.Random) -> str:
    """Return the words with which the prompt states one value and rules out another."""
    return rng.choice(_RULED_OUT).format(right=right, wrong=wrong)
