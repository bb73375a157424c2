"""`sepo pairs`: pairs of a recipe's policy, sampled to its prompts and judged, with the host's models and data."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.model import load_tokenizer
from tqdm import tqdm

import sepo.hosts.llamafactory.scoring_models  # noqa: F401
from sepo import __version__
from sepo.console import print_lines
from sepo.errors import SepoError, first_line
from sepo.evaluation.prompts import Prompt, Voice
from sepo.evaluation.sampling import prompt_ids, sample_batch
from sepo.forward.sequences import ScoringModel
from sepo.hosts.llamafactory.bench.machine import versions
from sepo.hosts.llamafactory.evaluate_recipe import PAIRS, EvaluationRecipe, resolved_evaluation
from sepo.hosts.llamafactory.evaluated_rows import voice_of
from sepo.hosts.llamafactory.prompt_rows import ReadPrompts, dataset_prompts, file_prompts
from sepo.hosts.llamafactory.recipe import get_train_args
from sepo.judges import find_judge
from sepo.pairs.directory import PairsDirectory
from sepo.pairs.pairing import JudgedResponse, best_and_worst
from sepo.pairs.parts import Parts, Values
from sepo.pairs.records import JudgedPrompt
from sepo.pairs.settings import PairsSettings, pairs_settings
from sepo.pairs.summary import PairsSummary, PromptCounts, print_pairs
from sepo.pairs.units import WorkUnit, work_units
from sepo.recipe.keys import PAIRS_KEYS, REWARD_KEYS
from sepo.rewards import (
    ConstantRewardCheck,
    ResponseRewards,
    RewardSettings,
    SampledResponse,
    check_rewards,
    open_rewards,
    resolve_rewards,
)
from sepo.scoring.hub import cached_if_unreachable, hub_access
from sepo.scoring.models import give_memory_back, load_scoring_model
from sepo.scoring.stored_columns import spec_identity
from sepo.training.row_losses import RowLosses


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
        voice: template and tokenizer of the policy.
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
    voice: Voice
    units: tuple[WorkUnit, ...]

    @property
    def model_args(self) -> Any:
        """The host's model arguments."""
        return self.arguments[0]

    @property
    def training_args(self) -> Any:
        """The host's training arguments, which have device and rank."""
        return self.arguments[2]


def make_pairs(recipe: Mapping[str, Any], *, file: Path = Path("recipe")) -> PairsSummary:
    """Make pairs, print their summary and return it; an interrupted run is continued, a finished one only read.

    In several processes (torchrun), each takes the next batch that no other one has; all return the same summary.

    Args:
        recipe: keys and values of a recipe, with those of ``PAIRS_KEYS`` and ``REWARD_KEYS``.
        file: where it was read, for messages.

    Raises:
        SepoError: the recipe, the data, a model or the judge is invalid, the directory has other samples, or no prompt
            has a pair.
    """
    plan = plan_pairs(recipe, file=file)
    directory = PairsDirectory(plan.settings.folder, settings=_identity(plan), notes=_notes(plan))
    first = plan.training_args.process_index == 0
    if directory.finished:
        summary = directory.summary()
        if first:
            print_lines([f"finished before: {directory.folder}"])
    else:
        _sample_and_judge(plan, directory)
        summary = directory.finish(_judged(plan, directory), counts=plan.counts, seed=plan.settings.decoding.seed)
    if first:
        print_pairs(summary, source=plan.source, judge=plan.rewards.text)
        print_lines([f"data set: dataset_dir: {directory.folder}, dataset: pairs"])
    return summary


def plan_pairs(recipe: Mapping[str, Any], *, file: Path = Path("recipe")) -> PairsPlan:
    """Check a recipe and read its prompts, without loading a model or writing a file.

    Args:
        recipe: see ``make_pairs``.
        file: where it was read, for messages.

    Raises:
        SepoError: the recipe, the data or the judge is invalid.
    """
    own = {**PAIRS_KEYS, **REWARD_KEYS}
    settings, rewards = pairs_settings(recipe), resolve_rewards(recipe)
    given = {name: value for name, value in recipe.items() if name not in own}
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
    voice = voice_of(tokenizer, template, evaluation.policy, model_args)
    prompts, ids, counts = _usable(read, settings, rewards, voice)
    units = work_units(
        [len(each) for each in ids],
        samples=settings.samples,
        max_new_tokens=settings.decoding.max_new_tokens,
        batch_tokens=settings.batch_tokens,
    )
    return PairsPlan(
        settings, rewards, evaluation, arguments, read.source, prompts, ids, counts, voice, units
    )  # fmt: skip


def _read(
    recipe: Mapping[str, Any], settings: PairsSettings, rewards: RewardSettings, losses: RowLosses
) -> ReadPrompts:
    judge = find_judge(rewards.judge, **rewards.options) if rewards.is_verifier else None
    if settings.prompts:
        return file_prompts(settings.prompts, option="pairs_prompts", judge=judge, column=rewards.expected_column)
    return dataset_prompts(recipe, judge=judge, column=rewards.expected_column, losses=losses)


def _usable(
    read: ReadPrompts, settings: PairsSettings, rewards: RewardSettings, voice: Voice
) -> tuple[tuple[Prompt, ...], tuple[tuple[int, ...], ...], PromptCounts]:
    """Return the prompts that can be judged and leave room for a response, and their token ids."""
    judged = [prompt for prompt in read.prompts if not rewards.is_verifier or prompt.expected is not None]
    if not judged:
        raise SepoError(
            f"none of the {len(read.prompts):,} prompts of {read.source} has an expected answer in the column "
            f"{rewards.expected_column}, expected at least one; fill the column, or set another expected_column."
        )
    ids = [tuple(prompt_ids(prompt, voice)) for prompt in judged]
    new = settings.decoding.max_new_tokens
    kept = [index for index, each in enumerate(ids) if voice.positions is None or len(each) + new <= voice.positions]
    if not kept:
        raise SepoError(
            f"the shortest prompt of {read.source} has {min(map(len, ids)):,} tokens and its responses may have "
            f"{new:,} more, but the model has {voice.positions:,} positions; lower pairs_max_new_tokens."
        )
    counts = PromptCounts(
        rows=read.rows,
        duplicates=read.rows - len(read.prompts),
        without_expected=len(read.prompts) - len(judged),
        too_long=len(judged) - len(kept),
    )
    return tuple(judged[index] for index in kept), tuple(ids[index] for index in kept), counts


def _identity(plan: PairsPlan) -> dict[str, Any]:
    """Return everything that samples, rewards and pairs depend on, by content."""
    access, rewards = hub_access(plan.model_args), plan.rewards
    judge = rewards.as_dict()
    if rewards.model is not None:
        judge["model"] = spec_identity(rewards.model, key="judge_model", access=access)
    if rewards.policy is not None:
        policy, reference = rewards.policy.oracle, rewards.policy.base
        judge["policy"] = spec_identity(policy, key="model_name_or_path", access=access)
        judge["reference"] = spec_identity(reference, key=rewards.reference_key, access=access)
    digest = hashlib.sha256(repr(sorted(plan.voice.stop_ids)).encode())
    for prompt, ids in zip(plan.prompts, plan.ids, strict=True):
        digest.update(repr((prompt.question.id, ids, prompt.expected)).encode())
    return {
        "model": spec_identity(plan.recipe.policy, key="model_name_or_path", access=access),
        "dtype": str(plan.model_args.compute_dtype).removeprefix("torch."),
        "prompts": {"number": len(plan.prompts), "digest": digest.hexdigest()},
        "pairs_samples": plan.settings.samples,
        **{f"pairs_{name}": value for name, value in asdict(plan.settings.decoding).items()},
        "pairs_batch_tokens": plan.settings.batch_tokens,
        "pairs_min_margin": plan.settings.min_margin,
        "judge": judge,
    }


def _notes(plan: PairsPlan) -> dict[str, Any]:
    return {
        "policy": plan.recipe.policy.as_dict(),
        "judge": plan.rewards.as_dict(),
        "prompts": plan.source,
        "template": plan.arguments[1].template,
        "sepo": __version__,
        "versions": versions(),
    }


class _Steps:
    """The two steps of making pairs, with their results: samples, and their rewards.

    Args:
        plan: the plan.
        directory: the directory.
    """

    def __init__(self, plan: PairsPlan, directory: PairsDirectory) -> None:
        self.plan = plan
        self.samples, self.rewards = (
            Parts(
                directory.parts, step, plan.units, settings=directory.digest, obsolete=lambda: directory.finished
            )
            for step in ("samples", "rewards")
        )  # fmt: skip
        self._policy: ScoringModel | None = None
        self._judge: ResponseRewards | None = None
        self._check = ConstantRewardCheck(plan.rewards)

    def sample(self, unit: WorkUnit) -> Values:
        """Sample the responses of a unit; the first call loads the policy."""
        plan = self.plan
        if self._policy is None:
            device = plan.training_args.device
            self._policy = load_scoring_model(plan.recipe.policy, model_args=plan.model_args, device=device)
        found = sample_batch(
            self._policy,
            [(plan.ids[prompt], number) for prompt, number in unit.samples],
            plan.voice,
            decoding=plan.settings.decoding,
        )
        return [
            {"text": plan.voice.decode(each.answer), "ids": list(each.ids), "finished": each.finished}
            for each in found
        ]  # fmt: skip

    def judge(self, unit: WorkUnit) -> Values:
        """Judge the responses of a unit; the first call loads the judge."""
        plan = self.plan
        if self._judge is None:
            device = plan.training_args.device
            self._judge = open_rewards(plan.rewards, model_args=plan.model_args, device=device)
        responses = [
            SampledResponse(
                messages=plan.prompts[prompt].messages,
                prompt_ids=plan.ids[prompt],
                response=value["text"],
                response_ids=tuple(value["ids"]),
                finished=value["finished"],
                expected=plan.prompts[prompt].expected,
                system=plan.prompts[prompt].system,
                tools=plan.prompts[prompt].tools,
            )
            for (prompt, _), value in zip(unit.samples, self.samples.values(unit), strict=True)
        ]
        rewards = self._judge(responses)
        self._check.add(rewards)
        return list(rewards)

    def free_policy(self) -> None:
        """Release the memory of the policy, before a judge is loaded."""
        self._policy = None
        give_memory_back()

    def free_judge(self) -> None:
        """Release the memory of the judge."""
        self._judge = None
        give_memory_back()


def _sample_and_judge(plan: PairsPlan, directory: PairsDirectory) -> None:
    """Sample and judge all units that are not there; a verifier, which loads no model, judges each unit at once."""
    steps = _Steps(plan, directory)
    judges_at_once = plan.rewards.is_verifier

    def sampled(unit: WorkUnit) -> None:
        if judges_at_once:
            steps.rewards.settled(unit, steps.judge)

    try:
        _fill(plan, steps.samples, steps.sample, title="responses", on_unit=sampled)
        steps.free_policy()
        _fill(plan, steps.rewards, steps.judge, title="rewards")
        steps.free_judge()
    except torch.OutOfMemoryError as error:
        raise SepoError(
            f"out of memory: {first_line(error)} Lower pairs_batch_tokens (other batches are other samples, so in "
            "another pairs_dir once samples are stored), or score_batch_tokens if the judge ran out of memory."
        ) from error


def _fill(
    plan: PairsPlan,
    parts: Parts,
    compute: Callable[[WorkUnit], Values],
    *,
    title: str,
    on_unit: Callable[[WorkUnit], None] = lambda unit: None,
) -> None:
    """Fill a step with a progress bar of responses, in the first process."""
    missing = parts.missing()
    total = sum(len(unit.samples) for unit in plan.units)
    done = total - sum(len(unit.samples) for unit in missing)
    first = plan.training_args.process_index == 0
    with _bar(title, total, done, shown=first and bool(missing)) as advance:

        def settled(unit: WorkUnit) -> None:
            advance(len(unit.samples))
            on_unit(unit)

        parts.fill(compute, on_unit=settled)


@contextmanager
def _bar(title: str, total: int, done: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    with tqdm(total=total, initial=done, desc=title, unit="response", disable=not shown) as bar:
        yield lambda count: bar.update(count) and None


def _judged(plan: PairsPlan, directory: PairsDirectory) -> Iterator[JudgedPrompt]:
    """Yield the prompts with their responses, in their order."""
    steps = _Steps(plan, directory)
    found: list[list[JudgedResponse]] = [[] for _ in plan.prompts]
    for unit in plan.units:
        values = zip(unit.samples, steps.samples.values(unit), steps.rewards.values(unit), strict=True)
        for (prompt, number), value, reward in values:
            tokens = len(value["ids"]) - value["finished"]
            assert number == len(found[prompt])  # samples of one prompt are in ascending order in the units
            found[prompt].append(JudgedResponse(value["text"], value["finished"], reward, tokens))
    for prompt, responses in zip(plan.prompts, found, strict=True):
        yield JudgedPrompt(prompt, responses, best_and_worst(responses, min_margin=plan.settings.min_margin))
