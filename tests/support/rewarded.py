"""Tiny reward models on disk, and responses for them."""

from pathlib import Path
from types import SimpleNamespace

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import processors

from sepo.rewards import RewardSettings, SampledResponse, open_rewards
from sepo.scoring.hub import HubAccess, hub_access
from sepo.scoring.models import load_frozen
from tests.support import tiny

BLOCKS = "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}"
"""A chat template that is not the policy's; the last token is the end of the turn."""

CUSTOM = '''
import torch
from transformers import LlamaForSequenceClassification
from transformers.models.llama.modeling_llama import LLAMA_INPUTS_DOCSTRING
from transformers.utils import ModelOutput, add_start_docstrings_to_model_forward
from dataclasses import dataclass


@dataclass
class Scored(ModelOutput):
    rewards: torch.FloatTensor = None
    score: torch.FloatTensor = None


class TinyGated(LlamaForSequenceClassification):
    """Several rewards, and one score by weights that depend on the conversation, as ArmoRM has them."""

    def __init__(self, config):
        super().__init__(config)
        self.gating = torch.nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    @add_start_docstrings_to_model_forward(LLAMA_INPUTS_DOCSTRING)
    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        hidden = self.model(input_ids, attention_mask=attention_mask).last_hidden_state
        last = attention_mask.sum(-1) - 1
        pooled = hidden[torch.arange(len(last)), last]
        rewards = self.score(pooled)
        return Scored(rewards=rewards, score=(self.gating(pooled).softmax(-1) * rewards).sum(-1))
'''


class RewardArguments(SimpleNamespace):
    """Model arguments of a host: the dtype, and the access to the hub."""


@hub_access.register(RewardArguments)
def _access(model_args: RewardArguments) -> HubAccess:
    return model_args.access


@load_frozen.register(RewardArguments)
def _load(model_args, spec, adapters):
    model = transformers.AutoModelForCausalLM.from_pretrained(spec.model, dtype=model_args.compute_dtype)
    assert not adapters
    return model


def arguments(*, dtype=torch.float64, trust=False):
    return RewardArguments(compute_dtype=dtype, access=HubAccess(trust_remote_code=trust))


def words(*, template=BLOCKS):
    made = tiny.tokenizer(["What is a reward? A number."], vocab_size=420)
    made.chat_template = template
    # As Llama 3's tokenizer does; the chat template writes such tokens itself.
    first = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    made.backend_tokenizer.post_processor = first
    return made


def save(folder: Path, *, family="Llama", template=BLOCKS, seed=5, labels=1, cls="ForSequenceClassification", **config):
    """Save a tiny model of a class of transformers with its tokenizer."""
    made = words(template=template)
    values = {**tiny.config(len(made)).to_dict(), "num_labels": labels, **config}
    for name in ("model_type", "architectures", "transformers_version", "id2label", "label2id", "head_dim"):
        values.pop(name, None)
    torch.manual_seed(seed)
    kind = getattr(transformers, f"{family}{cls}")
    model = kind(getattr(transformers, f"{family}Config")(**values)).double()
    model.save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def save_value_head(folder: Path, *, hidden=64, seed=8):
    torch.manual_seed(seed)
    head = {"v_head.summary.weight": torch.randn(1, hidden), "v_head.summary.bias": torch.randn(1)}
    save_file(head, folder / "value_head.safetensors")
    return load_file(folder / "value_head.safetensors")


def response(question, text, *, system="", **more):
    messages = question if isinstance(question, tuple) else ({"role": "user", "content": question},)
    given = {"prompt_ids": (1, 5), "response_ids": (7, 2), "finished": True, **more}
    return SampledResponse(messages=messages, response=text, system=system, **given)


def responses():
    """Return conversations of many lengths: with a system prompt, several turns, and an empty response."""
    turns = (
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "?"},
    )
    return [
        response("How many legs has a spider?", "It has 8 legs."),
        response("?", "No."),
        response("What is a reward?", "A number. " * 12, system="You are a helpful assistant."),
        response(turns, "It has 8 legs, and <|im_end|> too."),
        response("Name the capital of France.", ""),
        response("What colour is the sky?", "blue " * 5),
        response("How many legs has a spider?", "It has 6 legs."),
    ]


def opened(settings: RewardSettings, **options):
    return open_rewards(settings, model_args=arguments(**options), device=torch.device("cpu"))


def text_of(response):
    """Return the turns of a conversation with its response, as transformers' chat templates take them."""
    system = [{"role": "system", "content": response.system}] if response.system else []
    return [*system, *response.messages, {"role": "assistant", "content": response.response}]
