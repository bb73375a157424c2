"""TRL's trainer on scripted responses, alone and with RTO's step; as a program, a short run under torchrun."""

import json
import os
import sys
from pathlib import Path

import llamafactory.extras.packages  # noqa: F401 (it makes TRL 0.24 importable beside transformers 5)
import peft
import torch
import transformers
from datasets import Dataset
from safetensors.torch import save_file
from trl import GRPOConfig, GRPOTrainer

from sepo.online.grpo_step import RtoStep
from sepo.online.prompts import prompt_row
from sepo.recipe.rto import RtoMethod, RtoSelection
from tests.support import tiny

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [13], [14, 15]]
SAMPLES = 4
GRPO = {"beta1": 0.0, "beta2": 0.0, "samples": SAMPLES, "max_new_tokens": 8}


def script(prompt, number):
    """Return the response to a prompt, one of several lengths and some with a stop token."""
    generator = torch.Generator().manual_seed(sum(prompt) * 10 + number)
    length = 1 + (sum(prompt) + 3 * number) % 6
    ids = torch.randint(20, 300, (length,), generator=generator).tolist()
    return [*ids, 2] if number % 2 else ids


def reward(*, completion_ids, **columns):
    return [float(len(ids) % 3) + ids[0] / 100 for ids in completion_ids]


class Scripted(GRPOTrainer):
    """TRL's trainer with responses that depend on the prompt and on the place in its group."""

    def _generate_single_turn(self, prompts, images):
        start = self.accelerator.process_index * len(prompts)
        numbers = [(start + index) % SAMPLES for index in range(len(prompts))]
        made = [script(prompt, number) for prompt, number in zip(prompts, numbers, strict=True)]
        return [list(prompt) for prompt in prompts], made, None, {}


class Ours(RtoStep, Scripted):
    stop_ids = (2,)


def model_of(adapter=False):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(tiny.config(400)).double().train()
    if not adapter:
        return model
    made = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))
    for name, parameter in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return made.double()


def trainer_of(kind, folder, *, model=None, rto=None, oracle=None, **config):
    rows = [prompt_row(ids, messages=[], system="", tools="", expected=None) for ids in PROMPTS]
    defaults = {
        "num_generations": SAMPLES, "max_completion_length": 8, "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2, "use_cpu": True, "bf16": False, "report_to": "none", "beta": 0.0,
        "scale_rewards": "batch", "loss_type": "dapo", "save_strategy": "no", "max_steps": 2,
    }  # fmt: skip
    made, model = tiny.tokenizer(), model_of() if model is None else model
    model.warnings_issued = {}  # of transformers 4
    trainer = kind(
        model=model,
        reward_funcs=[reward],
        args=GRPOConfig(output_dir=str(folder), **{**defaults, **config}),
        train_dataset=Dataset.from_list(rows),
        processing_class=made,
    )
    trainer.current_gradient_accumulation_steps = trainer.args.gradient_accumulation_steps
    if rto is not None:
        trainer.rto, trainer.oracle = rto, oracle
        trainer.ref_model = None
    return trainer


def main(folder):
    """Train two steps on groups that are spread over all processes, and save weights and log in the first."""
    tiny.LlamaRMSNorm.forward = tiny.exact_norm
    rto = RtoMethod(**{**GRPO, "beta2": 0.3}, select=RtoSelection("entropy", 0.5), kl_beta=0.1)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    trainer = trainer_of(
        Ours, folder, model=model_of(adapter=True), rto=rto, per_device_train_batch_size=SAMPLES // processes,
        gradient_accumulation_steps=1, optim="sgd", learning_rate=1e-3, max_grad_norm=1e9, logging_steps=1,
        disable_tqdm=True, ddp_find_unused_parameters=False,
    )  # fmt: skip
    trainer.train()
    if trainer.is_world_process_zero():
        weights = {name: value for name, value in trainer.model.state_dict().items() if "lora" in name}
        save_file(weights, folder / "adapter_model.safetensors")
        (folder / "log.json").write_text(json.dumps(trainer.state.log_history))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
