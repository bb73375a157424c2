"""The dtype in which LLaMA-Factory's loader gives scoring models: its own, or that of ``infer_dtype``."""

import pytest
import torch
from llamafactory.hparams import ModelArguments

from sepo.hosts.llamafactory.credit import LlamaFactoryCredit
from sepo.hosts.llamafactory.scoring_models import cast_parameters, load_with_host
from sepo.recipe.model_specs import ModelSpec
from sepo.scoring.models import precision
from tests.support import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_model(tmp_path_factory.mktemp("model"), seed=0)


def dtypes(model):
    return {parameter.dtype for parameter in model.parameters()}


def test_infer_dtype_is_that_of_the_parameters(folder):
    spec = ModelSpec(str(folder))
    unchanged = load_with_host(ModelArguments(model_name_or_path=str(folder)), spec, [])
    assert dtypes(unchanged) == {torch.float32}
    found = load_with_host(ModelArguments(model_name_or_path=str(folder), infer_dtype="bfloat16"), spec, [])
    assert dtypes(found) == {torch.bfloat16}
    buffers = zip(unchanged.buffers(), found.buffers(), strict=True)
    assert all(one.dtype == other.dtype and torch.equal(one, other) for one, other in buffers)


def test_dtype_of_a_measurement_is_that_of_the_parameters(folder):
    spec = ModelSpec(str(folder))
    for dtype, expected in ((None, torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        host = LlamaFactoryCredit(("--oracle", spec), template=None, cutoff_len=64, dtype=dtype)
        assert dtypes(load_with_host(host.model_args, spec, [])) == {expected}


@pytest.mark.parametrize(("dtype", "kept"), [(torch.bfloat16, {"strict"}), (torch.float16, {"strict", "narrow"})])
def test_modules_that_a_class_keeps_in_float32_are_kept(dtype, kept):
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in ("strict", "narrow", "other")})
    model._keep_in_fp32_modules_strict = {"strict"}
    model._keep_in_fp32_modules = ["narrow"]
    cast_parameters(model, dtype)
    assert {name for name, module in model.items() if module.weight.dtype == torch.float32} == kept


def test_stores_of_other_dtypes_are_told_apart_and_those_without_the_key_are_found():
    found = {}
    for chosen in ("auto", "float32", "bfloat16"):
        arguments = ModelArguments(model_name_or_path="model", infer_dtype=chosen)
        arguments.compute_dtype = torch.bfloat16
        found[chosen] = precision(arguments)
    assert found["auto"] == {"compute_dtype": "bfloat16"}  # as stores were named before the key had an effect
    assert found["float32"] == {"compute_dtype": "bfloat16", "infer_dtype": "float32"}
    assert found["bfloat16"] == {"compute_dtype": "bfloat16", "infer_dtype": "bfloat16"}
