"""`sepo train` and `sepo webui`: the host's launcher with sepo's stages registered, in its subprocesses too."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from sepo.errors import SepoError
from sepo.hosts.llamafactory.recipe import SCORE_ONLY, check_recipe, load_host, refuse_without_scoring, require_host
from sepo.installation import LLAMAFACTORY, install_command


def train(words: Sequence[str], *, score_only: bool = False) -> int:
    """Train like `llamafactory-cli train`, or only score the rows that such a run would score before training.

    Args:
        words: the command line after ``train``: a recipe and ``key=value`` overrides, or ``--key value`` options.
        score_only: whether to stop after scoring.

    Returns:
        The exit status.

    Raises:
        SepoError: the recipe is invalid.
    """
    command = "score" if score_only else "train"
    require_host(command)
    if words and words[0].endswith((".yaml", ".yml", ".json")) and not Path(words[0]).is_file():
        raise SepoError(f"recipe '{words[0]}' does not exist (from {os.getcwd()}).")
    _find_commands_of_this_environment()
    sys.argv = ["llamafactory-cli", *words]
    load_host(command)
    from llamafactory import launcher
    from llamafactory.train import tuner

    from sepo.hosts.llamafactory import messages
    from sepo.hosts.llamafactory.reading import read_recipe
    from sepo.hosts.llamafactory.registration import register
    from sepo.scoring.hub import share_unreachable

    if words and "-h" not in words and "--help" not in words:
        # Before ranks are started, each of which would print the same error, and which read the secrets, too.
        _, settings = check_recipe(read_recipe(keep_secrets=True), score_only=score_only)
        if score_only:
            refuse_without_scoring(settings)
            os.environ[SCORE_ONLY] = "1"
        share_unreachable()
    register(tuner)
    messages.register()  # for the host's stages, too: those of `sepo pipeline` may read the same data sets
    sys.argv = ["llamafactory-cli", "train", *words]
    launcher.__file__ = str(Path(__file__).with_name("worker.py"))
    try:
        launcher.launch()
    except subprocess.CalledProcessError as error:
        return error.returncode
    return 0


def webui() -> int:
    """Serve LLaMA Board like `llamafactory-cli webui`, with sepo's stages among its training stages.

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
            f"LLaMA Board requires gradio, which is not installed; run: {install_command(LLAMAFACTORY.name)}"
        )
    from llamafactory.webui import interface

    from sepo.hosts.llamafactory.board.patch import register

    register(interface)
    sys.argv = ["llamafactory-cli", "webui"]
    try:
        launcher.launch()
    except OSError as error:  # raised by gradio if the port is taken
        raise SepoError(f"LLaMA Board cannot be served: {error}") from error
    return 0


def _find_commands_of_this_environment() -> None:
    """Put the directory of this Python first on PATH.

    The host calls `torchrun` and `llamafactory-cli` by their bare names; in an environment that was not activated they
    are only found beside its Python.
    """
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
