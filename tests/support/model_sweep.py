"""What becomes of every model type that transformers can load as a causal language model, and the page with the list.

``python -m tests.support.model_sweep`` writes docs/models.md.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM
from transformers.models.auto.auto_factory import _get_model_class
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sepo.errors import SepoError
from sepo.forward import sharing_support
from sepo.forward.head import causal_lm
from sepo.forward.sharing_support import batch_layout, layout_for
from tests.support.models import PAIRS, batch_of, values_and_gradients
from tests.support.tiny_configs import tiny_config

PAGE = Path(__file__).parents[2] / "docs" / "models.md"

TYPES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))

MORE_INPUTS = {"gemma3": ("token_type_ids",)}
"""Inputs besides the tokens that a type requires, and that hosts add to batches of text."""

UNREACHED: dict[str, tuple[type[Exception], str]] = {
    "gemma3n": (ImportError, "its tower for images needs the package timm, which is not installed"),
    "gemma4_assistant": (Exception, "it drafts for another model and reads that model's keys and values"),
    "gemma4_unified_assistant": (Exception, "it drafts for another model and reads that model's keys and values"),
    "musicgen": (Exception, "it models codes of audio: its config is not valid without an encoder of audio"),
    "musicgen_melody": (Exception, "it models codes of audio: its config is not valid without an encoder of audio"),
}
"""Types of which no tiny model can be made here: the error when one is, and the cause."""

ONCE, TWICE, REFUSED, NOT_REACHED = "once", "twice", "refused", "not tested"


@dataclass(frozen=True)
class Outcome:
    """What becomes of a model type.

    Args:
        prompts: how often the prompt of a pair is computed, or ``REFUSED`` or ``NOT_REACHED``.
        reason: why not once.
    """

    prompts: str
    reason: str = ""


def tiny_model(model_type: str, **settings: Any) -> nn.Module:
    """Return a tiny model of a type in training mode, whose norms and biases are not trivial."""
    config = tiny_config(model_type)
    model_class = _get_model_class(config, AutoModelForCausalLM._model_mapping)
    if model_class.config_class == config.sub_configs.get("text_config"):  # as `from_pretrained` does
        config = config.get_text_config()
    torch.manual_seed(0)
    model = model_class._from_config(config, **settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.train()


Result = tuple[Tensor, dict[str, Tensor]]


def from_full_logits(model: nn.Module, inputs: Mapping[str, Any], wanted: Tensor) -> Result:
    """Return what ``values_and_gradients`` does, from the logits of the model itself."""
    model.zero_grad()
    logits = model(**inputs, use_cache=False, return_dict=True).logits[:, :-1]
    logps = logits.log_softmax(-1).gather(-1, inputs["input_ids"][:, 1:, None]).squeeze(-1).where(wanted, 0.0)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(1)).to(logps)
    (logps * weights).sum().backward()
    return logps.detach(), {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }


def assert_equal(actual: Result, expected: Result) -> None:
    """Compare log-probabilities to 1e-5 and gradients of all parameters to 1e-4, relative to the largest one."""
    (values, gradients), (expected_values, expected_gradients) = actual, expected
    largest = expected_values.abs().max().item()
    torch.testing.assert_close(values, expected_values, rtol=1e-5, atol=1e-5 * largest)
    assert gradients.keys() == expected_gradients.keys()
    largest = max(gradient.abs().max().item() for gradient in expected_gradients.values())
    assert 0 < largest < float("inf")
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-4, atol=1e-4 * largest)


def outcome_of(model_type: str) -> Outcome:
    """Run the tiny model of a type by every path that sepo has for it, and compare it with the model's own logits.

    Raises:
        AssertionError: if the numbers are not equal.
    """
    error, cause = UNREACHED.get(model_type, ((), ""))
    try:
        model = tiny_model(model_type)
        outcome = _outcome(model, model_type)
    except error:
        return Outcome(NOT_REACHED, cause)
    if outcome.prompts == ONCE and model.config._attn_implementation != "sepo_eager":
        assert _outcome(tiny_model(model_type, attn_implementation="eager"), model_type) == outcome
    return outcome


def _outcome(model: Any, model_type: str) -> Outcome:
    inputs, wanted = batch_of(PAIRS)
    inputs |= {name: torch.zeros_like(inputs["input_ids"]) for name in MORE_INPUTS.get(model_type, ())}
    try:
        padded = values_and_gradients(model, inputs, wanted)
    except SepoError as error:
        return Outcome(REFUSED, str(error))
    assert_equal(padded, from_full_logits(model, inputs, wanted))
    tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    layout = layout_for(model, tokens, batch_layout(tokens, wanted))
    if layout is None:
        reason = str(sharing_support._REFUSALS[causal_lm(model)])
        return Outcome(TWICE, re.sub(r" \(difference .*\)", "", reason))
    assert_equal(values_and_gradients(model, inputs, wanted, layout), padded)
    return Outcome(ONCE)


_HEAD = """# Models

What becomes of every model type that transformers {version} loads as a causal language model (`model_type` in the
`config.json` of a model). A tiny model of each was run by sepo's forward pass, and its log-probabilities and gradients
compared with those from the logits of the model itself, in float32: {counts}.

- **once**: a pair's prompt is computed once for both responses, and padding not at all.
- **twice**: pairs run as a padded batch, as in other trainers; the same numbers, more tokens. The reason is logged at
  the start of a run.
- **refused**: the run ends with this message before its first step.

Models with code of their own are checked in the same way on the first batch of a run. The list is that of the default
config of a type: a setting such as `attention_chunk_size`, or inputs besides text, can make a model run padded.
This page is written by `make docs`.

"""

_COLUMNS = "| `model_type` | class | prompts | reason |\n|---|---|---|---|\n"
_ROW = re.compile(r"^\| `(?P<type>[^`]+)` \| `[^`]+` \| (?P<prompts>[a-z ]+) \| (?P<reason>.*) \|$", re.MULTILINE)


def page(outcomes: Mapping[str, Outcome]) -> str:
    """Return the text of docs/models.md."""
    numbers = Counter(outcome.prompts for outcome in outcomes.values())
    order = (ONCE, TWICE, REFUSED, NOT_REACHED)
    counts = ", ".join(f"{numbers[prompts]} {prompts}" for prompts in order if numbers[prompts])
    rows = [
        f"| `{name}` | `{MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name]}` | {outcome.prompts} | {outcome.reason} |\n"
        for name, outcome in sorted(outcomes.items())
    ]
    return _HEAD.format(version=transformers.__version__, counts=counts) + _COLUMNS + "".join(rows)


def recorded() -> tuple[str, dict[str, Outcome]]:
    """Return the version of transformers of the page, and its outcomes."""
    text = PAGE.read_text(encoding="utf-8")
    version = re.search(r"transformers ([\d.]+)", text)
    assert version is not None
    return version[1], {row["type"]: Outcome(row["prompts"], row["reason"]) for row in _ROW.finditer(text)}


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    PAGE.write_text(page({model_type: outcome_of(model_type) for model_type in TYPES}), encoding="utf-8")
    print(f"written: {PAGE}")
