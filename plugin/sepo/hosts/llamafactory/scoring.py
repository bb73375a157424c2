"""The scoring pass: load the oracle and its base, fill the store of each data set, free them, join the scores."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from tqdm import tqdm

from sepo.errors import SepoError
from sepo.forward.scoring import OracleScorer, ScoredSequence, ScoringModel
from sepo.hosts.llamafactory.checks import check_tokenizers, spec_folders
from sepo.tokens.fingerprint import model_fingerprint
from sepo.tokens.store import ScoreStore, ShardRange, default_store_root
from sepo.training.collator import IGNORE_INDEX
from sepo.training.settings import ModelSpec, OracleSpec, RunSettings

logger = logging.getLogger(__name__)

COLUMNS = ("chosen_scores", "rejected_scores")
_SIDES = ("chosen", "rejected")


def skip_empty_responses(dataset: Dataset, *, name: str, tokenizer: Any) -> Dataset:
    """Drop rows with a response of no tokens (an empty answer, or a prompt that took the whole cutoff), and say which.

    Args:
        dataset: tokenized pairs, in the host's columns.
        name: what to call the data set in the log.
        tokenizer: decodes the prompts of the rows that are named.

    Returns:
        The data set without these rows; itself if there are none.

    Raises:
        SepoError: no row is left.
    """
    empty = []
    for start in range(0, len(dataset), 1000):
        rows = dataset[start : start + 1000]
        for offset, labels in enumerate(zip(rows["chosen_labels"], rows["rejected_labels"], strict=True)):
            if any(not any(label != IGNORE_INDEX for label in side[1:]) for side in labels):
                empty.append(start + offset)
    if not empty:
        return dataset
    shown = ", ".join(f"{row} ({_excerpt(dataset[row], tokenizer)!r})" for row in empty[:5])
    more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
    logger.warning(
        "skipped %d of %d rows of %s: a response has no token after truncation. Rows %s%s. Raise cutoff_len, or remove "
        "them.", len(empty), len(dataset), name, shown, more,
    )  # fmt: skip
    if len(empty) == len(dataset):
        raise SepoError(f"{name}: every row has an empty response after truncation; raise cutoff_len.")
    dropped = set(empty)
    return dataset.select([row for row in range(len(dataset)) if row not in dropped])


def _excerpt(row: Mapping[str, Any], tokenizer: Any) -> str:
    text = " ".join(tokenizer.decode(row["chosen_input_ids"], skip_special_tokens=True).split())
    return text if len(text) <= 60 else "..." + text[-57:]


def _rows_digest(dataset: Dataset) -> str:
    """Digest of every row's token ids and of where its responses start."""
    digest = hashlib.sha256()
    for start in range(0, len(dataset), 1000):
        rows = dataset[start : start + 1000]
        for side in _SIDES:
            for ids, labels in zip(rows[f"{side}_input_ids"], rows[f"{side}_labels"], strict=True):
                digest.update(np.asarray([len(ids), _response_start(labels)], dtype="<i8").tobytes())
                digest.update(np.asarray(ids, dtype="<i4").tobytes())
    return digest.hexdigest()


def _response_start(labels: Sequence[int]) -> int:
    return max(1, next(index for index, label in enumerate(labels) if label != IGNORE_INDEX))


def _spec_identity(spec: ModelSpec, *, key: str) -> dict[str, Any]:
    model, adapters = spec_folders(spec, key=key)
    return {
        "model": model_fingerprint(model),
        "adapters": [model_fingerprint(adapter) for adapter in adapters],
        "quantization_bit": spec.quantization_bit,
    }


def scoring_identity(oracle: OracleSpec, *, tokenizer: Any, model_args: Any, data_args: Any) -> dict[str, Any]:
    """Everything but the rows that the scores depend on: a store is found again by this and the rows' digest.

    Raises:
        SepoError: a model is missing, has another tokenizer, or the oracle is its base.
    """
    for key, spec in (("oracle_model", oracle.oracle), ("oracle_base_model", oracle.base)):
        check_tokenizers(tokenizer, spec, key=key, model_args=model_args)
    identity = {
        "oracle": _spec_identity(oracle.oracle, key="oracle_model"),
        "base": _spec_identity(oracle.base, key="oracle_base_model"),
    }
    if identity["oracle"] == identity["base"]:
        raise SepoError(
            f"the oracle '{oracle.oracle.model}' and its base '{oracle.base.model}' hold the same weights, so every "
            "token would score zero. The oracle must be what DPO made of the base: check that the paths are not "
            "swapped and that the oracle's training was saved."
        )
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])))
    return {
        "scorer": "oracle",
        **identity,
        "tokenizer": hashlib.sha256(vocabulary.encode()).hexdigest(),
        "template": data_args.template,
        "cutoff_len": data_args.cutoff_len,
        "compute_dtype": str(model_args.compute_dtype).removeprefix("torch."),
    }


@contextlib.contextmanager
def plain_loading() -> Iterator[None]:
    """Load models outside the engine: ZeRO-3 and RAM-efficient FSDP would leave their weights empty."""
    from transformers.integrations import deepspeed

    config_ref = deepspeed._hf_deepspeed_config_weak_ref
    fsdp = {name: os.environ.pop(name) for name in ("FSDP_CPU_RAM_EFFICIENT_LOADING",) if name in os.environ}
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config_ref
        os.environ.update(fsdp)


def _load(spec: ModelSpec, adapters: Sequence[str], *, model_args: Any) -> Any:
    from llamafactory.hparams import FinetuningArguments, ModelArguments
    from llamafactory.model import load_model, load_tokenizer

    # What changes the policy alone must not reach a scoring model.
    scoring_args = ModelArguments.copyfrom(
        model_args,
        model_name_or_path=spec.model,
        adapter_name_or_path=",".join(adapters) or None,
        quantization_bit=spec.quantization_bit,
        resize_vocab=False,
        add_tokens=None,
        add_special_tokens=None,
        use_unsloth=False,
        mixture_of_depths=None,
        shift_attn=False,
    )
    tokenizer = load_tokenizer(scoring_args)["tokenizer"]
    return load_model(tokenizer, scoring_args, FinetuningArguments(), is_trainable=False)


def load_scoring_models(
    oracle: OracleSpec, *, model_args: Any, device: torch.device
) -> tuple[ScoringModel, ScoringModel]:
    """Load the oracle and its base, as one set of weights where they differ by an adapter.

    Args:
        oracle: the two specifications.
        model_args: the host's model arguments; dtype, attention and hub access are taken from them.
        device: where they run.

    Returns:
        The oracle and the base, frozen, in eval mode.
    """
    with plain_loading():
        if not oracle.one_set_of_weights:
            models = [_load(spec, spec.adapters, model_args=model_args) for spec in (oracle.oracle, oracle.base)]
            placed = [_placed(model, device) for model in models]
            return tuple(ScoringModel(model, contextlib.nullcontext) for model in placed)  # type: ignore[return-value]
        from peft import PeftModel

        shared = oracle.shared_adapters
        model = _load(oracle.oracle, shared, model_args=model_args)
        own = {
            name: spec.adapters[len(shared)]
            for name, spec in (("oracle", oracle.oracle), ("base", oracle.base))
            if len(spec.adapters) > len(shared)
        }
        for name, adapter in own.items():
            if isinstance(model, PeftModel):
                model.load_adapter(adapter, adapter_name=name)
            else:
                model = PeftModel.from_pretrained(model, adapter, adapter_name=name)
        model.requires_grad_(False)
        model = _placed(model.eval(), device)

    def active(name: str) -> Callable[[], Any]:
        return (lambda: _adapter(model, name)) if name in own else (lambda: model.disable_adapter())

    return ScoringModel(model, active("oracle")), ScoringModel(model, active("base"))


@contextlib.contextmanager
def _adapter(model: Any, name: str) -> Iterator[None]:
    model.set_adapter(name)
    yield


def _placed(model: Any, device: torch.device) -> Any:
    return model if getattr(model, "quantization_method", None) else model.to(device)


def _shard_rows(rows: int) -> int:
    """Rows per shard, what a killed run may lose: few enough on a slow machine, and not too many files."""
    return min(512, max(32, rows // 64))


class DatasetScorer:
    """Scores the data sets of one run; loads the models at the first shard that is missing, and never otherwise.

    Args:
        settings: the run's settings, with an oracle.
        tokenizer: the policy's.
        model_args: the host's model arguments.
        data_args: the host's data arguments.
        training_args: the host's training arguments (device, ranks).
    """

    def __init__(
        self, settings: RunSettings, *, tokenizer: Any, model_args: Any, data_args: Any, training_args: Any
    ) -> None:
        assert settings.oracle is not None
        self.settings, self.oracle = settings, settings.oracle
        self.model_args, self.training_args = model_args, training_args
        self.identity = scoring_identity(
            settings.oracle, tokenizer=tokenizer, model_args=model_args, data_args=data_args
        )
        self.stores: dict[str, str] = {}
        self._scorer: OracleScorer | None = None

    def attach(self, dataset: Dataset, *, name: str) -> Dataset:
        """Score a data set, or find its store, and join the scores as columns ``chosen_scores``, ``rejected_scores``.

        Raises:
            SepoError: the oracle's scores are all zero, or the store cannot be written.
        """
        root = (
            Path(self.settings.token_scores_dir).expanduser()
            if self.settings.token_scores_dir
            else default_store_root()
        )
        store = ScoreStore.open(
            root=root,
            identity={**self.identity, "rows": _rows_digest(dataset)},
            rows=len(dataset),
            columns=COLUMNS,
            shard_rows=_shard_rows(len(dataset)),
        )
        self.stores[name] = str(store.path)
        if store.complete:
            logger.info("token scores of %s found in %s: nothing to score.", name, store.path)
        else:
            self._fill(store, dataset, name=name)
        scores = concatenate_datasets([Dataset.from_file(str(path)) for path in store.files()])
        _refuse_zero_scores(scores, self.oracle)
        return concatenate_datasets([dataset, scores], axis=1)

    def _fill(self, store: ScoreStore, dataset: Dataset, *, name: str) -> None:
        missing = sum(shard.rows for shard in store.missing())
        logger.info("scoring %s: %d of %d rows missing in %s.", name, missing, len(dataset), store.path)
        ranks, rank = self.training_args.world_size, self.training_args.process_index
        with tqdm(
            total=len(dataset), initial=len(dataset) - missing, desc=f"scoring {name}", unit="pair", disable=rank != 0
        ) as bar:

            def settled(shard: ShardRange, done_rows: int) -> None:
                bar.n = done_rows  # shards of other processes count too
                bar.refresh()

            store.fill(
                lambda start, stop: self._score(dataset, start, stop, lambda sequences: bar.update(sequences / 2)),
                offset=rank * len(store.shards) // max(1, ranks),
                on_shard=settled,
            )

    def _score(
        self, dataset: Dataset, start: int, stop: int, on_batch: Callable[[int], None]
    ) -> dict[str, list[np.ndarray]]:
        rows = dataset[start:stop]
        sequences = [
            ScoredSequence(ids, _response_start(labels))
            for side in _SIDES
            for ids, labels in zip(rows[f"{side}_input_ids"], rows[f"{side}_labels"], strict=True)
        ]
        scores = [scores.numpy() for scores in self._loaded().score(sequences, on_batch=on_batch)]
        count = stop - start
        return {"chosen_scores": scores[:count], "rejected_scores": scores[count:]}

    def _loaded(self) -> OracleScorer:
        if self._scorer is None:
            oracle, base = load_scoring_models(
                self.oracle, model_args=self.model_args, device=self.training_args.device
            )
            self._scorer = OracleScorer(
                oracle=oracle,
                base=base,
                batch_tokens=self.settings.score_batch_tokens,
                chunk_tokens=self.settings.head_chunk_tokens,
            )
        return self._scorer

    def free(self) -> None:
        """Drop the scoring models and give their memory back, before the policy is loaded."""
        if self._scorer is None:
            return
        self._scorer = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _refuse_zero_scores(scores: Dataset, oracle: OracleSpec) -> None:
    head = scores[: min(32, len(scores))]
    if all(not np.any(row) for column in COLUMNS for row in head[column]):
        raise SepoError(
            f"the oracle '{oracle.oracle.model}' gives every token the same probability as its base "
            f"'{oracle.base.model}' (all scores are zero). Check that the oracle was trained, and from this base."
        )
