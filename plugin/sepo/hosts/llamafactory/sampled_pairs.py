"""`sepo pairs`: pairs of a recipe's policy, sampled to its prompts and judged, with the host's models and data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import sepo.hosts.llamafactory.scoring_models  # noqa: F401
from sepo.console import print_lines
from sepo.errors import SepoError, first_line
from sepo.evaluation.generation import Generated
from sepo.evaluation.sampling import sample_batch
from sepo.evaluation.vllm_sampling import VllmSampler, VllmSettings
from sepo.hosts.llamafactory.pairs_plan import VLLM, PairsPlan, identity, notes, plan_pairs
from sepo.pairs.directory import DATASET, PairsDirectory
from sepo.pairs.pairing import JudgedResponse, best_and_worst
from sepo.pairs.parts import STEPS, Parts, Values
from sepo.pairs.records import JudgedPrompt
from sepo.pairs.summary import PairsSummary, print_pairs
from sepo.pairs.units import WorkUnit
from sepo.rewards import ConstantRewardCheck, ResponseRewards, SampledResponse, open_rewards
from sepo.scoring.hub import hub_access
from sepo.scoring.model_files import local_spec
from sepo.scoring.models import give_memory_back, load_scoring_model

Sampler = Callable[[Sequence[tuple[Sequence[int], int]]], list[Generated]]
"""Samples a batch, from token ids of a prompt and number of the sample for each row."""


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
    directory = PairsDirectory(plan.settings.folder, settings=identity(plan), notes=notes(plan))
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
        print_lines([f"data set: dataset_dir: {directory.folder}, dataset: {DATASET}"])
    return summary


def _sampler(plan: PairsPlan) -> Sampler:
    """Load the policy with the host, for transformers."""
    where: dict[str, Any] = {"model_args": plan.model_args, "device": plan.training_args.device}
    model = load_scoring_model(plan.recipe.policy, **where)
    return lambda samples: sample_batch(model, samples, plan.chat_format, decoding=plan.settings.decoding)


def _vllm_sampler(plan: PairsPlan) -> Sampler:
    """Load the policy with vLLM, with the host's settings of it."""
    args = plan.model_args
    longest = max(map(len, plan.ids)) + plan.settings.decoding.max_new_tokens
    settings = VllmSettings(
        dtype=plan.dtype,
        max_model_len=longest,
        gpu_memory_utilization=args.vllm_gpu_util,
        enforce_eager=args.vllm_enforce_eager,
        max_lora_rank=args.vllm_max_lora_rank,
        trust_remote_code=args.trust_remote_code,
        more=args.vllm_config if isinstance(args.vllm_config, dict) else {},
    )
    spec = local_spec(plan.recipe.policy, key="model_name_or_path", access=hub_access(args))
    return VllmSampler(spec, settings, plan.chat_format, plan.settings.decoding)


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
            for step in STEPS
        )  # fmt: skip
        self._policy: Sampler | None = None
        self._judge: ResponseRewards | None = None
        self._check = ConstantRewardCheck(plan.rewards)

    def sample(self, unit: WorkUnit) -> Values:
        """Sample the responses of a unit; the first call loads the policy."""
        plan = self.plan
        if self._policy is None:
            self._policy = _vllm_sampler(plan) if plan.engine == VLLM else _sampler(plan)
        found = self._policy([(plan.ids[prompt], number) for prompt, number in unit.samples])
        return [
            {"text": plan.chat_format.decode(each.answer), "ids": list(each.ids), "finished": each.finished}
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
        """Release the memory of the policy, if it was loaded, before a judge is."""
        if self._policy is not None:
            self._policy = None
            give_memory_back()

    def free_judge(self) -> None:
        """Release the memory of a judge that is a model."""
        if self._judge is not None and not self.plan.rewards.is_verifier:
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
    for index, responses in enumerate(found):
        result = best_and_worst(responses, min_margin=plan.settings.min_margin)
        yield JudgedPrompt(plan.prompts[index], responses, result)
