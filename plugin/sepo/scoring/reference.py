"""Log-probabilities of the reference, computed before training: the identity of their store, and the computation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from sepo.errors import SepoError
from sepo.forward.sequences import LogProbScorer, ScoringModel
from sepo.recipe.model_specs import MAIN
from sepo.recipe.settings import RunSettings
from sepo.scoring.hub import hub_access
from sepo.scoring.model_files import check_tokenizers
from sepo.scoring.models import load_scoring_model
from sepo.scoring.row_texts import PolicyTokens
from sepo.scoring.stored_columns import (
    StoredScores,
    host_identity,
    row_sequences,
    spec_identity,
)
from sepo.training.float_columns import REF_COLUMNS

_MEDIA = ("images", "videos", "audios")


class ReferenceScores(StoredScores):
    """Log-probabilities of the reference on a run's rows, as columns ``chosen_ref_logps`` and ``rejected_ref_logps``.

    Args:
        settings: the run's settings, with ``precomputed_reference``.
        tokenizer: the policy's tokenizer.
        model_args: the host's model arguments.
        data_args: the host's data arguments.
        training_args: the host's training arguments (device, ranks).

    Raises:
        SepoError: If the reference is missing or has another tokenizer.
    """

    columns = REF_COLUMNS
    what = "reference log-probabilities"

    def __init__(
        self, settings: RunSettings, *, tokenizer: Any, model_args: Any, data_args: Any, training_args: Any
    ) -> None:
        reference = settings.precomputed_reference
        assert reference is not None
        self.key, self.model_args = reference.key, model_args
        self.spec, access = reference.model, hub_access(model_args)
        check_tokenizers(tokenizer, self.spec, key=self.key, access=access)
        identity = {
            "scorer": "reference",
            "model": spec_identity(self.spec, key=self.key, access=access),
            **_loading_identity(model_args, quantized=self.spec.quantization_bit is not None),
            "mixed_precision": _mixed_precision(training_args),
            **host_identity(tokenizer=tokenizer, model_args=model_args, data_args=data_args),
        }
        super().__init__(settings, identity=identity, row_texts=PolicyTokens(tokenizer), training_args=training_args)

    def attach(self, dataset: Dataset, *, name: str) -> Dataset:
        """Compute the log-probabilities of a data set, or find their store, and join them to its rows.

        Raises:
            SepoError: If rows have media, the reference returns a value that is not finite, or the store cannot be
                written.
        """
        for column in _MEDIA:
            if column in dataset.column_names and any(dataset[column]):
                raise SepoError(
                    f"the rows of {name} have {column}, and ref_precompute runs the reference on text only; remove "
                    "ref_precompute (the reference then runs during training)."
                )
        return super().attach(dataset, name=name)

    def _score(
        self, dataset: Dataset, start: int, stop: int, on_batch: Callable[[int], None]
    ) -> dict[str, list[np.ndarray]]:
        sequences = row_sequences(dataset[start:stop])
        logps = [row.numpy() for row in self._loaded().score(sequences, pairs=True, on_batch=on_batch)]
        count = stop - start
        for index, row in enumerate(logps):
            if not np.isfinite(row).all():
                raise SepoError(
                    f"{self.key}: '{self.spec.model}' gives a token of row {start + index % count} the log-probability "
                    f"{row[~np.isfinite(row)][0]}, expected a finite number: its weights are damaged, or it overflows "
                    f"in {self.model_args.compute_dtype}; try bf16: true."
                )
        return dict(zip(REF_COLUMNS, (logps[:count], logps[count:]), strict=True))

    def _loaded(self) -> LogProbScorer:
        if self._scorer is None:
            device = self.training_args.device
            model = load_scoring_model(self.spec, model_args=self.model_args, device=device, key=self.key)
            self._scorer = LogProbScorer(
                _as_in_training(model, self.training_args),
                batch_tokens=self.settings.score_batch_tokens,
                chunk_tokens=self.settings.head_chunk_tokens,
            )
        scorer: LogProbScorer = self._scorer
        return scorer

    def _refuse_zeros(self, name: str) -> None:
        raise SepoError(
            f"{self.key}: '{self.spec.model}' gives every token the probability 1 (all log-probabilities are zero). "
            "Check that its weights are those of a language model."
        )


def _mixed_precision(training_args: Any) -> tuple[str, str] | None:
    """Return how the trainer runs a model in a narrower dtype than its weights, and the dtype; None if it does not."""
    dtype = "bfloat16" if training_args.bf16 else "float16" if training_args.fp16 else None
    if dtype is None:
        return None
    return "autocast" if training_args.deepspeed_plugin is None else "cast", dtype


def _as_in_training(scoring: ScoringModel, training_args: Any) -> ScoringModel:
    """Return the reference in the precision that it would have in training: under autocast or, with DeepSpeed, with its
    weights cast."""
    precision = _mixed_precision(training_args)
    if precision is None:
        return scoring
    how, dtype = precision[0], getattr(torch, precision[1])
    if how == "cast":
        if not getattr(scoring.model, "quantization_method", None):
            for parameter in scoring.model.parameters():  # buffers (rotary frequencies) keep their float32
                parameter.data = parameter.data.to(dtype)
        return scoring
    return replace(scoring, active=lambda: torch.autocast(training_args.device.type, dtype=dtype))


def _loading_identity(model_args: Any, *, quantized: bool) -> dict[str, Any]:
    """Return the loading options of the host that the reference's log-probabilities depend on."""
    rope = model_args.rope_scaling
    # Files are identified by their content; the name of their revision is a constant.
    loading = {"revision": MAIN, "rope_scaling": None if rope is None else str(rope)}
    if quantized:
        loading |= {
            "quantization_type": model_args.quantization_type,
            "double_quantization": model_args.double_quantization,
        }
    return loading
