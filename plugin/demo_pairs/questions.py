"""Questions about two values of which one is ruled out: "Anna drinks tea, not coffee. What does Anna drink?".

Eight domains: pairs are made of the first five, and the last three are evaluated as unseen tasks. The answer stands in
the question, so that a small model can give it and a judge can check it: the right value is in the response and the
ruled-out value is not.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

QUESTION_SEED = 20261130
"""Seed of the shipped questions."""

_CLOSING = "Answer in one short sentence."

_PEOPLE = (
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Greta", "Hugo", "Ida", "Jonas", "Kira", "Leo", "Mia", "Noah",
    "Olga", "Paul", "Rosa", "Simon", "Tara", "Viktor",
)  # fmt: skip
_CITIES = (
    "Paris", "Rome", "Madrid", "Berlin", "Vienna", "Oslo", "London", "Dublin", "Athens", "Lisbon", "Prague", "Warsaw",
)  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_COLORS = ("red", "blue", "green", "yellow", "black", "white", "brown", "purple", "orange", "pink")


@dataclass(frozen=True)
class Domain:
    """A kind of question.

    Args:
        name: its name in the results.
        question: text with ``{a}`` and ``{b}`` for people or things, ``{right}`` and ``{wrong}`` for the values.
        answer: the written response with ``{a}``, ``{b}`` and ``{right}``.
        subjects: what ``{a}`` and ``{b}`` are.
        values: what ``{right}`` and ``{wrong}`` are.
    """

    name: str
    question: str
    answer: str
    subjects: Sequence[str]
    values: Sequence[str]


TRAINED = (
    Domain(
        "drinks",
        "{a} drinks {right}, not {wrong}. What does {a} drink?",
        "{a} drinks {right}.",
        _PEOPLE,
        ("tea", "coffee", "milk", "water", "juice", "lemonade", "cocoa", "cider", "soda", "beer"),
    ),
    Domain(
        "homes",
        "{a} moved from {wrong} to {right}. Where does {a} live now?",
        "{a} lives in {right} now.",
        _PEOPLE,
        _CITIES,
    ),
    Domain(
        "colors",
        "The {b} is {wrong} and the {a} is {right}. What color is the {a}?",
        "The {a} is {right}.",
        ("car", "bike", "door", "lamp", "chair", "coat", "hat", "cup", "boat", "house", "bag", "box"),
        _COLORS,
    ),
    Domain(
        "days",
        "The {a} was moved from {wrong} to {right}. On which day is the {a}?",
        "The {a} is on {right}.",
        ("meeting", "party", "concert", "exam", "lesson", "match", "dinner", "wedding", "picnic", "race"),
        _DAYS,
    ),
    Domain(
        "jobs",
        "{a} is a {right}, and {b} is a {wrong}. What is the job of {a}?",
        "{a} is a {right}.",
        _PEOPLE,
        ("nurse", "baker", "teacher", "doctor", "farmer", "lawyer", "singer", "painter", "driver", "cook", "pilot"),
    ),
)
"""Domains of the pairs and of the held-out questions."""

UNSEEN = (
    Domain(
        "pets",
        "{b} has a {wrong}, and {a} has a {right}. Which animal does {a} have?",
        "{a} has a {right}.",
        _PEOPLE,
        ("cat", "dog", "rabbit", "horse", "parrot", "hamster", "turtle", "goldfish", "pony", "mouse"),
    ),
    Domain(
        "instruments",
        "{a} used to play the {wrong}, but now {a} plays the {right}. Which instrument does {a} play now?",
        "{a} plays the {right} now.",
        _PEOPLE,
        ("piano", "violin", "guitar", "flute", "drums", "trumpet", "cello", "harp", "banjo", "clarinet"),
    ),
    Domain(
        "prices",
        "The {b} costs {wrong} dollars and the {a} costs {right} dollars. How much does the {a} cost?",
        "The {a} costs {right} dollars.",
        ("book", "shirt", "lamp", "chair", "clock", "ball", "knife", "plate", "bottle", "basket"),
        tuple(str(number) for number in range(11, 99)),
    ),
)
"""Domains without a pair, to evaluate on."""


@dataclass(frozen=True)
class Question:
    """A question with its right value, the ruled-out one and a written response."""

    domain: str
    text: str
    right: str
    wrong: str
    answer: str

    @property
    def expected(self) -> dict[str, object]:
        """The expected answer of the judge ``contains``."""
        return {"required": self.right, "forbidden": [self.wrong]}


def _questions(domain: Domain, rng: random.Random) -> Iterator[Question]:
    seen = set()
    while True:
        a, b = rng.sample(domain.subjects, 2)
        right, wrong = rng.sample(domain.values, 2)
        text = f"{domain.question.format(a=a, b=b, right=right, wrong=wrong)} {_CLOSING}"
        if text not in seen:
            seen.add(text)
            yield Question(domain.name, text, right, wrong, domain.answer.format(a=a, b=b, right=right))


def generate_questions(domains: Sequence[Domain], count: int, *, seed: int = QUESTION_SEED) -> list[Question]:
    """Generate distinct questions, the domains in turn; the same arguments give the same questions on every machine.

    Args:
        domains: kinds of questions.
        count: total number.
        seed: seed of every draw (``random.Random``).

    Returns:
        The questions. A smaller ``count`` gives the beginning of the list.
    """
    streams = [_questions(domain, random.Random(f"{seed}-{domain.name}")) for domain in domains]
    return [next(streams[index % len(streams)]) for index in range(count)]
