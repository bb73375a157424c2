"""The plan of `sepo pairs`: a recipe's policy, prompts, judge and batches, checked before a model is loaded."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.model import load_tokenizer

from sepo import __version__
from sepo.console import print_lines
from sepo.errors import SepoError
from sepo.evaluation.prompts import ChatFormat, Prompt
from sepo.evaluation.sampling import prompt_ids
from sepo.evaluation.vllm_sampling import UNITS_AT_ONCE, why_not_vllm
from sepo.hosts.llamafactory.bench.machine import versions
from sepo.hosts.llamafactory.evaluate_recipe import PAIRS, EvaluationRecipe, resolved_evaluation
from sepo.hosts.llamafactory.evaluated_rows import chat_format_of
from sepo.hosts.llamafactory.prompt_rows import ReadPrompts, dataset_prompts, file_prompts
from sepo.hosts.llamafactory.recipe import get_train_args
from sepo.judges import find_judge
from sepo.pairs.settings import PairsSettings, pairs_settings
from sepo.pairs.summary import PromptCounts
from sepo.pairs.units import WorkUnit, work_units
from sepo.recipe.keys import SAMPLING_KEYS
from sepo.rewards import RewardSettings, check_rewards, resolve_rewards, rewards_identity
from sepo.scoring.hub import cached_if_unreachable, hub_access
from sepo.scoring.stored_columns import spec_identity
from sepo.training.row_losses import RowLosses

VLLM = "vllm"
"""Value of ``pairs_engine``."""


@dataclass(frozen=True)
class PairsPlan:
    """Everything that pairs are made of, before a model is loaded.

    Args:
        settings: the keys of `sepo pairs`.
        rewards: how responses are judged.
        recipe: the policy and the host's keys.
        arguments: the host's five argument objects.
        source: data set or files of the prompts.
        prompts: the distinct prompts that are sampled.
        ids: the token ids of each.
        counts: the rows that they were read from.
        chat_format: template and tokenizer of the policy.
        engine: ``transformers`` or ``vllm``.
        units: the batches.
    """

    settings: PairsSettings
    rewards: RewardSettings
    recipe: EvaluationRecipe
    arguments: Any
    source: str
    prompts: tuple[Prompt, ...]
    ids: tuple[tuple[int, ...], ...]
    counts: PromptCounts
    chat_format: ChatFormat
    engine: str
    units: tuple[WorkUnit, ...]

    @property
    def model_args(self) -> Any:
        """The host's model arguments."""
        return self.arguments[0]

    @property
    def dtype(self) -> str:
        """The dtype in which the host loads the policy; ``auto`` for that of its weights."""
        if self.model_args.infer_dtype != "auto":
            return str(self.model_args.infer_dtype)
        computed = self.model_args.compute_dtype
        return "auto" if computed is None else str(computed).removeprefix("torch.")

    @property
    def training_args(self) -> Any:
        """The host's training arguments, which have device and rank."""
        return self.arguments[2]


def plan_pairs(recipe: Mapping[str, Any], *, file: Path = Path("recipe")) -> PairsPlan:
    """Check a recipe and read its prompts, without loading a model or writing a file.

    Args:
        recipe: see ``make_pairs``.
        file: where it was read, for messages.

    Raises:
        SepoError: the recipe, the data or the judge is invalid.
    """
    settings, rewards = pairs_settings(recipe), resolve_rewards(recipe)
    given = {name: value for name, value in recipe.items() if name not in SAMPLING_KEYS}
    if not settings.prompts and not given.get("dataset"):
        raise SepoError(f"{file}: dataset is missing; name the data set with the prompts, or files in pairs_prompts.")
    evaluation = resolved_evaluation(given, given, file=file, use=PAIRS)
    losses = RowLosses()
    with tempfile.TemporaryDirectory(prefix="sepo-pairs-") as folder:
        arguments = get_train_args({**evaluation.host, "output_dir": folder})
    model_args, data_args, training_args = arguments[:3]
    check_rewards(rewards, access=hub_access(model_args))
    read = _read(given, settings, rewards, losses)
    if training_args.process_index == 0:
        print_lines(evaluation.notes)
        losses.log()
    with cached_if_unreachable():
        tokenizer = load_tokenizer(model_args)["tokenizer"]
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    chat_format = chat_format_of(tokenizer, template, evaluation.policy, model_args)
    prompts, ids, counts = _usable(read, settings, rewards, chat_format)
    engine = _engine(settings, evaluation, processes=training_args.world_size)
    units = work_units(
        [len(each) for each in ids],
        samples=settings.samples,
        max_new_tokens=settings.decoding.max_new_tokens,
        batch_tokens=settings.batch_tokens * (UNITS_AT_ONCE if engine == VLLM else 1),
    )
    return PairsPlan(
        settings, rewards, evaluation, arguments, read.source, prompts, ids, counts, chat_format, engine, units
    )  # fmt: skip


def _engine(settings: PairsSettings, recipe: EvaluationRecipe, *, processes: int) -> str:
    reason = why_not_vllm(recipe.policy, processes=processes)
    if settings.engine == VLLM and reason is not None:
        raise SepoError(f"pairs_engine is {VLLM}, but {reason}. Set pairs_engine: transformers, or remove it.")
    return settings.engine or ("transformers" if reason else VLLM)


def _read(
    recipe: Mapping[str, Any], settings: PairsSettings, rewards: RewardSettings, losses: RowLosses
) -> ReadPrompts:
    judge = find_judge(rewards.judge, **rewards.options) if rewards.is_verifier else None
    if settings.prompts:
        return file_prompts(settings.prompts, option="pairs_prompts", judge=judge, column=rewards.expected_column)
    return dataset_prompts(recipe, judge=judge, column=rewards.expected_column, losses=losses)


def _usable(
    read: ReadPrompts, settings: PairsSettings, rewards: RewardSettings, chat_format: ChatFormat
) -> tuple[tuple[Prompt, ...], tuple[tuple[int, ...], ...], PromptCounts]:
    """Return the prompts that can be judged and leave room for a response, and their token ids."""
    judged = [prompt for prompt in read.prompts if not rewards.is_verifier or prompt.expected is not None]
    if not judged:
        raise SepoError(
            f"none of the {len(read.prompts):,} prompts of {read.source} has an expected answer in the column "
            f"{rewards.expected_column}, expected at least one; fill the column, or set another expected_column."
        )
    ids = [tuple(prompt_ids(prompt, chat_format)) for prompt in judged]
    new = settings.decoding.max_new_tokens
    kept = [
        index
        for index, each in enumerate(ids)
        if chat_format.positions is None or len(each) + new <= chat_format.positions
    ]
    if not kept:
        raise SepoError(
            f"the shortest prompt of {read.source} has {min(map(len, ids)):,} tokens and its responses may have "
            f"{new:,} more, but the model has {chat_format.positions:,} positions; lower pairs_max_new_tokens."
        )
    counts = PromptCounts(
        rows=read.rows,
        duplicates=read.rows - len(read.prompts),
        without_expected=len(read.prompts) - len(judged),
        too_long=len(judged) - len(kept),
    )
    return tuple(judged[index] for index in kept), tuple(ids[index] for index in kept), counts


def identity(plan: PairsPlan) -> dict[str, Any]:
    """Return everything that samples, rewards and pairs depend on, by content, as JSON."""
    access = hub_access(plan.model_args)
    digest = hashlib.sha256(repr(sorted(plan.chat_format.stop_ids)).encode())
    for prompt, ids in zip(plan.prompts, plan.ids, strict=True):
        turns = (prompt.messages, prompt.system, prompt.tools)
        digest.update(repr((prompt.question.id, turns, ids, prompt.expected)).encode())
    return {
        "model": spec_identity(plan.recipe.policy, key="model_name_or_path", access=access),
        "dtype": plan.dtype,
        "prompts": {"number": len(plan.prompts), "digest": digest.hexdigest()},
        "pairs_engine": plan.engine,
        "pairs_samples": plan.settings.samples,
        **{f"pairs_{name}": value for name, value in asdict(plan.settings.decoding).items()},
        "pairs_batch_tokens": plan.settings.batch_tokens,
        "pairs_min_margin": plan.settings.min_margin,
        "judge": rewards_identity(plan.rewards, access=access),
    }


def notes(plan: PairsPlan) -> dict[str, Any]:
    """Return what is stored beside the identity: names and versions."""
    return {
        "policy": plan.recipe.policy.as_dict(),
        "judge": plan.rewards.as_dict(),
        "prompts": plan.source,
        "template": plan.arguments[1].template,
        "sepo": __version__,
        "versions": versions(),
    }
