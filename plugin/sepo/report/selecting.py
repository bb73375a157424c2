"""The selection of a run or a store, made again from stored scores by the very functions that training uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from sepo.errors import SepoError
from sepo.objectives import SCORERS, Method, Selector, TokenScorer, resolve_method, select
from sepo.selection import SIDES
from sepo.selection.threshold import dataset_threshold

ScorePieces = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
"""Gives one side's scores as (flat float32 scores, tokens of each response), in the data set's order."""


def selecting_method(selector: Selector, *, rejected_largest: bool = False) -> Method:
    """A method that selects by stored scores with this selector; only its selection is meant."""
    scorer = TokenScorer("stored", stored=True, rejected_largest=rejected_largest)
    return replace(resolve_method("simpo"), token_scorer=scorer, selector=selector)


def method_of(settings: Mapping[str, Any]) -> Method | None:
    """How a run selects, from its settings file.

    Args:
        settings: ``sepo_settings.json``.

    Returns:
        None where it selects nothing: all tokens are trained on.

    Raises:
        SepoError: what is there describes no selection.
    """
    asked = settings.get("select")
    if asked is None:
        return None
    known = {item.name for item in fields(Selector)}
    if not isinstance(asked, Mapping) or not set(asked) <= known:
        raise SepoError(f"its 'select' is {str(asked)[:120]}, expected an object with {', '.join(sorted(known))}")
    end = settings.get("rejected_selects")  # not in the files of older versions
    scorer = SCORERS.get(str(settings.get("token_scorer")))
    largest = end == "highest" if isinstance(end, str) else scorer is not None and scorer.rejected_largest
    try:
        return selecting_method(Selector(**asked), rejected_largest=largest)
    except TypeError as error:
        raise SepoError(f"its 'select' is {str(asked)[:120]}, which describes no selection ({error})") from error


def select_pair(
    method: Method,
    scores: Sequence[np.ndarray],
    *,
    steps: Sequence[Sequence[int]] | None = None,
    counts: Sequence[int] | None = None,
) -> list[np.ndarray]:
    """Select the tokens of one pair.

    Args:
        method: one that selects by stored scores.
        scores: of the chosen and of the rejected answer, [T] each.
        steps: the number of each token's step, by side; where the method needs them.
        counts: each answer's share of a data set's budget; where the method needs them.

    Returns:
        bool [T] for each side.

    Raises:
        SepoError: an answer without scores, a score that is not finite, something that is needed and missing.
    """
    given: dict[str, Any] = {}
    for number, side in enumerate(SIDES):
        tensor = torch.from_numpy(np.array(scores[number], dtype=np.float32))[None]
        given[f"{side}_scores"], given[f"{side}_mask"] = tensor, torch.ones(tensor.shape, dtype=torch.bool)
        if method.needs_steps and steps is not None:
            given[f"{side}_steps"] = torch.tensor([list(steps[number])])
        if method.needs_counts and counts is not None:
            given[f"{side}_counts"] = torch.tensor([counts[number]])
    return [selection[0].numpy() for selection in select(method, **given)]


def dataset_counts(method: Method, sides: Mapping[str, ScorePieces]) -> dict[str, np.ndarray]:
    """How many tokens of each response a data set's thresholds keep, by side, [rows].

    Args:
        method: one with the scope ``dataset``.
        sides: all scores, by side.

    Raises:
        SepoError: no token, or a score that is not finite.
    """
    assert method.selector is not None
    result = {}
    for side, pieces in sides.items():
        chosen = side == "chosen"
        threshold = dataset_threshold(
            lambda pieces=pieces: (torch.from_numpy(scores) for scores, _ in pieces()),  # type: ignore[misc]
            ratio=method.selector.chosen_ratio if chosen else method.selector.rejected_ratio,
            largest=chosen or method.token_scorer.rejected_largest,
        )
        rows = ((torch.from_numpy(scores), torch.from_numpy(lengths)) for scores, lengths in pieces())
        result[side] = np.concatenate([counts.numpy() for counts in threshold.counts(rows)])
    return result
