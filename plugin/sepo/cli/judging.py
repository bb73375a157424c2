"""The options of `sepo eval` and `sepo sample` that say how responses are judged."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sepo.errors import SepoError

if TYPE_CHECKING:
    from sepo.hosts.llamafactory.expected_answers import JudgeRequest


def add_judge(parser: argparse.ArgumentParser) -> None:
    """Add ``--judge``, ``--expected-column`` and ``--judge-option``."""
    parser.add_argument(
        "--judge",
        metavar="NAME",
        help="count the responses that have the expected answer, by exact, contains, regex, math (needs math-verify) "
        "or a registered judge",
    )
    parser.add_argument(
        "--expected-column",
        metavar="COLUMN",
        help="column of the data set with the expected answers; needed by --judge",
    )
    parser.add_argument(
        "--judge-option",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="option of the judge, such as ignore_case=true or extract='#### (.+)'; can be repeated",
    )


def judge_request(options: argparse.Namespace) -> JudgeRequest | None:
    """Return how responses are judged; None without ``--judge``.

    Raises:
        SepoError: an option has no value or is given twice, or there are options and no judge.
    """
    from sepo.hosts.llamafactory.expected_answers import JudgeRequest

    given: dict[str, str] = {}
    for word in options.judge_option:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise SepoError(f"--judge-option is {word!r}, expected NAME=VALUE, such as ignore_case=true.")
        if name in given:
            raise SepoError(f"--judge-option {name} is given twice, expected one value.")
        given[name] = value
    if options.judge is None:
        alone = "--expected-column" if options.expected_column else "--judge-option" if given else None
        if alone is not None:
            raise SepoError(f"{alone} is given without --judge; add --judge NAME, or remove it.")
        return None
    return JudgeRequest(options.judge, given, options.expected_column or "")
