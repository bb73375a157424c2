"""An oracle with another tokenizer: its scores against a slow loop, its store, and refused input."""

import json
import logging
import re
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from llamafactory.data import get_template_and_fix_tokenizer
from llamafactory.hparams import DataArguments
from transformers import AutoTokenizer, LlamaForCausalLM

from sepo.errors import SepoError
from sepo.hosts.llamafactory.conversations import TextReadingProcessor, _conversation
from sepo.hosts.llamafactory.response_tokens import PolicyResponses
from sepo.recipe.model_specs import ModelSpec, OracleSpec
from sepo.report.reading import read_subject
from sepo.score_store import ScoreStore
from sepo.scoring.projected import ProjectedScorer, oracle_reader
from sepo.text.conversations import CONVERSATION, READ
from tests.support import foreign, tiny
from tests.support.hub import LocalModels
from tests.support.recipes import adapter, logged, sepo_recipe, sepo_train
from tests.support.tolerance import SCORE, of_sum

IGNORE = -100
SIDES = ("chosen", "rejected")
ANSWERS = [
    ("It has 8 legs and a tail.", "  It has\n6 legs 🕷️ or none. "),
    ("你好，世界。", "def f(x):\n\treturn x\r\n"),
    ("noe\u0301l, ångström 👨‍👩‍👧", "wings"),
]


@pytest.fixture(scope="module")
def others(world, tmp_path_factory):
    """Save an oracle and its base with a tokenizer like Llama 2's, which differs from the policy's."""
    root = tmp_path_factory.mktemp("others")
    words = foreign.metaspace_bpe()
    tiny.save_model(root / "base", seed=5, words=words)
    tiny.save_model(root / "oracle", seed=6, words=words, noise_over=root / "base")
    return root


@pytest.fixture
def words(world):
    return AutoTokenizer.from_pretrained(world / "policy")


def rows(words, data_args, answers=ANSWERS, turns=None, system=""):
    """Return rows tokenized by the host, with their conversations."""
    template = get_template_and_fix_tokenizer(words, data_args)
    processor = TextReadingProcessor(template, words, None, data_args)
    count = len(answers)
    made = processor.preprocess_dataset({
        "_prompt": [turns or [{"role": "user", "content": f"How many legs has creature {i}?"}] for i in range(count)],
        "_response": [[{"role": "assistant", "content": text} for text in pair] for pair in answers],
        "_system": [system] * count, "_tools": [""] * count,
        **{f"_{media}": [None] * count for media in ("images", "videos", "audios")},
    })  # fmt: skip
    return Dataset.from_dict(dict(made))


@pytest.fixture
def attach(world, others, words, tmp_path):
    """Return a function that scores rows with the foreign oracle, as in a run."""

    def make(data_args=None, tokenizer=None, oracle="oracle", base="base", adapters=(), **table):
        data_args = data_args or DataArguments(template="chatml", cutoff_len=256)
        tokenizer = tokenizer or words
        spec = OracleSpec(oracle=ModelSpec(str(others / oracle), tuple(adapters)), base=ModelSpec(str(others / base)))
        settings = SimpleNamespace(
            oracle=spec, token_scores_dir=str(tmp_path / "scores"), score_batch_tokens=200, head_chunk_tokens=None
        )
        model_args = LocalModels(compute_dtype=None)
        dataset = rows(tokenizer, data_args, **table)
        reader = oracle_reader(settings, tokenizer=tokenizer, model_args=model_args, data_args=data_args)
        template = get_template_and_fix_tokenizer(tokenizer, data_args)
        responses = PolicyResponses(template, tokenizer, processor=None, data_args=data_args)
        scorer = ProjectedScorer(
            settings, reader=reader, tokenizer=tokenizer, model_args=model_args, place=responses.place,
            training_args=SimpleNamespace(world_size=1, process_index=0, device="cpu", output_dir="out"),
        )  # fmt: skip
        models = [LlamaForCausalLM.from_pretrained(others / name, dtype=torch.float32) for name in (oracle, base)]
        scorer._scorer = _Plain(models)
        return scorer, dataset, scorer.attach(dataset, name="train")

    return make


class _Plain:
    """The real scorer, with the scoring models unchanged."""

    def __init__(self, models):
        import contextlib

        from sepo.forward.sequences import OracleScorer, ScoringModel

        self.calls = 0
        oracle, base = (ScoringModel(model.eval(), contextlib.nullcontext) for model in models)
        self.scorer = OracleScorer(oracle=oracle, base=base, batch_tokens=200)

    def score(self, sequences, **options):
        self.calls += 1
        return self.scorer.score(sequences, **options)


def slow_scores(others, question, answer, words, response):
    """Score one row with full logits in float64 and an explicit template, projected cell by cell."""
    tokenizer = AutoTokenizer.from_pretrained(others / "oracle")
    text = answer.strip()
    before = f"<s>[INST] {question} [/INST] "
    encoded = tokenizer(before + text + " </s>", add_special_tokens=False, return_offsets_mapping=True)
    ids = torch.tensor([encoded["input_ids"]])
    logps = []
    for name in ("oracle", "base"):
        model = LlamaForCausalLM.from_pretrained(others / name, dtype=torch.float64).eval()
        with torch.no_grad():
            full = model(ids).logits.log_softmax(-1)
        logps.append(full[0, :-1].gather(1, ids[0, 1:, None])[:, 0])
    scores = (logps[0] - logps[1]).tolist()
    lead = answer.index(text)
    own, numbers = [], []
    for position, (start, end) in enumerate(encoded["offset_mapping"]):
        if end > len(before):
            inside = [min(max(edge - len(before), 0), len(text)) + lead for edge in (start, end)]
            own.append(tuple(inside) if inside[1] > inside[0] else (len(answer), len(answer)))
            numbers.append(scores[position - 1])
    end = encoded["input_ids"].index(tokenizer.eos_token_id) - (len(ids[0]) - len(own))
    plain = words(answer, add_special_tokens=False, return_offsets_mapping=True)
    assert response[: len(plain["input_ids"])] == plain["input_ids"]
    after = len(response) - len(plain["input_ids"])
    taken = [*plain["offset_mapping"], *[(len(answer), len(answer))] * after]
    return foreign.naive_projection(numbers, (own, end), (taken, len(plain["input_ids"])), length=len(answer)).tolist()


def test_scores_equal_a_slow_loop_over_single_rows(attach, others, words):
    scorer, dataset, scored = attach()
    assert scorer._scorer.calls == 1
    assert [name for name in scored.column_names if name not in dataset.column_names] == [
        "chosen_scores",
        "rejected_scores",
    ]
    for index, pair in enumerate(ANSWERS):
        for side, answer in zip(SIDES, pair, strict=True):
            response = [label for label in dataset[index][f"{side}_labels"] if label != IGNORE]
            slow = slow_scores(others, f"How many legs has creature {index}?", answer, words, response)
            assert scored[index][f"{side}_scores"] == pytest.approx(slow, abs=SCORE)
            assert max(map(abs, slow)) > 0.1


def test_the_store_records_the_texts_of_the_oracle(attach, words):
    scorer, _, _ = attach()
    store = ScoreStore.at(scorer.stores["train"])
    assert store.verify() == []
    scores = store.table().to_pylist()
    for row, stored in store.texts.read(range(len(ANSWERS))):
        assert stored.prompt == f"How many legs has creature {row}?"
        for side, answer in zip(SIDES, ANSWERS[row], strict=True):
            tokens = getattr(stored, side).tokens
            assert len(tokens) == len(scores[row][f"{side}_scores"])
            assert "".join("".join(tokens).removesuffix("</s>").split()) == "".join(answer.split())


def test_the_store_does_not_depend_on_the_policy(attach, caplog):
    """Scores are found with another tokenizer, template or truncation of the policy, but not for a changed text."""
    first, _, _ = attach()
    store = first.stores["train"]
    other = foreign.byte_level()
    with caplog.at_level(logging.INFO):
        again, _, scored = attach(tokenizer=other, data_args=DataArguments(template="llama3", cutoff_len=256))
    assert (again.stores["train"], again._scorer.calls) == (store, 0)
    assert "nothing to score" in caplog.text
    for row in scored:
        for side in SIDES:
            assert len(row[f"{side}_scores"]) == sum(label != IGNORE for label in row[f"{side}_labels"])
    stores = {store}
    for changed in (
        {"data_args": DataArguments(template="chatml", cutoff_len=255)},
        {"answers": [*ANSWERS[:2], ("noël", "wings")]},
        {"system": "Be brief."},
        {"oracle": "base", "base": "oracle"},
    ):
        stores.add(attach(**changed)[0].stores["train"])
    assert len(stores) == 5


def test_totals_are_the_oracles_and_truncated_rows_keep_the_scores_of_what_is_left(attach, words):
    scorer, dataset, scored = attach()
    read = [scorer.reader.read(json.loads(text)) for text in dataset[CONVERSATION]]
    from sepo.forward.sequences import ScoredSequence

    own = scorer._scorer.score([ScoredSequence(r.input_ids, r.response_start) for pair in read for r in pair])
    for index in range(len(ANSWERS)):
        for side, total in zip(SIDES, own[2 * index : 2 * index + 2], strict=True):
            shares = scored[index][f"{side}_scores"]
            assert sum(shares) == pytest.approx(float(total.sum()), abs=SCORE + of_sum(shares))
    # The policy's rows are truncated, the oracle's are not: the policy's truncation is applied when scores are read.
    short = rows(words, DataArguments(template="chatml", cutoff_len=44))
    cut = {"prompt": 0, "response": 0}
    columns = {f"{side}_scores": [own[2 * i + j].numpy() for i in range(len(ANSWERS))] for j, side in enumerate(SIDES)}
    projected = scorer._projected({**short[:], **columns}, cut)
    assert cut == {"prompt": 0, "response": 0}
    lost = 0
    for index in range(len(ANSWERS)):
        for side in SIDES:
            kept = sum(label != IGNORE for label in short[index][f"{side}_labels"])
            whole = scored[index][f"{side}_scores"]
            assert projected[f"{side}_scores"][index].tolist() == pytest.approx(whole[:kept], abs=SCORE)
            lost += len(whole) - kept
    assert lost > 0


def test_a_long_conversation_is_truncated_on_the_left_and_counted(attach, caplog):
    turns = [{"role": "user", "content": "How many legs? " * 30}]
    with caplog.at_level(logging.INFO):
        scorer, dataset, scored = attach(DataArguments(template="chatml", cutoff_len=30), turns=turns)
    found = re.search(
        r"of 6 conversations with a response, 6 were truncated at the beginning and (\d) at the end", caplog.text
    )
    assert 0 < int(found[1]) < 6
    for text in dataset[CONVERSATION]:
        for read in scorer.reader.read(json.loads(text)):
            assert len(read.input_ids) <= 30
            assert read.input_ids[0] == scorer.reader.tokenizer.bos_token_id
            assert len(read.input_ids) - read.response_start == len(read.spans.offsets)
    assert all(any(row[f"{side}_scores"]) for row in scored for side in SIDES)


def test_projection_of_scores_is_logged_once(attach, caplog):
    with caplog.at_level(logging.INFO):
        scorer, dataset, _ = attach()
        scorer.attach(dataset, name="eval")
    (line,) = [message for message in caplog.messages if "projected onto the policy's tokens by characters" in message]
    assert "its own chat template" in line
    share = int(line.rpartition("by characters. ")[2].partition(" %")[0])
    assert 30 < share <= 100


def settings_of(oracle, base):
    return SimpleNamespace(oracle=OracleSpec(oracle=ModelSpec(str(oracle)), base=ModelSpec(str(base))))


def reader_of(oracle, base, words):
    return oracle_reader(
        settings_of(oracle, base), tokenizer=words, model_args=LocalModels(), data_args=DataArguments(cutoff_len=4096)
    )


def test_an_oracle_with_the_policys_tokenizer_is_not_projected(world, words):
    assert reader_of(world / "oracle", world / "base", words) is None
    assert oracle_reader(SimpleNamespace(oracle=None), tokenizer=words, model_args=None, data_args=None) is None


def test_what_an_oracle_with_another_tokenizer_needs(world, others, words, tmp_path):
    assert reader_of(others / "oracle", others / "base", words).max_tokens == 2048  # the model's positions
    with pytest.raises(SepoError, match=r"oracle_base_model: .* has another tokenizer than the oracle: .*, expected "):
        reader_of(others / "oracle", world / "base", words)
    bare = foreign.metaspace_bpe()
    bare.chat_template = None
    bare.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((others / "oracle" / "config.json").read_text())
    with pytest.raises(SepoError, match=r"oracle_model '.*' has .* no chat template.* set tokenizer.chat_template"):
        reader_of(tmp_path, others / "base", words)
    row = {"_prompt": [{"role": "user", "content": "What is this?"}], "_images": ["a.png"]}
    with pytest.raises(SepoError, match="a row has images, and an oracle with another tokenizer reads text only; use"):
        _conversation(row, READ)


@pytest.mark.parametrize("saved", ["file", "config"])
def test_an_adapters_chat_template_is_the_one_that_it_was_trained_with(others, words, tmp_path, saved):
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    (tmp_path / "adapter_config.json").write_text("{}")
    if saved == "file":
        (tmp_path / "chat_template.jinja").write_text(template)
    else:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    oracle = OracleSpec(oracle=ModelSpec(str(others / "base"), (str(tmp_path),)), base=ModelSpec(str(others / "base")))
    reader = oracle_reader(
        SimpleNamespace(oracle=oracle), tokenizer=words, model_args=LocalModels(),
        data_args=DataArguments(cutoff_len=64),
    )  # fmt: skip
    conversation = {"messages": [{"role": "user", "content": "q"}], "answers": ["x"], "system": "", "tools": ""}
    (read,) = reader.read(conversation)
    assert "<user>q</s>" in reader.tokenizer.decode(read.input_ids)


def test_rows_without_conversations_are_refused(attach):
    scorer, dataset, _ = attach()
    with pytest.raises(
        SepoError, match=r"the rows of train carry no conversation for the oracle.* Remove tokenized_path"
    ):
        scorer.attach(dataset.remove_columns([CONVERSATION]), name="train")


def test_a_conversation_is_kept_as_the_other_host_keeps_it(words, tmp_path):
    """A store is found by this text, so both hosts must write it alike; tests/hosts/axolotl has the other half."""
    from sepo.hosts.llamafactory.conversations import conversations_kept
    from tests.support.rows import prepared

    tiny.save_pairs(tmp_path, 8)
    with conversations_kept(True, READ):
        dataset = prepared(tmp_path, words, dataset="tiny_pairs", carry=False)["train_dataset"]
    assert dataset[CONVERSATION][:] == tiny.kept_conversations(8)


@pytest.mark.host
def test_train_with_an_oracle_of_another_family(world, others, tmp_path):
    """The oracle selects, and its rewards regularize; a second run finds the store and ends with the same weights."""
    from tests.support.recipes import same_weights

    foreign_oracle = {"oracle_model": str(others / "oracle"), "oracle_base_model": str(others / "base")}
    recipe = sepo_recipe(
        world, tmp_path / "out", val_size=0.25, eval_strategy="steps", eval_steps=4, treg_alpha=0.1,
        treg_rewards="oracle", max_steps=2, **foreign_oracle,
    )  # fmt: skip
    done = sepo_train(recipe, tmp_path)
    assert "the oracle's tokenizer is not the policy's" in done.stdout
    for entry in logged(tmp_path / "out"):
        if "loss" in entry:
            assert 0.2 < entry["select/chosen_ratio"] <= 0.3
            assert entry["treg/reward_chosen"] != 0
    shown = read_subject(tmp_path / "out")
    assert "The oracle's tokens are not the policy's" in " ".join(shown.missing)
    assert {pair.step for pair in shown.pairs} == {1, 2}
    for side in ("chosen", "rejected"):
        assert all(getattr(pair, side).tokens[-2:] == ("<|im_end|>", "\n") for pair in shown.pairs)  # the policy's
    again = sepo_train({**recipe, "output_dir": str(tmp_path / "again")}, tmp_path)
    assert "nothing to score" in again.stdout
    assert same_weights(adapter(tmp_path / "out"), adapter(tmp_path / "again"))
