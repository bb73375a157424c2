"""Keys of sepo's stages, with their defaults, in LLaMA Board's box for extra arguments, updated with the stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sepo.objectives import Method
from sepo.recipe.keys import SEPO_KEYS, hyperparameter_keys, keys_of, typed
from sepo.recipe.resolve import resolved_method
from sepo.recipe.stage_names import STAGES, is_sepo_stage
from sepo.recipe.stages import owner_of_key, registered_keys, with_stage_defaults


def stage_keys(stage: str) -> dict[str, Any]:
    """Return the keys of a stage with their defaults; None marks a value that the user must give.

    Args:
        stage: one of sepo's stages, or a registered one.

    Returns:
        Recipe keys and values, the oracle's first.

    Raises:
        SepoError: the registered stage cannot be used.
    """
    given = with_stage_defaults({"stage": stage})
    objective = str(given["objective"])
    own_keys = registered_keys(given)
    arguments = typed({name: given[name] for name in SEPO_KEYS if name in given})
    method, *_ = resolved_method(stage, arguments, given, own_keys=own_keys)
    keys: dict[str, Any] = {}
    if method.scorer == "oracle":
        keys |= dict.fromkeys(keys_of("oracle"))
    if method.needs_reference:
        keys["ref_model"] = None
    settings = method.hyperparameters
    keys |= {key: settings[name] for key, name in hyperparameter_keys(objective).items() if name in settings}
    keys |= {key: settings.get(name, declared.default) for key, (name, declared) in own_keys.items()}
    return {**keys, **_selection(method), **_token_rewards(method), "pref_ftx": 0.0}


def _selection(method: Method) -> dict[str, Any]:
    selector = method.selector
    if selector is None or not selector.reads_ratios:
        return {}
    if selector.chosen_ratio == selector.rejected_ratio:
        return {"select_ratio": selector.chosen_ratio}
    return {"chosen_select_ratio": selector.chosen_ratio, "rejected_select_ratio": selector.rejected_ratio}


def _token_rewards(method: Method) -> dict[str, Any]:
    if not method.needs_token_rewards:
        return {}
    settings = method.hyperparameters
    names = {"treg_alpha": "alpha", "treg_weighting": "weighting"} if "weighting" in settings else {}
    return {**{key: settings[name] for key, name in names.items()}, "treg_eval_model": None}


@dataclass(frozen=True)
class Memory:
    """State of sepo's keys for one visitor of the board.

    Attributes:
        shown: keys and values that were last written into the box.
        kept: values that the visitor changed, also for keys that the selected stage does not have.
    """

    shown: Mapping[str, Any] = field(default_factory=dict)
    kept: Mapping[str, Any] = field(default_factory=dict)


def with_keys_of(stage: str, text: str, memory: Memory) -> tuple[str, Memory]:
    """Return the text of the box after another stage was selected.

    Defaults of the previous stage are replaced by those of the selected one. Values that the visitor changed or added
    are kept, also while a stage without these keys is selected; keys that are not sepo's stay in the box.

    Args:
        stage: the selected stage, sepo's or the host's.
        text: the content of the box.
        memory: the state from the last call.

    Returns:
        The new text and state; both unchanged if the text is not a JSON object, which the board reports when the run
        is started.

    Raises:
        SepoError: the registered stage cannot be used.
    """
    try:
        values = json.loads(text)
    except ValueError:
        return text, memory
    if not isinstance(values, dict):
        return text, memory
    kept, rest = dict(memory.kept), {}
    for key, value in values.items():
        if key not in memory.shown and not _is_sepo_key(key):
            rest[key] = value
        elif key not in memory.shown or value != memory.shown[key]:
            kept[key] = value
    if not is_sepo_stage(stage):
        return (text if rest == values else _as_text(rest)), Memory(kept=kept)
    defaults = stage_keys(stage)
    elsewhere = {key for other in STAGES for key in stage_keys(other)}
    added = {key: value for key, value in kept.items() if _is_sepo_key(key) and key not in elsewhere | set(defaults)}
    shown = {**{key: kept.get(key, value) for key, value in defaults.items() if key not in rest}, **added}
    return _as_text({**rest, **shown}), Memory(shown, kept)


def _is_sepo_key(key: str) -> bool:
    return key in SEPO_KEYS or owner_of_key(key) is not None


def _as_text(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, indent=2 if len(values) > 1 else None)
