"""Plugin hooks that Axolotl calls: config before validation, data loading, training arguments, trainer creation.

No hook has an effect for a config without a sepo stage. No module here imports ``axolotl.core`` before a run loads its
data: Axolotl merges the training arguments of plugins when ``axolotl.core`` is first imported.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from axolotl.integrations.base import BasePlugin

from sepo.errors import SepoError
from sepo.hosts.axolotl.config import Resolved, resolve_config
from sepo.hosts.axolotl.logs import hide_secrets
from sepo.hosts.axolotl.models import on_several_cpus, train_on_several_cpus
from sepo.redaction import remember_secrets

logger = logging.getLogger(__name__)

ARGUMENTS = "sepo.hosts.axolotl.arguments"


class SePOPlugin(BasePlugin):
    """Axolotl plugin that trains with a sepo stage if the config names one."""

    def __init__(self) -> None:
        super().__init__()
        self.resolved: Resolved | None = None
        self.stores: dict[str, dict[str, str]] = {}

    def register(self, cfg: Any) -> None:
        """Resolve the stage, and rewrite the config to fit Axolotl's schema.

        Raises:
            SepoError: If the config is invalid.
        """
        self.stores = {}
        remember_secrets(cfg)
        self.resolved = resolve_config(cfg)
        if self.resolved is not None:
            hide_secrets()
            for name, value in self.resolved.changes.items():
                cfg[name] = value
            if on_several_cpus():
                train_on_several_cpus()

    def get_input_args(self) -> str:
        """Return the path of the schema of the block ``sepo``."""
        return f"{ARGUMENTS}.SePOConfig"

    def get_training_args_mixin(self) -> str:
        """Return the path of the training argument that passes the stage's keys to the trainer."""
        return f"{ARGUMENTS}.SePOTrainingArguments"

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> Any:
        """Load the pairs with Axolotl, tokenize them as its trainer does, and score them, before the policy is loaded.

        Args:
            cfg: the validated config.
            preprocess: whether this is ``axolotl preprocess``, which scores nothing.

        Returns:
            Axolotl's ``TrainDatasetMeta``, or None for a config without a sepo stage.
        """
        if self.resolved is None:
            return None
        from sepo.hosts.axolotl.data import load_pairs

        meta, self.stores = load_pairs(cfg, self.resolved.settings, preprocess=preprocess)
        return meta

    def get_training_args(self, cfg: Any) -> dict[str, Any] | None:
        """Return the training arguments with the stage's keys.

        Raises:
            SepoError: If Axolotl's argument classes were created before the plugin was registered.
        """
        if self.resolved is None:
            return None
        from axolotl.core.trainers.dpo.args import AxolotlDPOConfig

        if "sepo" not in {item.name for item in dataclasses.fields(AxolotlDPOConfig)}:
            raise SepoError(
                "axolotl.core was imported before the plugin was registered, so its training arguments lack sepo's; "
                "call axolotl.cli.config.load_cfg (or PluginManager.register) before importing axolotl.core."
            )
        more = {"use_cpu": True} if on_several_cpus() else {}
        return {"sepo": self.resolved.as_json(), "remove_unused_columns": False, **more}

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Check that the trainer is the stage's, and let it write the records of a run.

        Raises:
            SepoError: If it is another trainer.
        """
        if self.resolved is None or not (cfg.get("sepo") or cfg.get("trainer_cls")):  # a later config of this process
            return
        from sepo.hosts.axolotl.trainer import PreferenceTrainer, write_records

        if not isinstance(trainer, PreferenceTrainer):
            raise SepoError(
                f"Axolotl created a {type(trainer).__module__}.{type(trainer).__name__}, expected the trainer of stage "
                f"{self.resolved.settings.stage}: another plugin has replaced it. Remove that plugin."
            )
        write_records(trainer, stores=self.stores, recipe=dict(cfg))
