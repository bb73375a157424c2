"""Rows in LLaMA-Factory's columns: made by hand, and made by the host."""

from datasets import Dataset
from transformers import Seq2SeqTrainingArguments


def prepared(folder, words, *, dataset="d", carry=True, **options):
    """Return the host's tokenized data sets."""
    import contextlib

    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer

    from sepo.hosts.llamafactory.sample import DataArguments, ModelArguments, _parsed
    from sepo.hosts.llamafactory.user_scores import carried_scores

    recipe = {"dataset": dataset, "dataset_dir": str(folder), "template": "chatml", "cutoff_len": 128, **options}
    data_args = _parsed(DataArguments, recipe)
    model_args = _parsed(ModelArguments, {"model_name_or_path": "-"})
    training_args = Seq2SeqTrainingArguments(output_dir=str(folder / "out"), use_cpu=True, report_to=[], seed=3)
    template = get_template_and_fix_tokenizer(words, data_args)
    with carried_scores() if carry else contextlib.nullcontext():
        return get_dataset(template, model_args, data_args, training_args, stage="rm", tokenizer=words)


IGNORE = -100


def rows(*lengths, same=()):
    """Return tokenized pairs with prompts of three tokens and responses of the given lengths (chosen, rejected).

    The first tokens of both responses are the same and their last ones differ, except in the rows of ``same``.
    """
    table = {f"{side}_{name}": [] for side in ("chosen", "rejected") for name in ("input_ids", "labels")}
    for index, pair in enumerate(lengths):
        for side, length in zip(("chosen", "rejected"), pair, strict=True):
            answer = [10 + index + position for position in range(length)]
            if side == "rejected" and answer and index not in same:
                answer[-1] += 50
            table[f"{side}_input_ids"].append([1, 2, 3, *answer])
            table[f"{side}_labels"].append([IGNORE] * 3 + answer)
    return Dataset.from_dict(table)
