"""Commands for runs of sepo's stages, as LLaMA Board previews and starts them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sepo.errors import SepoError
from sepo.files import write_whole
from sepo.hosts.llamafactory.enable import enabled
from sepo.hosts.llamafactory.reading import with_secrets
from sepo.hosts.llamafactory.recipe import check_recipe
from sepo.recipe.keys import SEPO_KEYS
from sepo.recipe.stage_names import available_stages
from sepo.recipe.stages import owner_of_key
from sepo.redaction import redacted, secrets_of

HOST_PROGRAM = "llamafactory-cli"

_WIDTH = 100
"""Number of characters per line that the board's output shows without scrolling."""


def shown(args: Mapping[str, Any]) -> str:
    """Render the command of a run of one of sepo's stages, or the error in its arguments, as Markdown.

    Args:
        args: arguments of the run that the board passes on.

    Returns:
        A code block without secrets; its content cannot be interpreted as Markdown, HTML or another shell command.
    """
    try:
        check_recipe(dict(args), download=False)
    except SepoError as error:
        lines = textwrap.wrap(f"sepo: error: {error}", _WIDTH, break_long_words=False, break_on_hyphens=False)
        return _block("\n".join(lines), "text")
    return _block(shell_command(_without_secrets(args)), "bash")


def shell_command(args: Mapping[str, Any]) -> str:
    r"""Return the shell command that trains with these arguments.

    >>> print(shell_command({"stage": "sepo", "dataset": "mine; ls", "max_steps": 2}))
    sepo train \
        --stage sepo \
        --dataset 'mine; ls' \
        --max_steps 2
    """
    words = [f"{HOST_PROGRAM if enabled() else 'sepo'} train"]
    if args.get("deepspeed"):  # the board sets this variable for the runs that it starts
        words[0] = f"FORCE_TORCHRUN=1 {words[0]}"
    words += [f"    {shlex.quote(f'--{name}')} {_value(name, value)}" for name, value in args.items()]
    return " \\\n".join(words)


def _value(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return shlex.quote(json.dumps(value, ensure_ascii=False, separators=(",", ":")))
    if isinstance(value, list) and name not in SEPO_KEYS:
        return " ".join(shlex.quote(str(item)) for item in value)
    return shlex.quote(",".join(map(str, value)) if isinstance(value, list) else str(value))


def _block(text: str, language: str) -> str:
    """Return a code block whose fence cannot be closed by any line of the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def without_off(args: Mapping[str, Any], cleaned: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that the board passes on, and sepo's keys that are false, since some are true by default.

    Args:
        args: all arguments of a run.
        cleaned: the arguments after the board removed those that are off.
    """
    return {name: value for name, value in args.items() if name in cleaned or (value is False and _is_flag(name))}


def _is_flag(name: str) -> bool:
    return name in SEPO_KEYS or owner_of_key(name) is not None


def started(words: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Start a run like the board, by `sepo train` if the host's command does not have sepo's stages.

    The board has saved the arguments in the run's ``output_dir``. For a stage of sepo's, secrets are removed from the
    file and given to the process by its environment.

    Args:
        words: the host's command line: its program, ``train`` and a file of arguments.
        **options: options of ``subprocess.Popen``.
    """
    if list(words[:2]) != [HOST_PROGRAM, "train"]:
        return subprocess.Popen(words, **options)
    file = Path(words[2])
    args = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    if args.get("stage") not in available_stages():
        return subprocess.Popen(words, **options)
    if secrets_of(args):
        options["env"] = with_secrets(options.get("env") or os.environ, args)
        write_whole(file, yaml.safe_dump(_without_secrets(args)))
    # -P: do not import from the board's working directory
    own = list(words) if enabled() else [sys.executable, "-P", "-m", "sepo", "train", *words[2:]]
    return subprocess.Popen(own, **options)


def _without_secrets(args: Mapping[str, Any]) -> dict[str, Any]:
    return {**args, **redacted(secrets_of(args))}
