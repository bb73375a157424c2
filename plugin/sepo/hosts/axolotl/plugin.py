"""What Axolotl calls: the config before it is validated, the data, the trainer that it made.

Every hook does nothing for a config that names no stage of ours. ``axolotl.core`` is imported by nothing here before a
run reaches its data: Axolotl merges the plugins' training arguments when it is first imported.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from axolotl.integrations.base import BasePlugin

from sepo.errors import SepoError
from sepo.hosts.axolotl.config import Resolved, resolve_config
from sepo.hosts.axolotl.models import on_several_cpus, train_on_several_cpus

logger = logging.getLogger(__name__)

ARGUMENTS = "sepo.hosts.axolotl.arguments"


class SePOPlugin(BasePlugin):
    """Trains with a stage of ours where the config asks for one."""

    def __init__(self) -> None:
        super().__init__()
        self.resolved: Resolved | None = None
        self.stores: dict[str, dict[str, str]] = {}

    def register(self, cfg: Any) -> None:
        """Resolve the stage, and rewrite the config into what Axolotl's schema knows.

        Raises:
            SepoError: the config is wrong.
        """
        self.stores = {}
        self.resolved = resolve_config(cfg)
        if self.resolved is not None:
            for name, value in self.resolved.changes.items():
                cfg[name] = value
            if on_several_cpus():
                train_on_several_cpus()

    def get_input_args(self) -> str:
        """The schema of the block ``sepo``."""
        return f"{ARGUMENTS}.SePOConfig"

    def get_training_args_mixin(self) -> str:
        """The training argument that carries the stage's keys to the trainer."""
        return f"{ARGUMENTS}.SePOTrainingArguments"

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> Any:
        """Have Axolotl load the pairs, tokenize them as its trainer does, and score them; before any policy is loaded.

        Args:
            cfg: the validated config.
            preprocess: whether this is ``axolotl preprocess``, which scores nothing.

        Returns:
            Axolotl's ``TrainDatasetMeta``, or None for a config without a stage of ours.
        """
        if self.resolved is None:
            return None
        from sepo.hosts.axolotl.data import load_pairs

        meta, self.stores = load_pairs(cfg, self.resolved.settings, preprocess=preprocess)
        return meta

    def get_training_args(self, cfg: Any) -> dict[str, Any] | None:
        """The stage's keys, for the trainer.

        Raises:
            SepoError: Axolotl's argument classes were made before the plugin was registered.
        """
        if self.resolved is None:
            return None
        from axolotl.core.trainers.dpo.args import AxolotlDPOConfig

        if "sepo" not in {item.name for item in dataclasses.fields(AxolotlDPOConfig)}:
            raise SepoError(
                "axolotl.core was imported before the plugin was registered, so its training arguments lack ours; "
                "call axolotl.cli.config.load_cfg (or PluginManager.register) before importing axolotl.core."
            )
        more = {"use_cpu": True} if on_several_cpus() else {}
        return {"sepo": self.resolved.as_json(), "remove_unused_columns": False, **more}

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Make sure that the trainer is ours, and have it leave the records of a run.

        Raises:
            SepoError: it is another.
        """
        if self.resolved is None or not (cfg.get("sepo") or cfg.get("trainer_cls")):  # a later config of this process
            return
        from sepo.hosts.axolotl.trainer import PreferenceTrainer, leave_records

        if not isinstance(trainer, PreferenceTrainer):
            raise SepoError(
                f"Axolotl made a {type(trainer).__module__}.{type(trainer).__name__}, expected the trainer of stage "
                f"{self.resolved.settings.stage}: another plugin has taken its place. Remove that plugin."
            )
        leave_records(trainer, stores=self.stores, recipe=dict(cfg))
