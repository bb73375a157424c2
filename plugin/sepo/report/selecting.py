"""Selection and token weights of a run or a store, recomputed from stored scores with training's functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sepo.errors import SepoError
from sepo.objectives import (
    NO_SCORER,
    SCORERS,
    WEIGHTS,
    Method,
    ResponseReward,
    Selector,
    TokenScorer,
    TokenWeight,
    resolve_method,
    select,
    weigh,
)
from sepo.runs.selection_settings import recorded_selector
from sepo.selection import SIDES
from sepo.selection.threshold import dataset_threshold

ScorePieces = Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
"""Function that returns one side's scores as (flat float32 scores, tokens of each response), in data set order."""


def selecting_method(selector: Selector, *, rejected_largest: bool = False) -> Method:
    """Return a method that selects by stored scores with this selector; its loss is not used."""
    scorer = TokenScorer("stored", stored=True, rejected_largest=rejected_largest)
    return replace(resolve_method("dpo"), token_scorer=scorer, selector=selector)


def with_weights(method: Method | None, settings: Mapping[str, Any]) -> Method | None:
    """Return a method that also weighs tokens as a run does, if the weights depend on stored values only.

    Args:
        method: return value of ``method_of``.
        settings: ``sepo_settings.json``.

    Returns:
        The method; the same one if the run does not weigh tokens.

    Raises:
        SepoError: the weights cannot be computed from the settings and stored scores.
    """
    record = settings.get("token_weight")
    if record is None:
        return method
    weight = _weight(record)
    scale = settings.get("reward_scale")
    if isinstance(scale, bool) or not isinstance(scale, int | float):
        raise SepoError(f"its 'reward_scale' is {str(scale)[:120]}, expected a number")
    reward = ResponseReward(over_reference=True, average=False, scale=float(scale))
    if method is None:
        method = replace(resolve_method("dpo"), token_scorer=NO_SCORER, selector=None)
    return replace(method, reward=reward, token_weight=weight)


def without_weights(method: Method | None) -> Method | None:
    """Return the selection of a method alone; None if it does not select."""
    return None if method is None or method.selector is None else replace(method, token_weight=None)


def _weight(record: Any) -> TokenWeight:
    name = record.get("name") if isinstance(record, Mapping) else None
    rule = WEIGHTS.get(name) if isinstance(name, str) else None
    if rule is None:
        raise SepoError(f"its 'token_weight' is {str(record)[:120]}, which is not a built-in one")
    try:
        weight = rule.build(**{setting: value for setting, value in record.items() if setting != "name"})
    except TypeError as error:
        raise SepoError(f"its 'token_weight' is {str(record)[:120]}, expected a token weight ({error})") from error
    if weight.reads_states:
        raise SepoError(f"its 'token_weight' is {name}, which depends on the policy's hidden states at each step")
    return weight


def method_of(settings: Mapping[str, Any]) -> Method | None:
    """Return the method with which a run selects, from its settings file.

    Args:
        settings: ``sepo_settings.json``.

    Returns:
        The method; None if the run does not select, so that it trains on all tokens.

    Raises:
        SepoError: the settings do not describe a selection.
    """
    selector = recorded_selector(settings)
    if selector is None:
        return None
    end = settings.get("rejected_selects")  # not in the files of older versions
    scorer = SCORERS.get(str(settings.get("token_scorer")))
    largest = end == "highest" if isinstance(end, str) else scorer is not None and scorer.rejected_largest
    return selecting_method(selector, rejected_largest=largest)


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
        method: a method that selects by stored scores, or all tokens.
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


def weigh_pair(method: Method, scores: Sequence[np.ndarray], selected: Sequence[np.ndarray]) -> list[np.ndarray] | None:
    """Compute the weights of the selected tokens of one pair.

    Args:
        method: a method whose weights depend on stored scores, positions or lengths.
        scores: scores of the chosen and of the rejected response, [T] each.
        selected: return value of ``select_pair``.

    Returns:
        The weights [T] for each side, 0 where not selected; None if the method does not weigh tokens.

    Raises:
        SepoError: a weight is not defined for a score, or not finite.
    """
    given: dict[str, Any] = {}
    for side, own, kept in zip(SIDES, scores, selected, strict=True):
        given[f"{side}_scores"] = torch.from_numpy(np.array(own, dtype=np.float32))[None]
        given[f"{side}_selection"] = torch.from_numpy(np.array(kept, dtype=bool))[None]
        given[f"{side}_mask"] = torch.ones(given[f"{side}_selection"].shape, dtype=torch.bool)  # the template's too
    weights = weigh(method, **given)
    return [side[0].double().numpy() for side in weights if side is not None] or None


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
