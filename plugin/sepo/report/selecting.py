"""The selection of a run or a store, recomputed from stored scores with the functions that training uses."""

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
"""Function that returns one side's scores as (flat float32 scores, tokens of each response), in data set order."""


def selecting_method(selector: Selector, *, rejected_largest: bool = False) -> Method:
    """Return a method that selects by stored scores with this selector; only its selection is used."""
    scorer = TokenScorer("stored", stored=True, rejected_largest=rejected_largest)
    return replace(resolve_method("simpo"), token_scorer=scorer, selector=selector)


def method_of(settings: Mapping[str, Any]) -> Method | None:
    """Return the method with which a run selects, from its settings file.

    Args:
        settings: ``sepo_settings.json``.

    Returns:
        The method; None if the run does not select, so that it trains on all tokens.

    Raises:
        SepoError: the settings do not describe a selection.
    """
    given = settings.get("select")
    if given is None:
        return None
    known = {item.name for item in fields(Selector)}
    if not isinstance(given, Mapping) or not set(given) <= known:
        raise SepoError(f"its 'select' is {str(given)[:120]}, expected an object with {', '.join(sorted(known))}")
    end = settings.get("rejected_selects")  # not in the files of older versions
    scorer = SCORERS.get(str(settings.get("token_scorer")))
    largest = end == "highest" if isinstance(end, str) else scorer is not None and scorer.rejected_largest
    try:
        return selecting_method(Selector(**given), rejected_largest=largest)
    except TypeError as error:
        raise SepoError(f"its 'select' is {str(given)[:120]}, expected a selection ({error})") from error


def select_pair(
    method: Method,
    scores: Sequence[np.ndarray],
    *,
    steps: Sequence[Sequence[int]] | None = None,
    counts: Sequence[int] | None = None,
    candidates: Sequence[np.ndarray] | None = None,
) -> list[np.ndarray]:
    """Select the tokens of one pair.

    Args:
        method: a method that selects by stored scores.
        scores: scores of the chosen and of the rejected response, [T] each.
        steps: the step index of each token, by side; needed if the method selects steps.
        counts: number of tokens to select, by side; needed if the method has the scope ``dataset``.
        candidates: whether each token may be selected, bool [T] by side; None if all may.

    Returns:
        A bool mask [T] for each side.

    Raises:
        SepoError: a response has no scores, a score is not finite, or a needed argument is missing.
    """
    given: dict[str, Any] = {}
    for number, side in enumerate(SIDES):
        tensor = torch.from_numpy(np.array(scores[number], dtype=np.float32))[None]
        given[f"{side}_scores"], given[f"{side}_mask"] = tensor, torch.ones(tensor.shape, dtype=torch.bool)
        if candidates is not None:
            given[f"{side}_mask"] = torch.from_numpy(np.array(candidates[number], dtype=bool))[None]
        if method.needs_steps and steps is not None:
            given[f"{side}_steps"] = torch.tensor([list(steps[number])])
        if method.needs_counts and counts is not None:
            given[f"{side}_counts"] = torch.tensor([counts[number]])
    return [selection[0].numpy() for selection in select(method, **given)]


def dataset_counts(method: Method, sides: Mapping[str, ScorePieces]) -> dict[str, np.ndarray]:
    """Count the tokens of each response that the thresholds over a data set select, by side, [rows].

    Args:
        method: a method with the scope ``dataset``.
        sides: all scores, by side.

    Raises:
        SepoError: there are no tokens, or a score is not finite.
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
