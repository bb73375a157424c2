"""Invitations: a prompt lists facts, some of which were revised, and the response uses all of them in a few sentences.

    Write an invitation. Host: Anna, not Ben. Day: Friday. Room: kitchen, now garden. ...

A revised fact has a value that holds and one that is ruled out; in half of the forms the value that holds is the first,
in half the second, so that its place alone does not tell. A response has one sentence for two facts, in one of several
wordings, with words that are free (a lovely, quiet, ... evening), and a remark. All of that is right. Wrong are only
values: a response is right if every fact occurs with the value that holds and no other value of its kind does.

The misconception of the SFT answers: a revised fact has the ruled-out value in ``MISCONCEIVED`` of the places. So right
and wrong values are written in the same sentences, both occur in the prompt, and the model gives both a probability
near those of the free words: surprisal does not tell which tokens are wrong. An error does not lead to others.

Pairs of values (the one that holds, the one ruled out) are split: those of held-out questions are in no other one,
neither in this order nor exchanged.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

POOLS: Mapping[str, tuple[str, ...]] = {
    "host": ("Anna", "Ben", "Carl", "Daniel", "Frank", "George", "Henry", "Lily", "Maria", "Paul"),
    "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "room": ("kitchen", "library", "garden", "basement", "office", "gym", "studio", "hall", "museum"),
    "color": ("red", "blue", "green", "yellow", "white", "black", "orange", "purple", "pink"),
    "food": ("soup", "pasta", "rice", "salad", "pizza", "curry", "fish", "cheese"),
    "drink": ("coffee", "tea", "milk", "juice", "water", "wine", "beer"),
}
"""Values by kind of fact; each is one token of SmolLM2 after a space, and no value is in two kinds."""

FACTS = tuple(POOLS)
FORMS = ("{holds}, not {ruled_out}", "{ruled_out}, now {holds}")
"""The forms of a revised fact."""

MISCONCEIVED = 0.4
"""Share of the revised facts that the SFT answers give with the ruled-out value."""
HELD_OUT_ONE_IN = 4
"""One of so many pairs of values is of held-out questions."""

OPENINGS = ("Dear friends,", "Hello everyone,", "Good news, all!", "Hi there,")
REMARKS = (
    "Parking is free behind the old church.",
    "You do not need to bring any gifts.",
    "Children are welcome as long as they behave.",
    "There is a place for your coats near the stairs.",
    "The neighbors know about it and do not mind.",
    "Tell us soon whether you are able to come.",
    "Anyone who likes to sing may do so.",
    "Somebody will take pictures for those who stay home.",
)
CLOSINGS = ("See you soon!", "We cannot wait.", "Do not be late.", "Bring a friend.")
FREE = {
    "a": ("lovely", "quiet", "simple", "cheerful", "cozy", "lively", "small", "grand"),
    "b": ("evening", "party", "dinner", "meeting"),
    "c": ("plenty of", "enough", "lots of", "some"),
}
"""Words that are free, by their name in a wording."""
SENTENCES: Sequence[Sequence[str]] = (
    (
        "{host} invites you on {day} for a {a} {b}.",
        "On {day} we join {host} for a {a} {b}.",
        "Please keep {day} free, because {host} plans a {a} {b}.",
        "A {a} {b} is planned by {host} for this {day}.",
    ),
    (
        "We meet in the {room}, so wear something {color}.",
        "Look for the {color} door and walk into the {room}.",
        "The {room} will be full of {color} lights.",
        "Inside the {room} you will find {color} flowers.",
    ),
    (
        "There will be {food} and {c} {drink}.",
        "We serve {c} {drink} first and {food} after that.",
        "Bring {c} {drink}, while the {food} is on us.",
        "Expect {food}, {c} {drink} and good music.",
    ),
)
"""Wordings of the sentences, each of which has two facts."""

_WORD = re.compile(r"\w+")
_KIND = {value: fact for fact, values in POOLS.items() for value in values}
_SLOT = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Question:
    """A question.

    Args:
        text: the prompt.
        holds: the value that holds, by fact.
        ruled_out: the value that is ruled out, by revised fact.
    """

    text: str
    holds: Mapping[str, str]
    ruled_out: Mapping[str, str]

    @property
    def expected(self) -> dict[str, Any]:
        """The expected answer of the judge `contains`: all values that hold, and no other value of any kind."""
        right = list(self.holds.values())
        return {"required": right, "forbidden": [value for value in _KIND if value not in right]}


@dataclass(frozen=True)
class Span:
    """A value in a response, ``response[start:end]`` in characters.

    Args:
        start: its first character.
        end: the one after its last.
        fact: kind of the value.
        right: whether it is the value that holds.
    """

    start: int
    end: int
    fact: str
    right: bool


def question(draw: random.Random, *, revised: int, held_out: bool) -> Question:
    """Draw a question.

    Args:
        draw: the random number generator.
        revised: number of revised facts.
        held_out: whether its pairs of values are held-out ones.
    """
    holds = {fact: draw.choice(values) for fact, values in POOLS.items()}
    ruled_out = {}
    for fact in draw.sample(FACTS, revised):
        pairs = [pair for pair in value_pairs(fact) if is_held_out(fact, *pair) == held_out]
        holds[fact], ruled_out[fact] = draw.choice(pairs)
    return Question(_prompt(holds, ruled_out, draw), holds, ruled_out)


def value_pairs(fact: str) -> list[tuple[str, str]]:
    """Return all pairs of different values of a kind, in both orders."""
    return [(one, other) for one in POOLS[fact] for other in POOLS[fact] if one != other]


def is_held_out(fact: str, one: str, other: str) -> bool:
    """Return whether a pair of values is of held-out questions, in whichever order."""
    places = sorted((POOLS[fact].index(one), POOLS[fact].index(other)))
    return (places[0] + places[1]) % HELD_OUT_ONE_IN == 1


def _prompt(holds: Mapping[str, str], ruled_out: Mapping[str, str], draw: random.Random) -> str:
    stated = dict(holds)
    for fact, value in ruled_out.items():
        stated[fact] = draw.choice(FORMS).format(holds=holds[fact], ruled_out=value)
    facts = [f"{fact.capitalize()}: {stated[fact]}." for fact in draw.sample(FACTS, len(FACTS))]
    return " ".join(["Write an invitation.", *facts])


def answer(asked: Question, draw: random.Random, *, misconceived: float = 0.0) -> str:
    """Write a response.

    Args:
        asked: the question.
        draw: the random number generator.
        misconceived: share of the revised facts with the ruled-out value.
    """
    values = dict(asked.holds)
    values |= {fact: value for fact, value in asked.ruled_out.items() if draw.random() < misconceived}
    wordings = (*SENTENCES[:2], REMARKS, *SENTENCES[2:])
    sentences = [_filled(draw.choice(found), values, draw) for found in wordings]
    return " ".join([draw.choice(OPENINGS), *sentences, draw.choice(CLOSINGS)])


def _filled(wording: str, values: Mapping[str, str], draw: random.Random) -> str:
    return _SLOT.sub(lambda slot: values[slot[1]] if slot[1] in values else draw.choice(FREE[slot[1]]), wording)


def spans(response: str, holds: Mapping[str, str]) -> list[Span]:
    """Return all values in a response, in order."""
    return [
        Span(match.start(), match.end(), fact, holds[fact] == match[0])
        for match in _WORD.finditer(response)
        if (fact := _KIND.get(match[0])) is not None
    ]


def wrong_facts(response: str, holds: Mapping[str, str]) -> int:
    """Return the number of facts that are missing or have a wrong value; 0 if the response is right."""
    found = spans(response, holds)
    right = {span.fact for span in found if span.right}
    wrong = {span.fact for span in found if not span.right}
    return sum(fact in wrong or fact not in right for fact in FACTS)
