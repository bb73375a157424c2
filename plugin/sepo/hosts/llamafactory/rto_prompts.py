"""Prompts of a recipe of stage `rto`, in the tokens of the host's template, as the rows that TRL reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from datasets import Dataset

from sepo.errors import SepoError
from sepo.evaluation.prompts import ChatFormat
from sepo.evaluation.sampling import prompt_ids
from sepo.hosts.llamafactory.prompt_rows import ReadPrompts, dataset_prompts
from sepo.judges import find_judge
from sepo.online.prompts import prompt_row
from sepo.recipe.keys import as_flag, names_of
from sepo.recipe.resolve import is_set
from sepo.recipe.rto import RtoSettings
from sepo.training.row_losses import RowLosses


def prompt_sets(
    given: Mapping[str, Any], settings: RtoSettings, *, chat_format: ChatFormat, cutoff: int, losses: RowLosses
) -> dict[str, Any]:
    """Return the data sets of a run by the trainer's names, ``train_dataset`` and ``eval_dataset`` if there are any.

    Args:
        given: the recipe's keys and values.
        settings: the run's settings.
        chat_format: template and tokenizer of the policy.
        cutoff: maximum number of tokens of a prompt.
        losses: gets the numbers of rows that are left out.

    Raises:
        SepoError: the data cannot be read, or no prompt is left.
    """

    def rows(recipe: Mapping[str, Any], part: Literal["train", "eval"], name: str) -> Dataset:
        judge = find_judge(settings.rewards.judge, **settings.rewards.options) if settings.rewards.is_verifier else None
        read = dataset_prompts(recipe, judge=judge, column=settings.rewards.expected_column, losses=losses, part=part)
        return Dataset.from_list(
            _kept(read, settings, chat_format=chat_format, cutoff=cutoff, losses=losses, name=name)
        )

    found: dict[str, Any] = {"train_dataset": rows(given, "train", "train")} if names_of(given.get("dataset")) else {}
    evaluated = names_of(given.get("eval_dataset"))
    if evaluated:
        alone = {name: value for name, value in given.items() if name not in ("eval_dataset", "val_size")}
        each = {name: rows({**alone, "dataset": name}, "eval", "eval") for name in evaluated}
        apart = as_flag("eval_on_each_dataset", given.get("eval_on_each_dataset") or False)
        joined = Dataset.from_list([row for data in each.values() for row in data])
        found["eval_dataset"] = each if apart else joined
    elif is_set(given.get("val_size")):
        found["eval_dataset"] = rows(given, "eval", "eval")
    return found


def _kept(
    read: ReadPrompts, settings: RtoSettings, *, chat_format: ChatFormat, cutoff: int, losses: RowLosses, name: str
) -> list[dict[str, Any]]:
    """Return the rows of the prompts that can be judged and leave room for a response."""
    losses.add(name, "skipped", "an earlier row has the same prompt", read.rows - len(read.prompts))
    found, longest = [], 0
    new = settings.rto.max_new_tokens
    for prompt in read.prompts:
        begins = prompt.messages[0]["content"]
        ids = prompt_ids(prompt, chat_format)
        longest = max(longest, len(ids))
        if settings.rewards.is_verifier and prompt.expected is None:
            column = settings.rewards.expected_column
            losses.add(name, "skipped", f"the column {column} has no expected answer", 1, example=begins)
        elif len(ids) > cutoff:
            losses.add(name, "skipped", f"the prompt exceeds cutoff_len: {cutoff}", 1, example=begins)
        elif chat_format.positions is not None and len(ids) + new > chat_format.positions:
            reason = f"prompt and rto_max_new_tokens: {new} exceed the model's {chat_format.positions} positions"
            losses.add(name, "skipped", reason, 1, example=begins)
        else:
            found.append(
                prompt_row(
                    ids, messages=prompt.messages, system=prompt.system, tools=prompt.tools, expected=prompt.expected
                )
            )
    if not found:
        raise SepoError(
            f"no prompt of {read.source} is left of {len(read.prompts):,}: a prompt may have at most cutoff_len "
            f"({cutoff}) tokens, of which the longest has {longest}, needs room for rto_max_new_tokens ({new})"
            + (" and an expected answer." if settings.rewards.is_verifier else ".")
        )
    return found
