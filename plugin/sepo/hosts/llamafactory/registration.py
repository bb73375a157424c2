"""Registration of sepo's stages in `llamafactory.train.tuner`. See ../PATCHES.md for the reason for each patch."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from sepo.errors import SepoError
from sepo.hosts.errors import print_error
from sepo.hosts.llamafactory.facts import has_ray_worker
from sepo.hosts.llamafactory.reading import read_recipe
from sepo.hosts.llamafactory.recipe import SCORE_ONLY, get_train_args, load_host, rto_settings_of, settings_of
from sepo.recipe.given import Arguments, stage_of
from sepo.recipe.stage_names import is_sepo_stage

RAY_WORKER = "SEPO_RAY_WORKER"


def register(tuner: ModuleType) -> None:
    """Rebind the entry points of a training run in ``llamafactory.train.tuner``. Idempotent."""
    if getattr(tuner, "_sepo_registered", False):
        return
    host_run_dpo, host_training_function = tuner.run_dpo, tuner._training_function

    def run_dpo(
        model_args: Any, data_args: Any, training_args: Any, finetuning_args: Any, callbacks: Any = None
    ) -> None:
        online = rto_settings_of(finetuning_args)
        if online is not None:
            from sepo.hosts.llamafactory.rto import run_rto

            _log_beside_host()
            return run_rto(model_args, data_args, training_args, finetuning_args, callbacks, settings=online)
        settings = settings_of(finetuning_args)
        if settings is None:
            return host_run_dpo(model_args, data_args, training_args, finetuning_args, callbacks)
        from sepo.hosts.llamafactory.workflow import run_stage

        _log_beside_host()
        return run_stage(model_args, data_args, training_args, finetuning_args, callbacks, settings=settings)

    def read_args(args: Arguments | None = None) -> Arguments:
        with _errors_in_one_line():
            return read_recipe(args)

    @functools.wraps(host_training_function)
    def training_function(config: dict[str, Any]) -> None:
        with _errors_in_one_line():
            if os.environ.get(SCORE_ONLY):
                from sepo.hosts.llamafactory.scoring_pass import score

                _log_beside_host()
                score(get_train_args(config["args"]))
            elif is_sepo_stage(stage_of(config["args"])):
                from sepo.hosts.llamafactory.plan.out_of_memory import train_with_plan

                _log_beside_host()
                train_with_plan(host_training_function, config)
            else:
                host_training_function(config)

    tuner.read_args = read_args  # type: ignore[attr-defined]
    tuner.get_train_args = get_train_args  # type: ignore[attr-defined]
    tuner.run_dpo = run_dpo  # type: ignore[attr-defined]
    tuner._training_function = training_function  # type: ignore[attr-defined]
    if has_ray_worker(tuner):
        tuner.sepo_host_worker = tuner.Worker  # type: ignore[attr-defined]
        tuner.Worker = RayWorker  # type: ignore[attr-defined]
    else:
        tuner.get_ray_trainer = _trainer_of_registered(tuner.get_ray_trainer)  # type: ignore[attr-defined]
    tuner._sepo_registered = True  # type: ignore[attr-defined]


@contextlib.contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """Print a ``SepoError`` of the block, and end the process with status 2."""
    try:
        yield
    except SepoError as error:
        if os.environ.get(RAY_WORKER):  # Ray carries the exception to the driver
            raise
        print_error(error)
        raise SystemExit(2) from None


def _log_beside_host() -> None:
    """Attach the host's log handlers to sepo's logger; only the first process of each machine logs below ERROR."""
    host, logger = logging.getLogger("llamafactory"), logging.getLogger("sepo")
    for handler in host.handlers:  # LLaMA Board's is added when the run starts, after sepo's first lines
        logger.addHandler(handler)
    logger.propagate = False
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    logger.setLevel(host.level if first else logging.ERROR)


def _registered_in_ray() -> ModuleType:
    """Register sepo's stages in a process that Ray started, and return the host's tuner."""
    load_host("train")
    from llamafactory.train import tuner

    from sepo.hosts.llamafactory import messages

    os.environ[RAY_WORKER] = "1"
    register(tuner)
    messages.register()
    return tuner


class RayWorker:
    """Worker class for Ray that registers sepo's stages in its process and then delegates to the host's worker.

    Ray pickles a class by the name of its module, so the host's own class would import only the host in the worker.
    """

    def __init__(self) -> None:
        self._worker = _registered_in_ray().sepo_host_worker()

    def _training_function(self, config: dict[str, Any]) -> None:
        self._worker._training_function(config)


def train_in_ray(config: dict[str, Any]) -> None:
    """Train in a process that Ray started; the host's training function, pickled by name, would not be wrapped there.

    Args:
        config: the host's: ``args`` and ``callbacks``.
    """
    _registered_in_ray()._training_function(config)


def _trainer_of_registered(host: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap the host's ``get_ray_trainer``, which takes the function that the workers call."""

    @functools.wraps(host)
    def get_ray_trainer(training_function: Any, *args: Any, **kwargs: Any) -> Any:
        return host(train_in_ray, *args, **kwargs)

    return get_ray_trainer
