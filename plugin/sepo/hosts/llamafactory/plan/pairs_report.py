"""Output of `sepo plan` for `sepo pairs`: the account as a table, the verdict, and plain JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sepo.console import print_lines, size
from sepo.errors import SepoError
from sepo.hosts.llamafactory.plan.pairs import PairsAccount, pairs_account
from sepo.hosts.llamafactory.plan.recipe import how_loaded
from sepo.hosts.llamafactory.plan.report import UNVERIFIED, phase_values, print_phases, verdict

_BATCH = "pairs_batch_tokens"


def print_pairs_plan(
    account: PairsAccount, *, limit: float | None, where: str, on_gpu: bool, fitting: tuple[int, float] | None
) -> None:
    """Print the account, whether sampling and judging fit, and the batch that does.

    Args:
        account: the account.
        limit: bytes that a process may use, or None.
        where: description of the device with that limit.
        on_gpu: whether it is planned for a GPU.
        fitting: the value of ``pairs_batch_tokens`` that fits, and the peak with it.
    """
    print_lines(
        [
            f"sepo pairs: {account.model}, {account.parameters / 1e9:.2f} B parameters",
            f"largest batch: {account.batch_tokens:,} tokens ({_BATCH}), {account.batch.rows:,} responses to the "
            "longest prompts at a time",
        ]
    )
    print_phases(account.phases)
    lines = [verdict(account.peak, limit=limit, where=where)]
    if limit is not None and account.peak.total > limit:
        lines.append(
            f"fits with {_BATCH}: {fitting[0]} ({size(fitting[1])})"
            if fitting
            else f"no {_BATCH} makes it fit: use a smaller model or judge, or quantization_bit: 4."
        )
    lines += [f"- {note}" for note in account.notes]
    print_lines([*lines, f"- {UNVERIFIED}"] if on_gpu else lines)


def fitting_batch(recipe: Mapping[str, Any], account: PairsAccount, *, limit: float | None) -> tuple[int, float] | None:
    """Return the largest of the halves of ``pairs_batch_tokens`` that fits, and the peak with it.

    Args:
        recipe: keys and values.
        account: the account of the recipe.
        limit: bytes that a process may use, or None.

    Returns:
        None if there is no limit, the recipe fits as it is, or no batch does.
    """
    if limit is None or account.peak.total <= limit:
        return None
    smallest = account.batch.prompt + account.batch.new_tokens
    tokens = account.batch_tokens
    while tokens > smallest:
        tokens = max(smallest, tokens // 2)
        peak = pairs_account({**recipe, _BATCH: tokens}, on_gpu=not how_loaded(recipe).on_cpu).peak.total
        if peak <= limit:
            return tokens, peak
    return None


def pairs_peak_in_words(recipe: Mapping[str, Any]) -> str:
    """Return the planned memory of the larger phase; ``-`` if it cannot be planned before another step has run."""
    try:
        return size(pairs_account(recipe, on_gpu=not how_loaded(recipe).on_cpu).peak.total)
    except SepoError:
        return "-"


def pairs_plan_values(
    account: PairsAccount, *, limit: float | None, fitting: tuple[int, float] | None
) -> dict[str, Any]:
    """Return the plan as plain JSON values, with sizes in bytes per process."""
    return {
        "model": account.model,
        "parameters": account.parameters,
        "batch_tokens": account.batch_tokens,
        "responses": account.batch.rows,
        **phase_values(account.phases, account.peak),
        "limit": limit,
        "fits": None if limit is None else account.peak.total <= limit,
        "fits_with": None if fitting is None else {"keys": {_BATCH: fitting[0]}, "peak": fitting[1]},
        "notes": list(account.notes),
    }
