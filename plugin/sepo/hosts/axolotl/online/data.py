"""Prompts of a run of stage `rto`, encoded and checked before the policy is loaded."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from sepo.errors import SepoError
from sepo.hosts.axolotl.conversations import prompt_tokens, template_text
from sepo.hosts.axolotl.data import host_rows
from sepo.hosts.axolotl.hub import access_in, check_models
from sepo.hosts.axolotl.logs import log_as_the_host
from sepo.hosts.axolotl.messages import Row, Writer
from sepo.hosts.axolotl.models import host_arguments, on_several_cpus
from sepo.hosts.axolotl.online.config import ResolvedRto
from sepo.hosts.axolotl.online.rows import REST, TEXT, prompts_read
from sepo.hosts.axolotl.reference import install_no_reference
from sepo.hosts.axolotl.rows import LEFT_OUT
from sepo.online.prompts import PROMPT, ROW, prompt_row
from sepo.recipe.rto import RtoSettings
from sepo.rewards import check_rewards
from sepo.runs.first_screen import log_first_screen
from sepo.runs.log_writer import note_preparation, note_rows
from sepo.scoring.hub import cached_if_unreachable
from sepo.scoring.live_columns import mapped
from sepo.scoring.oracle import scoring_identity
from sepo.text.messages import UnreadableRow
from sepo.training.row_losses import RowLosses
from sepo.training.trainable_rows import each_dataset

logger = logging.getLogger(__name__)


class LoadedPrompts(NamedTuple):
    """Rows of a run.

    Args:
        meta: the host's ``TrainDatasetMeta``, with the rows of ``sepo.online.prompts``.
        stop_ids: tokens that end a response.
    """

    meta: Any
    stop_ids: tuple[int, ...]


def load_prompts(cfg: Any, resolved: ResolvedRto, *, preprocess: bool) -> LoadedPrompts:
    """Load and encode a run's prompts for training and evaluation, and check its other models.

    Args:
        cfg: the validated config; its ``device_map`` is cleared for several processes on CPUs, for which the host's
            value is wrong.
        resolved: the stage.
        preprocess: only load the rows as the host does.

    Raises:
        SepoError: If the data or a model is invalid, or there are too few prompts.
    """
    from axolotl.common.datasets import TrainDatasetMeta
    from axolotl.loaders import load_tokenizer

    settings, host = resolved.settings, host_arguments(cfg)
    log_as_the_host(first_process=host.training_args.process_index == 0)
    log_first_screen(settings)
    check_models(cfg, settings.models)
    check_rewards(settings.rewards, access=access_in(cfg))
    with cached_if_unreachable():
        tokenizer = load_tokenizer(cfg)
    if settings.oracle is not None:
        scoring_identity(settings.oracle, tokenizer=tokenizer, model_args=host.model_args, data_args=host.data_args)
    with cached_if_unreachable(), prompts_read(resolved.entries, settings.rewards):
        meta = host_rows(cfg)
    stops = stop_tokens(cfg, tokenizer)
    if preprocess:
        return LoadedPrompts(meta, stops)
    logger.info("stage %s: %s", settings.stage, json.dumps(settings.as_dict()))
    first = host.training_args.process_index == 0
    if first:
        described = {name: settings.as_dict()[name] for name in ("stage", "objective", "token_scorer")}
        note_preparation(Path(host.training_args.output_dir), **described)
    if on_several_cpus():
        cfg.device_map = None
    install_no_reference()
    loaded = {"train_dataset": meta.train_dataset, "eval_dataset": meta.eval_dataset}
    losses = RowLosses()
    datasets = each_dataset(
        {role: rows for role, rows in loaded.items() if rows is not None},
        lambda rows, name: encoded(rows, cfg, settings, tokenizer=tokenizer, name=name, losses=losses),
    )
    if first:
        losses.log()
        note_rows(Path(host.training_args.output_dir), losses)
    check_sizes(cfg, datasets, settings, processes=host.training_args.world_size)
    # Without a number of steps Axolotl counts those of the sampler, as with its own GRPO.
    return LoadedPrompts(TrainDatasetMeta(datasets["train_dataset"], datasets.get("eval_dataset"), None), stops)


def encoded(
    dataset: Dataset, cfg: Any, settings: RtoSettings, *, tokenizer: Any, name: str, losses: RowLosses
) -> Dataset:
    """Encode prompts as the other stages do, and leave out those with no room for a response.

    Args:
        dataset: rows of ``prompts_read``.
        cfg: the config.
        settings: the run's settings.
        tokenizer: the policy's tokenizer.
        name: name of the data set in the log.
        losses: gets the rows that are left out.

    Returns:
        Rows of ``sepo.online.prompts``.

    Raises:
        SepoError: If no row is left, or one is too long and ``excess_length_strategy`` is ``raise``.
    """
    losses.given(name, len(dataset))
    room = int(cfg.sequence_len) - settings.rto.max_new_tokens
    too_long = f"prompt and rto_max_new_tokens ({settings.rto.max_new_tokens}) exceed sequence_len ({cfg.sequence_len})"

    def columns(rows: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
        made: dict[str, list[Any]] = {PROMPT: [], ROW: [], LEFT_OUT: []}
        for text, rest, left_out in zip(rows[TEXT], rows[REST], rows[LEFT_OUT], strict=True):
            ids = [] if left_out else prompt_tokens(tokenizer, text)
            fits = len(ids) <= room
            given = {"messages": [], "system": "", "tools": "", "expected": None} if left_out else json.loads(rest)
            for column, value in prompt_row(ids, **given).items():
                made[column].append(value)
            made[LEFT_OUT].append(left_out or ("" if fits else too_long))
        return made

    made = mapped(dataset, columns, f"prompts {room} {tokenizer.bos_token_id}")
    first = {text: index for index, text in reversed(list(enumerate(dataset[TEXT])))}
    reasons = [
        reason or ("" if first[text] == index else "an earlier row has the same prompt")
        for index, (reason, text) in enumerate(zip(made[LEFT_OUT], dataset[TEXT], strict=True))
    ]
    counts = Counter(filter(None, reasons))
    if counts[too_long] and str(cfg.excess_length_strategy or "drop").lower() == "raise":
        raise SepoError(f"{name}: in {counts[too_long]} rows {too_long}; raise it, or lower rto_max_new_tokens.")
    for reason, rows in counts.items():
        losses.add(name, "skipped", reason, rows, example=dataset[reasons.index(reason)][TEXT])
    kept = [index for index, reason in enumerate(reasons) if not reason]
    if not kept:
        counted = "; ".join(f"in {rows} rows {reason}" for reason, rows in counts.most_common())
        raise SepoError(f"{name}: no prompt is left: {counted or 'there are no rows'}.")
    return made.select_columns([PROMPT, ROW]).select(kept)


def check_sizes(cfg: Any, datasets: Mapping[str, Any], settings: RtoSettings, *, processes: int) -> None:
    """Raise if the prompts do not fill one batch of sampled responses, of which TRL's sampler drops incomplete ones.

    Args:
        cfg: the config.
        datasets: the run's data sets.
        settings: the run's settings.
        processes: number of processes.

    Raises:
        SepoError: with the numbers.
    """
    samples = settings.rto.samples
    responses = int(cfg.micro_batch_size) * int(cfg.gradient_accumulation_steps) * processes
    if cfg.trl.generation_batch_size:
        responses = int(cfg.trl.generation_batch_size)
    found, needed = len(datasets["train_dataset"]), responses // samples
    if found < needed:
        raise SepoError(
            f"train has {found} prompts, but one batch of responses is to {needed} ({responses} responses, "
            f"rto_samples {samples}); lower gradient_accumulation_steps or micro_batch_size, or add prompts."
        )
    at_once = int(cfg.eval_batch_size or cfg.micro_batch_size) * processes
    if "eval_dataset" in datasets and at_once % samples:
        raise SepoError(
            f"eval_batch_size is {at_once // processes} in {processes} processes, expected a multiple of rto_samples "
            f"({samples}) in all: the responses to a prompt are compared with each other."
        )


def stop_tokens(cfg: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that end a response: what the chat template writes after one, eos, and ``eot_tokens``.

    Args:
        cfg: the config.
        tokenizer: the policy's tokenizer.
    """
    others = [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(list(cfg.eot_tokens or []))]
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", "a"), ("assistant", "b"))]
    try:
        row = Row(turns[:1], turns[1], turns[2], None, plain=True)
        written, _ = Writer(tokenizer, template_text(cfg, tokenizer)).write(row)
    except UnreadableRow:  # a template that needs other turns
        return tuple(dict.fromkeys(others))
    end = tokenizer(written["chosen"].removeprefix("a").lstrip(), add_special_tokens=False)["input_ids"][:1]
    found = [token for token in end if token in tokenizer.all_special_ids or token in tokenizer.added_tokens_decoder]
    return tuple(dict.fromkeys([*found, *others]))
