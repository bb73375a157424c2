"""The reference of a run: none where the method has none, a model that the block names, or the host's own.

Axolotl loads a second model for every full-parameter DPO run, also for one whose method compares with nothing.
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


def use_our_reference(settings: RunSettings) -> None:
    """Have Axolotl's ``train`` set up the reference of this run.

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
                "takes each answer's first tokens and the rule quantile all of them, until the policy has moved.",
                OWN_START,
            )
        return host(cfg, tokenizer, processor)

    setattr(setup_reference_model, _HOSTS, host)
    train.setup_reference_model = setup_reference_model
