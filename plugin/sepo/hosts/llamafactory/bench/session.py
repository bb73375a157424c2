"""Model, data and trainers of a measurement: one model and one data set, shared by a trainer per contender."""

from __future__ import annotations

import contextlib
import gc
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_model, load_tokenizer
from llamafactory.train.dpo.trainer import CustomDPOTrainer
from torch import Tensor

from sepo.errors import SepoError
from sepo.forward.lora import fuse_lora, unfuse_lora
from sepo.forward.recompute import recompute_as_before, recompute_less
from sepo.hosts.llamafactory.bench.contenders import Contender
from sepo.hosts.llamafactory.bench.rows import drawn_batches, pair_lengths, with_random_columns
from sepo.hosts.llamafactory.pair_encoding import pairs_encoded, without_cuts
from sepo.hosts.llamafactory.response_tokens import written_by_template
from sepo.hosts.llamafactory.rows import counted_rows
from sepo.hosts.llamafactory.trainer import LlamaFactoryTrainer
from sepo.hosts.llamafactory.workflow import build_trainer, load_reference, pair_collator
from sepo.scoring.live_columns import selection_columns
from sepo.training.row_losses import RowLosses
from sepo.training.starting_policy import StartingPolicy
from sepo.training.trainable_rows import keep_trainable

_LOOKED_AT = 5000
"""Maximum number of rows whose lengths are read."""

_MOVED = 0.01
_MOVED_FROM_ZERO = 1e-3


@dataclass
class Session:
    """State of a measurement.

    Args:
        model: the policy, prepared by the trainers' engine and shared by them.
        trainers: trainers by contender.
        batches: device batches of the rounds, by contender.
        pairs: number of pairs of each round's batch.
        tokens: number of tokens of each round's batch: prompts and responses of both sides, without padding.
        reference_bytes: bytes of the weights of a second model that is the reference, by contender.
        rows: tokenized rows of each round's batch, in the host's columns.
        notes: notes on the comparison for the user.
    """

    model: Any
    trainers: dict[str, Any]
    batches: dict[str, list[dict[str, Any]]]
    pairs: list[int]
    tokens: list[int]
    reference_bytes: dict[str, int]
    rows: list[list[dict[str, Any]]]
    notes: list[str] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        """Device on which the steps run."""
        first = next(iter(self.trainers.values()))
        return torch.device(first.args.device)

    def step(self, name: str, batch: int) -> Tensor:
        """Run a contender's training step, forward and backward, on a round's batch; return the detached loss."""
        trainer = self.trainers[name]
        # The model is shared: its LoRA layers and checkpointing are set to those of the contender's own training.
        if isinstance(trainer, LlamaFactoryTrainer):
            fuse_lora(self.model)
            recompute_less(self.model, kept_bytes=trainer.settings.kept_bytes)
        else:
            unfuse_lora(self.model)
            recompute_as_before(self.model)
        return trainer.training_step(self.model, dict(self.batches[name][batch]))

    def settle(self, name: str) -> None:
        """Drop the gradients and the metrics of a step."""
        self.model.zero_grad(set_to_none=True)
        self.trainers[name]._stored_metrics.clear()

    def synchronize(self) -> None:
        """Wait for the device to finish all queued work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def longest(self, count: int) -> list[int]:
        """Return the rounds with the largest batches, padding included, in descending order of size."""
        batches = next(iter(self.batches.values()))
        return sorted(range(len(batches)), key=lambda index: -batches[index]["input_ids"].numel())[:count]

    def facts(self) -> dict[str, int]:
        """Return the parameters, the trainable ones, and the bytes of all weights of the policy."""
        return {
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "trainable_parameters": sum(parameter.numel() for parameter in trainable(self.model)),
            "weights_bytes": _bytes(self.model),
        }

    def weights(self) -> Tensor:
        """Return a checksum (the sum of squares) per trainable tensor, [tensors] float32 on the CPU."""
        sums = [parameter.detach().float().square().sum() for parameter in trainable(self.model)]
        return torch.stack(sums).cpu()


def open_session(contenders: Sequence[Contender], *, rounds: int, seed: int) -> Session:
    """Load data, model and, if a contender has one, the reference; build the trainers.

    Args:
        contenders: the contenders; their recipes differ in the method only.
        rounds: number of batches to draw.
        seed: seed of the rows, of the random scores and of the noise added to the policy's weights.

    Returns:
        The session. Small noise is added to the weights of its policy, so that policy and reference differ and a wrong
        loss is visible; nothing is written to the model's directory.

    Raises:
        SepoError: the recipe or the data is invalid.
    """
    parsed = {contender.name: _parsed(contender) for contender in contenders}
    model_args, data_args, training_args = next(iter(parsed.values()))[:3]
    tokenizer_module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(tokenizer_module["tokenizer"], data_args)
    rows, drawn = _rows(template, model_args, data_args, training_args, tokenizer_module, rounds=rounds, seed=seed)
    finetuning = {name: arguments[3] for name, arguments in parsed.items()}
    first = next(iter(finetuning.values()))
    model = load_model(tokenizer_module["tokenizer"], model_args, first, True)
    with_reference = [contender.name for contender in contenders if contender.needs_reference_model]
    reference: Any = None
    start: StartingPolicy | None = None
    if with_reference:
        reference, start = load_reference(model, model_args, training_args, finetuning[with_reference[0]])
    _move_from_start(model, seed=seed)
    shared = _Shared(model, reference, start, template, tokenizer_module, training_args, seed)
    encoded = [[rows[index] for index in batch] for batch in drawn]
    session = Session(model, {}, {}, [], [], dict.fromkeys(parsed, 0), encoded)
    for contender in contenders:
        trainer, own = shared.trainer(contender, finetuning[contender.name], rows)
        session.trainers[contender.name] = trainer
        collated = [trainer.data_collator([own[index] for index in batch]) for batch in drawn]
        session.batches[contender.name] = [dict(trainer._prepare_inputs(batch)) for batch in collated]
        if reference is not None and contender.needs_reference_model:
            session.reference_bytes[contender.name] = _bytes(reference)
    trainer = next(iter(session.trainers.values()))
    session.model = trainer.accelerator.prepare_model(model)  # once: every preparation wraps the forward pass again
    session.pairs = [len(batch) for batch in drawn]
    session.tokens = [int(batch["attention_mask"].sum()) for batch in next(iter(session.batches.values()))]
    if start is not None and any(contender.settings is None for contender in contenders):
        session.notes.append(
            "the recipe continues from an adapter: sepo's reference includes it, LLaMA-Factory's dpo disables it, so "
            "their losses differ."
        )
    gc.collect()
    return session


def _parsed(contender: Contender) -> Any:
    try:
        return get_train_args(contender.host_recipe)
    except ValueError as error:
        raise SepoError(f"{contender.label}: {error}") from error


def _rows(
    template: Any,
    model_args: Any,
    data_args: Any,
    training_args: Any,
    tokenizer_module: dict[str, Any],
    *,
    rounds: int,
    seed: int,
) -> tuple[Any, list[list[int]]]:
    """Return the drawn rows as a data set, and the batches as indices into it."""
    losses = RowLosses()
    # The host prints an example.
    with contextlib.redirect_stdout(io.StringIO()), pairs_encoded(), counted_rows(losses, template=template):
        datasets = get_dataset(template, model_args, data_args, training_args, stage="rm", **tokenizer_module)
    tokenizer = tokenizer_module["tokenizer"]
    rows = keep_trainable(datasets["train_dataset"], name="train", tokenizer=tokenizer, losses=losses)
    rows = without_cuts(rows, name="train", tokenizer=tokenizer, losses=losses, cutoff_len=data_args.cutoff_len)
    losses.log()
    pairs = training_args.per_device_train_batch_size
    if len(rows) > _LOOKED_AT:
        rows = rows.shuffle(seed=seed).select(range(_LOOKED_AT))
    drawn = drawn_batches(pair_lengths(rows), pairs=pairs, rounds=rounds, seed=seed)
    order = sorted({index for batch in drawn for index in batch})
    place = {index: position for position, index in enumerate(order)}
    return rows.select(order), [[place[index] for index in batch] for batch in drawn]


@dataclass
class _Shared:
    """Objects that the trainers share."""

    model: Any
    reference: Any
    start: StartingPolicy | None
    template: Any
    tokenizer_module: dict[str, Any]
    training_args: Any
    seed: int
    prepared: Any = None

    def trainer(self, contender: Contender, finetuning_args: Any, rows: Any) -> tuple[Any, Any]:
        """Return the trainer of a contender, and the rows with the columns that it reads."""
        # The first trainer prepares the reference; every further preparation would wrap its forward pass again.
        ref_model = self.reference if contender.needs_reference_model and self.prepared is None else None
        common = {"template": self.template, "tokenizer_module": self.tokenizer_module}
        if contender.settings is None:
            trainer = CustomDPOTrainer(
                model=self.model,
                ref_model=ref_model,
                args=self.training_args,
                finetuning_args=finetuning_args,
                data_collator=pair_collator(self.model, **common),
                train_dataset=rows,
                **self.tokenizer_module,
            )
        else:
            tokenizer = self.tokenizer_module["tokenizer"]
            rows = with_random_columns(rows, contender.settings, seed=self.seed)
            method = contender.settings.method
            written = written_by_template(self.template, tokenizer)
            datasets = selection_columns(
                {"train_dataset": rows}, method, tokenizer=tokenizer, seed=self.seed, template=written
            )
            rows = datasets["train_dataset"]
            trainer = build_trainer(
                self.model,
                settings=contender.settings,
                ref_model=ref_model,
                starting_policy=self.start if contender.needs_reference_model else None,
                training_args=self.training_args,
                finetuning_args=finetuning_args,
                datasets=datasets,
                **common,
            )
        if contender.needs_reference_model and self.reference is not None:
            self.prepared = self.prepared or trainer.ref_model
            trainer.ref_model = self.prepared
        trainer.current_gradient_accumulation_steps = 1  # set by `train()`, which is not called
        return trainer, rows


def trainable(model: Any) -> list[Any]:
    """Return the parameters of a model that are trained."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _move_from_start(model: Any, *, seed: int) -> None:
    """Add seeded noise to the trainable weights, in memory.

    A policy at its start equals its reference: the loss is log 2 for every loss of their difference, so a wrong
    implementation would not be visible.
    """
    generators: dict[torch.device, torch.Generator] = {}
    with torch.no_grad():
        for parameter in trainable(model):
            device = parameter.device
            if device not in generators:
                generators[device] = torch.Generator(device=device).manual_seed(seed)
            spread = _MOVED * parameter.float().std().item() if parameter.numel() > 1 else 0.0
            noise = torch.randn(parameter.shape, generator=generators[device], device=device, dtype=parameter.dtype)
            parameter.add_(noise, alpha=spread or _MOVED_FROM_ZERO)


def _bytes(model: Any) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
