"""K small Llama models at once: one tensor holds all of their parameters, one pass runs each on rows of its own.

A model of 85,000 parameters spends most of a step outside of its arithmetic, and transformers' modules more than that.
Here the parameters of K models are the rows of one tensor [K, P], matrix products are batched over the models, and what
a step does to parameters (clipping, AdamW) is a few operations on [K, P]. The model is transformers' LlamaForCausalLM,
to which a row can be written and from which it can be read; a test compares logits, losses and gradients.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM

from claims.world import END, START, VOCABULARY, Pairs


@dataclass(frozen=True)
class Shape:
    """Sizes of a model."""

    hidden: int = 64
    intermediate: int = 128
    layers: int = 2
    heads: int = 4
    positions: int = 64
    vocabulary: int = VOCABULARY

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            vocab_size=self.vocabulary, hidden_size=self.hidden, intermediate_size=self.intermediate,
            num_hidden_layers=self.layers, num_attention_heads=self.heads, num_key_value_heads=self.heads,
            max_position_embeddings=self.positions, bos_token_id=START, eos_token_id=END, pad_token_id=START,
        )  # fmt: skip

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter, by transformers' names, in the order of the stack."""
        hidden, wide = self.hidden, self.intermediate
        shapes = {"model.embed_tokens.weight": (self.vocabulary, hidden)}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}"
            shapes |= {f"{prefix}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
            shapes |= {f"{prefix}.mlp.{name}_proj.weight": (wide, hidden) for name in ("gate", "up")}
            shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, wide)
            shapes |= {f"{prefix}.{name}.weight": (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
        return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (self.vocabulary, hidden)}


def initial(shape: Shape, seeds: list[int]) -> Tensor:
    """Return the first parameters of a model of each seed, [K, P], as transformers draws them."""
    stack = []
    for seed in seeds:
        torch.manual_seed(seed)
        stack.append(flattened(shape, LlamaForCausalLM(shape.config())))
    return torch.stack(stack)


def flattened(shape: Shape, model: LlamaForCausalLM) -> Tensor:
    """Return the parameters of a model, [P]."""
    state = model.state_dict()
    return torch.cat([state[name].detach().flatten() for name in shape.layout()])


def unstacked(shape: Shape, parameters: Tensor) -> LlamaForCausalLM:
    """Return transformers' model with the parameters [P]."""
    model = LlamaForCausalLM(shape.config())
    model.get_input_embeddings().padding_idx = None  # the first token of every row, trained here as any other
    parts = parameters.split([math.prod(size) for size in shape.layout().values()])
    named = zip(shape.layout().items(), parts, strict=True)
    model.load_state_dict({name: part.view(size) for (name, size), part in named})
    return model.eval()


def _named(shape: Shape, parameters: Tensor) -> dict[str, Tensor]:
    """Return the parameters of all models by name, each [K, ...]."""
    parts = parameters.split([math.prod(size) for size in shape.layout().values()], 1)
    return {
        name: part.view(len(parameters), *size)
        for (name, size), part in zip(shape.layout().items(), parts, strict=True)
    }


@cache
def _rotations(shape: Shape) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of Llama's rotary embedding, [positions, head]; the sine of the first half negated."""
    frequencies = 10000.0 ** -(torch.arange(0, shape.head, 2, dtype=torch.float32) / shape.head)
    angles = torch.arange(shape.positions, dtype=torch.float32)[:, None] * frequencies
    return torch.cat([angles.cos(), angles.cos()], -1), torch.cat([-angles.sin(), angles.sin()], -1)


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    """Normalize x [K, N, H] by its root mean square; weight [K, H]."""
    return functional.rms_norm(x, x.shape[-1:], eps=1e-6) * weight[:, None]


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply x [K, N, H] by the transposed weight [K, E, H]."""
    return torch.bmm(x, weight.transpose(1, 2))


class Cache:
    """Keys and values of the tokens before, per layer; none at first."""

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, Tensor]] = {}

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        if layer in self.layers:
            before = self.layers[layer]
            keys, values = torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)
        self.layers[layer] = (keys, values)
        return keys, values


def forward(
    shape: Shape,
    parameters: Tensor,
    ids: Tensor,
    *,
    positions: Tensor,
    attends: Tensor | None,
    first: int = 0,
    cache: Cache | None = None,
) -> Tensor:
    """Return logits, [K, R, T - first, V], of rows of tokens.

    Args:
        shape: sizes of the models.
        parameters: [K, P].
        ids: int64 [K, R, T], rows of every model.
        positions: int64 [T], the position of each token in its sequence.
        attends: bool [T, T + cached], whether a token (row) reads another (column); None if it reads all.
        first: the tokens before this one have no logits.
        cache: keys and values of earlier tokens, extended here.
    """
    weights = _named(shape, parameters)
    models, rows, tokens = ids.shape
    picked = ids.reshape(models, -1, 1).expand(-1, -1, shape.hidden)
    x = weights["model.embed_tokens.weight"].gather(1, picked)
    cosine, sine = (part[positions] for part in _rotations(shape))

    def heads(values: Tensor, *, rotated: bool = False) -> Tensor:
        values = values.view(models * rows, -1, shape.heads, shape.head).transpose(1, 2)
        if not rotated:
            return values
        count = values.shape[2]
        return values * cosine[-count:] + values.roll(shape.head // 2, -1) * sine[-count:]

    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        inside = _norm(x, weights[f"{prefix}.input_layernorm.weight"])
        keys = heads(_linear(inside, weights[f"{prefix}.self_attn.k_proj.weight"]), rotated=True)
        values = heads(_linear(inside, weights[f"{prefix}.self_attn.v_proj.weight"]))
        if cache is not None:
            keys, values = cache.extend(layer, keys, values)
        if layer == shape.layers - 1 and first:  # the last layer's other outputs are not read
            inside, x = (part.view(models, rows, tokens, -1)[:, :, first:].flatten(1, 2) for part in (inside, x))
            attends = None if attends is None else attends[first:]
        queries = heads(_linear(inside, weights[f"{prefix}.self_attn.q_proj.weight"]), rotated=True)
        mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=attends)
        mixed = mixed.transpose(1, 2).reshape(models, -1, shape.hidden)
        x = x + _linear(mixed, weights[f"{prefix}.self_attn.o_proj.weight"])
        inside = _norm(x, weights[f"{prefix}.post_attention_layernorm.weight"])
        gate = functional.silu(_linear(inside, weights[f"{prefix}.mlp.gate_proj.weight"]))
        up = _linear(inside, weights[f"{prefix}.mlp.up_proj.weight"])
        x = x + _linear(gate * up, weights[f"{prefix}.mlp.down_proj.weight"])
    logits = _linear(_norm(x, weights["model.norm.weight"]), weights["lm_head.weight"])
    return logits.view(models, rows, -1, shape.vocabulary)


def sequence_log_probs(shape: Shape, parameters: Tensor, prompts: Tensor, responses: Tensor) -> Tensor:
    """Return log pi of the responses' tokens, [K, R, T], from prompts [K, R, P] and responses [K, R, T]."""
    ids = torch.cat([prompts, responses[..., :-1]], -1)
    count = ids.shape[-1]
    attends = torch.ones(count, count, dtype=torch.bool).tril()
    logits = forward(
        shape, parameters, ids, positions=torch.arange(count), attends=attends, first=prompts.shape[-1] - 1
    )
    return -functional.cross_entropy(logits.flatten(0, -2), responses.flatten(), reduction="none").view(responses.shape)


@cache
def _pair_layout(prompt: int, response: int) -> tuple[Tensor, Tensor]:
    """Return positions and attention of a row of a prompt and both responses, each without its last token.

    The prompt runs once; no token of a response reads the other response.
    """
    own = torch.arange(prompt, prompt + response - 1)
    positions = torch.cat([torch.arange(prompt), own, own])
    part = torch.cat([torch.zeros(prompt), torch.ones(response - 1), torch.full((response - 1,), 2.0)])
    earlier = positions[None] <= positions[:, None]
    return positions, earlier & ((part[None] == 0) | (part[None] == part[:, None]))


def pair_logits(shape: Shape, parameters: Tensor, prompts: Tensor, responses: Tensor) -> Tensor:
    """Return logits [K, N, 2, T, V] at the responses' tokens, from prompts [K, N, P] and responses [K, N, 2, T]."""
    prompt, response = prompts.shape[-1], responses.shape[-1]
    positions, attends = _pair_layout(prompt, response)
    ids = torch.cat([prompts, responses[..., :-1].flatten(-2)], -1)
    logits = forward(shape, parameters, ids, positions=positions, attends=attends, first=prompt - 1)
    start = logits[:, :, :1]
    sides = logits[:, :, 1:].split(response - 1, 2)
    return torch.stack([torch.cat([start, side], 2) for side in sides], 2)


def pair_log_probs(shape: Shape, parameters: Tensor, prompts: Tensor, responses: Tensor) -> Tensor:
    """Return log pi of the responses' tokens, [K, N, 2, T]; see ``pair_logits``."""
    logits = pair_logits(shape, parameters, prompts, responses)
    return -functional.cross_entropy(logits.flatten(0, -2), responses.flatten(), reduction="none").view(responses.shape)


@torch.no_grad()
def sampled(shape: Shape, parameters: Tensor, prompts: Tensor, chances: Tensor) -> Tensor:
    """Sample responses at temperature 1, [K, R, T], to prompts [K, R, P] by uniform numbers [K, R, T].

    The same numbers give the same response, whatever else is in the stack (inverse transform sampling).
    """
    count, cache, found = prompts.shape[-1], Cache(), []
    ids, positions = prompts, torch.arange(count)
    attends = torch.ones(count, count, dtype=torch.bool).tril()
    for step in range(chances.shape[-1]):
        logits = forward(
            shape, parameters, ids, positions=positions, attends=attends, first=len(positions) - 1, cache=cache
        )
        reached = logits[:, :, 0].double().softmax(-1).cumsum(-1) <= chances[..., step, None]
        ids = reached.sum(-1, keepdim=True).clamp(max=shape.vocabulary - 1)
        found.append(ids)
        positions, attends = torch.tensor([count + step]), None
    return torch.cat(found, -1)


def stacked_pairs(pairs: list[Pairs]) -> tuple[Tensor, Tensor]:
    """Return prompts [K, N, P] and responses [K, N, 2, T] of K models' pairs."""
    return torch.stack([each.prompts for each in pairs]), torch.stack([each.responses for each in pairs])
