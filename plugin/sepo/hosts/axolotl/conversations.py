"""Conversations for T-REG's prompts: kept beside the rendered rows, and rendered with the run's chat template."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sepo.errors import SepoError
from sepo.text.conversations import CONVERSATION


class ChatTemplate:
    """The run's chat template, as T-REG's prompts call a host's.

    Args:
        cfg: Axolotl's config.
        tokenizer: the policy's.
    """

    def __init__(self, cfg: Any, tokenizer: Any) -> None:
        self._cfg, self._own = cfg, tokenizer
        self._text: str | None = None

    def encode_oneturn(self, tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> tuple[list[int], list[int]]:
        """A question, up to where its answer begins, as token ids; the answer is not encoded.

        Args:
            tokenizer: the policy's.
            messages: the user's turn and the assistant's.
        """
        if self._text is None:
            from axolotl.utils.chat_templates import get_chat_template_from_config

            self._text = get_chat_template_from_config(self._cfg, tokenizer=self._own)
        prompt = tokenizer.apply_chat_template(
            [dict(messages[0])], chat_template=self._text, add_generation_prompt=True, tokenize=False
        )
        ids = list(tokenizer(prompt)["input_ids"])
        twice = tokenizer.bos_token_id is not None and ids[:2] == [tokenizer.bos_token_id] * 2
        return (ids[1:] if twice else ids), []


def check_types(datasets: Iterable[Any], reader: tuple[str, str]) -> None:
    """Refuse data sets whose rows are rendered from something else than a conversation.

    Args:
        datasets: the config's entries.
        reader: who needs the conversation, ``QUOTED`` or ``READ``, and what to do instead.

    Raises:
        SepoError: names the type.
    """
    for item in datasets:
        kind = item.get("type") if isinstance(item, Mapping) else None
        if not is_conversation(kind):
            raise SepoError(
                f"a data set has the type {kind}, and {reader[0]} the conversation, which only "
                f"chat_template.default and chat_template.argilla_chat leave recognizable; use one of them, or "
                f"{reader[1].removesuffix(', or text data')}."
            )


def is_conversation(kind: Any) -> bool:
    """Whether rows of a data set's type are conversations."""
    return str(kind).startswith("chat_template")


@contextlib.contextmanager
def conversations_kept(cfg: Any, reader: tuple[str, str] | None, *, where_possible: bool = False) -> Iterator[None]:
    """While Axolotl loads its pairs, keep each row's conversation in the column ``CONVERSATION``.

    Args:
        cfg: Axolotl's config.
        reader: who needs it, ``QUOTED`` or ``READ``; None where nobody does.
        where_possible: keep it all the same in rows of conversations, where the user's spans may have to be placed.

    Raises:
        SepoError: a data set has no conversations, and there is a reader.
    """
    if reader is None and not where_possible:
        yield
        return
    if reader is not None:
        check_types([*(cfg.datasets or []), *(cfg.test_datasets or [])], reader)
    from axolotl.utils.data import rl

    load, digest = rl.load_dpo, rl.generate_dataset_hash_from_config
    rl.load_dpo = lambda kind, cfg, dataset_idx=0: _keeping(
        load(kind, cfg, dataset_idx=dataset_idx), kind, cfg, dataset_idx
    )
    # Prepared rows without conversations lie under the host's own name.
    rl.generate_dataset_hash_from_config = lambda *args, **kwargs: f"{digest(*args, **kwargs)}-conversations"
    try:
        yield
    finally:
        rl.load_dpo, rl.generate_dataset_hash_from_config = load, digest


def _keeping(loaded: Any, kind: str, cfg: Any, index: int) -> Any:
    """What a strategy of Axolotl's returns, with its function wrapped where its rows are conversations."""
    if loaded is None or not is_conversation(kind):
        return loaded
    function, more = loaded if isinstance(loaded, tuple) else (loaded, {})
    reads: Callable[[Mapping[str, Any]], dict[str, Any]] = functools.partial(
        conversation, rows=cfg["datasets"][index], whole=kind.endswith("argilla_chat")
    )

    def transform(sample: Mapping[str, Any], tokenizer: Any = None) -> dict[str, Any]:
        kept = json.dumps(reads(sample), ensure_ascii=False)
        return {**function(sample, tokenizer=tokenizer), CONVERSATION: kept}

    return transform, more


def conversation(sample: Mapping[str, Any], *, rows: Mapping[str, Any], whole: bool) -> dict[str, Any]:
    """The conversation of a row as it was before it was rendered.

    Args:
        sample: the row.
        rows: the data set's entry in the config: names of fields, roles and properties.
        whole: whether both answers are whole conversations (``argilla_chat``).

    Returns:
        ``messages`` (the prompt's turns), ``answers`` (chosen, rejected), ``system`` and ``tools``.
    """
    names = rows.get("message_property_mappings") or {"role": "role", "content": "content"}
    roles = {old: new for new, olds in (rows.get("roles") or {}).items() for old in olds}

    def turn(message: Any, role: str) -> dict[str, str]:
        if isinstance(message, str):
            return {"role": role, "content": message}
        said = message[names["role"]]
        return {"role": roles.get(said, said), "content": message[names["content"]]}

    answers = [sample[rows.get(f"field_{side}") or side] for side in ("chosen", "rejected")]
    asked = answers[0][:-1] if whole else sample[rows.get("field_messages") or "messages"]
    turns = [turn(asked, "user")] if isinstance(asked, str) else [turn(message, "user") for message in asked]
    system = [message["content"] for message in turns if message["role"] == "system"]
    ends = [answer[-1] if isinstance(answer, list) else answer for answer in answers]
    return {
        "messages": [message for message in turns if message["role"] != "system"],
        "answers": [turn(answer, "assistant")["content"] for answer in ends],
        "system": "\n".join(system),
        "tools": "",
    }
