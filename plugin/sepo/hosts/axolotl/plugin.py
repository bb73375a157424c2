"""Plugin hooks that Axolotl calls: config before validation, data loading, training arguments, trainer creation.

For a config without a sepo stage no hook has an effect, and no other module of this package is imported, so that a
failure of one ends only runs that need it. No module here imports ``axolotl.core`` before a run loads its data: Axolotl
merges the training arguments of plugins when ``axolotl.core`` is first imported.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from axolotl.integrations.base import BasePlugin

from sepo.errors import SepoError
from sepo.hosts.axolotl.stage import names_rto, names_stage

if TYPE_CHECKING:
    from sepo.hosts.axolotl.config import Resolved
    from sepo.hosts.axolotl.data import LoadedPairs
    from sepo.hosts.axolotl.online.config import ResolvedRto
    from sepo.hosts.axolotl.online.data import LoadedPrompts

ARGUMENTS = "sepo.hosts.axolotl.arguments"


class SePOPlugin(BasePlugin):
    """Axolotl plugin that trains with a sepo stage if the config names one."""

    def __init__(self) -> None:
        super().__init__()
        self.resolved: Resolved | ResolvedRto | None = None
        self.loaded: LoadedPairs | LoadedPrompts | None = None

    def register(self, cfg: Any) -> None:
        """Resolve the stage, and rewrite the config to fit Axolotl's schema.

        Raises:
            SepoError: If the config is invalid, or this package cannot be imported.
        """
        self.resolved = self.loaded = None
        if not names_stage(cfg):
            return
        from sepo.hosts.axolotl.errors import print_errors_without_traceback

        print_errors_without_traceback()
        load_modules()
        from sepo.hosts.axolotl.config import Resolved, resolve_config
        from sepo.hosts.axolotl.hub import check_policy
        from sepo.hosts.axolotl.logs import hide_secrets
        from sepo.hosts.axolotl.models import on_several_cpus, train_on_several_cpus
        from sepo.hosts.axolotl.online.config import resolve_rto_config
        from sepo.redaction import remember_secrets

        remember_secrets(cfg)
        resolved = self.resolved = resolve_rto_config(cfg) if names_rto(cfg) else resolve_config(cfg)
        if resolved is not None:
            hide_secrets()
            check_policy(
                cfg, with_experts=isinstance(resolved, Resolved) and bool(resolved.settings.router_loss_weight)
            )
            for name, value in resolved.changes.items():
                cfg[name] = value
            if on_several_cpus():
                train_on_several_cpus()

    def _resolved_of(self, cfg: Any) -> Resolved | ResolvedRto | None:
        """Return the resolved stage if the config has one; Axolotl 0.19 does not call ``register`` for a later config
        of the process that lists no plugins."""
        return self.resolved if cfg.get("sepo") else None

    def get_input_args(self) -> str | None:
        """Return the path of the schema of the block ``sepo``; None without a stage."""
        return None if self.resolved is None else f"{ARGUMENTS}.SePOConfig"

    def get_training_args_mixin(self) -> str | None:
        """Return the path of the training argument that passes the stage's keys to the trainer; None without one."""
        return None if self.resolved is None else f"{ARGUMENTS}.SePOTrainingArguments"

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> Any:
        """Load the rows with Axolotl before the policy is loaded: pairs, tokenized as its trainer does and scored, or
        prompts.

        Args:
            cfg: the validated config.
            preprocess: whether this is ``axolotl preprocess``, which scores nothing.

        Returns:
            Axolotl's ``TrainDatasetMeta``, or None for a config without a sepo stage.
        """
        resolved = self._resolved_of(cfg)
        if resolved is None:
            return None
        from sepo.hosts.axolotl.config import Resolved

        if isinstance(resolved, Resolved):
            from sepo.hosts.axolotl.data import load_pairs

            self.loaded = load_pairs(cfg, resolved.settings, preprocess=preprocess)
        else:
            from sepo.hosts.axolotl.online.data import load_prompts

            self.loaded = load_prompts(cfg, resolved, preprocess=preprocess)
        return self.loaded.meta

    def get_training_args(self, cfg: Any) -> dict[str, Any] | None:
        """Return the training arguments with the stage's keys.

        Raises:
            SepoError: If Axolotl's argument classes were created before a config with a sepo stage was loaded.
        """
        resolved = self._resolved_of(cfg)
        if resolved is None:
            return None
        from axolotl.core.trainers.dpo.args import AxolotlDPOConfig

        from sepo.hosts.axolotl.config import Resolved
        from sepo.hosts.axolotl.models import on_several_cpus

        if "sepo" not in {item.name for item in dataclasses.fields(AxolotlDPOConfig)}:
            raise SepoError(
                "axolotl.core was imported before a config with a sepo stage was loaded, so its training arguments "
                "lack sepo's; call axolotl.cli.config.load_cfg with this config before importing axolotl.core, or run "
                "it in a process of its own."
            )
        more: dict[str, Any] = {"use_cpu": True} if on_several_cpus() else {}
        if not isinstance(resolved, Resolved):
            from sepo.hosts.axolotl.online.data import LoadedPrompts

            assert isinstance(self.loaded, LoadedPrompts)
            # Axolotl's DPO disables dropout as well.
            more |= {"sepo_stop_ids": list(self.loaded.stop_ids), "disable_dropout": True}
        return {"sepo": resolved.as_json(), "remove_unused_columns": False, **more}

    def post_trainer_create(self, cfg: Any, trainer: Any) -> None:
        """Check that the trainer is the stage's, and let it load its models and write the records of a run.

        Raises:
            SepoError: If it is another trainer.
        """
        if self.resolved is None or not (cfg.get("sepo") or cfg.get("trainer_cls")):  # a later config of this process
            return
        from sepo.hosts.axolotl.config import Resolved

        if isinstance(self.resolved, Resolved):
            from sepo.hosts.axolotl.data import LoadedPairs
            from sepo.hosts.axolotl.trainer import PreferenceTrainer, write_records

            self._check_trainer(trainer, PreferenceTrainer)
            assert isinstance(self.loaded, LoadedPairs)
            write_records(
                trainer,
                self.resolved.settings,
                stores=self.loaded.stores,
                template=self.loaded.template,
                recipe=dict(cfg),
            )
        else:
            from sepo.hosts.axolotl.online.trainer import RtoTrainer
            from sepo.hosts.axolotl.online.trainer import write_records as write_rto_records

            self._check_trainer(trainer, RtoTrainer)
            trainer.open_models(cfg)
            write_rto_records(trainer, self.resolved.settings, recipe=dict(cfg))

    def _check_trainer(self, trainer: Any, expected: type) -> None:
        assert self.resolved is not None
        if not isinstance(trainer, expected):
            raise SepoError(
                f"Axolotl created a {type(trainer).__module__}.{type(trainer).__name__}, expected the trainer of stage "
                f"{self.resolved.settings.stage}: another plugin has replaced it. Remove that plugin."
            )


def load_modules() -> None:
    """Import the modules that a run with a sepo stage uses before its trainer.

    Raises:
        SepoError: If one cannot be imported.
    """
    try:
        from sepo.hosts.axolotl import arguments, config, data  # noqa: F401
        from sepo.hosts.axolotl.online import config as online_config  # noqa: F401
        from sepo.hosts.axolotl.online import data as online_data  # noqa: F401
    except Exception as error:  # incompatible packages raise exceptions of any type during import
        from sepo.installation import AXOLOTL, install_command

        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise SepoError(
            f"the config has a sepo stage, and sepo cannot be imported ({type(error).__name__}: {reason}); in an "
            f"environment without LLaMA-Factory run: {install_command(AXOLOTL.name)}"
        ) from error
