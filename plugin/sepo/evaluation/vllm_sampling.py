"""Sampling with vLLM (https://docs.vllm.ai), where it is installed and a CUDA GPU is there.

Its kernels round differently from batch to batch, so a sample is not reproducible to the byte.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from sepo.evaluation.generation import Decoding, Generated, ended, stream_seed
from sepo.evaluation.prompts import ChatFormat
from sepo.evaluation.sampling import stream_of
from sepo.recipe.model_specs import ModelSpec

UNITS_AT_ONCE = 32
"""Batches of the budget that vLLM, which forms its own, is given at a time."""


@dataclass(frozen=True)
class VllmSettings:
    """Settings of vLLM's ``LLM``.

    Args:
        dtype: dtype of the weights, or ``auto``.
        max_model_len: maximum tokens of a prompt with its response.
        gpu_memory_utilization: share of the GPU's memory that is used.
        enforce_eager: whether no CUDA graphs are captured.
        max_lora_rank: largest rank of an adapter.
        trust_remote_code: whether code of the model's repository may run.
        more: further arguments.
    """

    dtype: str
    max_model_len: int
    gpu_memory_utilization: float
    enforce_eager: bool
    max_lora_rank: int
    trust_remote_code: bool
    more: Mapping[str, Any] = field(default_factory=dict)


def why_not_vllm(spec: ModelSpec, *, processes: int) -> str | None:
    """Return why a model cannot be sampled with vLLM here, or None if it can.

    Args:
        spec: the model.
        processes: number of processes of torchrun, each of which vLLM would take for one of its own.
    """
    if importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed"
    if not torch.cuda.is_available():
        return "there is no CUDA GPU"
    if processes > 1:
        return "vLLM does not run under torchrun; start one process for each GPU, with CUDA_VISIBLE_DEVICES"
    if len(spec.adapters) > 1:
        return f"vLLM applies one adapter, and there are {len(spec.adapters)}; merge all but the last"
    if spec.quantization_bit is not None:
        return "quantization_bit is set, which is applied when transformers loads a model"
    return None


class VllmSampler:
    """Sampler of responses with vLLM.

    Args:
        spec: the model, a local directory with at most one adapter.
        settings: settings of the engine.
        chat_format: template and tokenizer of the policy.
        decoding: settings for decoding.
    """

    def __init__(self, spec: ModelSpec, settings: VllmSettings, chat_format: ChatFormat, decoding: Decoding) -> None:
        import vllm
        from vllm.lora.request import LoRARequest

        self._chat_format, self._decoding, self._parameters = chat_format, decoding, vllm.SamplingParams
        self._adapter = LoRARequest("policy", 1, spec.adapters[0]) if spec.adapters else None
        arguments: dict[str, Any] = {
            "dtype": settings.dtype,
            "max_model_len": settings.max_model_len,
            "gpu_memory_utilization": settings.gpu_memory_utilization,
            "enforce_eager": settings.enforce_eager,
            "trust_remote_code": settings.trust_remote_code,
            "enable_lora": bool(spec.adapters),
            **({"max_lora_rank": settings.max_lora_rank} if spec.adapters else {}),
            **settings.more,
        }
        self._engine = vllm.LLM(model=spec.model, **arguments)

    def __call__(self, samples: Sequence[tuple[Sequence[int], int]]) -> list[Generated]:
        """Sample responses, each with a seed of its own.

        Args:
            samples: token ids of a prompt and number of the sample.

        Returns:
            The responses, in the order of ``samples``.
        """
        stop_ids = sorted(self._chat_format.stop_ids)
        parameters = [
            self._parameters(
                temperature=self._decoding.temperature,
                top_p=self._decoding.top_p,
                max_tokens=self._decoding.max_new_tokens,
                seed=stream_seed(self._decoding, (*stream_of(ids), number)),
                stop_token_ids=stop_ids,
                ignore_eos=True,  # the template's stop tokens alone end a response, as with transformers
                detokenize=False,
            )
            for ids, number in samples
        ]
        prompts = [{"prompt_token_ids": list(ids)} for ids, _ in samples]
        found = self._engine.generate(prompts, parameters, use_tqdm=False, lora_request=self._adapter)
        return [self._generated(each.outputs[0]) for each in found]

    def _generated(self, output: Any) -> Generated:
        ids = list(output.token_ids)
        if output.finish_reason == "stop" and not set(ids) & set(self._chat_format.stop_ids):
            ids.append(output.stop_reason)  # the token that stopped it
        return ended(ids, frozenset(self._chat_format.stop_ids))
