"""What we rely on in the host beyond its public interface (see plugin/sepo/hosts/PATCHES.md)."""

import contextlib
import os
import re
from pathlib import Path

import sepo.hosts
from sepo.hosts.llamafactory.doctor import contract_findings

LEDGER = Path(sepo.hosts.__file__).with_name("PATCHES.md").read_text()


def test_host_has_what_we_rely_on():
    assert [finding.text for finding in contract_findings() if not finding.good] == []


def test_every_test_that_the_ledger_names_exists():
    root = Path(__file__).parents[2]
    named = set(re.findall(r"`(tests/[^`]+)`", LEDGER))
    assert named
    for reference in named:
        path, _, function = reference.partition("::")
        assert (root / path).is_file(), reference
        assert not function or f"def {function}(" in (root / path).read_text(), reference


def test_host_versions_in_the_ledger_are_those_of_the_extra():
    extra = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert "llamafactory>=0.9.5,<0.9.6" in extra
    assert "## LLaMA-Factory 0.9.5" in LEDGER


def test_ray_worker_registers_in_its_own_process(monkeypatch):
    from llamafactory.train import tuner

    from sepo.hosts.llamafactory import ray_worker

    started = []
    monkeypatch.setattr(tuner, "_sepo_registered", False, raising=False)
    monkeypatch.setattr(tuner, "Worker", type("HostWorker", (), {"__init__": lambda self: started.append(self)}))
    for name in ("run_dpo", "get_train_args", "_training_function"):
        monkeypatch.setattr(tuner, name, getattr(tuner, name))
    monkeypatch.setenv("SEPO_RAY_WORKER", "")
    ray_worker.Worker()
    assert tuner._sepo_registered
    assert tuner.Worker is ray_worker.Worker
    assert len(started) == 1


def test_plain_loading_restores_the_engine(monkeypatch):
    from transformers.integrations import deepspeed

    from sepo.hosts.shared.scoring_models import plain_loading

    class Engine:
        def is_zero3(self):
            return True

    engine = Engine()
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    deepspeed.set_hf_deepspeed_config(engine)
    try:
        assert deepspeed.is_deepspeed_zero3_enabled()
        with contextlib.suppress(RuntimeError), plain_loading():
            assert not deepspeed.is_deepspeed_zero3_enabled()
            assert "FSDP_CPU_RAM_EFFICIENT_LOADING" not in os.environ
            raise RuntimeError("a model that cannot be loaded")
        assert deepspeed.is_deepspeed_zero3_enabled()
        assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"
    finally:
        deepspeed.unset_hf_deepspeed_config()


def test_the_hosts_checkpointing_is_the_reentrant_one():
    """`recompute_less` looks through the host's wrapper; of frozen layers the host checkpoints none."""
    import torch
    from llamafactory.hparams import ModelArguments
    from llamafactory.model.model_utils.checkpointing import prepare_model_for_training
    from transformers import AutoModelForCausalLM, LlamaConfig

    from sepo.forward.recompute import recompute_as_before, recompute_less

    config = LlamaConfig(vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=3, num_attention_heads=2)
    model = AutoModelForCausalLM.from_config(config).train()
    prepare_model_for_training(model, ModelArguments(model_name_or_path="any"))
    tokens = torch.arange(8)[None]

    def gradients():
        model.zero_grad()
        model(input_ids=tokens, labels=tokens).loss.backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    expected = gradients()
    assert recompute_less(model) == 3
    torch.testing.assert_close(gradients(), expected, rtol=0, atol=1e-6)
    recompute_as_before(model)
    assert gradients()[0].equal(expected[0])
