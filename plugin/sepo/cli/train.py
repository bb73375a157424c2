"""`sepo train` and `sepo score`. Their arguments are parsed by the host, not by argparse."""

from __future__ import annotations

from collections.abc import Sequence

from sepo.errors import SepoError

COMMANDS = {
    "train": "Train a LLaMA-Factory recipe: recipe.yaml [key=value ...].",
    "score": "Compute the scores that a recipe needs before training, and nothing else: recipe.yaml [key=value ...].",
}
"""The commands with their help."""


def run_train(command: str, words: Sequence[str]) -> int:
    """Train a recipe, or only score its rows.

    Args:
        command: a key of ``COMMANDS``.
        words: the command line after the command.

    Returns:
        The exit status.

    Raises:
        SepoError: the recipe is missing or wrong.
    """
    if command == "score" and not words:
        raise SepoError("no recipe is given; run: sepo score recipe.yaml [key=value ...]")
    from sepo.hosts.llamafactory.launcher import train

    return train(words, score_only=command == "score")
