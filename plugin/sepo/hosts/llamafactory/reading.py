"""Reading of a training recipe: the file, the overrides of the command line, and secrets of a parent process."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sepo.errors import SepoError, first_line
from sepo.recipe.given import Arguments, given_keys
from sepo.redaction import HIDDEN, redacted_words, remember_secrets, secrets_of

SECRETS = "SEPO_RECIPE_SECRETS"
"""Environment variable with the secrets of a recipe as JSON, by top-level key, for a process that reads the recipe from
a file without them."""


class Recipe(dict[str, Any]):
    """Keys and values of a recipe.

    Attributes:
        origins: where each key was set, in words: ``seed in recipe.yaml`` or ``seed on the command line``.
    """

    origins: Mapping[str, str]

    def __init__(self, values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
        super().__init__(values)
        self.origins = origins


def read_recipe(args: Arguments | None = None, *, keep_secrets: bool = False) -> Arguments:
    """Read the recipe of the command line as the host does, with the secrets that a parent process handed on.

    Args:
        args: a recipe that was read before, which is returned, or None.
        keep_secrets: leave the secrets in the environment, for the processes that this one starts.

    Raises:
        SepoError: the recipe cannot be read, or is a recorded one whose secrets are not given.
    """
    from llamafactory.hparams import read_args

    words = sys.argv[1:]
    try:
        read = read_args(args)
    except (OmegaConfBaseException, yaml.YAMLError, OSError, ValueError) as error:
        override_values([word for word in words[1:] if "=" in word])
        raise SepoError(f"recipe '{words[0]}' cannot be read: {reading_error(error)}") from error
    handed = secrets_of_parent(keep=keep_secrets)
    if args is None and isinstance(read, dict):
        read = recipe_of({**read, **handed}, file=words[0], overrides=words[1:])
    given = given_keys(read)
    absent = [name for name, value in given.items() if HIDDEN in json.dumps(value, default=str)]
    if absent:
        raise SepoError(
            f"{absent[0]} is '{HIDDEN}': a recorded recipe has no secrets. Add {absent[0]}=... after the recipe, or "
            f"remove {absent[0]} from it."
        )
    remember_secrets(given)
    return read


def reading_error(error: BaseException) -> str:
    """Return why YAML cannot be read, in one line, with the line of the file if it is known."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem is not None:
        where = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        return f"{error.problem}{where}"
    return first_line(error)


def recipe_of(values: Mapping[str, Any], *, file: str, overrides: Sequence[str]) -> Recipe:
    """Return the keys and values of a file and of overrides, with the place where each was set."""
    overridden = {re.split(r"[=.[]", word)[0] for word in overrides}
    origins = {name: "on the command line" if name in overridden else f"in {os.path.basename(file)}" for name in values}
    return Recipe(values, {name: f"{name} {place}" for name, place in origins.items()})


def override_values(overrides: Sequence[str]) -> dict[str, Any]:
    """Parse ``key=value`` words; keys with dots give nested mappings.

    Raises:
        SepoError: a word has another form, or its value cannot be parsed.
    """
    for word in overrides:
        (shown,) = redacted_words([word])
        if "=" not in word:
            raise SepoError(f"'{shown}' is not an override; key=value or section.key=value is expected.")
        try:
            OmegaConf.from_dotlist([word])
        except (OmegaConfBaseException, yaml.YAMLError, ValueError) as error:
            reason = f": {reading_error(error)}" if shown == word else "."
            raise SepoError(f"override {shown} cannot be read{reason}") from error
    values = OmegaConf.to_container(OmegaConf.from_dotlist(list(overrides)))
    assert isinstance(values, dict)
    return {str(name): value for name, value in values.items()}


def secrets_of_parent(*, keep: bool = False) -> dict[str, Any]:
    """Return the secrets that a parent process handed on, by key; none if it did not.

    Args:
        keep: leave them in the environment, for the processes that this one starts.
    """
    handed = os.environ.get(SECRETS) if keep else os.environ.pop(SECRETS, None)
    found: dict[str, Any] = json.loads(handed or "{}")
    return found


def with_secrets(environment: Mapping[str, str], recipe: Mapping[str, Any]) -> dict[str, str]:
    """Return an environment in which a process that reads the recipe without its secrets is given them."""
    secrets = secrets_of(recipe)
    return {**environment, **({SECRETS: json.dumps(secrets)} if secrets else {})}
