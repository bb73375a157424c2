"""Questions about weekdays, with two spellings of every day and one misconception.

A question is a weekday and MOVES numbers of days to add; its answer is the weekday after each of them:

    monday plus 3 2 fortnight 6 days   ->   thursday sat saturday fri

Every day has two right spellings, each in half of the SFT answers. A fortnight is 14 days, so the weekday stays the
same, but in half of the SFT answers it is taken for 15 days; after a fortnight the spelling is always the long one. So
the SFT model gives right and wrong words a probability of about one half alike: how surprising a word is does not tell
whether it is wrong. An answer is right if all of its days are. A wrong day does not make the next ones wrong in the SFT
answers: each follows from the day before it.
"""

import random

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
SHORT = tuple(day[:3] for day in DAYS)
NUMBERS = ("1", "2", "3", "4", "5", "6")
FORTNIGHT = "fortnight"
MOVES = 8
FORTNIGHTS = 2
"""Each question has at least this many."""


def question(draw: random.Random) -> str:
    moves = [draw.choice((*NUMBERS, FORTNIGHT)) for _ in range(MOVES)]
    for place in draw.sample(range(MOVES), FORTNIGHTS):
        moves[place] = FORTNIGHT
    return " ".join([draw.choice(DAYS), "plus", *moves, "days"])


def questions(count: int, draw: random.Random, *, without: frozenset[str] = frozenset()) -> list[str]:
    """Return distinct questions that are not in ``without``."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[question(draw)] = None
        for each in without:
            found.pop(each, None)
    return list(found)


def walk(text: str, fortnights: list[int]) -> list[int]:
    """Return the number of the weekday after each move; ``fortnights`` are the days of each fortnight, in order."""
    day, _, *moves, _ = text.split()
    today, left, found = DAYS.index(day), iter(fortnights), []
    for move in moves:
        today = (today + (next(left) if move == FORTNIGHT else int(move))) % len(DAYS)
        found.append(today)
    return found


def right_days(text: str) -> list[int]:
    return walk(text, [14] * MOVES)


def right_answer(text: str) -> str:
    return " ".join(DAYS[day] for day in right_days(text))


def pattern(text: str) -> str:
    """Return the regular expression of all right answers, for the judge ``regex``."""
    return " ".join(f"({DAYS[day]}|{SHORT[day]})" for day in right_days(text))


def sft_answer(text: str, draw: random.Random) -> str:
    days = walk(text, [draw.choice((14, 15)) for _ in range(MOVES)])
    moves = text.split()[2:-1]
    return " ".join(
        DAYS[day] if move == FORTNIGHT else draw.choice((DAYS, SHORT))[day]
        for day, move in zip(days, moves, strict=True)
    )


def misconceived(text: str) -> str:
    """Return the answer in which every fortnight has 15 days."""
    return " ".join(DAYS[day] for day in walk(text, [15] * MOVES))
