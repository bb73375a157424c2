"""One host's half of the parity test: the same rows through that host's trainer, with the results written to a file.

    python half.py llamafactory|axolotl JOB.json RESULT.safetensors

The job holds the stage, the models, the rows as token ids, scores or rewards by row, and the adapter's initial weights.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def rows_of(job, *more):
    """Return the job's rows, with the masks and media columns that LLaMA-Factory's collator expects."""
    from datasets import Dataset

    rows = []
    for row in job["rows"]:
        masks = {f"{side}_attention_mask": [1] * len(row[f"{side}_input_ids"]) for side in ("chosen", "rejected")}
        rows.append({**row, **masks, **dict.fromkeys(more)})
    return Dataset.from_list(rows)


def policy(job):
    """Return the policy with the job's adapter and its initial weights."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(job["policy"], dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"]))
    start = load_file(job["adapter"]) if Path(job["adapter"]).is_file() else None
    if start is None:
        generator = torch.Generator().manual_seed(5)
        start = {
            name: 0.1 * torch.randn(weight.shape, generator=generator)
            for name, weight in model.named_parameters() if weight.requires_grad
        }  # fmt: skip
        save_file(start, job["adapter"])
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.copy_(start[name])
    return model


def llamafactory_trainer(job):
    from transformers import AutoTokenizer

    from sepo.hosts.llamafactory.recipe import get_train_args, settings_of
    from sepo.hosts.llamafactory.workflow import build_trainer

    _, data_args, training_args, finetuning_args, _ = get_train_args(job["recipe"])
    from llamafactory.data import get_template_and_fix_tokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["policy"])
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    return build_trainer(
        policy(job), settings=settings_of(finetuning_args), ref_model=None, starting_policy=None, template=template,
        tokenizer_module={"tokenizer": tokenizer, "processor": None}, training_args=training_args,
        finetuning_args=finetuning_args, datasets={"train_dataset": rows_of(job, "images", "videos", "audios")},
    )  # fmt: skip


def axolotl_trainer(job):
    from axolotl.integrations.base import PluginManager

    manager, name = PluginManager.get_instance(), "sepo.hosts.axolotl.SePOPlugin"
    manager.register(name)
    manager.plugins[name].register(dict(job["config"]))
    from axolotl.core.trainers.dpo.args import AxolotlDPOConfig
    from transformers import AutoTokenizer

    from sepo.hosts.axolotl.config import resolve_config
    from sepo.hosts.axolotl.trainer import PreferenceTrainer

    resolved = resolve_config(job["config"])
    args = AxolotlDPOConfig(
        output_dir=job["output"], sepo=resolved.as_json(), use_cpu=True, report_to="none", bf16=False,
        per_device_train_batch_size=len(job["rows"]), remove_unused_columns=False, seed=3,
    )  # fmt: skip
    model = policy(job)
    model.peft_config["default"].target_parameters = ["none"]  # no second adapter for TRL's reference
    return PreferenceTrainer(
        model,
        None,
        args=args,
        train_dataset=rows_of(job),
        processing_class=AutoTokenizer.from_pretrained(job["policy"]),
    )


def results(trainer, host, count):
    """Return the loss of each pair alone, gradients and loss of all pairs together, and their loss after a step."""
    trainer.model.eval()  # these models have no dropout; evaluation mode guarantees it

    def loss_of(features):
        batch = trainer._prepare_inputs(trainer.data_collator(features))
        if host == "llamafactory":
            return trainer.get_batch_loss_metrics(trainer.model, batch)[0]
        return trainer.compute_loss(trainer.model, batch)

    rows = [trainer.train_dataset[index] for index in range(count)]
    losses = torch.stack([loss_of([row]).detach() for row in rows])
    trainer.model.zero_grad()
    together = loss_of(rows)
    together.backward()
    gradients = {
        f"grad.{name}": weight.grad.clone()
        for name, weight in trainer.model.named_parameters()
        if weight.grad is not None
    }
    with torch.no_grad():
        for weight in trainer.model.parameters():
            if weight.grad is not None:
                weight -= 0.01 * weight.grad
    means = torch.stack([together.detach(), loss_of(rows).detach()]).double()
    return {"losses": losses.double(), "means": means, **gradients}


def main(host, job_file, result):
    jobs = json.loads(Path(job_file).read_text())
    found = {}
    for stage, job in jobs.items():
        trainer = (llamafactory_trainer if host == "llamafactory" else axolotl_trainer)(job)
        for name, tensor in results(trainer, host, len(job["rows"])).items():
            found[f"{stage}/{name}"] = tensor
    save_file(found, result)


if __name__ == "__main__":
    main(*sys.argv[1:])
