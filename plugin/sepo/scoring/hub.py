"""Models and adapters of a hub: a name and a revision to local files, once per process.

A repository is looked up with one request, which gives the commit and the list of files; the files that loading needs
are then taken from the cache or downloaded. If the hub cannot be reached, the process uses the cache from then on.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from sepo.errors import SepoError, first_line
from sepo.recipe.model_specs import MAIN
from sepo.scoring.hub_files import (
    ADAPTER,
    MODEL,
    VALUE_HEAD,
    Need,
    config_files,
    local_files,
    tokenizer_files,
    weight_files,
)

logger = logging.getLogger(__name__)

Hub = Literal["huggingface", "modelscope", "openmind"]


@dataclass(frozen=True)
class HubAccess:
    """Access to the hub from which models are loaded.

    Args:
        hub: the hub.
        token: its token, None for the one in the environment or of a login if there is any, True to require that one.
        cache_dir: directory of the downloaded files, or None for the hub's default.
        trust_remote_code: whether code of a repository may run, and is therefore fetched.
        to_send_token: what a user does to send a token, for messages.
    """

    hub: Hub = "huggingface"
    token: str | Literal[True] | None = field(default=None, repr=False)
    cache_dir: str | None = None
    trust_remote_code: bool = False
    to_send_token: str = "set hf_hub_token or HF_TOKEN"


@functools.singledispatch
def hub_access(model_args: Any) -> HubAccess:
    """Return the access to the hub of a host's model arguments; hosts register by the type of these arguments."""
    raise TypeError(f"no host has registered its access to the hub for {type(model_args).__name__}")


@hub_access.register(HubAccess)
def _given(access: HubAccess) -> HubAccess:
    return access


@dataclass(frozen=True)
class ModelFiles:
    """Local files of a model or adapter.

    Args:
        folder: their directory.
        files: names of the files that were selected, relative to ``folder``; None for all of a local directory.
        commit: the commit of the repository, or None if it is not one of Hugging Face's hub.
    """

    folder: Path
    files: frozenset[str] | None = None
    commit: str | None = None


class NotProvided(Exception):
    """The hub does not provide a repository or revision; the message gives the reason."""


class NoSuchRevision(NotProvided):
    """The repository has no such revision."""


@dataclass(frozen=True)
class _Repository:
    """Look-up of a repository; ``folder`` is set if its files are taken from the cache as they are."""

    commit: str
    files: tuple[str, ...]
    folder: Path | None = None


NAMES = "the hub's names have the form owner/name"
"""Reason for a name that cannot be one of the hub."""

_unreachable: dict[str, str] = {}
"""Reason by endpoint of a hub that could not be reached in this process."""

UNREACHABLE = "SEPO_HUB_UNREACHABLE"
"""Environment variable with the endpoint of a hub that a process could not reach, for the ranks that it starts."""


def fetched(name: str, revision: str, access: HubAccess, *, marker: str, need: Need) -> ModelFiles:
    """Return the local files of a repository, from the cache or downloaded.

    Args:
        name: name of the repository.
        revision: branch, tag or commit.
        access: access to the hub.
        marker: ``MODEL`` or ``ADAPTER``: the file that the repository must have.
        need: what is loaded.

    Raises:
        NotProvided: If the repository, the revision or a file is missing, the token does not allow access, or the hub
            cannot be reached and the cache does not hold the files.
    """
    if access.hub != "huggingface":
        return ModelFiles(_from_other_hub(name, revision, access))
    return _from_hugging_face(name, revision, access, marker, need)


def commits() -> dict[str, dict[str, str]]:
    """Return the commit of every model and adapter that this process looked up: ``{name: {revision: commit}}``."""
    found: dict[str, dict[str, str]] = {}
    for (name, revision, _), repository in _looked_up.items():
        found.setdefault(name, {})[revision] = repository.commit
    return found


def share_unreachable() -> None:
    """Let processes that this one starts use the cache at once if the hub could not be reached."""
    for endpoint in _unreachable:
        os.environ[UNREACHABLE] = endpoint


def _why_unreachable(endpoint: str) -> str | None:
    shared = f"{endpoint} cannot be reached" if os.environ.get(UNREACHABLE) == endpoint else None
    return _unreachable.get(endpoint, shared)


def offline_switches() -> list[tuple[ModuleType, str]]:
    """Return the modules and attributes that are true while the libraries of the host make no requests to the hub."""
    from huggingface_hub import constants
    from transformers.utils import hub

    switches: list[tuple[ModuleType, str]] = [(constants, "HF_HUB_OFFLINE")]
    if hasattr(hub, "_is_offline_mode"):  # before transformers 5, which reads the constant
        switches.append((hub, "_is_offline_mode"))
    return switches


@contextlib.contextmanager
def cached_if_unreachable() -> Iterator[None]:
    """Keep the libraries of the host from requests to the hub in this block if it could not be reached before.

    Each of their requests would wait for a timeout or be retried. Later requests (``push_to_hub``) are not affected.
    """
    from huggingface_hub import constants

    if _why_unreachable(constants.ENDPOINT) is None:
        yield
        return
    before = [(module, name, getattr(module, name)) for module, name in offline_switches()]
    for module, name, _ in before:
        setattr(module, name, True)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


_looked_up: dict[tuple[str, str, HubAccess], _Repository] = {}


def forget_hub() -> None:
    """Forget all look-ups of this process."""
    _looked_up.clear()
    _unreachable.clear()
    os.environ.pop(UNREACHABLE, None)
    _from_hugging_face.cache_clear()
    _from_other_hub.cache_clear()


@functools.cache
def _from_hugging_face(name: str, revision: str, access: HubAccess, marker: str, need: Need) -> ModelFiles:
    key = (name, revision, access)
    if key not in _looked_up:
        _looked_up[key] = _look_up(name, revision, access)
    repository = _looked_up[key]
    if marker not in repository.files:
        raise NotProvided(_wrong_kind(repository.files, marker))

    def local(wanted: list[str]) -> Path:
        return _in_cache(repository, wanted) or _downloaded(name, revision, access, repository, wanted)

    files = config_files(repository.files, marker=marker, remote_code=access.trust_remote_code)
    if need != "config":
        files += [file for file in tokenizer_files(repository.files) if file not in files]
    if need in ("weights", "reward"):
        weights = weight_files(repository.files, marker=marker, read=lambda index: local([index]) / index)
        if not weights:
            where = "the cache holds" if repository.folder else "the repository has"
            raise NotProvided(f"{where} no weights of it (safetensors or .bin)")
        heads = [VALUE_HEAD] if need == "reward" and VALUE_HEAD in repository.files else []
        files += [file for file in (*weights, *heads) if file not in files]
    return ModelFiles(local(files), frozenset(files), repository.commit)


def _wrong_kind(files: tuple[str, ...], marker: str) -> str:
    other = ADAPTER if marker == MODEL else MODEL
    if other not in files:
        return f"the repository has no {marker}"
    kind = "an adapter" if other == ADAPTER else "a full model"
    return f"it holds {kind}: adapters belong in *_adapters or adapter_name_or_path, full models in the key without it"


def _look_up(name: str, revision: str, access: HubAccess) -> _Repository:
    """Look up a repository at the hub; in the cache if the hub does not answer or gives no access."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        RevisionNotFoundError,
    )

    if constants.HF_HUB_OFFLINE:
        return _cached(name, revision, access, "HF_HUB_OFFLINE is set")
    endpoint = constants.ENDPOINT
    unreachable = _why_unreachable(endpoint)
    if unreachable is not None:
        return _cached(name, revision, access, unreachable)
    try:
        found = HfApi(token=access.token).model_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except HFValidationError:
        raise NotProvided(NAMES) from None
    except LocalTokenNotFoundError:
        reason = "the recipe requires the token of the environment or of a login, and there is none"
        raise NotProvided(f"{reason}: {access.to_send_token}") from None
    except RevisionNotFoundError:
        raise NoSuchRevision(f"'{name}' has no revision '{revision}' at {endpoint}") from None
    except HfHubHTTPError as error:
        refusal = _refusal(error, access)
        if refusal is None:
            return _cached(name, revision, access, _not_reached(endpoint, error))
        repository = _cached(name, revision, access, refusal)  # as from_pretrained does
        logger.warning("'%s': %s; it is taken from the cache.", name, refusal)
        return repository
    except Exception as error:  # the client's and the system's network errors
        return _cached(name, revision, access, _not_reached(endpoint, error))
    return _Repository(str(found.sha), tuple(item.rfilename for item in found.siblings or ()))


def _not_reached(endpoint: str, error: Exception) -> str:
    reason = f"{endpoint} cannot be reached ({type(error).__name__}: {first_line(error)})"
    _unreachable[endpoint] = reason
    logger.warning("%s: models are taken from the cache, if it holds them.", reason)
    return reason


def _refusal(error: Any, access: HubAccess) -> str | None:
    """Return why the hub gives no access to a repository; None if it failed to answer."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    status = getattr(error.response, "status_code", None)
    sent = access.token or get_token()
    if isinstance(error, GatedRepoError):
        advice = "" if sent else f"; no token was sent, {access.to_send_token}"
        return f"it is gated: request access on its page{advice}"
    if isinstance(error, RepositoryNotFoundError):
        if sent:
            return f"not found at {constants.ENDPOINT}, or private and not readable with the token that was sent"
        return f"not found at {constants.ENDPOINT}, or private: no token was sent, {access.to_send_token}"
    if status in (401, 403):
        return f"{constants.ENDPOINT} refused the token that was sent (status {status})"
    if status is None or status >= 500 or status in (408, 429):
        return None
    return f"{constants.ENDPOINT} answered with status {status}"


def _cached(name: str, revision: str, access: HubAccess, reason: str) -> _Repository:
    """Look up a repository in the cache.

    Raises:
        NotProvided: with ``reason`` if the cache does not hold it.
    """
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for marker in (MODEL, ADAPTER):
        try:
            found = try_to_load_from_cache(name, marker, cache_dir=access.cache_dir, revision=revision)
        except HFValidationError:
            raise NotProvided(NAMES) from None
        if isinstance(found, str):
            folder = Path(found).parent
            return _Repository(folder.name, tuple(local_files(folder)), folder)
    cache = access.cache_dir or constants.HF_HUB_CACHE
    at = "" if revision == MAIN else f" at revision '{revision}'"
    raise NotProvided(f"{reason}, and the cache {cache} does not hold it{at}")


def _in_cache(repository: _Repository, wanted: list[str]) -> Path | None:
    """Return the cached directory of a repository that is not looked up at the hub.

    Raises:
        NotProvided: If it lacks a file.
    """
    if repository.folder is None:
        return None
    missing = [file for file in wanted if not (repository.folder / file).is_file()]
    if missing:
        raise NotProvided(f"{len(missing)} of its files are not in the cache ({missing[0]}), and the hub is not used")
    return repository.folder


def _downloaded(name: str, revision: str, access: HubAccess, repository: _Repository, wanted: list[str]) -> Path:
    """Return the cached directory of a repository after downloading the files that it lacks."""
    from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    def cached(at: str, file: str) -> str | None:
        found = try_to_load_from_cache(name, file, cache_dir=access.cache_dir, revision=at)
        return found if isinstance(found, str) else None

    place: dict[str, Any] = {"cache_dir": access.cache_dir, "token": access.token}
    try:
        if not all(cached(repository.commit, file) for file in wanted):
            patterns = [glob.escape(file) for file in wanted]
            snapshot_download(name, revision=repository.commit, allow_patterns=patterns, **place)
        found = cached(repository.commit, wanted[0])
        if revision != repository.commit and cached(revision, wanted[0]) != found:
            # Only a download under the revision's name makes the cache usable under that name without the hub.
            hf_hub_download(name, wanted[0], revision=revision, **place)
    except Exception as error:  # the client raises many types, and its disk errors are the system's
        refusal = _refusal(error, access) if isinstance(error, HfHubHTTPError) else None
        failed = f"the download failed: {first_line(error)}; run the command again, complete files are kept"
        raise NotProvided(refusal or failed) from error
    assert found is not None
    return Path(found).parents[wanted[0].count("/")]


@functools.cache
def _from_other_hub(name: str, revision: str, access: HubAccess) -> Path:
    """Download a repository of ModelScope or Modelers with the call of LLaMA-Factory: whole, in the hub's own cache."""
    try:
        if access.hub == "modelscope":
            from modelscope import snapshot_download
            from modelscope.hub.api import HubApi

            if access.token:
                HubApi().login(access.token)
            revision = "master" if revision == MAIN else revision
        else:
            from openmind.utils.hub import snapshot_download
        return Path(snapshot_download(name, revision=revision, cache_dir=access.cache_dir))
    except Exception as error:
        raise NotProvided(f"{access.hub}: {first_line(error)}") from error


def provided(name: str, revision: str, access: HubAccess, *, key: str, marker: str, need: Need) -> ModelFiles:
    """Return ``fetched``.

    Raises:
        SepoError: with the key, the name and the reason, in place of ``NotProvided``.
    """
    try:
        return fetched(name, revision, access, marker=marker, need=need)
    except NoSuchRevision as error:
        raise SepoError(f"{key}: {error}; set {revision_key(key)} to a branch, tag or commit of it.") from error
    except NotProvided as error:
        raise not_found(name, key=key, reason=str(error), revision=revision) from error


def not_found(name: str, *, key: str, reason: str, revision: str = MAIN) -> SepoError:
    """Return the error for a name that is neither a directory nor a repository that can be used."""
    at = "" if revision == MAIN else f" (revision '{revision}')"
    return SepoError(
        f"{key}: '{name}'{at} is neither a local directory (from {Path.cwd()}) nor a model that the hub provides "
        f"({reason})"
    )


def revision_key(key: str) -> str:
    """Return the recipe key that sets the revision of the model or adapters of another key."""
    return _OF_HOSTS.get(key, f"{key}_revision")


_OF_HOSTS: Mapping[str, str] = {
    "model_name_or_path": "model_revision",
    "adapter_name_or_path": "model_revision",
    "base_model": "revision_of_model",
}
"""Keys of the hosts for the revision of the policy."""
