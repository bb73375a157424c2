"""Generated preference pairs: short correct responses, and the same responses with known wrong spans.

Every row is built from a fact and a wording. The chosen response states the fact; the rejected one is the same text
with one to three spans replaced by wrong values: words of another domain (a metal for a city, a color for a number),
which a small oracle finds after a minute of training. The spans are recorded, so that token scores can be evaluated
against the ground truth. Facts come from ``demo_pairs.facts``; pairs with fluent errors from ``demo_pairs.passages``.

A fact is either in the training part or in the held-out part. Wrong values are right values of other domains: a value
is wrong in some rows and right in others, so that a list of bad words has little predictive value (see ``PairRow``).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

from demo_pairs.facts import OUT_OF_PLACE, Fact, Table, load_tables, near_number
from demo_pairs.passages import generate_passages
from demo_pairs.wording import PairRow, Piece, cased, cut, fill, make_row
from sepo.errors import SepoError

__all__ = [
    "DEMO_ROWS",
    "DEMO_SEED",
    "FLUENT_ROWS",
    "DemoPairs",
    "generate_fluent_pairs",
    "generate_pairs",
]

DEMO_SEED = 20240817
"""Seed of the files in ``sepo/demo/data``."""

DEMO_ROWS = 250
"""Number of rows of the shipped set with obvious errors, training and held-out; one fifth is held out."""

FLUENT_ROWS = 800
"""Number of rows of the shipped set with fluent errors, training and held-out; half is held out, because these errors
are hard to find and scorers differ by little."""

_HELDOUT_ONE_IN = 5


class DemoPairs(NamedTuple):
    """The two parts of the set, without a prompt or fact in common."""

    train: list[PairRow]
    heldout: list[PairRow]


def generate_pairs(*, seed: int = DEMO_SEED, rows: int = DEMO_ROWS) -> DemoPairs:
    """Generate preference pairs with obvious wrong spans; the same arguments give the same rows on every machine.

    Args:
        seed: seed of every draw (``random.Random``).
        rows: total number of rows, spread evenly over the tables of facts; one fifth (rounded down) is held out.

    Returns:
        Training rows and held-out rows, each shuffled.

    Raises:
        SepoError: ``rows`` is below 1 or above the number of facts.

    Example:
        >>> row = generate_pairs(rows=250).train[0]
        >>> span = row["rejected_error_spans"][0]
        >>> row["rejected"]["value"][span["start"] : span["end"]] not in ("", row["chosen"]["value"])
        True
    """
    tables = load_tables()
    parts = [_split(table, random.Random(f"{seed}/split/{table.name}")) for table in tables]
    heldout = rows // _HELDOUT_ONE_IN
    most = [sum(len(part[index]) for part in parts) for index in (0, 1)]
    if rows < 1 or rows - heldout > most[0] or heldout > most[1]:
        raise SepoError(
            f"generate_pairs got rows={rows}; expected at least 1, and the facts suffice for {most[0]} training and "
            f"{most[1]} held-out rows. Request fewer rows ({DEMO_ROWS} is the usual number)."
        )
    quotas = (
        _allocate(rows - heldout, [len(train) for train, _ in parts]),
        _allocate(heldout, [len(held) for _, held in parts]),
    )
    pairs = DemoPairs([], [])
    for index, table in enumerate(tables):
        for part in (0, 1):
            rng = random.Random(f"{seed}/{part}/{table.name}")
            pool = parts[index][part]
            facts = pool[: quotas[part][index]]
            pairs[part].extend(_row(table, fact, pool, rng) for fact in facts)
    for part in (0, 1):
        random.Random(f"{seed}/order/{part}").shuffle(pairs[part])
    return pairs


def generate_fluent_pairs(*, seed: int = DEMO_SEED, rows: int = FLUENT_ROWS) -> DemoPairs:
    """Generate preference pairs with fluent wrong spans; the same arguments give the same rows on every machine.

    Args:
        seed: seed of every draw (``random.Random``).
        rows: total number of rows, spread evenly over the passages; half (rounded down) is held out.

    Raises:
        SepoError: ``rows`` is below 1.
    """
    if rows < 1:
        raise SepoError(f"generate_fluent_pairs got rows={rows}; expected at least 1.")
    heldout = rows // 2
    return DemoPairs(*generate_passages(seed=seed, train=rows - heldout, heldout=heldout))


def _split(table: Table, rng: random.Random) -> tuple[list[Fact], list[Fact]]:
    """Return the table's facts in drawing order, for training and held out; a fifth of the groups is held out."""
    groups = list(dict.fromkeys(fact.group for fact in table.facts))
    rng.shuffle(groups)
    held = set(groups[: round(len(groups) / _HELDOUT_ONE_IN)])
    facts = list(table.facts)
    rng.shuffle(facts)
    return [fact for fact in facts if fact.group not in held], [fact for fact in facts if fact.group in held]


def _allocate(total: int, capacities: Sequence[int]) -> list[int]:
    """Split ``total`` over the tables as evenly as their capacities allow, earlier ones first."""
    shares = [0] * len(capacities)
    while total:
        for index, capacity in enumerate(capacities):
            if total and shares[index] < capacity:
                shares[index] += 1
                total -= 1
    return shares


def _row(table: Table, fact: Fact, pool: Sequence[Fact], rng: random.Random) -> PairRow:
    wrong = _wrong_values(table, fact, pool, rng)
    if table.forms:
        form = rng.choice([form for form in table.forms if form.get("when", "") == fact.when])
        question = fill(rng.choice(form["questions"]), fact.values)
        wordings = form["answers"]
    else:
        question, wordings = fact.values["question"], [fact.values["answer"]]
    answers = [cut(wording, fact.values, wrong, types=table.types, together=table.together) for wording in wordings]
    pieces = rng.choice([pieces for pieces in answers if any(piece.wrong is not None for piece in pieces)])
    foreign = _foreign_values(table.domain)
    pieces = [_out_of_place(piece, pieces, foreign, rng) for piece in pieces]
    return make_row(question, pieces, domain=table.domain, rng=rng)


@cache
def _foreign_values(domain: str) -> tuple[str, ...]:
    """Return the words that are out of place in a domain: right values of the other domains."""
    return tuple(word for other, words in OUT_OF_PLACE.items() if other != domain for word in words)


def _out_of_place(piece: Piece, pieces: Sequence[Piece], foreign: Sequence[str], rng: random.Random) -> Piece:
    """Replace the wrong value of a piece by a word of another domain that is not in the response."""
    if piece.wrong is None:
        return piece
    text = "".join(other.right for other in pieces).lower()
    fitting = [word for word in foreign if word.lower() not in text and word[:3].lower() != piece.right[:3].lower()]
    return replace(piece, wrong=cased(rng.choice(fitting), "^" if piece.right[0].isupper() else ""))


def _wrong_values(table: Table, fact: Fact, pool: Sequence[Fact], rng: random.Random) -> dict[str, str]:
    """Draw a wrong value for every field that may be corrupted; joint fields take theirs from one fact."""
    wrong = dict(fact.wrong)
    joined = {name for names in table.together for name in names}
    for names in (*table.together, *((name,) for name in table.types if name not in joined)):
        missing = [name for name in names if name in fact.values]
        if not missing or any(name in fact.wrong for name in names):
            continue
        if missing[0] in table.numeric:
            wrong[missing[0]] = str(near_number(int(fact.values[missing[0]]), rng))
            continue
        donors = [donor for donor in pool if all(_plausible(table, fact, donor, name) for name in missing)]
        if donors:
            donor = rng.choice(donors)
            wrong.update({name: donor.values[name] for name in missing})
    return wrong


def _plausible(table: Table, fact: Fact, donor: Fact, name: str) -> bool:
    """Return whether the donor's value is wrong for the fact and differs in its first letters (its first token)."""
    right, wrong = fact.values[name], donor.values[name]
    if name in table.entity_by:  # another entity is wrong only if the fact's value does not hold for it too
        by = table.entity_by[name]
        theirs = (donor.values[by], *table.also_right.get(donor.group, {}).get(by, []))
        return fact.values[by] not in theirs and wrong[:3] != right[:3]
    also_right = table.also_right.get(fact.group, {}).get(name, [])
    return wrong not in also_right and wrong not in fact.values.values() and wrong[:3] != right[:3]
