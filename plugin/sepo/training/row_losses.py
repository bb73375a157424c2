"""Rows of a run's data sets that are left out of training, cut or changed: counted, logged as one table, recorded."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

logger = logging.getLogger(__name__)

Event = Literal["dropped", "skipped", "cut", "changed"]
"""What happened to rows: ``dropped`` (by the host) and ``skipped`` (by sepo) rows are not trained on; ``cut``
(truncated) and ``changed`` ones are."""

_LEFT_OUT = ("dropped", "skipped")
_EXAMPLE_CHARACTERS = 60


@dataclass(frozen=True)
class RowLoss:
    """Rows of a data set to which the same happened.

    Attributes:
        what: see ``Event``.
        reason: the reason, a phrase such as ``both responses have the same tokens``.
        rows: number of rows.
        example: an excerpt of one of them, or the empty string.
    """

    what: Event
    reason: str
    rows: int
    example: str = ""


@dataclass
class _Account:
    given: int | None = None
    used: int | None = None
    losses: list[RowLoss] = field(default_factory=list)

    @property
    def left_out(self) -> int:
        return sum(loss.rows for loss in self.losses if loss.what in _LEFT_OUT)

    def balanced(self) -> _Account:
        """Return the account with both totals, as far as one is known, and a loss for rows without a reason."""
        given, used, losses = self.given, self.used, list(self.losses)
        if given is None and used is not None:
            given = used + self.left_out
        elif used is None and given is not None:
            used = given - self.left_out
        elif given is not None and used is not None and given - self.left_out > used:
            losses.append(RowLoss("dropped", "by the host, see its log above", given - self.left_out - used))
        return _Account(given, used, losses)


class RowLosses:
    """Collector of what happens to the rows of a run's data sets before training.

    A data set is named as in the log: ``train``, ``eval``, or a data set of the recipe before the host joins and splits
    them. The rows of each name add up: ``given`` - dropped - skipped = ``used``. If one of the two totals is not
    reported, it follows from the other; rows that no reason accounts for are listed as dropped by the host.

    >>> losses = RowLosses()
    >>> losses.given("train", 5)
    >>> losses.add("train", "skipped", "both responses have the same tokens", 2, example="What is 2 + 2? Four.")
    >>> losses.used("train", 3)
    >>> print("\\n".join(losses.table()))
    data set  rows          reason                               example
    train        5 given
                 2 skipped  both responses have the same tokens  'What is 2 + 2? Four.'
                 3 used
    """

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}

    def given(self, dataset: str, rows: int) -> None:
        """Set the number of rows of a data set as given, before anything is left out."""
        self._account(dataset).given = rows

    def used(self, dataset: str, rows: int) -> None:
        """Set the number of rows of a data set that remain."""
        self._account(dataset).used = rows

    def add(self, dataset: str, what: Event, reason: str, rows: int, *, example: str = "") -> None:
        """Add rows to which something happened; nothing is added for 0 rows.

        The same data set, event and reason may be added several times: the rows are summed, and the first example is
        kept.

        Args:
            dataset: name of the data set.
            what: ``dropped``, ``skipped``, ``cut`` or ``changed``.
            reason: the reason, as a phrase; what to do about it may follow after a semicolon.
            rows: number of rows.
            example: text of one of them, shown with at most 60 characters in one line.
        """
        assert what in get_args(Event), what
        if not rows:
            return
        losses = self._account(dataset).losses
        for index, loss in enumerate(losses):
            if (loss.what, loss.reason) == (what, reason):
                losses[index] = RowLoss(what, reason, loss.rows + rows, loss.example or _excerpt(example))
                return
        losses.append(RowLoss(what, reason, rows, _excerpt(example)))

    def _account(self, dataset: str) -> _Account:
        return self._accounts.setdefault(dataset, _Account())

    def table(self) -> list[str]:
        """Return the table as aligned lines: for each data set its rows as given, what happened, and those used."""
        cells = [("data set", "rows", "", "reason", "example")]
        for name, account in self._accounts.items():
            whole = account.balanced()
            lines = [] if whole.given is None else [(whole.given, "given", "", "")]
            lines += [
                (loss.rows, loss.what, loss.reason, repr(loss.example) if loss.example else "") for loss in whole.losses
            ]
            lines += [] if whole.used is None else [(whole.used, "used", "", "")]
            for index, (rows, what, reason, example) in enumerate(lines):
                cells.append(("" if index else name, f"{rows}", what, reason, example))
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return [
            f"{name:<{widths[0]}}  {rows:>{widths[1]}} {what:<{widths[2]}}  {reason:<{widths[3]}}  {example}".rstrip()
            for name, rows, what, reason, example in cells
        ]

    def log(self) -> None:
        """Log the table: as a warning if rows are left out, cut or changed, else as one line of numbers.

        To be called once, in the first process.
        """
        accounts = {name: account.balanced() for name, account in self._accounts.items()}
        if any(account.losses for account in accounts.values()):
            logger.warning("rows that are not used as given:\n%s", "\n".join(self.table()))
        elif accounts:
            numbers = ", ".join(f"{account.used} of {name}" for name, account in accounts.items())
            logger.info("rows: %s, all used as given.", numbers)

    def record(self) -> dict[str, Any]:
        """Return the numbers as plain JSON values: by data set ``given``, ``used`` and the list ``losses``."""
        return {
            name: {"given": whole.given, "used": whole.used, "losses": [asdict(loss) for loss in whole.losses]}
            for name, whole in ((name, account.balanced()) for name, account in self._accounts.items())
        }


def _excerpt(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _EXAMPLE_CHARACTERS else "..." + text[3 - _EXAMPLE_CHARACTERS :]
