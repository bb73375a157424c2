"""Host functions of `sepo credit`: chat templates, tokenization of rows and loading of models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.extras.misc import get_current_device
from llamafactory.hparams import DataArguments, ModelArguments
from llamafactory.model import load_tokenizer

import sepo.hosts.llamafactory.scoring_models  # noqa: F401
from sepo.credit.data import LabelledPair
from sepo.credit.host import NamedSpec
from sepo.errors import SepoError
from sepo.forward.revision_rewards import ContrastivePair
from sepo.forward.sequences import ScoringModel
from sepo.hosts.llamafactory.hub import access_in
from sepo.hosts.llamafactory.pair_encoding import PairProcessor
from sepo.hosts.llamafactory.response_tokens import PolicyResponses, example_row
from sepo.recipe.model_specs import ModelSpec, OracleSpec
from sepo.scoring.contrastive import PromptEncoder
from sepo.scoring.hub import HubAccess
from sepo.scoring.model_files import check_tokenizers, max_positions, spec_files
from sepo.scoring.models import give_memory_back, load_scoring_model, load_scoring_models
from sepo.scoring.projected import adapter_template
from sepo.text.chat_encoding import ReadResponse
from sepo.text.projection import TokenSpans
from sepo.text.revision_prompts import quoted_conversation
from sepo.training.selection_columns import IGNORE_INDEX
from sepo.training.trainable_rows import response_start

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class LlamaFactoryCredit:
    """Tokenizer, template and models of one measurement, as in a training run with these settings.

    Args:
        tokenizer_of: the model whose tokenizer is used.
        template: the host's name of a template, or None for the chat template of the tokenizer or the adapter.
        cutoff_len: maximum number of tokens of a conversation with its response.
        dtype: a name of ``DTYPES``, or None for the host's choice.
        access: access to the hub; None for that which the environment sets.

    Raises:
        SepoError: a directory is missing, or the host has no such template.
    """

    def __init__(
        self,
        tokenizer_of: NamedSpec,
        *,
        template: str | None,
        cutoff_len: int,
        dtype: str | None,
        access: HubAccess | None = None,
    ) -> None:
        key, spec = tokenizer_of
        access = access or access_in({})
        files, _ = spec_files(spec, key=key, access=access, need="tokenizer")
        self.data_args = DataArguments(template=template, cutoff_len=cutoff_len)
        self.access = access
        self.model_args = ModelArguments(
            model_name_or_path=str(files.folder),
            cache_dir=access.cache_dir,
            trust_remote_code=access.trust_remote_code,
            infer_dtype="auto" if dtype is None else str(DTYPES[dtype]).removeprefix("torch."),
        )
        # The host's parser derives these fields for training; there is no recipe to parse here.
        self.model_args.compute_dtype = None if dtype is None else DTYPES[dtype]
        self.model_args.device_map = {"": get_current_device()}
        self.model_args.model_max_length = cutoff_len
        self.device = torch.device(get_current_device())
        self.tokenizer = load_tokenizer(self.model_args)["tokenizer"]
        self.spec = spec

    def check(self, named: Sequence[NamedSpec]) -> None:
        """Raise if a model is missing or has another tokenizer, before anything is loaded.

        Raises:
            SepoError: naming the setting.
        """
        for key, spec in named:
            spec_files(spec, key=key, access=self.access)
            check_tokenizers(self.tokenizer, spec, key=key, access=self.access, owner=f"'{self.spec.model}'")

    def chat_template(self) -> str | None:
        """Return the chat template that was saved with the adapters of the tokenizer's model, if any."""
        return adapter_template(self.spec, access=self.access)

    def template_reader(self, *, prompted: NamedSpec | None) -> TemplateReader:
        """Return a reader of rows in the host's template.

        Args:
            prompted: the model that scores under T-REG's prompts, or None if these are not used.

        Raises:
            SepoError: the host has no such template.
        """
        try:
            template = get_template_and_fix_tokenizer(self.tokenizer, self.data_args)
        except ValueError as error:
            raise SepoError(f"--template: {error} Name one of LLaMA-Factory's, as in a recipe.") from error
        positions = None
        if prompted is not None:
            positions = max_positions(prompted[1], key=prompted[0], access=self.access)
        return TemplateReader(template, self.tokenizer, data_args=self.data_args, positions=positions)

    def each_oracle(self, oracles: Sequence[OracleSpec]) -> Iterator[tuple[OracleSpec, ScoringModel, ScoringModel]]:
        """Load oracles one after the other, each with its base, which share weights if possible."""
        for oracle in oracles:
            trained, base = load_scoring_models(oracle, model_args=self.model_args, device=self.device)
            yield oracle, trained, base
            del trained, base
            give_memory_back()

    def each_model(self, specs: Sequence[ModelSpec]) -> Iterator[tuple[ModelSpec, ScoringModel]]:
        """Load frozen models one after the other, each once."""
        for spec in dict.fromkeys(specs):
            yield spec, load_scoring_model(spec, model_args=self.model_args, device=self.device)
            give_memory_back()


class TemplateReader:
    """Reader of rows in a template of the host, token for token as its pairwise processor tokenizes them for training.

    Args:
        template: the host's template.
        tokenizer: the tokenizer, after the template was applied to it.
        data_args: the host's data arguments; their ``cutoff_len`` truncates.
        positions: maximum positions of the model that scores contrastive prompts, or None for no limit.
    """

    def __init__(self, template: Any, tokenizer: Any, *, data_args: Any, positions: int | None) -> None:
        self._processor = PairProcessor(template, tokenizer, None, data_args)
        self._responses = PolicyResponses(template, tokenizer, processor=None, data_args=data_args)
        self._prompts = PromptEncoder(template, tokenizer, cutoff_len=data_args.cutoff_len, max_positions=positions)

    def read(self, pair: LabelledPair) -> ReadResponse:
        """Tokenize the conversation with its rejected response, truncated as in training.

        Raises:
            SepoError: truncation leaves no token of the response, or its tokens do not decode to its text.
        """
        example = example_row(pair.conversation)
        ids, labels = self._encoded(example)
        kept = [label for label in labels if label != IGNORE_INDEX]
        start = response_start(labels) if kept else len(ids)
        if start >= len(ids):
            raise SepoError(f"row {pair.row}: the rejected response has no token after truncation; raise cutoff_len.")
        spans = self._responses.spans(example, kept, "rejected")
        if spans is None:
            raise SepoError(
                f"row {pair.row}: the tokens of the rejected response do not decode to its text (the template or the "
                "tokenizer rewrites it), so its spans cannot be placed; remove the row or use another template."
            )
        first = len(kept) - (len(ids) - start)  # 1 if the first token has no predecessor
        ends = spans.end_of_turn if spans.end_of_turn is not None and spans.end_of_turn < len(kept) else None
        cut = TokenSpans(spans.offsets[first : len(kept)], None if ends is None else ends - first)
        return ReadResponse(ids, start, cut, response_cut=len(spans.offsets) > len(kept))

    def contrastive(self, pair: LabelledPair, read: ReadResponse) -> ContrastivePair:
        """Encode the response after each of T-REG's two prompts, as in the scoring before training.

        Raises:
            SepoError: the response does not fit the model's positions.
        """
        question = quoted_conversation(pair.messages, system=pair.system, tools=pair.tools)
        _, labels = self._encoded(example_row(pair.conversation))
        return self._prompts.pair(question, pair.rejected, read.input_ids, labels)

    def _encoded(self, example: dict[str, Any]) -> tuple[list[int], list[int]]:
        row = self._processor.preprocess_dataset({name: [value] for name, value in example.items()})
        return list(row["rejected_input_ids"][0]), list(row["rejected_labels"][0])
