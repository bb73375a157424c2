"""The reference of a run: none if the method needs none, the model that the block names, or the host's default.

Axolotl loads a second model for every full-parameter DPO run, even if the method has no reference.
"""

from __future__ import annotations

import logging
from typing import Any

from sepo.hosts.axolotl.models import host_arguments
from sepo.recipe.reference import OWN_START
from sepo.recipe.settings import RunSettings
from sepo.scoring.models import load_scoring_model

logger = logging.getLogger(__name__)

_HOSTS = "_sepo_host_function"


def install_no_reference() -> None:
    """Patch Axolotl's ``train`` to load no reference for a run whose trainer loads it, or needs none.

    For full-parameter GRPO Axolotl loads a second model and does not use it.
    """
    from axolotl import train

    host = getattr(train.setup_reference_model, _HOSTS, train.setup_reference_model)

    def setup_reference_model(cfg: Any, tokenizer: Any, processor: Any = None) -> Any:
        return None if cfg.sepo else host(cfg, tokenizer, processor)  # a later config of this process has no block

    setattr(setup_reference_model, _HOSTS, host)
    train.setup_reference_model = setup_reference_model


def install_reference(settings: RunSettings) -> None:
    """Patch Axolotl's ``train`` to set up the reference of this run.

    Args:
        settings: the run's settings.
    """
    from axolotl import train

    host = getattr(train.setup_reference_model, _HOSTS, train.setup_reference_model)

    def setup_reference_model(cfg: Any, tokenizer: Any, processor: Any = None) -> Any:
        if not cfg.sepo:  # a later config of this process
            return host(cfg, tokenizer, processor)
        if not settings.runs_reference:
            return None
        spec = settings.ref_model
        if spec is not None:
            arguments = host_arguments(cfg)
            return load_scoring_model(
                spec, model_args=arguments.model_args, device=arguments.training_args.device
            ).model
        if settings.method.scorer == "policy_ref":
            logger.info(
                "the reference is the starting policy (%s): at step 1 every alignment score is zero, so the rule floor "
                "selects tokens spread evenly over each response and the rule quantile all of them, until the policy "
                "has moved.",
                OWN_START,
            )
        return host(cfg, tokenizer, processor)

    setattr(setup_reference_model, _HOSTS, host)
    train.setup_reference_model = setup_reference_model
