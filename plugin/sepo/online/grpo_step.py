"""RTO in TRL's GRPO trainer: token rewards and advantages of sampled responses, and the loss over selected tokens.

Generation, vLLM, samplers, engines, checkpoints and logging are TRL's. A host mixes ``RtoStep`` into its subclass of
``trl.GRPOTrainer``, before it, with ``beta: 0`` in TRL's configuration: references are run here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sepo.forward.evaluation_mode import in_evaluation_mode
from sepo.forward.sampled import SampledTokens, sampled_tokens
from sepo.forward.sequences import OracleScorer, ScoredSequence
from sepo.online.advantages import token_advantages
from sepo.online.loss import clipped_loss, divergence, token_weights
from sepo.online.prompt_order import PromptOrder
from sepo.online.prompts import PromptsAsIds
from sepo.online.selection import select_sampled
from sepo.online.token_rewards import dense_rewards
from sepo.recipe.rto import ONLINE_SCORERS, RtoMethod
from sepo.rewards import ConstantRewardCheck
from sepo.training.saved_arguments import SavesNoSecrets
from sepo.training.starting_policy import StartingPolicy

if TYPE_CHECKING:
    from trl.trainer.grpo_trainer import GRPOTrainer as _Base
else:
    _Base = object

ADVANTAGES, SELECTION, REF_LOGPS = "advantages", "sepo_selection", "sepo_ref_logps"
"""Names in the batches of TRL's buffer: the first is TRL's, [B] there and [B, T] here."""


@dataclass(frozen=True)
class _Sampled:
    """The responses of a generation batch: a host's output with shorter names, and masks as bool."""

    prompt_ids: Tensor
    prompt_mask: Tensor
    response_ids: Tensor
    mask: Tensor

    @classmethod
    def of(cls, batch: Mapping[str, Any]) -> _Sampled:
        """Return the responses of a batch of TRL's: prompts padded on the left, responses on the right."""
        masks = (batch[name].bool() for name in ("prompt_mask", "completion_mask"))
        prompt_mask, mask = masks
        return cls(batch["prompt_ids"], prompt_mask, batch["completion_ids"], mask)

    def rows(self, start: int, stop: int) -> _Sampled:
        """Return some of the responses."""
        parts = (self.prompt_ids, self.prompt_mask, self.response_ids, self.mask)
        return _Sampled(*(part[start:stop] for part in parts))

    def sequences(self) -> list[ScoredSequence]:
        """Return the rows without padding."""
        found = []
        for prompt, is_prompt, response, is_response in zip(
            self.prompt_ids, self.prompt_mask, self.response_ids, self.mask, strict=True
        ):
            ids = prompt[is_prompt].tolist()
            found.append(ScoredSequence([*ids, *response[is_response].tolist()], len(ids)))
        return found

    def run(self, model: Any, wanted: Tensor, **options: Any) -> SampledTokens:
        """Run a model; ``wanted`` [B, T] and the results [B, T] are of the responses' positions."""
        width = self.prompt_ids.shape[1]
        ids = torch.cat([self.prompt_ids, self.response_ids], dim=1)
        attention = torch.cat([self.prompt_mask, self.mask], dim=1).long()
        at = torch.cat([wanted.new_zeros(len(wanted), width - 1), wanted], dim=1)
        found = sampled_tokens(model, {"input_ids": ids, "attention_mask": attention}, labels=ids, wanted=at, **options)
        entropies = None if found.entropies is None else found.entropies[:, width - 1 :]
        return SampledTokens(found.logps[:, width - 1 :], entropies)


class RtoStep(SavesNoSecrets, PromptsAsIds, _Base):
    """Mixin for TRL's GRPO trainer: rewards and advantages of tokens, and a loss over the selected ones.

    Attributes:
        rto: the method's settings.
        oracle: scorer of the oracle's log-ratios; needed if ``rto.needs_oracle``.
        ref_model: the reference as a separate model; None if it is the policy without its adapter or the starting
            policy.
        starting_policy: the reference of a LoRA run that continues from an adapter.
        reward_check: raises if the judge gives all responses the same reward.
    """

    rto: RtoMethod
    oracle: OracleScorer | None = None
    starting_policy: StartingPolicy | None = None
    reward_check: ConstantRewardCheck | None = None

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> PromptOrder:
        """Return TRL's sampler of prompts, in an order that a run that resumes has as well."""
        sampler = super()._get_train_sampler(*args, **kwargs)
        return PromptOrder(sampler, seed=self.args.seed, epoch=lambda: self.state.epoch)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Tensor:
        """Return the rewards of all processes, [N, 1], and keep them for the advantages."""
        rewards = super()._calculate_rewards(*args, **kwargs)
        self._judged = rewards[:, 0]
        if self.reward_check is not None and self.model.training:
            self.reward_check.add(self._judged.tolist())
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Sample and judge responses as TRL does, and add what the loss reads for each of their tokens."""
        batch = super()._generate_and_score_completions(inputs)
        sampled = _Sampled.of(batch)
        with torch.no_grad():
            batch |= self._token_values(sampled)
        return batch

    def _token_values(self, sampled: _Sampled) -> dict[str, Tensor]:
        rto, mask = self.rto, sampled.mask
        policy = self._policy_values(sampled) if rto.needs_policy_pass else None
        ref_logps = self._ref_logps(sampled) if rto.needs_reference else None
        log_ratios = self._log_ratios(sampled) if rto.needs_oracle else None
        options: dict[str, Any] = {"beta1": rto.beta1, "clip": rto.oracle_clip, "oracle_log_ratios": log_ratios}
        from_oracle = dense_rewards(mask, **options)
        dense = from_oracle
        if rto.beta2:
            assert policy is not None
            dense = dense_rewards(mask, **options, policy_logps=policy.logps, ref_logps=ref_logps, beta2=rto.beta2)
        advantages = self._advantages(dense, mask)
        values = {ADVANTAGES: advantages}
        selection = self._selected(mask, advantages, policy, log_ratios)
        if selection is not None:
            values[SELECTION] = selection
        if rto.kl_beta:
            assert ref_logps is not None
            values[REF_LOGPS] = ref_logps
        tokens = mask.sum()
        groups = self._judged.view(-1, self._group)
        equal = (groups == groups[:, :1]).all(1)  # of all processes, in each of them
        means: dict[str, tuple[Any, Any]] = {
            "rto/dense_return": (dense.sum(), len(mask)),
            "rto/equal_rewards": (equal.sum(), len(groups)),
        }
        if rto.beta1:
            means["rto/oracle_reward"] = (from_oracle.sum(), tokens)
        if policy is not None:
            if policy.entropies is not None:
                means["entropy"] = (policy.entropies.sum(), tokens)
            if ref_logps is not None:
                means["kl"] = ((policy.logps - ref_logps).sum(), tokens)
        if selection is not None:
            means["select/ratio"] = (selection.sum(), tokens)
            means["select/tokens"] = (selection.sum(), len(mask))
        self._note(means)
        return values

    def _policy_values(self, sampled: _Sampled) -> SampledTokens:
        """Run the sampling policy: log-probabilities and entropies, [B, T]."""
        return self._in_parts(sampled, self.model_wrapped, with_entropies=True)

    def _ref_logps(self, sampled: _Sampled) -> Tensor:
        """Run the reference: log-probabilities, [B, T]."""
        with self._reference() as model:
            return self._in_parts(sampled, model).logps

    def _in_parts(self, sampled: _Sampled, model: Any, **options: Any) -> SampledTokens:
        """Run a model without dropout over device batches."""
        training = self.model.training
        size = self.args.per_device_train_batch_size if training else self.args.per_device_eval_batch_size
        found = []
        with in_evaluation_mode(model):
            for start in range(0, len(sampled.mask), size):
                part = sampled.rows(start, start + size)
                found.append(part.run(model, part.mask, **self._run_options, **options))
        entropies = [each.entropies for each in found if each.entropies is not None]
        return SampledTokens(torch.cat([each.logps for each in found]), torch.cat(entropies) if entropies else None)

    @property
    def _run_options(self) -> dict[str, Any]:
        return {"temperature": self.rto.temperature, "chunk_tokens": self.rto.head_chunk_tokens}

    @contextlib.contextmanager
    def _reference(self) -> Iterator[Any]:
        """Yield the reference, as a model to run through the engine's wrapper."""
        if self.ref_model is not None:
            yield self.ref_model
        elif self.starting_policy is not None:
            with self.starting_policy.active():
                yield self.model_wrapped
        else:
            with self.accelerator.unwrap_model(self.model).disable_adapter():
                yield self.model_wrapped

    def _log_ratios(self, sampled: _Sampled) -> Tensor:
        """Score the responses with the oracle and its base, [B, T], 0 outside the mask."""
        assert self.oracle is not None
        scores = self.oracle.score(sampled.sequences())
        found = torch.zeros(sampled.mask.shape, device=sampled.mask.device)
        return found.masked_scatter(sampled.mask, torch.cat(scores).to(found))

    def _advantages(self, dense: Tensor, mask: Tensor) -> Tensor:
        """Return the advantages of this process's responses, [B, T]; a group can be spread over processes."""
        gathered = self.accelerator.gather(
            self.accelerator.pad_across_processes(torch.stack([dense, mask.to(dense)], dim=1), dim=2)
        )
        advantages = token_advantages(
            self._judged, gathered[:, 0], gathered[:, 1].bool(), group=self._group, scale=self.rto.scale
        )
        start = self.accelerator.process_index * len(mask)
        return advantages[start : start + len(mask), : mask.shape[1]]

    @property
    def _group(self) -> int:
        """Number of responses to a prompt; newer versions of TRL have another one for evaluations."""
        group: int = self.num_generations
        return group if self.model.training else getattr(self, "num_generations_eval", group)

    def _selected(
        self, mask: Tensor, advantages: Tensor, policy: SampledTokens | None, log_ratios: Tensor | None
    ) -> Tensor | None:
        """Return the selected tokens, [B, T], or None if all are."""
        select = self.rto.select
        if select is None:
            return None
        scorer = ONLINE_SCORERS[select.scorer]
        if scorer.reads == "oracle":
            assert log_ratios is not None
            scores = log_ratios
        else:
            assert policy is not None
            assert policy.entropies is not None
            scores = policy.entropies if scorer.reads == "entropies" else -policy.logps
        better = advantages[:, 0] >= 0 if scorer.rewards else None
        return select_sampled(scores, mask, ratio=select.ratio, rule=select.rule, better=better)

    def _compute_loss(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        """Compute the loss of a device batch; the head runs at selected tokens only."""
        sampled, rto = _Sampled.of(inputs), self.rto
        mask = sampled.mask
        selection = inputs.get(SELECTION, mask)
        logps = sampled.run(model, selection, **self._run_options).logps
        before = inputs.get("old_per_token_logps")
        before = logps.detach() if before is None else before.masked_fill(~selection, 0.0)
        advantages = inputs[ADVANTAGES].masked_fill(~selection, 0.0)
        clipped = clipped_loss(logps, before, advantages, epsilon=rto.clip)
        values = clipped.values
        if "importance_sampling_ratio" in inputs:  # of vLLM's samples
            values = values * inputs["importance_sampling_ratio"]
        if rto.kl_beta:
            values = values + rto.kl_beta * divergence(logps, inputs[REF_LOGPS].masked_fill(~selection, 0.0))
        training = self.model.training
        weights = token_weights(
            mask,
            rto.loss_type,
            accumulation=self.current_gradient_accumulation_steps if training else 1,
            max_tokens=rto.max_new_tokens,
            batch_tokens=inputs["num_items_in_batch"] / self.accelerator.num_processes,
        )
        tokens = mask.sum()
        self._note(
            {
                "clip_ratio/low_mean": (clipped.low.sum(), tokens),
                "clip_ratio/high_mean": (clipped.high.sum(), tokens),
                "clip_ratio/region_mean": ((clipped.low | clipped.high).sum(), tokens),
            }
        )
        return (values * weights * selection).sum()

    def _note(self, means: Mapping[str, tuple[Any, Any]]) -> None:
        """Add means over all processes, from totals and counts, to those that TRL logs next."""
        device = self.accelerator.device
        sums = torch.tensor([[float(total), float(count)] for total, count in means.values()], device=device)
        reduced = self.accelerator.reduce(sums, "sum").tolist()
        metrics: Mapping[str, list[float]] = self._metrics["train" if self.model.training else "eval"]
        for name, (total, count) in zip(means, reduced, strict=True):
            metrics[name].append(total / max(count, 1.0))
