"""Facts of the demonstration pairs: tables from ``data/facts.json`` and computed facts.

A fact is a set of named values (``country``, ``capital``, ...). Tables without facts in the JSON are filled here by
enumerating their cases (sums, weekdays, ...) in a fixed order; ``demo_pairs.pairs`` draws from them and has the random
number generators.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from itertools import combinations
from typing import Any

__all__ = ["OUT_OF_PLACE", "Fact", "Table", "load_tables", "near_number"]

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
_PLACES = (
    *("first", "second", "third", "fourth", "fifth", "sixth"),
    *("seventh", "eighth", "ninth", "tenth", "eleventh", "twelfth"),
)
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_UNITS = (
    ("hour", "minutes", 60),
    ("day", "hours", 24),
    ("week", "days", 7),
    ("year", "months", 12),
    ("decade", "years", 10),
    ("meter", "centimeters", 100),
    ("kilometer", "meters", 1000),
    ("centimeter", "millimeters", 10),
    ("kilogram", "grams", 1000),
    ("liter", "milliliters", 1000),
    ("dollar", "cents", 100),
    ("yard", "feet", 3),
    ("pound", "ounces", 16),
    ("gallon", "quarts", 4),
    ("century", "decades", 10),
)
_THINGS = ("pencil", "notebook", "cup", "ticket", "book", "lamp", "pillow", "towel", "plate", "basket")
_EVENTS = ("concert", "lesson", "film", "meeting", "game")

OUT_OF_PLACE = {
    "geography": ("Africa", "Brazil", "Canada", "China", "Egypt", "France", "Germany", "India", "Italy", "Mexico"),
    "animals": ("birds", "cats", "dogs", "fish"),
    "chemistry": ("carbon", "gas", "gold", "iron"),
    "colors": ("black", "blue", "green", "yellow"),
    "measuring": ("angle", "frequency", "pressure", "temperature"),
    "time": ("April", "August", "Friday", "January", "Monday", "October"),
}
"""Right values of one domain that are obviously wrong in another. Each is a single token for the demo's model, with a
space before it, without one and with a capital letter, so that an error is exactly one token."""


@dataclass(frozen=True)
class Fact:
    """One fact: its named values, the wrong values that it determines, and the group that it is split by.

    ``group`` keeps facts with the same content together (every question about hours and minutes, for example): a group
    is either in the training part or held out. ``wrong`` may be empty; the other wrong values are drawn.
    """

    group: str
    values: dict[str, str]
    wrong: dict[str, str] = field(default_factory=dict)
    when: str = ""


@dataclass(frozen=True)
class Table:
    """Facts of one kind and the wordings for them, as described in ``data/facts.json``.

    ``types`` names the values that may be corrupted, ``together`` those corrupted jointly, ``numeric`` those replaced
    by a nearby number. ``also_right`` lists, by group, values that would not be wrong. ``entity_by`` names the value
    that distinguishes two entities when the entity itself is corrupted.
    """

    name: str
    domain: str
    facts: tuple[Fact, ...]
    forms: tuple[dict[str, Any], ...] = ()
    types: dict[str, str] = field(default_factory=dict)
    together: tuple[tuple[str, ...], ...] = ()
    numeric: tuple[str, ...] = ()
    also_right: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    entity_by: dict[str, str] = field(default_factory=dict)


@cache
def load_tables() -> tuple[Table, ...]:
    """Return every table, in the order of ``data/facts.json``, with its facts enumerated."""
    text = resources.files("demo_pairs").joinpath("data", "facts.json").read_text(encoding="utf-8")
    return tuple(_table(name, raw) for name, raw in json.loads(text).items())


def _table(name: str, raw: dict[str, Any]) -> Table:
    return Table(
        name=name,
        domain=raw["domain"],
        facts=tuple(_COMPUTED[name](raw) if name in _COMPUTED else _written_facts(raw)),
        forms=tuple(raw.get("forms", ())),
        types=raw.get("types", {}),
        together=tuple(tuple(names) for names in raw.get("together", ())),
        numeric=tuple(raw.get("numeric", ())),
        also_right=raw.get("also_right", {}),
        entity_by=raw.get("entity_by", {}),
    )


def _written_facts(raw: dict[str, Any]) -> list[Fact]:
    if "rows" in raw:
        return [
            Fact(group=question, values={"question": question, "answer": answer}) for question, answer in raw["rows"]
        ]
    facts = []
    for row in raw["facts"]:
        values = dict(zip(raw["fields"], row, strict=True))
        wrong = {name: values[source] for name, source in raw.get("wrong_fields", {}).items()}
        facts.append(Fact(group=row[0], values=values, wrong=wrong))
    return facts


def near_number(value: int, rng: random.Random) -> int:
    """Draw a positive number near ``value`` that starts with another digit and has the same parity.

    The first digit differs because each digit is a token in many models: a shared one would not be wrong. The parity is
    kept so that a response that also calls the number even or odd has its error in one place only.
    """
    steps = (2, 4, 6, 8, 10, 12, 20, 30, 40, 50, 100, 200, 300, 400, 1000, 2000, 3000)
    candidates = sorted({value + step for step in steps} | {value - step for step in steps})
    close = [n for n in candidates if value / 3 <= n <= 3 * value + 4 and n > 0 and str(n)[0] != str(value)[0]]
    nearest = sorted(close, key=lambda n: (abs(n - value), n))[:4]
    return rng.choice(nearest)


def _strings(**values: object) -> dict[str, str]:
    return {name: str(value) for name, value in values.items()}


def _parity(value: int) -> dict[str, str]:
    return {"parity": "odd" if value % 2 else "even"}


def _arithmetic(raw: dict[str, Any]) -> list[Fact]:
    sums = [("add", a, b, a + b) for a in range(12, 80) for b in range(11, a)]
    differences = [("subtract", a, b, a - b) for a in range(31, 99) for b in range(11, a - 4)]
    products = [("multiply", a, b, a * b) for a in range(3, 10) for b in (11, 13, 14, 15, 17, 18, 19)]
    # Sums and differences are thinned, so that the few products are drawn as often.
    return [
        Fact(
            group=f"{kind} {a} {b}",
            values=_strings(a=a, b=b, result=result) | _parity(result),
            wrong=_parity(result + 1),
            when=kind,
        )
        for kind, a, b, result in (*sums[::16], *differences[::16], *products)
    ]


def _word_problems(raw: dict[str, Any]) -> list[Fact]:
    facts = []
    for index, (n, price) in enumerate((n, price) for n in range(3, 10) for price in (21, 22, 23, 25, 26, 27, 28, 29)):
        total = n * price
        paid = total + 5 + (7 * index) % 40
        values = _strings(n=n, price=price, paid=paid, total=total, change=paid - total, unit="dollars")
        values["thing"] = _THINGS[index % len(_THINGS)]
        facts.append(Fact(group=f"{n} x {price}", values=values, wrong={"unit": ("cents", "euros", "yen")[index % 3]}))
    return facts


def _conversions(raw: dict[str, Any]) -> list[Fact]:
    units = [small for _, small, _ in _UNITS]
    facts = []
    for index, (big, small, ratio) in enumerate(_UNITS):
        for n in (2, 3, 4, 5, 6, 8, 9):
            # The plural of "century" is not "centurys".
            plural = "centurie" if big == "century" else big
            values = _strings(big=big, bigs=f"{plural}s", small=small, n=n, ratio=ratio, result=n * ratio)
            others = [unit for unit in units if unit[:2] != small[:2]]
            facts.append(
                Fact(group=f"{big} in {small}", values=values, wrong={"small": others[(3 * index + n) % len(others)]})
            )
    return facts


def _calendar(raw: dict[str, Any]) -> list[Fact]:
    facts = []
    for start in range(7):
        for n in (2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13):
            day = (start + n) % 7
            other = (day + 1 + (start + 2 * n) % 6) % 7
            right, wrong = (
                {"day": _DAYS[d], "before": _DAYS[d - 1], "after": _DAYS[(d + 1) % 7]} for d in (day, other)
            )
            values = right | _strings(start=_DAYS[start], n=n)
            facts.append(Fact(group=f"{start}+{n % 7}", values=values, wrong=wrong))
    return facts


def _months(raw: dict[str, Any]) -> list[Fact]:
    facts = []
    for start in range(12):
        for n in range(2, 11):
            month = (start + n) % 12
            # Another month whose name and place have other first letters ("June" and "July", "sixth" and "seventh"
            # share theirs).
            fits = [m for m in range(12) if _MONTHS[m][0] != _MONTHS[month][0] and _PLACES[m][0] != _PLACES[month][0]]
            other = fits[(start + n) % len(fits)]
            right, wrong = ({"month": _MONTHS[m], "place": _PLACES[m]} for m in (month, other))
            facts.append(Fact(group=f"{start}+{n}", values=right | _strings(start=_MONTHS[start], n=n), wrong=wrong))
    return facts


def _clock(raw: dict[str, Any]) -> list[Fact]:
    parts = {"morning": (8, 9, 10), "afternoon": (1, 2, 3), "evening": (6, 7, 8)}
    starts = [(part, hour, past) for part, hours in parts.items() for hour in hours for past in (5, 10, 15, 20)]
    facts = []
    for index, (part, hour, past) in enumerate(starts):
        for minutes in (35, 40, 50, 65, 75, 80, 95):
            end = 60 * hour + past + minutes
            wrong_hour = end // 60 + (1, -1, 2)[(index + minutes // 5) % 3]
            if str(wrong_hour)[0] == str(end // 60)[0] or wrong_hour > 12:  # 10, 11 and 12 share their first digit
                wrong_hour = 9 - index % 2
            values = _strings(
                start=f"{hour}:{past:02d}", minutes=minutes, hour=end // 60, rest=f"{end % 60:02d}", part=part
            )
            values["event"] = _EVENTS[(index + minutes) % len(_EVENTS)]
            wrong_part = [other for other in parts if other != part][index % 2]
            wrong = _strings(hour=wrong_hour, part=wrong_part)
            facts.append(Fact(group=f"{hour}:{past} {minutes}", values=values, wrong=wrong))
    return facts


def _letters(raw: dict[str, Any]) -> list[Fact]:
    facts = []
    for index, word in enumerate(raw["words"].split()):
        count = len(word)
        other = count + (2, -1, 1, -2)[index % 4]
        other = other if _NUMBER_WORDS[other][:2] != _NUMBER_WORDS[count][:2] else count + 1
        wrong = {
            "count": _NUMBER_WORDS[other],
            "first": next(c for c in "btmsrlcpdg"[index % 7 :] if c != word[0]),
            "last": next(c for c in "entrylsdka"[index % 7 :] if c != word[-1]),
        }
        values = {"word": word, "count": _NUMBER_WORDS[count], "first": word[0], "last": word[-1]}
        facts.append(Fact(group=word, values=values, wrong=wrong))
    return facts


def _compare(raw: dict[str, Any]) -> list[Fact]:
    facts = []
    for index, (small, large) in enumerate(combinations(range(13, 98, 3), 2)):
        if small // 10 == large // 10:
            continue
        a, b = (small, large) if index % 2 else (large, small)
        values = _strings(a=a, b=b, large=large, small=small, difference=large - small)
        facts.append(Fact(group=f"{small} {large}", values=values, wrong=_strings(large=small, small=large)))
    return facts


def _sequences(raw: dict[str, Any]) -> list[Fact]:
    facts = []
    for start in range(11, 60, 2):
        for step in (2, 3, 4, 5, 6, 7, 8, 9):
            for way, sign in (("grows", 1), ("shrinks", -1)):
                row = [start + sign * step * place for place in range(5)]
                if row[-1] < 1:
                    continue
                values = _strings(shown=", ".join(map(str, row[:4])), next=row[4], step=step, way=way)
                wrong = {"way": "shrinks" if way == "grows" else "grows"}
                facts.append(Fact(group=f"{start} {way} {step}", values=values, wrong=wrong))
    return facts


def _sorting(raw: dict[str, Any]) -> list[Fact]:
    facts = []
    swaps = (("low", "middle"), ("middle", "high"), ("low", "high"))
    orders = ((1, 2, 0), (2, 0, 1), (1, 0, 2), (0, 2, 1), (2, 1, 0))
    for index, numbers in enumerate(combinations(range(12, 99, 7), 3)):
        if len({number // 10 for number in numbers}) < 3:
            continue
        values = _strings(low=numbers[0], middle=numbers[1], high=numbers[2])
        one, other = swaps[index % 3]
        values["shown"] = ", ".join(str(numbers[place]) for place in orders[index % 5])
        facts.append(Fact(group=str(numbers), values=values, wrong={one: values[other], other: values[one]}))
    return facts


def _lists(raw: dict[str, Any]) -> list[Fact]:
    """Return three members of each group. Wrong members come from groups of the same part, as for written facts."""
    facts = []
    for index, (group, members) in enumerate(raw["facts"]):
        names = members.split(", ")
        picked = [names[(index + place * 2) % len(names)] for place in range(3)]
        facts.append(
            Fact(group=group, values=dict(zip(("group", "first", "second", "third"), (group, *picked), strict=True)))
        )
    return facts


_COMPUTED: dict[str, Callable[[dict[str, Any]], Sequence[Fact]]] = {
    "arithmetic": _arithmetic,
    "word_problems": _word_problems,
    "conversions": _conversions,
    "calendar": _calendar,
    "months": _months,
    "clock": _clock,
    "letters": _letters,
    "compare": _compare,
    "sequences": _sequences,
    "sorting": _sorting,
    "lists": _lists,
}
