"""Axolotl's GRPO trainer with RTO's rewards, advantages and loss of tokens."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from axolotl.core.trainers.grpo.trainer import AxolotlGRPOTrainer

from sepo.errors import SepoError
from sepo.forward.sequences import OracleScorer
from sepo.hosts.axolotl.hub import BASE_MODEL
from sepo.hosts.axolotl.models import host_arguments
from sepo.hosts.axolotl.online.config import ResolvedRto
from sepo.online.grpo_step import RtoStep
from sepo.online.judged import JudgeReward
from sepo.recipe.reference import own_start
from sepo.recipe.rto import RtoSettings
from sepo.rewards import ConstantRewardCheck, ResponseRewards, SampledResponse, open_rewards
from sepo.runs.files import write_settings
from sepo.runs.first_screen import FirstScreen
from sepo.runs.log_writer import RunLog
from sepo.scoring.models import load_scoring_model, load_scoring_models
from sepo.training.loading import register_numbered_cpus
from sepo.training.starting_policy import StartingPolicy


class RtoTrainer(RtoStep, AxolotlGRPOTrainer):
    """Trainer of stage `rto`: generation, samplers, optimizers, engines, checkpoints and logging are the host's.

    Args:
        model: the policy, as Axolotl loads it, with its adapter.
        args: Axolotl's GRPO arguments, with the plugin's fields.
        processing_class: the tokenizer.
        **kwargs: further arguments of Axolotl's trainer.

    Attributes:
        rewards: the judge, which ``open_models`` loads.

    Raises:
        SepoError: If the arguments hold no stage, because the plugin was not loaded.
    """

    def __init__(self, model: Any, *, args: Any, processing_class: Any, **kwargs: Any) -> None:
        text = getattr(args, "sepo", None)
        if text is None:
            raise SepoError(
                "trainer_cls names sepo's trainer, but the training arguments hold no stage: add plugins: "
                "[sepo.hosts.axolotl.SePOPlugin], and check the log above for errors while loading it."
            )
        self.resolved = ResolvedRto.from_json(text)
        self.settings = self.resolved.settings
        self.rto, self.stop_ids = self.settings.rto, tuple(args.sepo_stop_ids)
        self.rewards: ResponseRewards | None = None
        self.reward_check = ConstantRewardCheck(self.settings.rewards)
        judge = JudgeReward(
            self._judge, decode=lambda ids: processing_class.decode(ids, skip_special_tokens=True),
            stop_ids=self.stop_ids,
        )  # fmt: skip
        args.generation_kwargs = {**(args.generation_kwargs or {}), **self._stops(args)}
        super().__init__(model, reward_funcs=[judge], args=args, processing_class=processing_class, **kwargs)
        if self.stop_ids[0] != processing_class.eos_token_id:  # TRL counts responses without this token as truncated
            self._tokenizer = copy.deepcopy(processing_class)
            self._tokenizer.eos_token = processing_class.convert_ids_to_tokens(self.stop_ids[0])
        register_numbered_cpus()

    def _stops(self, args: Any) -> dict[str, list[int]]:
        """Return the option of the generator that ends responses: that of vLLM, or that of transformers."""
        return {"stop_token_ids" if args.use_vllm else "eos_token_id": list(self.stop_ids)}

    def _judge(self, responses: Sequence[SampledResponse]) -> list[float]:
        assert self.rewards is not None
        return self.rewards(responses)

    def open_models(self, cfg: Any) -> None:
        """Load the judge, the oracle and the reference of the run.

        Args:
            cfg: the validated config.

        Raises:
            SepoError: If one cannot be used; most is checked before the policy is loaded.
        """
        host, settings = host_arguments(cfg), self.settings
        model_args, device = host.model_args, host.training_args.device
        self.rewards = open_rewards(settings.rewards, model_args=model_args, device=device)
        if settings.oracle is not None:
            oracle, base = load_scoring_models(settings.oracle, model_args=model_args, device=device)
            self.oracle = OracleScorer(
                oracle=oracle,
                base=base,
                batch_tokens=settings.score_batch_tokens,
                chunk_tokens=settings.rto.head_chunk_tokens,
            )
        if settings.rto.needs_reference:
            self._open_reference(model_args, device, continues=bool(cfg.lora_model_dir))

    def _open_reference(self, model_args: Any, device: torch.device, *, continues: bool) -> None:
        """Load the reference, or keep the policy's start; nothing for a new adapter, without which the policy is it."""
        key, spec = "ref_model", self.settings.ref_model
        if spec is None and continues:
            self.starting_policy = StartingPolicy(self.model)
        elif spec is None and not hasattr(self.model, "disable_adapter"):
            key, spec = BASE_MODEL, own_start(self.resolved.given)
        if spec is not None:
            self.ref_model = load_scoring_model(spec, model_args=model_args, device=device, key=key).model


def write_records(trainer: RtoTrainer, settings: RtoSettings, *, recipe: Mapping[str, Any]) -> None:
    """Write the settings of a run, and add the callbacks that write its log.

    Args:
        trainer: trainer of the run, before training.
        settings: settings of the run, with the keys of the config that set them.
        recipe: the config after Axolotl's validation.
    """
    trainer.add_callback(RunLog())
    trainer.add_callback(FirstScreen(settings))
    if trainer.is_world_process_zero():
        plain = json.loads(json.dumps(dict(recipe), default=str))
        write_settings(Path(trainer.args.output_dir), settings, {}, recipe=plain)
