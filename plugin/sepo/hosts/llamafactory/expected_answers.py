"""The column with the expected answers of an evaluation, checked and carried through the host's converter."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset, Value

from sepo.errors import SepoError, nearest
from sepo.evaluation.prompts import PromptSet
from sepo.hosts.llamafactory.carried_columns import carried_columns
from sepo.hosts.llamafactory.rows import LEFT_OUT
from sepo.judges import Judge, find_judge, is_absent
from sepo.text.conversations import CARRIED_EXPECTED


@dataclass(frozen=True)
class JudgeRequest:
    """The options that say how responses are judged.

    Args:
        name: name of the judge.
        options: its options, as words of a command line.
        column: column of the data set with the expected answers.
    """

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    column: str = ""

    def judge(self) -> Judge:
        """Return the judge.

        Raises:
            SepoError: the judge, an option or the package that it needs is unknown, or there is no column.
        """
        found = find_judge(self.name, **self.options)
        if not self.column:
            raise SepoError(
                f"--judge {self.name} compares with expected answers, but no column is named; add --expected-column "
                "COLUMN, the column of the data set that has them."
            )
        return found

    def values(self) -> dict[str, Any]:
        """Return the options as JSON."""
        return {"name": self.name, "options": dict(self.options), "column": self.column}


def check_expected(prompts: PromptSet, column: str) -> None:
    """Raise if no prompt has an expected answer.

    Args:
        prompts: the prompts that will be judged.
        column: name of the column in the data set.

    Raises:
        SepoError: naming the column.
    """
    if all(prompt.expected is None for prompt in prompts.prompts):
        raise SepoError(
            f"none of the {len(prompts.prompts)} prompts of {prompts.dataset} has an expected answer in the column "
            f"{column}, expected at least one; fill the column, or name another one with --expected-column."
        )


@contextmanager
def carried_expected_answers(judged: Callable[[str, Any], object], column: str) -> Iterator[None]:
    """Carry the expected answers through the host's converter inside the context, as JSON.

    Args:
        judged: the judge, or its ``reward``; it reads every expected answer, and judges an empty response by it.
        column: name of the column in the data set.

    Raises:
        SepoError: inside the context, if a data set has no such column, or a value is no expected answer of the judge.
    """

    def columns(dataset: Dataset, name: str) -> list[str]:
        if column not in dataset.column_names:
            raise SepoError(
                f"dataset '{name}' has the columns {', '.join(dataset.column_names)}, expected {column} "
                f"(expected_column).{nearest(column, dataset.column_names)}"
            )
        return [column]

    def carried(row: Mapping[str, Any], *, where: str) -> dict[str, Any]:
        value = row[column]
        if row.get(LEFT_OUT) or is_absent(value):
            return {CARRIED_EXPECTED: None}
        try:
            judged("", value)
            return {CARRIED_EXPECTED: json.dumps(value, ensure_ascii=False)}
        except TypeError as error:
            raise SepoError(f"{where}: {column} is {value!r}, expected text, a number, a list or a mapping.") from error
        except SepoError as error:
            raise SepoError(f"{where}, column {column}: {error}") from None

    with carried_columns(
        columns, carried, {CARRIED_EXPECTED: Value("string")}, title="sepo: expected answers of the rows"
    ):
        yield
