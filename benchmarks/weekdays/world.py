"""Questions about weekdays, with two spellings of every day and one misconception.

A question is a weekday and numbers of days to add; its answer is the weekday after each of them:

    monday plus 3 2 fortnight 6 days   ->   thursday sat saturday fri

Every day has two right spellings, each in half of the SFT answers. A fortnight is 14 days, so the weekday stays the
same, but in half of the SFT answers it is taken for 15 days; after a fortnight the spelling is always the long one. So
the SFT model gives right and wrong words a probability of about one half alike: how surprising a word is does not tell
whether it is wrong. An answer is right if all of its days are. A wrong day does not make the next ones wrong in the SFT
answers: each follows from the day before it.
"""

import random
from collections.abc import Callable

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
SHORT = tuple(day[:3] for day in DAYS)
NUMBERS = ("1", "2", "3", "4", "5", "6")
FORTNIGHT = "fortnight"
MISCONCEIVED = 0.6
"""Share of the fortnights that the SFT answers take for 15 days."""


def question(moves_count: int, draw: random.Random) -> str:
    """Return a question with so many moves, at least one of them a fortnight."""
    moves = [draw.choice((*NUMBERS, FORTNIGHT)) for _ in range(moves_count)]
    moves[draw.randrange(moves_count)] = FORTNIGHT
    return " ".join([draw.choice(DAYS), "plus", *moves, "days"])


def moves_of(text: str) -> list[str]:
    return text.split()[2:-1]


def walk(text: str, fortnight: Callable[[], int]) -> list[int]:
    """Return the number of the weekday after each move; ``fortnight`` returns the days of each fortnight."""
    today, found = DAYS.index(text.split()[0]), []
    for move in moves_of(text):
        today = (today + (fortnight() if move == FORTNIGHT else int(move))) % len(DAYS)
        found.append(today)
    return found


def right_days(text: str) -> list[int]:
    return walk(text, lambda: 14)


def right_answer(text: str) -> str:
    return " ".join(DAYS[day] for day in right_days(text))


def pattern(text: str) -> str:
    """Return the regular expression of all right answers, for the judge ``regex``."""
    return " ".join(f"({DAYS[day]}|{SHORT[day]})" for day in right_days(text))


def sft_answer(text: str, draw: random.Random) -> str:
    """Return an answer of the SFT rows."""
    days = walk(text, lambda: 15 if draw.random() < MISCONCEIVED else 14)
    return " ".join(
        DAYS[day] if move == FORTNIGHT else draw.choice((DAYS, SHORT))[day]
        for day, move in zip(days, moves_of(text), strict=True)
    )


def misconceived(text: str) -> str:
    """Return the answer in which every fortnight has 15 days."""
    return " ".join(DAYS[day] for day in walk(text, lambda: 15))
