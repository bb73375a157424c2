"""The files of a reward model, and the head that its configuration describes, before weights are loaded."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open

from sepo.errors import SepoError, first_line
from sepo.recipe.model_specs import ModelSpec
from sepo.scoring.hub import HubAccess
from sepo.scoring.hub_files import ADAPTER, VALUE_HEAD
from sepo.scoring.model_files import configuration, local_spec, tokenizer_in
from sepo.text.chat_rendering import ChatRenderer

KEY = "judge_model"
"""Recipe key that names the reward model."""

Head = Literal["classification", "classification_adapter", "value"]
"""Where the score comes from: the model's own classification head; one that an adapter holds, over a causal language
model; or the value head of LLaMA-Factory's stage ``rm``, on a causal language model."""

_PICKLED_HEAD = "value_head.bin"
_ADAPTER_WEIGHTS = "adapter_model.safetensors"
_AUTO_CLASS = "AutoModelForSequenceClassification"
_PROBE = ("What is the question?", "This is the response.")


@dataclass(frozen=True)
class RewardFiles:
    """A reward model in local directories.

    Args:
        spec: the model and its adapters by directory.
        head: where the score comes from.
        config: the configuration of the model.
        remote_code: whether the model has code of its own.
    """

    spec: ModelSpec
    head: Head
    config: Any
    remote_code: bool = False

    @property
    def last(self) -> Path:
        """The directory that was trained last: of the last adapter, or of the model."""
        return Path((self.spec.model, *self.spec.adapters)[-1])

    @property
    def positions(self) -> int | None:
        """Maximum number of tokens of a conversation; None without a limit."""
        found = getattr(self.config.get_text_config(), "max_position_embeddings", None)
        return int(found) if found and int(found) > 0 else None


def reward_files(spec: ModelSpec, *, access: HubAccess) -> RewardFiles:
    """Return the files of a reward model, fetched if they are not in the cache.

    Args:
        spec: the reward model.
        access: access to the hub.

    Raises:
        SepoError: files are missing, or the model gives no score: it has no head, an untrained one, several outputs, or
            code that the recipe does not allow to run.
    """
    config = configuration(spec, key=KEY, access=access)
    local = local_spec(spec, key=KEY, access=access, need="reward")
    last = Path((local.model, *local.adapters)[-1])
    if (last / VALUE_HEAD).is_file():
        return RewardFiles(local, "value", config)
    name = (spec.model, *spec.adapters)[-1]
    if (last / _PICKLED_HEAD).is_file():
        raise SepoError(
            f"{KEY}: '{name}' has its value head in {_PICKLED_HEAD}, a pickle, which can run code when it is read; "
            f"expected {VALUE_HEAD}: train it again with save_safetensors: true."
        )
    classes = getattr(config, "auto_map", None) or {}
    if _AUTO_CLASS in classes:
        if not access.trust_remote_code:
            raise SepoError(
                f"{KEY}: '{spec.model}' has code of its own for its head ({classes[_AUTO_CLASS]}); read it, and set "
                "trust_remote_code: true to run it, or use a reward model of a class of transformers."
            )
        return RewardFiles(local, "classification", config, remote_code=True)
    if any(str(each).endswith("ForSequenceClassification") for each in config.architectures or ()):
        _check_outputs(config.num_labels, name=spec.model)
        return RewardFiles(local, "classification", config)
    if local.adapters and _task(last) == "SEQ_CLS":
        _check_outputs(_outputs_of_adapter(last, name=name), name=name)
        return RewardFiles(local, "classification_adapter", config)
    found = ", ".join(map(str, config.architectures or ())) or "no architecture"
    raise SepoError(
        f"{KEY}: '{spec.model}' is of the class {found}, which gives no score; expected a sequence classification "
        "model, or in judge_model_adapters an adapter with a trained head (its task is SEQ_CLS, or it has "
        f"{VALUE_HEAD} beside it, as LLaMA-Factory's stage rm saves it)."
    )


def reward_tokenizer(spec: ModelSpec, files: RewardFiles, *, access: HubAccess) -> Any:
    """Return the tokenizer of a reward model: that of its last adapter, if one is saved with it, or its own.

    Args:
        spec: the reward model as the recipe names it, for messages.
        files: its files.
        access: access to the hub.

    Raises:
        SepoError: it cannot be loaded, or its chat template is missing or does not write a conversation.
    """
    own = (files.last / "tokenizer_config.json").is_file()
    folder = files.last if own else Path(files.spec.model)
    name = (spec.model, *spec.adapters)[-1] if own else spec.model
    tokenizer = tokenizer_in(folder, name=name, key=KEY, access=access)
    if not getattr(tokenizer, "chat_template", None):
        raise SepoError(
            f"{KEY}: the tokenizer of '{name}' has no chat template, and what is judged are conversations; set "
            "tokenizer.chat_template to the template that the reward model was trained with, and save the tokenizer "
            "beside it (save_pretrained)."
        )
    question, response = _PROBE
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
    text = ChatRenderer(tokenizer, name=f"{KEY} '{name}'").text(turns, system="", tools="")
    missing = [each for each in _PROBE if each not in text]
    if missing:
        raise SepoError(
            f"{KEY}: the chat template of '{name}' writes {text!r} for a question and its response, without "
            f"{missing[0]!r}; set tokenizer.chat_template to the template that the reward model was trained with."
        )
    return tokenizer


def _check_outputs(outputs: int, *, name: str) -> None:
    if outputs != 1:
        raise SepoError(
            f"{KEY}: '{name}' has {outputs} outputs (num_labels), and which of them is the reward is not documented; "
            "expected one, or a class of its own whose output has a score."
        )


def _task(adapter: Path) -> str:
    try:
        return str(json.loads((adapter / ADAPTER).read_text(encoding="utf-8")).get("task_type"))
    except (OSError, ValueError) as error:
        raise SepoError(f"judge_model_adapters: {adapter / ADAPTER} cannot be read: {first_line(error)}") from error


def _outputs_of_adapter(adapter: Path, *, name: str) -> int:
    """Return the number of outputs of the head that a PEFT adapter holds.

    Raises:
        SepoError: it holds none, or its weights are no safetensors.
    """
    file = adapter / _ADAPTER_WEIGHTS
    if not file.is_file():
        raise SepoError(f"judge_model_adapters: '{name}' has no {_ADAPTER_WEIGHTS}; save it with safe_serialization.")
    with safe_open(file, framework="pt") as weights:
        heads = [key for key in weights.keys() if key.endswith((".score.weight", ".classifier.weight"))]  # noqa: SIM118
        if not heads:
            raise SepoError(
                f"judge_model_adapters: '{name}' holds no trained head (score.weight), so that scores would be random; "
                "train it with modules_to_save: [score]."
            )
        return int(weights.get_slice(heads[0]).get_shape()[0])
