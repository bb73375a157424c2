"""Models by name: their directories, configurations and tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sepo.errors import SepoError, first_line
from sepo.forward.router_loss import refusal_by_config
from sepo.recipe.model_specs import MAIN, ModelSpec
from sepo.recipe.settings import RunSettings
from sepo.scoring.hub import NAMES, HubAccess, ModelFiles, not_found, provided
from sepo.scoring.hub_files import ADAPTER, MODEL, Need


def model_files(
    name: str, *, key: str, marker: str, access: HubAccess, revision: str | None = None, need: Need = "weights"
) -> ModelFiles:
    """Return the files of a model or adapter, in the file system or from the hub.

    Args:
        name: local directory or hub name.
        key: the recipe's key, for the message.
        marker: the file that identifies such a directory, ``MODEL`` or ``ADAPTER``.
        access: access to the hub.
        revision: branch, tag or commit of a hub name, None for the main branch; a local directory has none.
        need: what is loaded; of a hub name, only that is fetched.

    Raises:
        SepoError: If the name is empty, there is no such directory, repository or revision, the hub gives no access,
            or it holds an adapter in place of a model or vice versa.
    """
    if not name.strip():
        raise SepoError(f"{key} is empty; set it to a local directory or a hub name.")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / marker).is_file():
            return ModelFiles(folder)
        other = ADAPTER if marker == MODEL else MODEL
        kind = "an adapter" if other == ADAPTER else "a full model"
        found = f"it holds {kind}" if (folder / other).is_file() else f"it has no {marker}"
        hint = ""
        if found.startswith("it holds"):
            hint = " Adapters belong in *_adapters (or adapter_name_or_path), full models in the key without it."
        raise SepoError(f"{key}: '{name}' is not what this key expects: {found}.{hint}")
    if written_as_path(name):
        raise not_found(name, key=key, reason=NAMES)
    return provided(name, revision or MAIN, access, key=key, marker=marker, need=need)


def written_as_path(name: str) -> bool:
    """Return whether a name cannot be one of a hub."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def adapters_key(key: str) -> str:
    """Return the recipe key of the adapters that are applied to the model of another key."""
    return "adapter_name_or_path" if key == "model_name_or_path" else f"{key}_adapters"


def spec_files(
    spec: ModelSpec, *, key: str, access: HubAccess, need: Need = "weights"
) -> tuple[ModelFiles, tuple[ModelFiles, ...]]:
    """Return the files of a scoring model and of its adapters.

    Args:
        spec: the scoring model.
        key: the recipe's key, for the message.
        access: access to the hub.
        need: what is loaded.

    Raises:
        SepoError: If one of them is missing; see ``model_files``.
    """
    model = model_files(spec.model, key=key, marker=MODEL, access=access, revision=spec.revision, need=need)
    adapters = tuple(
        model_files(name, key=adapters_key(key), marker=ADAPTER, access=access, revision=revision, need=need)
        for name, revision in zip(spec.adapters, spec.revisions_of_adapters, strict=True)
    )
    return model, adapters


def scoring_models(settings: RunSettings) -> list[tuple[str, ModelSpec]]:
    """Return the models that a run loads before training, each with the recipe key that names it."""
    sources = (settings.token_rewards, settings.precomputed_reference)
    found = [(each.key, each.model) for each in sources if each is not None and each.model is not None]
    for oracle in () if settings.oracles is None else settings.oracles.members:
        found += [("oracle_model", oracle.oracle), ("oracle_base_model", oracle.base)]
    return found


def check_local_names(
    spec: ModelSpec, *, key: str, access: HubAccess, made_earlier: Callable[[str], bool] = lambda name: False
) -> None:
    """Check like ``spec_files``, but leave names unverified that only a request to the hub can verify.

    Args:
        spec: model and adapters.
        key: the recipe's key of the model, for errors.
        access: access to the hub.
        made_earlier: returns whether a name is the output of an earlier run, which need not exist yet.

    Raises:
        SepoError: If a local directory is missing, or a hub name is not in the cache and the hub is not to be used.
    """
    from huggingface_hub import constants

    def verifiable(name: str) -> bool:
        offline = constants.HF_HUB_OFFLINE and access.hub == "huggingface"
        found = offline or written_as_path(name) or Path(name).expanduser().is_dir()
        return bool(name) and found and not made_earlier(name)

    if verifiable(spec.model):
        model_files(spec.model, key=key, marker=MODEL, access=access, revision=spec.revision)
    for name, revision in zip(spec.adapters, spec.revisions_of_adapters, strict=True):
        if verifiable(name):
            model_files(name, key=adapters_key(key), marker=ADAPTER, access=access, revision=revision)


def local_spec(spec: ModelSpec, *, key: str, access: HubAccess, need: Need = "weights") -> ModelSpec:
    """Return a scoring model with local directories in place of names.

    A loader of a host then requests nothing from a hub, and no revision of another repository.

    Args:
        spec: the scoring model.
        key: the recipe's key, for the message.
        access: access to the hub.
        need: what is loaded.

    Raises:
        SepoError: If one of them is missing; see ``model_files``.
    """
    model, adapters = spec_files(spec, key=key, access=access, need=need)
    return replace(
        spec,
        model=str(model.folder),
        adapters=tuple(str(adapter.folder) for adapter in adapters),
        revision=None,
        adapter_revisions=(),
    )


def own_tokenizer(spec: ModelSpec, *, key: str, access: HubAccess) -> Any:
    """Load the tokenizer that is saved with a scoring model.

    Args:
        spec: the scoring model.
        key: the recipe's key, for the message.
        access: access to the hub.

    Raises:
        SepoError: If its files are missing, or hold no tokenizer.
    """
    found = model_files(
        spec.model, key=key, marker=MODEL, access=access, revision=spec.revision, need="tokenizer"
    )  # fmt: skip
    return tokenizer_in(found.folder, name=spec.model, key=key, access=access)


def tokenizer_in(folder: Path, *, name: str, key: str, access: HubAccess) -> Any:
    """Load the tokenizer of a local directory.

    Args:
        folder: the directory.
        name: its name in the recipe, for the message.
        key: the recipe's key, for the message.
        access: access to the hub.

    Raises:
        SepoError: If it holds no tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=access.trust_remote_code)
    except Exception as error:  # transformers and the tokenizer's own code raise many types
        reason = first_line(error)
        raise SepoError(f"{key}: the tokenizer of '{name}' cannot be loaded: {reason}") from error


def differing_token(tokenizer: Any, other: Any) -> str | None:
    """Return the first token, padding aside, that has another id or none in ``other``; None if all match."""
    own, theirs = tokenizer.get_vocab(), other.get_vocab()
    differing = [token for token, index in own.items() if theirs.get(token) != index and token != tokenizer.pad_token]
    return min(differing, key=lambda item: own[item], default=None)


def check_tokenizers(policy: Any, spec: ModelSpec, *, key: str, access: HubAccess, owner: str = "the policy") -> None:
    """Raise if the vocabulary of a scoring model differs from the policy's.

    Args:
        policy: the policy's tokenizer.
        spec: the scoring model.
        key: the recipe's key, for the message.
        access: access to the hub.
        owner: the owner of the tokenizer ``policy``, for the message.

    Raises:
        SepoError: If the token ids differ; the message gives a token that differs.
    """
    tokenizer = own_tokenizer(spec, key=key, access=access)
    token = differing_token(policy, tokenizer)
    if token is not None:
        expected, found = policy.get_vocab(), tokenizer.get_vocab()
        differs = f"has the id {found[token]}, expected {expected[token]}" if token in found else "is missing"
        raise SepoError(
            f"{key}: '{spec.model}' has another tokenizer than {owner}: {len(found):,} tokens, expected "
            f"{len(expected):,}, and {token!r} {differs}. Scores are per token, so a scoring model must share "
            f"{owner}'s tokenizer, added tokens included; use one of {owner}'s model family."
        )


def configuration(spec: ModelSpec, *, key: str, access: HubAccess) -> Any:
    """Load a model's configuration from a local directory, the hub's cache or the hub, without its weights.

    Args:
        spec: the model.
        key: the recipe's key, for the message.
        access: access to the hub.

    Raises:
        SepoError: If its files are missing, or the configuration cannot be read.
    """
    from transformers import AutoConfig

    found = model_files(spec.model, key=key, marker=MODEL, access=access, revision=spec.revision, need="config")
    try:
        return AutoConfig.from_pretrained(str(found.folder), trust_remote_code=access.trust_remote_code)
    except Exception as error:  # transformers and the model's own code raise many kinds
        reason = first_line(error)
        raise SepoError(f"{key}: the configuration of '{spec.model}' cannot be read: {reason}") from error


def check_experts(spec: ModelSpec, *, key: str, access: HubAccess) -> None:
    """Raise if a policy whose router loss is to be added has none, by its configuration.

    Raises:
        SepoError: Also if the configuration cannot be read; see ``configuration``.
    """
    reason = refusal_by_config(configuration(spec, key=key, access=access))
    if reason is not None:
        raise SepoError(f"{key} is '{spec.model}': {reason}")


def max_positions(spec: ModelSpec, *, key: str, access: HubAccess) -> int | None:
    """Return the maximum number of positions of a scoring model, or None if it has no limit.

    Raises:
        SepoError: If its directory is missing.
    """
    config = configuration(spec, key=key, access=access).get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    return int(positions) if positions else None


def vocabulary_size(spec: ModelSpec, *, key: str, access: HubAccess) -> int | None:
    """Return the number of logits per token of a scoring model, or None if its configuration has none.

    Raises:
        SepoError: If its directory is missing.
    """
    size = getattr(configuration(spec, key=key, access=access).get_text_config(), "vocab_size", None)
    return int(size) if size else None
