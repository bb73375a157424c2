"""Child of train_step.py: the training step of TRL's own DPOTrainer, in an environment that has TRL instead of a host.

Reads one JSON object per line from stdin, and answers each with one on stdout. The first one is the task:

    model       model directory
    adapter     safetensors file with the LoRA weights of the measured policy, by parameter name
    lora        r, lora_alpha, lora_dropout, target_modules
    rows        batches of rows with prompt_ids, chosen_ids, rejected_ids
    beta, pad_token_id, threads, output_dir

and is answered with the versions. Then {"step": N} runs forward and backward pass of `training_step` on batch N and
answers {"loss": ...}; {"settle": true} drops gradients and metrics; {"peak": [N, ...]} runs these batches and answers
{"peak_memory_bytes": ...}. Everything else is TRL's default: gradient checkpointing, its fused head (log-probabilities
in chunks, never all logits), no second model (the reference is the model without its adapter). Only the tokenization is
left out, as the rows are token ids, and the router loss, which LLaMA-Factory's DPO has not either.
"""

import json
import os
import platform
import sys
from importlib import metadata

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")


def trainer_of(task):
    """Return TRL's trainer, with the measured policy's adapter and its model ready for training."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class EncodedRows(DPOTrainer):
        """TRL's trainer on rows that are token ids already."""

        def _prepare_dataset(self, dataset, *_):
            return dataset

    tokenizer = AutoTokenizer.from_pretrained(task["model"])
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(task["pad_token_id"])
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
    args = DPOConfig(
        output_dir=task["output_dir"], beta=task["beta"], max_length=None, bf16=False, use_cpu=True, report_to="none",
        per_device_train_batch_size=len(task["rows"][0]), router_aux_loss_coef=0.0,
    )  # fmt: skip
    trainer = EncodedRows(
        model=model,
        args=args,
        train_dataset=Dataset.from_list([row for batch in task["rows"] for row in batch]),
        processing_class=tokenizer,
        peft_config=LoraConfig(task_type="CAUSAL_LM", **task["lora"]),
    )
    weights = load_file(task["adapter"])
    trained = {name: value for name, value in trainer.model.named_parameters() if value.requires_grad}
    if set(weights) != set(trained):
        raise SystemExit(f"the adapter has other weights than TRL trains: {sorted(set(weights) ^ set(trained))[:4]}")
    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(weights[name])
    # What `train()` does before its first step.
    trainer.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs)
    trainer.model_wrapped = trainer.accelerator.prepare_model(trainer.model)
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def main():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # libraries print; only answers belong into the pipe
    task = json.loads(sys.stdin.readline())
    import torch

    torch.set_num_threads(task["threads"])
    trainer = trainer_of(task)
    batches = [dict(trainer._prepare_inputs(trainer.data_collator(rows))) for rows in task["rows"]]

    def step(batch):
        return trainer.training_step(trainer.model_wrapped, dict(batches[batch]))

    def settle():
        trainer.model.zero_grad(set_to_none=True)
        trainer._metrics["train"].clear()

    def answer(values):
        print(json.dumps(values), file=answers)

    answer({"versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}})
    for line in sys.stdin:
        request = json.loads(line)
        if "step" in request:
            answer({"loss": float(step(request["step"]))})
        elif "settle" in request:
            settle()
            answer({})
        else:
            from sepo.hosts.llamafactory.bench.memory import resident_peak

            answer({"peak_memory_bytes": resident_peak(step, settle, batches=request["peak"], model=trainer.model)})


if __name__ == "__main__":
    main()
