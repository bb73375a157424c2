"""Axolotl's DPO trainer with the training step of sepo's stages in place of its forward pass and loss."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from axolotl.core.trainers.dpo.trainer import AxolotlDPOTrainer
from torch import Tensor

from sepo.errors import SepoError
from sepo.forward.lora import fuse_lora
from sepo.forward.recompute import recompute_less
from sepo.hosts.axolotl.config import Resolved
from sepo.hosts.stage_step import StageStep
from sepo.recipe.settings import RunSettings
from sepo.runs.files import method_collator, write_settings
from sepo.runs.first_screen import FirstScreen
from sepo.runs.log_writer import RunLog
from sepo.runs.runaway import RunawayWarning
from sepo.runs.sampled_rows import DatasetRows
from sepo.runs.token_samples import TokenRecord
from sepo.selection import SIDES
from sepo.training.loading import register_numbered_cpus
from sepo.training.router import prepare_router_loss
from sepo.training.selection_columns import IGNORE_INDEX

_PAD_TO = 8


class _WithoutCollecting(AxolotlDPOTrainer):
    """Axolotl's trainer without the work of 0.19 after every step, which 0.21 has dropped: garbage collection of the
    whole process (0.3 to 0.7 s), and emptying of the allocator's cache."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        step: Tensor = super(AxolotlDPOTrainer, self).training_step(*args, **kwargs)
        return step


class PreferenceTrainer(StageStep, _WithoutCollecting):
    """Trainer of sepo's stages. Only the training step differs: optimizers, schedulers, samplers, engines, checkpoints
    and logging are the host's.

    Args:
        model: the policy, as Axolotl loads it.
        ref_model: the reference as a separate model, or None.
        args: Axolotl's DPO arguments, with the plugin's field.
        processing_class: the tokenizer.
        **kwargs: further arguments of Axolotl's DPO trainer; its collator is not used.

    Raises:
        SepoError: If the arguments hold no stage, because the plugin was not loaded.
    """

    def __init__(self, model: Any, ref_model: Any = None, *, args: Any, processing_class: Any, **kwargs: Any) -> None:
        text = getattr(args, "sepo", None)
        if text is None:
            raise SepoError(
                "trainer_cls names sepo's trainer, but the training arguments hold no stage: add plugins: "
                "[sepo.hosts.axolotl.SePOPlugin], and check the log above for errors while loading it."
            )
        resolved = Resolved.from_json(text)
        self.settings, self.chosen_nll_weight = resolved.settings, resolved.chosen_nll_weight
        self.batch_tokens = self.settings.batch_tokens
        multiple = kwargs.pop("data_collator", None)
        collator = PairCollator(
            processing_class.pad_token_id, pad_to=getattr(multiple, "pad_to_multiple_of", None) or _PAD_TO
        )
        alone = ref_model is None
        # Without a second model TRL loads one itself, unless precompute_ref_log_probs is set.
        args.precompute_ref_log_probs = alone
        super().__init__(
            model, ref_model, args=args, processing_class=processing_class,
            data_collator=method_collator(collator, self.settings), **kwargs,
        )  # fmt: skip
        self.args.precompute_ref_log_probs = self.precompute_ref_logps = False
        self._check_reference()
        self.check_batch_tokens()
        prepare_router_loss(self, self.settings.router_loss_weight)
        fuse_lora(self.model)
        recompute_less(self.model, kept_bytes=self.settings.kept_bytes)
        register_numbered_cpus()

    def _check_reference(self) -> None:
        if self.settings.runs_reference and self.ref_model is None and not hasattr(self.model, "disable_adapter"):
            raise SepoError(
                f"objective {self.settings.method.name} needs a reference, and Axolotl passed none to the trainer; set "
                "ref_model in the sepo block."
            )

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the rows unchanged: they were tokenized before they were scored."""
        missing = {f"{side}_labels" for side in SIDES} - set(dataset.column_names)
        if missing:
            raise SepoError(
                f"the trainer got rows with the columns {', '.join(dataset.column_names)}, expected the rows that the "
                "plugin has tokenized: another plugin has loaded the data set. Remove that plugin."
            )
        return dataset

    def _precompute_ref_logps(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the rows unchanged: TRL's method stores sums over whole responses; see ``__init__``."""
        return dataset

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the loss of one device batch in training."""
        output = self.train_on(model, inputs)
        return (output.loss, {}) if return_outputs else output.loss


class PairCollator:
    """Collator that pads pairs on the right, chosen rows first, as the trainers of all hosts expect.

    >>> rows = [{"chosen_input_ids": [5, 6, 7], "chosen_labels": [-100, 6, 7],
    ...          "rejected_input_ids": [5, 8], "rejected_labels": [-100, 8]}]
    >>> batch = PairCollator(0, pad_to=1)(rows)
    >>> batch["input_ids"].tolist(), batch["labels"].tolist()
    ([[5, 6, 7], [5, 8, 0]], [[-100, 6, 7], [-100, 8, -100]])

    Args:
        pad_token_id: padding token id of the tokenizer.
        pad_to: the width is a multiple of this.
    """

    def __init__(self, pad_token_id: int, *, pad_to: int) -> None:
        self.pad_token_id, self.pad_to = pad_token_id, pad_to

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return ``input_ids``, ``attention_mask`` and ``labels``, each int64 [2B, T]."""
        ids = [row[f"{side}_input_ids"] for side in SIDES for row in features]
        labels = [row[f"{side}_labels"] for side in SIDES for row in features]
        longest = max(map(len, ids))
        width = longest + -longest % self.pad_to

        def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
            return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])

        return {
            "input_ids": padded(ids, self.pad_token_id),
            "attention_mask": padded([[1] * len(row) for row in ids], 0),
            "labels": padded(labels, IGNORE_INDEX),
        }


def write_records(
    trainer: PreferenceTrainer,
    settings: RunSettings,
    *,
    stores: Mapping[str, Mapping[str, str]],
    template: Mapping[str, Any] | None,
    recipe: Mapping[str, Any],
) -> None:
    """Write the settings of a run, and add callbacks that write its log and a sample of its pairs.

    Args:
        trainer: trainer of the run, before training.
        settings: settings of the run.
        stores: directories of the score stores, by scorer, then by data set.
        template: texts of the tokens that the chat template writes into responses.
        recipe: the config after Axolotl's validation.
    """
    trainer.add_callback(RunLog())
    trainer.add_callback(FirstScreen(settings))
    trainer.add_callback(RunawayWarning(settings, chosen_nll_weight=trainer.chosen_nll_weight))
    if not trainer.is_world_process_zero():
        return
    plain = json.loads(json.dumps(dict(recipe), default=str))
    write_settings(Path(trainer.args.output_dir), settings, stores, recipe=plain, template=template)
    if not trainer.shards_rows():
        rows = DatasetRows(trainer.train_dataset)
        trainer.record = TokenRecord(method=settings.method, tokenizer=trainer.processing_class, rows=rows)
        trainer.add_callback(trainer.record)
