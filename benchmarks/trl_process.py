"""TRL's own DPO as a contender of train_step.py: its process, fed with the batches and the policy of the session."""

import contextlib
import json
import os
import subprocess
import tempfile
from pathlib import Path

from sepo.errors import SepoError

CHILD = Path(__file__).with_name("trl_step.py")
PLUGIN = Path(__file__).parents[1] / "plugin"
NAME, LABEL = "trl_dpo", "dpo (TRL)"
AGREE = 1e-4
"""Largest difference of its loss to LLaMA-Factory's, relative, in float32: other orders of the same sums."""


class Child:
    """The process; it computes only between a request and its answer."""

    def __init__(self, process, errors, task):
        self.process, self.errors = process, errors
        self.versions = self.request(task)["versions"]

    def request(self, values):
        line = ""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(values), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            last = (self.errors.read().strip().splitlines() or ["no message"])[-1]
            raise SepoError(f"the process of TRL ended with status {self.process.returncode}: {last[:300]}")
        return json.loads(line)


@contextlib.contextmanager
def started(python, task, **more):
    """Start a process for a task, with more environment variables; end it afterwards."""
    environment = {**os.environ, "PYTHONPATH": str(PLUGIN), "OMP_NUM_THREADS": str(task["threads"]), **more}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            [str(python), str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env=environment,
        )  # fmt: skip
        try:
            yield Child(process, errors, task)
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
            process.stdout.close()


class TrlDpo:
    """TRL's step, for `measure`; see `sepo.hosts.llamafactory.bench.external`."""

    name, label = NAME, LABEL

    def __init__(self, child, python, task):
        self.child, self.python, self.task = child, python, task
        self.facts = {"versions": child.versions}

    def step(self, batch):
        return self.child.request({"step": batch})["loss"]

    def settle(self):
        self.child.request({"settle": True})

    def peak_memory(self, batches):
        from sepo.hosts.llamafactory.bench.memory import GIVE_BACK

        with started(self.python, self.task, **GIVE_BACK) as fresh:
            return fresh.request({"peak": list(batches)})["peak_memory_bytes"]


def encoded(row):
    """Return the prompt and the responses of a row as token ids; TRL has one prompt for both responses."""
    from sepo.training.trainable_rows import response_start

    starts = {side: response_start(row[f"{side}_labels"]) for side in ("chosen", "rejected")}
    prompts = [row[f"{side}_input_ids"][:start] for side, start in starts.items()]
    if prompts[0] != prompts[1]:
        raise SepoError("a row has another prompt for each response, which TRL does not have; use other data.")
    responses = {f"{side}_ids": row[f"{side}_input_ids"][start:] for side, start in starts.items()}
    return {"prompt_ids": prompts[0], **responses}


def opened(python):
    """Return what `measure` takes as `externals`: TRL's DPO on a session's model and batches."""

    @contextlib.contextmanager
    def externals(session):
        import torch
        from safetensors.torch import save_file

        from sepo.hosts.llamafactory.bench.contenders import HOST_DPO

        config = session.model.peft_config["default"]
        host = session.trainers[HOST_DPO]
        with tempfile.TemporaryDirectory(prefix="sepo-trl-") as folder:
            adapter = str(Path(folder, "adapter.safetensors"))
            trained = {name: value for name, value in session.model.named_parameters() if value.requires_grad}
            save_file({name: value.detach().contiguous() for name, value in trained.items()}, adapter)
            task = {
                "model": config.base_model_name_or_path,
                "adapter": adapter,
                "lora": {
                    "r": config.r,
                    "lora_alpha": config.lora_alpha,
                    "lora_dropout": config.lora_dropout,
                    "target_modules": sorted(config.target_modules),
                },
                "rows": [[encoded(row) for row in batch] for batch in session.rows],
                "beta": host.beta,
                "pad_token_id": host.processing_class.pad_token_id,
                "threads": torch.get_num_threads(),
                "output_dir": folder,
            }
            with started(python, task) as child:
                yield [TrlDpo(child, python, task)]

    return externals


def check(result):
    """Raise if the loss of TRL's DPO on the first batch is another one than that of LLaMA-Factory's."""
    losses = {entry["name"]: entry["first_batch_loss"] for entry in result["contenders"]}
    apart = abs(losses[NAME] - losses["host_dpo"])
    if not apart <= AGREE * abs(losses["host_dpo"]):
        raise SepoError(
            f"on the first batch the loss of TRL's dpo is {losses[NAME]:.6f}, that of LLaMA-Factory's "
            f"{losses['host_dpo']:.6f}; the same loss is expected, so the figures cannot be compared."
        )
