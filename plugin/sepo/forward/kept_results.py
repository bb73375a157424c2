"""Results that checkpointed layers keep from the forward pass for the recomputation, within a number of bytes.

Recomputing a layer for its backward pass repeats its matrix products and its attention. Their results are kept where
they save the most arithmetic per byte, as in selective recomputation (arXiv 2205.05198, section 5), and are released
one by one when the recomputation has read them. Values and gradients are the same to the last bit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sepo.forward.chunked import default_chunk_tokens

_LOGIT_BYTES = 4
_OF_LOGITS = 0.87
"""Size of a step's tensors by that of the float32 logits of its padded batch, up to which results are kept."""
_SAVED = 0.7
"""Estimated size of the tensors that a layer saves for its backward pass by that of all that its forward creates. The
backward pass needs at most as much as the latter (0.8 in Llama)."""
_OF_FREE = 0.5
"""Share of the free memory that kept results may use: an allocator cannot use all, and others may need some."""
_MEASURED_AGAIN = 1.25
"""Growth of the number of tokens at which the costs of a layer are measured again."""

Compute = Callable[[], tuple[Tensor, ...]]


def kept_or_computed(key: Hashable, flops: float, compute: Compute) -> tuple[Tensor, ...]:
    """Return new tensors from ``compute``, or, in the recomputation of a layer, the ones that its forward kept.

    For the forward of an ``autograd.Function`` without random numbers, whose outputs nothing changes in place: autograd
    refuses it for a view (the products), and the outputs of attention are copied together.

    Args:
        key: the computation, equal in the forward pass, the recomputation and other batches.
        flops: estimated arithmetic.
        compute: the computation.
    """
    current = _CURRENT.get()
    return compute() if current is None else current.results(key, flops, compute)


def may_be_kept() -> bool:
    """Return whether this is the forward pass or the recomputation of a layer that may keep results."""
    return _CURRENT.get() is not None


@dataclass
class _Cost:
    bytes_per_token: float = 0.0
    flops_per_token: float = 0.0


@dataclass
class LayerCosts:
    """The measured costs of a layer, and its choice for a forward pass.

    Attributes:
        created: bytes per token of all tensors that the forward creates.
        results: costs of the results that can be kept, by key.
        repeated: keys of the results that a recomputation has read; the last product of a layer is not repeated.
        chosen: keys of the results to keep in this pass.
        tokens: number of tokens at the measurement; 0 before it.
    """

    created: float = 0.0
    results: dict[Hashable, _Cost] = field(default_factory=dict)
    repeated: set[Hashable] = field(default_factory=set)
    chosen: set[Hashable] = field(default_factory=set)
    tokens: int = 0


class ResultBudget:
    """The bytes that the checkpointed layers of a model may keep.

    Args:
        vocabulary: number of logits per token.

    Attributes:
        limit: maximum number of bytes of kept results. None for as many as leave the tensors of the step below the
            size of the float32 logits of the largest padded batch so far, of which a DPO step that computes logits has
            several; and at most half of the free memory that the step does not need itself.
        allowed: maximum in the current forward pass.
        now: bytes that are kept.
    """

    def __init__(self, *, vocabulary: int) -> None:
        self.vocabulary = vocabulary
        self.limit: int | None = None
        self.allowed = self.now = 0
        self._layers: WeakKeyDictionary[nn.Module, LayerCosts] = WeakKeyDictionary()
        self._largest = 0

    def costs_of(self, layer: nn.Module) -> LayerCosts:
        """Return the costs of a layer; layers are added in the order of their execution."""
        return self._layers.setdefault(layer, LayerCosts())

    @property
    def layers(self) -> list[LayerCosts]:
        """The costs of the layers, in order."""
        return list(self._layers.values())

    def choose(self, states: Tensor, *, padded_tokens: int, head_tokens: int) -> None:
        """Choose what all layers keep in the forward pass that starts.

        Args:
            states: [..., H] hidden states before the first layer.
            padded_tokens: number of tokens of the padded batch.
            head_tokens: number of tokens that go through the head.
        """
        self._largest = max(self._largest, padded_tokens)
        tokens, layers = states.shape[:-1].numel(), self.layers
        self.allowed = self._automatic(states, layers, head_tokens) if self.limit is None else self.limit
        left = float(self.allowed - self.now)
        options: list[tuple[float, int, float, Hashable]] = []
        for place, layer in enumerate(layers):
            layer.chosen.clear()
            for key, cost in layer.results.items():
                if key in layer.repeated:
                    # of equal ones those of the last layers, which are released first
                    options.append((cost.flops_per_token / cost.bytes_per_token, place, cost.bytes_per_token, key))
        for _, place, bytes_per_token, key in sorted(options, key=lambda option: option[:3], reverse=True):
            size = bytes_per_token * tokens
            if size <= left:
                left -= size
                layers[place].chosen.add(key)

    def _automatic(self, states: Tensor, layers: list[LayerCosts], head_tokens: int) -> int:
        if not all(layer.tokens for layer in layers):
            return 0  # nothing is measured
        # Besides the input of every layer: in the backward pass of a layer its activations and their gradients; in that
        # of the head the logits of a chunk and the activations of the last layer.
        created = states.shape[:-1].numel() * max(layer.created for layer in layers)
        logits = min(head_tokens, default_chunk_tokens(self.vocabulary)) * self.vocabulary * _LOGIT_BYTES
        needed = len(layers) * states.nbytes + max(created, _SAVED * created + logits)
        free = _OF_FREE * (free_bytes(states.device) - needed)
        return max(0, int(min(step_limit(self._largest, self.vocabulary) - needed, free)))

    def contexts(self, layer: LayerCosts, states: Tensor) -> tuple[_Pass, _Pass]:
        """Return the contexts of a layer's forward pass and of its recomputation, for torch's ``checkpoint``."""
        tokens, kept = states.shape[:-1].numel(), _Kept(self)
        measured = tokens > _MEASURED_AGAIN * layer.tokens
        forward = _MeasuredPass(layer, kept, tokens) if measured else _Pass(layer, kept)
        return forward, _Recomputation(layer, kept)


def step_limit(padded_tokens: int, vocabulary: int) -> float:
    """Return the bytes of a step's tensors up to which results are kept by default."""
    return _OF_LOGITS * padded_tokens * vocabulary * _LOGIT_BYTES


def free_bytes(device: torch.device) -> int:
    """Return the bytes that this process can still allocate on a device; 0 if they are not known."""
    if device.type == "cpu":
        import psutil

        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return int(psutil.virtual_memory().available) // processes
    module = torch.get_device_module(device)
    if not hasattr(module, "mem_get_info"):
        return 0
    unused = module.memory_reserved(device) - module.memory_allocated(device)
    return int(module.mem_get_info(device)[0] + unused)


class _Kept:
    """The results that one layer keeps from one forward pass, by key and by the number of the call with that key."""

    def __init__(self, budget: ResultBudget) -> None:
        self.budget = budget
        self._by_call: dict[tuple[Hashable, int], tuple[Tensor, ...]] = {}
        self._bytes = 0

    def add(self, call: tuple[Hashable, int], tensors: tuple[Tensor, ...]) -> None:
        """Keep results, if that many bytes are allowed: the costs of a batch are estimates."""
        size = sum(tensor.nbytes for tensor in tensors)
        if self.budget.now + size > self.budget.allowed:
            return
        # Detached: they do not hold the graph, which holds this object.
        self._by_call[call] = tuple(tensor.detach() for tensor in tensors)
        self._count(size)

    def take(self, call: tuple[Hashable, int]) -> tuple[Tensor, ...] | None:
        """Remove and return the results of a call; None if there are none."""
        tensors = self._by_call.pop(call, None)
        if tensors is not None:
            self._count(-sum(tensor.nbytes for tensor in tensors))
        return tensors

    def _count(self, size: int) -> None:
        self._bytes += size
        self.budget.now += size

    def __del__(self) -> None:
        self.budget.now -= self._bytes


class _Pass:
    """Context of a pass through a layer in which results are kept or returned again."""

    def __init__(self, layer: LayerCosts, kept: _Kept) -> None:
        self.layer, self.kept = layer, kept
        self._before: list[Token[_Pass | None]] = []
        self._calls: dict[Hashable, int] = {}

    def __enter__(self) -> None:
        self._before.append(_CURRENT.set(self))
        self._calls = {}

    def __exit__(self, *error: object) -> None:
        _CURRENT.reset(self._before.pop())

    def results(self, key: Hashable, flops: float, compute: Compute) -> tuple[Tensor, ...]:
        """Compute results, and keep them if they were chosen."""
        call, tensors = self._call(key), compute()
        if key in self.layer.chosen:
            self.kept.add(call, tensors)
        return tensors

    def _call(self, key: Hashable) -> tuple[Hashable, int]:
        """Return the key with the number of its calls before this one: a layer can repeat a computation."""
        number = self._calls[key] = self._calls.get(key, -1) + 1
        return key, number


class _MeasuredPass(_Pass):
    """A forward pass in which the costs of the layer are measured."""

    def __init__(self, layer: LayerCosts, kept: _Kept, tokens: int) -> None:
        super().__init__(layer, kept)
        self._tokens = tokens
        self._created = _Created()

    def __enter__(self) -> None:
        super().__enter__()
        self.layer.results = {}
        self._created.__enter__()

    def __exit__(self, *error: object) -> None:
        self._created.__exit__(*error)
        self.layer.created, self.layer.tokens = self._created.bytes / self._tokens, self._tokens
        super().__exit__(*error)

    def results(self, key: Hashable, flops: float, compute: Compute) -> tuple[Tensor, ...]:
        tensors = super().results(key, flops, compute)
        cost = self.layer.results.setdefault(key, _Cost())
        cost.bytes_per_token += sum(tensor.nbytes for tensor in tensors) / self._tokens
        cost.flops_per_token += flops / self._tokens
        return tensors


class _Recomputation(_Pass):
    """The recomputation of the layer, in the backward pass."""

    def results(self, key: Hashable, flops: float, compute: Compute) -> tuple[Tensor, ...]:
        """Return the kept results, or compute them."""
        self.layer.repeated.add(key)
        kept = self.kept.take(self._call(key))
        return compute() if kept is None else kept


_CURRENT: ContextVar[_Pass | None] = ContextVar("sepo_pass_of_a_checkpointed_layer", default=None)


class _Created(TorchDispatchMode):
    """Dispatch mode that counts the bytes of all tensors created under it, without views."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        self.bytes += sum(
            leaf.nbytes
            for leaf in tree_leaves(made)
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in given
        )
        return made
