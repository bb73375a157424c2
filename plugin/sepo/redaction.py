"""Secrets in recipes: the keys that hold them, and their replacement where a recipe is written, logged or printed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

HIDDEN = "(not recorded)"
"""Replacement of a secret."""

SECRET_KEYS = frozenset(
    {
        # LLaMA-Factory and transformers
        "hf_hub_token", "ms_hub_token", "om_hub_token", "hub_token", "push_to_hub_token", "env_vars",
        # both hosts
        "swanlab_api_key", "swanlab_lark_webhook_url", "swanlab_lark_secret",
        # Axolotl, and its integrations
        "comet_api_key", "api_key", "docker_auth", "secret_env",
    }
)  # fmt: skip
"""Keys of LLaMA-Factory and Axolotl that hold a secret, or a mapping of secrets. This package's own keys hold none.
Other keys are recognized by ``_SECRET_NAME``, such as those of other versions and of other packages."""

_HARMLESS = frozenset(
    {
        *(f"{name}_token" for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask", "eot", "image")),
        "special_tokens", "template_thinking_key", "comet_experiment_key",
    }
)  # fmt: skip
"""Keys that only look like those of secrets; a mapping under one has no secret names either."""

_SECRET_NAME = re.compile(
    r"(?i)(^|_|-|\.)(token|key|secret|passw(or)?d|passphrase|credentials?|auth)$|api_?key|access_?key|webhook"
)
_SECRET_VALUE = re.compile(
    r"""
    \b( hf_[A-Za-z0-9]{20,} | api_org_[A-Za-z0-9]{20,} | ms-[0-9a-f]{8}-[0-9a-f-]{20,}                # model hubs
       | sk-[A-Za-z0-9_-]{20,} | gh[opsur]_[A-Za-z0-9]{20,} | github_pat_\w{20,} | glpat-[\w-]{20,}   # other issuers
       | xox[abeprs]-[\w-]{10,} | A[KS]IA[A-Z0-9]{16} | eyJ[\w-]+\.[\w-]+\.[\w-]+ )
    | ://[^/\s:@]*:[^/\s@]+@    # in addresses
    | ^[0-9a-fA-F]{32,}$        # Weights and Biases, SwanLab
    """,
    re.VERBOSE,
)
_DIGESTS = re.compile(r"(?i)revision|commit|sha|hash")
_SHORTEST = 4
"""Values with fewer characters are not searched for in texts, where they would occur by chance."""
_COMMON = re.compile(r"[A-Za-z]{1,11}|\d{1,7}")
"""Values of environment variables that are no secrets by name, which texts contain by chance as well: ``offline``."""

_known: set[str] = set()


def is_secret_key(name: str) -> bool:
    """Return whether a key holds a secret, by the list and by its name."""
    return name in SECRET_KEYS or (name not in _HARMLESS and _SECRET_NAME.search(name) is not None)


def redacted(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's keys and values as plain JSON, with secrets replaced, at any depth.

    Replaced are values of secret keys (``is_secret_key``; the values in a mapping under such a key, too), and values
    that look like a token of a known issuer, a URL with a password or a long hexadecimal number (except revisions).

    >>> redacted({"stage": "sepo", "hf_hub_token": "x", "model_revision": "3" * 40})["hf_hub_token"]
    '(not recorded)'
    """
    return {str(name): _plain(str(name), value) for name, value in recipe.items()}


def _plain(name: str, value: Any, *, inside: bool | None = None) -> Any:
    """Return a value as plain JSON; ``inside`` decides for a value in a mapping whose own key is decisive."""
    secret = is_secret_key(name) if inside is None else inside
    if isinstance(value, Mapping):
        below = True if secret else False if name in _HARMLESS else None
        return {str(key): _plain(str(key), item, inside=below) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, item, inside=inside) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if secret:
        return HIDDEN
    if isinstance(value, int | float):
        return value
    text = str(value)
    if _SECRET_VALUE.search(text) and not _DIGESTS.search(name):
        return HIDDEN
    return _in_json(text)


def _in_json(text: str) -> str:
    """Redact a string that is a JSON object, as a command line gives nested values."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        values = json.loads(text)
    except ValueError:
        return text
    plain = redacted(values)
    return text if plain == values else json.dumps(plain)


def secrets_of(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the top-level keys of a recipe that hold a secret at any depth, with their values."""
    return {name: value for name, value in recipe.items() if HIDDEN in json.dumps(_plain(str(name), value))}


def redacted_words(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with secrets replaced: ``key=value``, ``--key=value`` and ``--key value``.

    >>> redacted_words(["recipe.yaml", "base.hub_token=x", "--hf_hub_token", "y", "seed=1"])
    ['recipe.yaml', 'base.hub_token=(not recorded)', '--hf_hub_token', '(not recorded)', 'seed=1']
    """
    made: list[str] = []
    for position, word in enumerate(words):
        before = words[position - 1] if position else ""
        name, equals, value = word.partition("=")
        if equals:
            made.append(f"{name}={_word(name, value)}")
        else:
            made.append(_word(before if before.startswith("--") and "=" not in before else "", word))
    return made


def _word(key: str, value: str) -> str:
    name = key.removeprefix("--").replace("-", "_").rpartition(".")[2]
    return str(_plain(name, value))


def remember_secrets(recipe: Mapping[str, Any]) -> None:
    """Remember the secrets of a recipe that this process has read, for ``without_secrets``."""
    _known.update(text for text in _texts(recipe, redacted(recipe)) if len(text) >= _SHORTEST)


def without_secrets(text: str) -> str:
    """Return a text with every secret of the recipes that were read in this process replaced.

    Messages quote values of a recipe; in one that is not well-formed, such a value may contain a secret.
    """
    for secret in sorted(_known, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def _texts(value: Any, plain: Any, name: str = "") -> Iterator[str]:
    """Yield the secrets in a value as texts.

    Args:
        value: a value of a recipe.
        plain: the same value from ``redacted``.
        name: its key.
    """
    if isinstance(value, str) and isinstance(plain, str) and plain not in (value, HIDDEN):
        value, plain = json.loads(value), json.loads(plain)
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(item, plain[str(key)], str(key))
    elif isinstance(value, list | tuple):
        for item, hidden in zip(value, plain, strict=True):
            yield from _texts(item, hidden, name)
    elif plain == HIDDEN and value != HIDDEN and (is_secret_key(name) or not _COMMON.fullmatch(str(value))):
        yield str(value)
