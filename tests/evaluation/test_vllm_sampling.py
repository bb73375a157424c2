"""Sampling with vLLM, with a stand-in module that records what it is given: vLLM needs a GPU."""

import importlib.machinery
import sys
import types

import pytest
import torch

from sepo.evaluation import vllm_sampling
from sepo.evaluation.generation import Decoding, Generated
from sepo.evaluation.prompts import ChatFormat
from sepo.evaluation.vllm_sampling import VllmSampler, VllmSettings, why_not_vllm
from sepo.recipe.model_specs import ModelSpec

SETTINGS = VllmSettings("bfloat16", 96, 0.8, False, 32, False, {"tensor_parallel_size": 2})
CHAT_FORMAT = ChatFormat(encode=lambda *_: [], decode=str, stop_ids=(9, 7), pad_id=0)


class Parameters(types.SimpleNamespace):
    pass


@pytest.fixture
def engine(monkeypatch):
    """Install a stand-in of vLLM; its engine returns the outputs that a test sets."""
    made = types.SimpleNamespace(arguments=None, calls=[], outputs=[])

    class LLM:
        def __init__(self, **arguments):
            made.arguments = arguments

        def generate(self, prompts, sampling_params, *, use_tqdm, lora_request):
            made.calls.append((prompts, sampling_params, use_tqdm, lora_request))
            return [types.SimpleNamespace(outputs=[types.SimpleNamespace(**each)]) for each in made.outputs]

    modules = {name: types.ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request")}
    modules["vllm"].LLM, modules["vllm"].SamplingParams = LLM, Parameters
    modules["vllm.lora.request"].LoRARequest = lambda name, number, path: (name, number, path)
    for name, module in modules.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    return made


def output(ids, finish="stop", stop=None):
    return {"token_ids": ids, "finish_reason": finish, "stop_reason": stop}


def test_prompts_parameters_and_results(engine):
    engine.outputs = [output((3, 4, 9)), output((3, 4, 5), "length"), output((3,), stop=7), output((7,))]
    sampler = VllmSampler(ModelSpec("/m", ("/a",)), SETTINGS, CHAT_FORMAT, Decoding(5, 0.8, seed=3, top_p=0.9))
    samples = [([1, 2], 0), ([1, 2], 1), ([1], 0), ((1, 2), 0)]
    assert sampler(samples) == [
        Generated((3, 4, 9), True), Generated((3, 4, 5), False), Generated((3, 7), True), Generated((7,), True),
    ]  # fmt: skip
    assert engine.arguments == {
        "model": "/m", "dtype": "bfloat16", "max_model_len": 96, "gpu_memory_utilization": 0.8, "enforce_eager": False,
        "trust_remote_code": False, "enable_lora": True, "max_lora_rank": 32, "tensor_parallel_size": 2,
    }  # fmt: skip
    ((prompts, parameters, bar, adapter),) = engine.calls
    assert prompts == [{"prompt_token_ids": list(ids)} for ids, _ in samples]
    assert (bar, adapter) == (False, ("policy", 1, "/a"))
    seeds = [each.seed for each in parameters]
    assert seeds[0] == seeds[3]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert parameters[0] == Parameters(
        temperature=0.8, top_p=0.9, max_tokens=5, seed=seeds[0], stop_token_ids=[7, 9], ignore_eos=True,
        detokenize=False,
    )  # fmt: skip


def test_the_seeds_are_those_of_transformers(engine, monkeypatch):
    from sepo.evaluation import generation
    from sepo.evaluation.sampling import stream_of

    engine.outputs = [output((9,))]
    decoding = Decoding(5, 0.8, seed=3)
    VllmSampler(ModelSpec("/m"), SETTINGS, CHAT_FORMAT, decoding)([([1, 2], 4)])
    (given,) = engine.calls[0][1]
    noise = generation._Noise(decoding, 0, [(*stream_of([1, 2]), 4)])
    assert noise._generators[0].initial_seed() == given.seed
    assert engine.calls[0][3] is None
    assert "max_lora_rank" not in engine.arguments


def test_where_vllm_is_used(engine, monkeypatch):
    assert why_not_vllm(ModelSpec("m"), processes=1) == "there is no CUDA GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert why_not_vllm(ModelSpec("m", ("a",)), processes=1) is None
    assert "under torchrun" in why_not_vllm(ModelSpec("m"), processes=2)
    assert "applies one adapter, and there are 2" in why_not_vllm(ModelSpec("m", ("a", "b")), processes=1)
    assert "quantization_bit is set" in why_not_vllm(ModelSpec("m", (), 4), processes=1)
    monkeypatch.setattr(vllm_sampling.importlib.util, "find_spec", lambda name: None)
    assert why_not_vllm(ModelSpec("m"), processes=1) == "vLLM is not installed"
