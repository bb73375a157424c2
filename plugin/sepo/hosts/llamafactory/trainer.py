"""The host's DPO trainer with sepo's training step in place of its forward pass and loss."""

from __future__ import annotations

from typing import Any

from llamafactory.train.dpo.trainer import CustomDPOTrainer
from torch import Tensor

from sepo.forward.lora import fuse_lora
from sepo.forward.recompute import recompute_less
from sepo.hosts.stage_step import StageStep
from sepo.recipe.settings import RunSettings
from sepo.training.loading import register_numbered_cpus
from sepo.training.router import prepare_router_loss
from sepo.training.starting_policy import StartingPolicy


class LlamaFactoryTrainer(StageStep, CustomDPOTrainer):
    """Trainer with the host's optimizers, schedulers, samplers, engines, checkpoints and logging, and sepo's step.

    Args:
        settings: the run's settings.
        starting_policy: the reference of a LoRA run that continues from an adapter; None if another model or the
            policy without its adapter is the reference, or if none is needed.
        **kwargs: arguments of the host's DPO trainer.
    """

    def __init__(self, *, settings: RunSettings, starting_policy: StartingPolicy | None = None, **kwargs: Any) -> None:
        self.settings = settings
        self.starting_policy = starting_policy
        self.batch_tokens = settings.batch_tokens
        super().__init__(**kwargs)
        self.check_batch_tokens()
        prepare_router_loss(self, self.settings.router_loss_weight)
        fuse_lora(self.model)
        recompute_less(self.model, kept_bytes=self.settings.kept_bytes)
        register_numbered_cpus()

    @property
    def chosen_nll_weight(self) -> float:  # type: ignore[override]
        """Weight of the negative log-likelihood of the chosen responses, the host's ``pref_ftx``."""
        return float(self.ftx_gamma)

    def get_batch_loss_metrics(
        self, model: Any, batch: Any, train_eval: str = "train"
    ) -> tuple[Tensor, dict[str, float]]:
        """Compute the loss of one device batch in training; its metrics are logged by ``PairMeans``."""
        return self.train_on(model, batch).loss, {}
