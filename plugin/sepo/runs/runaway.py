"""Warning of a run that runs away: its margin grows because both responses of a pair lose likelihood.

Loss, accuracy and margin of such a run look well, and its own responses get worse. What is followed is a metric that a
step has anyway, so that no forward pass is added. The bound is from ``benchmarks/claims/runaway_world.py``.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sepo.recipe.settings import RunSettings
from sepo.runs.log_reader import read_log
from sepo.runs.log_writer import note_warning

logger = logging.getLogger(__name__)

BOUND = 1.0
"""Nats that a computed token of the chosen responses may lose, as a mean over the latest pairs."""
PAIRS, FIRST_PAIRS = 64, 32
"""Pairs over which the latest and the first values are means, at least. Over fewer, good runs pass the bound for a few
steps; the first ones are those of a policy that has hardly moved."""
WEIGHT = 0.2
"""``pref_ftx`` that the warning names to a run without it, as measured in docs/evidence.md."""


class ChosenLikelihood:
    """The change of a logged mean since training began.

    Args:
        first: the value before training, if it is known; None for the mean of the first ``FIRST_PAIRS`` or more.
    """

    def __init__(self, first: float | None = None) -> None:
        self._first = first
        self._latest: deque[tuple[float, float]] = deque()

    def add(self, value: float, pairs: float) -> float | None:
        """Add a logged mean over so many pairs.

        Returns:
            The mean over the latest ``PAIRS`` pairs or more, minus the first; None with fewer, those of the first mean
            apart.
        """
        needed = FIRST_PAIRS if self._first is None else PAIRS
        self._latest.append((value, pairs))
        while self._pairs - self._latest[0][1] >= needed:
            self._latest.popleft()
        if self._pairs < needed:
            return None
        mean = sum(value * pairs for value, pairs in self._latest) / self._pairs
        if self._first is None:
            self._first = mean
            self._latest.clear()
            return None
        return mean - self._first

    @property
    def _pairs(self) -> float:
        return sum(pairs for _, pairs in self._latest)


class RunawayWarning(TrainerCallback):
    """Trainer callback that warns once per run, in its first process, if the chosen responses lose too much likelihood.

    It follows ``kl/chosen``, or ``logps/chosen_mean`` if the objective has no reference, at the logging steps, where
    they are means over the pairs of all processes. The value before training is 0 if the reference is the policy before
    training, and otherwise that of the first logged pairs. A resumed run has it from its log, which it continues; if
    the log is gone, from the first pairs after the resumption.

    Args:
        settings: the run's settings.
        chosen_nll_weight: ``pref_ftx`` of the run.
    """

    def __init__(self, settings: RunSettings, *, chosen_nll_weight: float) -> None:
        self._settings, self._weight = settings, chosen_nll_weight
        self._name = "kl/chosen" if settings.method.needs_reference else "logps/chosen_mean"
        self._begin()

    def _begin(self) -> None:
        self._likelihood = ChosenLikelihood(0.0 if self._settings.reference_is_start else None)
        self._step, self._warned = 0, False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Read the metrics that a resumed run has logged before."""
        self._begin()
        if not (state.is_world_process_zero and state.global_step):
            return
        run = read_log(Path(args.output_dir))
        for entry in run.entries:
            if entry["step"] <= state.global_step:
                self._change(args, int(entry["step"]), entry)
        self._step = state.global_step
        self._warned = any(entry["step"] <= state.global_step for entry in run.warnings)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Compare the metrics with the bound."""
        if self._warned or not state.is_world_process_zero:
            return
        change = self._change(args, state.global_step, logs or {})
        if change is not None and change < -BOUND:
            self._warned = True
            text = self._text(change)
            logger.warning("step %d: %s", state.global_step, text)
            note_warning(Path(args.output_dir), step=state.global_step, text=text)

    def _change(self, args: Any, step: int, metrics: Mapping[str, Any]) -> float | None:
        value = metrics.get(self._name)
        if not isinstance(value, int | float) or not math.isfinite(value) or step <= self._step:
            return None
        pairs = (step - self._step) * args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self._step = step
        return self._likelihood.add(float(value), pairs)

    def _text(self, change: float) -> str:
        part = "" if self._weight or self._settings.method.needs_all_tokens else "selected tokens of the "
        advice = f"a greater pref_ftx than {self._weight:g}" if self._weight else f"pref_ftx: {WEIGHT:g}"
        return (
            f"the {part}chosen responses have lost {-change:.1f} nats per token since training began (bound "
            f"{BOUND:.1f}): the margin grows because both responses of a pair get less likely, and what the policy "
            f"writes usually gets worse. Set {advice}, or a lower learning_rate "
            "(docs/evidence.md#a-run-that-runs-away)."
        )
