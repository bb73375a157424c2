"""`sepo train` and `sepo webui`: the host's own launcher with our stages registered, here and in what it starts."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sepo.errors import SepoError
from sepo.installation import AXOLOTL, LLAMAFACTORY, install_command, is_installed, packages, what_is_wrong

if TYPE_CHECKING:
    from sepo.recipe.settings import RunSettings


_IN_AXOLOTL = {"train": " Here run: axolotl train config.yaml"}
"""By command: what an environment with Axolotl has in its place."""


def require_host(command: str) -> None:
    """Refuse a command where LLaMA-Factory is not installed.

    Args:
        command: the words after ``sepo``, for the message.

    Raises:
        SepoError: with what installs it, or what belongs to the host that is there.
    """
    if is_installed(LLAMAFACTORY.name):
        return
    if not is_installed(AXOLOTL.name):
        raise SepoError(f"LLaMA-Factory is not installed here; run: {install_command(LLAMAFACTORY.name)}")
    raise SepoError(
        f"this environment has Axolotl, and `sepo {command}` needs LLaMA-Factory, in an environment of its own "
        f"(docs/axolotl.md#commands).{_IN_AXOLOTL.get(command, '')}"
    )


def load_host(command: str, module: str = "llamafactory.train.tuner") -> None:
    """Import LLaMA-Factory, or say what keeps it from being imported and what repairs that.

    Every command that uses the host calls this first; later imports of the host find its modules loaded.

    Args:
        command: the words after ``sepo``, for the message.
        module: the host's, with everything that the command needs of the environment.

    Raises:
        SepoError: the host is not installed, or does not load.
    """
    require_host(command)
    try:
        importlib.import_module(module)
    except SepoError:  # of a stage that is registered with the module, after `sepo enable`
        raise
    except Exception as error:  # packages that do not fit each other raise anything while they are imported
        raise SepoError(_why_not_loaded(error)) from error


def _why_not_loaded(error: Exception) -> str:
    found = packages(LLAMAFACTORY)
    wrong = [package for package in found if package.failure] or [package for package in found if not package.sound]
    if wrong:
        return f"LLaMA-Factory cannot be imported: {what_is_wrong(LLAMAFACTORY, wrong)}"
    reason = (str(error).strip().splitlines() or ["no message"])[0]
    return (
        f"LLaMA-Factory cannot be imported ({type(error).__name__}: {reason}), though the packages that it builds on "
        f"load; run: {install_command(LLAMAFACTORY.name)}"
    )


def quiet_on_one_device() -> None:
    """Before the host is imported: let it log errors only, and see one GPU, for it refuses several in one process."""
    os.environ.setdefault("LLAMAFACTORY_VERBOSITY", "ERROR")
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def refuse_without_scoring(settings: RunSettings | None) -> None:
    """Refuse a recipe that computes nothing before it trains.

    Args:
        settings: the recipe's, or None where its stage is the host's.

    Raises:
        SepoError: says what the recipe has instead.
    """
    if settings is None:
        raise SepoError(
            "this recipe scores nothing: its stage is LLaMA-Factory's own. Scores come before stage sepo, or any stage "
            "of ours with token_scorer: oracle, treg_rewards or ref_precompute."
        )
    if not settings.scores_before_training:
        raise SepoError(
            f"this recipe scores nothing before it trains: its token_scorer is {settings.method.scorer}, which "
            "needs no score store, and neither token rewards nor ref_precompute are on. Set token_scorer: oracle (or "
            "contrastive, or a registered one), treg_alpha or ref_precompute: true."
        )


def train(words: Sequence[str], *, score_only: bool = False) -> int:
    """Train as `llamafactory-cli train` does, or only score what such a run would score first.

    Args:
        words: the command line after ``train``: a recipe and ``key=value`` overrides, or ``--key value`` options.
        score_only: end after scoring.

    Returns:
        The exit status.

    Raises:
        SepoError: the recipe is wrong.
    """
    command = "score" if score_only else "train"
    require_host(command)
    if words and words[0].endswith((".yaml", ".yml", ".json")) and not Path(words[0]).is_file():
        raise SepoError(f"recipe '{words[0]}' does not exist (from {os.getcwd()}).")
    _find_commands_of_this_environment()
    sys.argv = ["llamafactory-cli", *words]
    load_host(command)
    from llamafactory import launcher
    from llamafactory.hparams import read_args
    from llamafactory.train import tuner

    from sepo.hosts.llamafactory.registration import SCORE_ONLY, check_recipe, register

    if words and "-h" not in words and "--help" not in words:
        _, settings = check_recipe(read_args())  # here, before ranks are started and each says the same
        if score_only:
            refuse_without_scoring(settings)
            os.environ[SCORE_ONLY] = "1"
    register(tuner)
    sys.argv = ["llamafactory-cli", "train", *words]
    launcher.__file__ = str(Path(__file__).with_name("worker.py"))
    try:
        launcher.launch()
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


def webui() -> int:
    """Serve LLaMA Board as `llamafactory-cli webui` does, with our stages among its training stages.

    Returns:
        The exit status.

    Raises:
        SepoError: the host or gradio is not installed, or the port is taken.
    """
    _find_commands_of_this_environment()
    load_host("webui")
    from llamafactory import launcher
    from llamafactory.extras.packages import is_gradio_available

    if not is_gradio_available():
        raise SepoError(
            f"LLaMA Board needs gradio, which is not installed here; run: {install_command(LLAMAFACTORY.name)}"
        )
    from llamafactory.webui import interface

    from sepo.hosts.llamafactory.board.patch import register

    register(interface)
    sys.argv = ["llamafactory-cli", "webui"]
    try:
        launcher.launch()
    except OSError as error:  # gradio's, where a port is taken
        raise SepoError(f"LLaMA Board cannot be served: {error}") from error
    return 0


def _find_commands_of_this_environment() -> None:
    """The host calls `torchrun` and `llamafactory-cli` by their bare names; an environment that was not activated has
    them beside its Python."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
