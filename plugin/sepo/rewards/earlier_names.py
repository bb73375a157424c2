"""Names of earlier releases of transformers that the code of published reward models imports."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

_DOCSTRINGS = ("INPUTS_DOCSTRING", "START_DOCSTRING")


@contextlib.contextmanager
def earlier_docstrings(config: Any) -> Iterator[None]:
    """Provide the docstrings of a model type that transformers removed, inside the context.

    Code of published models is written against the release of its time: ArmoRM's imports ``LLAMA_INPUTS_DOCSTRING`` for
    the documentation of its forward, and nothing else of it has changed. Names that exist stay as they are.

    Args:
        config: the configuration of the model, of a class of transformers.
    """
    name = type(config).__module__.replace(".configuration_", ".modeling_")
    module = importlib.import_module(name)
    names = [f"{config.model_type.upper().replace('-', '_')}_{each}" for each in _DOCSTRINGS]
    added = [each for each in names if not hasattr(module, each)]
    for each in added:
        setattr(module, each, "")
    try:
        yield
    finally:
        for each in added:
            delattr(module, each)
