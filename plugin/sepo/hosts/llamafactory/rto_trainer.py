"""TRL's GRPO trainer with the host's optimizers and schedulers, and RTO's step. See ../PATCHES.md."""

from __future__ import annotations

from typing import Any

from llamafactory.train.trainer_utils import create_custom_optimizer, create_custom_scheduler
from trl.models.utils import prepare_deepspeed, prepare_fsdp
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.utils import disable_dropout_in_model

from sepo.forward.sequences import OracleScorer
from sepo.online.grpo_step import RtoStep
from sepo.recipe.rto import RtoMethod
from sepo.rewards import ConstantRewardCheck
from sepo.training.loading import register_numbered_cpus
from sepo.training.starting_policy import StartingPolicy


class LlamaFactoryRtoTrainer(RtoStep, GRPOTrainer):
    """Trainer of stage `rto`.

    Args:
        model: the policy, loaded by the host.
        rto: the method.
        stop_ids: tokens that end a response.
        oracle: scorer of the oracle's log-ratios, or None.
        ref_model: the reference as a separate model, or None.
        starting_policy: the reference as the starting weights of the policy, or None.
        reward_check: see ``RtoStep``.
        finetuning_args: the host's finetuning arguments.
        **kwargs: arguments of TRL's trainer.
    """

    optimizer: Any

    def __init__(
        self,
        model: Any,
        *,
        rto: RtoMethod,
        stop_ids: list[int],
        oracle: OracleScorer | None,
        ref_model: Any,
        starting_policy: StartingPolicy | None,
        reward_check: ConstantRewardCheck | None,
        finetuning_args: Any,
        **kwargs: Any,
    ) -> None:
        self.rto, self.stop_ids, self.oracle = rto, stop_ids, oracle
        self.starting_policy, self.reward_check = starting_policy, reward_check
        self.finetuning_args = finetuning_args
        if not hasattr(model, "warnings_issued"):
            model.warnings_issued = {}  # which TRL 0.24 writes to, and models of transformers 5 lack
        super().__init__(model=model, **kwargs)
        self.ref_model = None if ref_model is None else self._prepared_reference(ref_model)
        register_numbered_cpus()

    def _prepared_reference(self, ref_model: Any) -> Any:
        """Prepare a frozen model for the engine, as TRL prepares the reference that it loads itself."""
        disable_dropout_in_model(ref_model)
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(ref_model, self.accelerator)
        if self.is_fsdp_enabled:
            return prepare_fsdp(ref_model, self.accelerator)
        return self.accelerator.prepare_model(ref_model, evaluation_mode=True)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """Create the host's optimizer if the recipe names one of its own, else that of transformers."""
        if self.optimizer is None:
            self.optimizer = create_custom_optimizer(self.model, self.args, self.finetuning_args)
        return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Create the host's scheduler if the recipe needs it, and that of transformers."""
        create_custom_scheduler(self.args, num_training_steps, optimizer)
        return super().create_scheduler(num_training_steps, optimizer)
