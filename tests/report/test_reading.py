"""Reading of runs and stores: texts, scores, the selection of training, distributions over all rows."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset

from sepo.errors import SepoError
from sepo.objectives import Selector, TokenScorer, resolve_method
from sepo.report.facts import overview
from sepo.report.reading import read_subject
from sepo.report.subject import NO_TEXT, SHARES
from sepo.runs.log_writer import note_scores
from sepo.score_store import write_names
from sepo.scoring.chance import store_chance
from sepo.scoring.live_columns import selection_columns
from sepo.scoring.row_texts import PolicyTokens
from sepo.text.template_tokens import NO_TEMPLATE, TEMPLATE_TOKENS, TemplateTokens
from sepo.text.token_texts import template_texts
from sepo.training import SELECTION, SelectionCollator
from tests.support import tiny
from tests.support.stored_runs import SELECT, SIDES, make_run, make_store, record_line, table, texts_of


@pytest.fixture(scope="module")
def rows():
    return table()


@pytest.fixture
def store(rows, tmp_path):
    return make_store(tmp_path / "scores", rows)


def pad(rows):
    labels = [row[f"{side}_labels"] for side in SIDES for row in rows]
    width = max(map(len, labels))
    return {"labels": torch.tensor([row + [-100] * (width - len(row)) for row in labels])}


def slow_accumulation(scores, *, highest):
    """Return the mean sum of the best tokens, token by token, with a fraction of the last one."""
    sums = []
    for row in scores:
        best = sorted(map(float, row), reverse=highest)
        sums.append([])
        for share in SHARES:
            reach = share * len(best)
            whole = int(reach + 1e-9)
            part = (reach - whole) * best[whole] if whole < len(best) else 0.0
            sums[-1].append(sum(best[:whole]) + part)
    return np.mean(sums, axis=0)


def test_a_store_is_read_whole(store, rows):
    write_names(store.path.parent, store.key, {"scorer": "oracle", "models": "saves/oracle over saves/base"})
    subject = read_subject(store.path)
    assert (subject.kind, subject.rows, subject.missing, subject.name) == ("store", len(rows), [], str(store.path))
    assert subject.scored_by == "oracle: saves/oracle over saves/base"
    assert subject.settings["identity"] == {"scorer": "oracle", "rows": "sha256:1f"}
    assert [pair.row for pair in subject.pairs] == list(range(len(rows)))
    for row, pair in zip(rows, subject.pairs, strict=True):
        assert (pair.prompt, pair.step) == (row["prompt"], None)
        for side in SIDES:
            answer, scores = getattr(pair, side), np.float32(row[f"{side}_scores"])
            assert answer.tokens == tuple(getattr(texts_of(row), side).tokens)
            assert np.array_equal(answer.scores, scores)
            assert answer.scores.dtype == np.float32
            count = max(1, int(0.3 * len(scores) + 1e-9))
            order = np.argsort(-scores if side == "chosen" else scores, kind="stable")[:count]
            assert set(np.flatnonzero(answer.selected)) == set(order)


def test_spreads_are_over_all_rows(store, rows):
    subject = read_subject(store.path, pairs=2)
    assert [pair.row for pair in subject.pairs] == [0, 8]
    edges = [subject.spreads[side].edges for side in SIDES]
    assert np.array_equal(*edges)
    widths = np.diff(edges[0])
    assert widths == pytest.approx(np.full(len(widths), widths[0]))
    assert 40 <= len(widths) <= 62
    assert np.abs(edges[0]).min() == pytest.approx(0, abs=1e-12)
    for side in SIDES:
        spread = subject.spreads[side]
        flat = np.concatenate([np.float32(row[f"{side}_scores"]) for row in rows]).astype(float)
        assert (spread.tokens, int(spread.counts.sum())) == (len(flat), len(flat))
        assert (spread.mean, spread.std) == pytest.approx((flat.mean(), flat.std()))
        inside = (flat >= edges[0][1]) & (flat < edges[0][-2])
        assert spread.counts[1:-1].sum() == inside.sum()
        slow = slow_accumulation([row[f"{side}_scores"] for row in rows], highest=side == "chosen")
        assert spread.accumulated == pytest.approx(slow, abs=1e-5)


SELECTIONS = [
    {}, {"rule": "quantile"}, {"unit": "span"}, {"unit": "step"}, {"scope": "pair"}, {"scope": "dataset"},
    {"unit": "step", "scope": "pair"}, {"unit": "span", "scope": "dataset"}, {"unit": "step", "scope": "dataset"},
    {"chosen_ratio": 0.5, "rejected_ratio": 0.1}, {"chosen_ratio": 1.0, "rejected_ratio": 1.0},
    {"rule": "mean"}, {"count": "shorter"}, {"count": "shorter", "unit": "step"},
]  # fmt: skip


def with_template(rows, words):
    """Return the rows with an empty thought before every other response, and a line break after the end of turn."""
    before, after = words.encode("<think>\n1. </think>"), words.encode("\n")
    made = []
    for index, row in enumerate(rows):
        made.append(dict(row))
        for number, side in enumerate(SIDES):
            thought = before if (index + number) % 2 else []
            start = row[f"{side}_labels"].count(-100)
            for name in ("input_ids", "labels"):
                own = row[f"{side}_{name}"]
                made[-1][f"{side}_{name}"] = [*own[:start], *thought, *own[start:], *after]
            made[-1][f"{side}_scores"] = [*[9.0] * len(thought), *row[f"{side}_scores"], -9.0]
    return made, TemplateTokens((tuple(before),), (words.eos_token_id, *after))


@pytest.mark.parametrize("changed", SELECTIONS, ids=str)
@pytest.mark.parametrize(("end", "written"), [("lowest", False), ("highest", False), ("lowest", True)])
def test_the_selection_of_a_run_equals_its_collators(rows, tmp_path, changed, end, written):
    """Through the host's columns (steps, shares of the data set), with the texts that a run stores."""
    template = NO_TEMPLATE
    if written:
        rows, template = with_template(rows, tiny.tokenizer())
    settings = {**SELECT, **changed}
    words, data = tiny.tokenizer(), Dataset.from_list([{k: v for k, v in row.items() if k != "prompt"} for row in rows])
    method = resolve_method("simpo", token_scorer="oracle")
    method = replace(
        method,
        selector=Selector(**settings),
        token_scorer=TokenScorer("mine", stored=True, rejected_largest=end == "highest"),
    )
    prepared = selection_columns(
        {"train_dataset": data}, method, tokenizer=words, seed=1, template=template
    )["train_dataset"]  # fmt: skip
    expected = SelectionCollator(pad, method=method)([prepared[index] for index in range(len(rows))])[SELECTION]
    store = make_store(tmp_path / "scores", rows, texts=False)
    assert store.texts.leave(lambda: [PolicyTokens(words)(data[:])])
    run = make_run(
        tmp_path / "run", None, select=settings, token_scorer="mine", registered_scores={"train": str(store.path)},
        rejected_selects=end, **({TEMPLATE_TOKENS: template_texts(template, words)} if written else {}),
    )  # fmt: skip
    subject = read_subject(run)
    assert subject.missing == []
    assert len(subject.pairs) == len(rows)
    for number, side in enumerate(SIDES):
        for row, pair in zip(rows, subject.pairs, strict=True):
            first = sum(label == -100 for label in row[f"{side}_labels"])
            kept = expected[number * len(rows) + pair.row][first : len(row[f"{side}_labels"])]
            shown = getattr(pair, side)
            assert shown.selected.tolist() == kept.tolist()
            assert (shown.candidates is not None) == written
            if written:
                assert shown.candidates.tolist() == prepared[pair.row][f"{side}_candidates"]
                assert shown.counted < len(shown.tokens)


WEIGHTS = {
    "position": ({"decay": 0.9}, lambda chosen, place, score, other: 0.9**place),
    "length": ({"alpha": 0.25}, lambda chosen, place, score, other: 1.0 if place <= other else 0.25),
    "reward": ({"alpha": 4.0}, lambda chosen, place, score, other: 1 + (1 if chosen else -1) * 4.0 * 0.5 * score),
    "importance": (
        {"clip": 1.0, "low": 0.5, "high": 2.0},
        lambda chosen, place, score, other: 1.25 + 0.75 * min(1, max(-1, score if chosen else -score)),
    ),
    "scores": ({}, lambda chosen, place, score, other: score),
}
"""Token weights with their settings, at a reward scale of 0.5, by hand for token ``place`` of a response, from 1."""


@pytest.mark.parametrize("written", [False, True])
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_weights_of_a_run_are_computed_from_its_store(rows, tmp_path, name, written):
    """Positions and lengths count the tokens of the chat template, of which none is selected."""
    words, template = tiny.tokenizer(), NO_TEMPLATE
    if written:
        rows, template = with_template(rows, words)
    store = make_store(tmp_path / "scores", rows)
    values, by_hand = WEIGHTS[name]
    run = make_run(
        tmp_path / "run", store.path, select={**SELECT, "chosen_ratio": 1.0, "rejected_ratio": 0.6},
        token_weight={"name": name, **values}, reward_scale=0.5,
        **({TEMPLATE_TOKENS: template_texts(template, words)} if written else {}),
    )  # fmt: skip
    subject = read_subject(run)
    assert subject.missing == []
    different = set()
    for row, pair in zip(rows, subject.pairs, strict=True):
        for side, other in (SIDES, SIDES[::-1]):
            answer, scores = getattr(pair, side), row[f"{side}_scores"]
            weights = [
                by_hand(side == "chosen", place + 1, score, len(row[f"{other}_scores"]))
                for place, score in enumerate(scores)
            ]
            allowed = np.ones(len(scores), bool) if answer.candidates is None else answer.candidates
            assert (answer.candidates is not None) == written
            count = int((1.0 if side == "chosen" else 0.6) * allowed.sum() + 1e-9)
            ends = np.where(allowed, -np.float32(scores) if side == "chosen" else np.float32(scores), np.inf)
            kept = np.isin(np.arange(len(scores)), np.argsort(ends, kind="stable")[:count])
            expected = np.where(kept, weights, 0.0)
            assert answer.weights == pytest.approx(expected, rel=1e-5, abs=1e-6)
            assert answer.selected.tolist() == (expected != 0).tolist()
            different |= set(expected[kept].round(3))
    assert len(different) > 1
    assert (min(different) < 0) == (name in ("reward", "scores"))
    if name == "scores":  # a weight of 0 excludes its token
        assert any((pair.chosen.scores == 0).any() and not pair.chosen.selected.all() for pair in subject.pairs)


def test_weights_of_a_run_that_selects_all_tokens(rows, store, tmp_path):
    run = make_run(
        tmp_path / "run", None, token_scorer="none", select=None, rejected_selects=None, oracle=None,
        token_reward_scores={"train": str(store.path)}, token_weight={"name": "position", "decay": 0.5},
        reward_scale=0.1,
    )  # fmt: skip
    subject = read_subject(run)
    assert subject.missing == []
    for row, pair in zip(rows, subject.pairs, strict=True):
        assert pair.chosen.weights == pytest.approx(0.5 ** np.arange(1, len(row["chosen_scores"]) + 1))
        assert pair.chosen.selected.all()


def test_weights_of_a_run_that_scores_no_tokens_are_the_recorded_ones(tmp_path):
    none = {"token_scorer": "none", "select": None, "rejected_selects": None, "oracle": None}
    run = make_run(tmp_path / "run", None, **none, token_weight={"name": "position", "decay": 0.5}, reward_scale=0.1)
    answer = {"tokens": ["a", "b"], "scores": [None, None], "selected": [0, 1], "weights": [0.5, 0.25]}
    (run / "_sepo_tokens.jsonl").write_text(record_line(3, 1, chosen=answer) + "\n")
    subject = read_subject(run)
    assert subject.pairs[0].chosen.weights.tolist() == [0.5, 0.25]
    assert subject.pairs[0].rejected.weights is None
    assert subject.missing == [
        "The run scores no tokens, so only the pairs recorded during training (1, at steps 1 to 1) are shown."
    ]
    rewards = make_run(tmp_path / "rewards", None, **none, token_rewards={"origin": "oracle", "model": None})
    assert "scores of all rows are not available" in read_subject(rewards).missing[0]


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        ({"name": "transport", "reg": 1.0, "reg_m": 0.2}, "the policy's hidden states at each step"),
        ({"name": "Mine", "speed": 2}, "which is not a built-in one"),
        ({"name": "position"}, "expected a token weight"),
        ({"name": "importance", "clip": 1.0, "low": 2.0, "high": 1.0}, "exchange them"),
        ({"name": ["position"]}, "which is not a built-in one"),
        ("position", "which is not a built-in one"),
    ],
)
def test_weights_that_cannot_be_computed_are_those_of_the_recorded_pairs(store, tmp_path, weight, reason):
    run = make_run(tmp_path / "run", store.path, token_weight=weight, reward_scale=1.0)
    answer = {"tokens": ["a", "b"], "scores": [1, 2], "selected": [1], "weights": [0.25]}
    (run / "_sepo_tokens.jsonl").write_text(record_line(3, 1, chosen=answer) + "\n")
    subject = read_subject(run)
    (pair,) = subject.pairs
    assert pair.chosen.weights.tolist() == [0.0, 0.25]
    (sentence,) = subject.missing
    assert "The weights cannot be computed from the run's score store, so the pairs recorded" in sentence
    assert reason in sentence
    (run / "_sepo_tokens.jsonl").unlink()
    subject = read_subject(run)
    assert len(subject.pairs) == 9
    assert subject.pairs[0].chosen.weights is None
    (sentence,) = subject.missing
    assert sentence.startswith("The weights of the tokens are unknown: ")
    assert reason in sentence


def test_weights_need_the_scale_of_the_reward(store, tmp_path):
    run = make_run(tmp_path / "run", store.path, token_weight={"name": "position", "decay": 0.5}, recorded=())
    assert "its 'reward_scale' is None, expected a number" in " ".join(read_subject(run).missing)


def test_weights_that_are_not_defined_for_the_scores_are_reported(store, tmp_path):
    run = make_run(tmp_path / "run", store.path, token_weight={"name": "critical"}, reward_scale=1.0)
    subject = read_subject(run)
    (sentence,) = subject.missing
    assert re.match(r"Rows 0, .*: the weights are unknown, expected a number in \[0, 1\]", sentence)
    assert subject.pairs[0].rejected.weights is None
    assert subject.pairs[0].rejected.selected.any()


def test_a_response_without_a_selected_token(rows, tmp_path):
    """Rule ``mean`` selects none of equal scores."""
    equal = [{**row, "chosen_scores": [0.5] * len(row["chosen_scores"])} for row in rows]
    store = make_store(tmp_path / "scores", equal)
    run = make_run(
        tmp_path / "run", store.path, select={**SELECT, "rule": "mean"}, reward_scale=1.0,
        token_weight={"name": "position", "decay": 0.5},
    )  # fmt: skip
    subject = read_subject(run)
    assert subject.missing == []
    for pair in subject.pairs:
        assert not pair.chosen.selected.any()
        assert not pair.chosen.weights.any()
        assert pair.rejected.weights.any()


def test_without_texts_the_template_s_tokens_are_not_recognized(rows, tmp_path):
    words = tiny.tokenizer()
    rows, template = with_template(rows, words)
    store = make_store(tmp_path / "scores", rows, texts=False)
    written = {TEMPLATE_TOKENS: template_texts(template, words)}
    subject = read_subject(make_run(tmp_path / "run", store.path, recorded=(), **written))
    assert "Without texts the tokens of the chat template cannot be recognized" in " ".join(subject.missing)
    assert subject.pairs[0].chosen.candidates is None
    damaged = make_run(
        tmp_path / "damaged", make_store(tmp_path / "more", rows).path, **{TEMPLATE_TOKENS: {"end": "x"}}
    )
    assert read_subject(damaged).pairs[0].chosen.candidates is None


def test_a_store_s_names_have_the_template_s_tokens(rows, tmp_path):
    words = tiny.tokenizer()
    rows, template = with_template(rows, words)
    store = make_store(tmp_path / "scores", rows)
    for value, known in ((json.dumps(template_texts(template, words)), True), ("[", False), ("[1]", False)):
        write_names(store.path.parent, store.key, {"scorer": "oracle", "models": "a over b", TEMPLATE_TOKENS: value})
        subject = read_subject(store.path)
        assert TEMPLATE_TOKENS not in subject.settings["names"]
        for pair in subject.pairs:
            assert (pair.chosen.candidates is not None) is known
            assert not known or not (pair.chosen.selected & ~pair.chosen.candidates).any()


def test_a_run_has_its_settings_recipe_log_and_versions(store, tmp_path):
    run = make_run(tmp_path / "run", store.path)
    subject = read_subject(run, name="mine")
    assert (subject.name, subject.kind, subject.path, subject.rows) == ("mine", "run", run, 9)
    assert subject.scored_by == "oracle: saves/oracle + a (4 bit) over saves/base"
    assert subject.recipe == {"stage": "sepo"}
    assert subject.versions == {"torch": "2.11"}
    assert [entry["step"] for entry in subject.log] == [1, 2, 3, 4]
    assert subject.log[1] == {"step": 2, "loss": 0.5, "rewards/margins": 0.25}
    assert subject.missing == []


def test_a_run_has_the_logged_comparison_with_noise_and_a_store_computes_it(rows, store, tmp_path):
    chance = store_chance(store)
    credit = {"source": "fluent", "responses": 4, "auroc": {"mean": 0.75, "low": 0.5, "high": 0.875}, "noise": False}
    run = make_run(tmp_path / "run", store.path)
    note_scores(run, {"train": chance.as_dict()}, credit)
    for subject in (read_subject(run), read_subject(store.path)):
        facts = {fact.key: fact.values[0] for fact in overview([subject])}
        assert subject.chance == chance
        assert facts["Scores against noise"] == chance.text()
        assert facts.get("Errors of credit_data") == (
            "AUROC 0.750 (0.500 to 0.875), 4 responses of fluent" if subject.kind == "run" else None
        )
        noise = replace(subject, chance=replace(chance, pairs=100, excess=replace(chance.excess, low=-1.0)))
        (fact,) = [fact for fact in overview([noise]) if fact.key == "Scores against noise"]
        assert fact.values[0].startswith("cannot be told from noise: the selected 30% of")
    note_scores(run, {"train": {"pairs": "many"}}, {"auroc": 3})
    damaged = read_subject(run)
    assert damaged.chance is None
    assert any("The comparison of the scores with noise cannot be read" in text for text in damaged.missing)
    overview([damaged])


def test_rows_are_spread_or_named(store):
    assert [pair.row for pair in read_subject(store.path, pairs=3).pairs] == [0, 4, 8]
    assert [pair.row for pair in read_subject(store.path, rows=[7, 2, 99, -1]).pairs] == [2, 7]
    assert read_subject(store.path, pairs=0).pairs == []
    assert read_subject(store.path, spread=False).spreads == {}


def test_a_token_without_a_score_is_at_the_front(rows, tmp_path):
    """A row without a prompt: its first token has no predecessor, so there is one text more than scores."""
    cut = [{**row, **{f"{side}_scores": row[f"{side}_scores"][1:] for side in SIDES}} for row in rows]
    subject = read_subject(make_store(tmp_path, cut).path)
    for row, pair in zip(rows, subject.pairs, strict=True):
        assert len(pair.chosen.tokens) == len(pair.chosen.scores) == len(row["chosen_scores"])
        assert np.isnan(pair.chosen.scores[0])
        assert not pair.chosen.selected[0]
        assert np.array_equal(pair.chosen.scores[1:], np.float32(row["chosen_scores"][1:]))


def test_an_old_store_shows_its_scores_and_how_to_add_texts(rows, tmp_path):
    store = make_store(tmp_path / "scores", rows, texts=False)
    subject = read_subject(store.path)
    assert set(subject.pairs[3].chosen.tokens) == {NO_TEXT}
    assert subject.pairs[3].chosen.selected.any()
    (sentence,) = subject.missing
    assert "`sepo score RECIPE.yaml` with the recipe that scored it adds them without rescoring" in sentence
    run = make_run(tmp_path / "run", store.path)
    recorded = read_subject(run)
    assert [(pair.row, pair.step) for pair in recorded.pairs] == [(3, 1), (0, 2)]
    (sentence,) = recorded.missing
    assert "no texts, so the pairs recorded during training (2, at steps 1 to 2) are shown" in sentence
    (run / "_sepo_tokens.jsonl").unlink()
    subject = read_subject(run)
    assert len(subject.pairs) == 9
    assert any("has no texts" in sentence for sentence in subject.missing)


def test_steps_of_a_number_are_not_guessed_without_texts(rows, tmp_path):
    store = make_store(tmp_path / "scores", rows, texts=False)
    select = {**SELECT, "unit": "step", "count": "shorter"}
    subject = read_subject(make_run(tmp_path / "run", store.path, recorded=(), select=select))
    assert "single tokens of the same number are marked" in " ".join(subject.missing)
    for pair in subject.pairs:
        shorter = min(len(pair.chosen.scores), len(pair.rejected.scores))
        assert pair.chosen.selected.sum() == pair.rejected.selected.sum() == shorter


def test_steps_are_not_guessed_without_texts(rows, tmp_path):
    store = make_store(tmp_path / "scores", rows, texts=False)
    run = make_run(tmp_path / "run", store.path, recorded=(), select={**SELECT, "unit": "step"})
    subject = read_subject(run)
    assert any(
        "steps (lines and sentences), which cannot be determined without texts" in text for text in subject.missing
    )
    assert subject.pairs[0].chosen.selected.sum() == max(1, int(0.3 * len(subject.pairs[0].chosen.scores)))


def test_live_scores_are_the_recorded_ones(tmp_path):
    run = make_run(tmp_path / "run", None, token_scorer="policy_ref", rejected_selects="highest", oracle=None)
    subject = read_subject(run)
    assert [(pair.row, pair.step, pair.prompt) for pair in subject.pairs] == [(3, 1, "q"), (0, 2, "q")]
    side = subject.pairs[0].chosen
    assert side.tokens == ("a", "b", "c")
    assert np.isnan(side.scores[1])
    assert side.selected.tolist() == [True, False, False]
    assert subject.spreads["chosen"].tokens == 4
    assert subject.rows is None
    (sentence,) = subject.missing
    assert "computed at the step that uses them" in sentence
    assert [pair.row for pair in read_subject(run, rows=[0]).pairs] == [0]
    assert "none of them was requested: 0, 3" in " ".join(read_subject(run, rows=[5]).missing)


def test_a_projecting_run_shows_the_policys_tokens(rows, tmp_path):
    store = make_store(tmp_path / "scores", rows, identity={"scorer": "oracle", "reads": {"tokenizer": "x"}})
    run = make_run(tmp_path / "run", store.path)
    subject = read_subject(run)
    assert [pair.row for pair in subject.pairs] == [3, 0]
    assert subject.spreads["chosen"].tokens == sum(len(row["chosen_scores"]) for row in rows)
    assert "The oracle's tokens are not the policy's" in subject.missing[0]
    (run / "_sepo_tokens.jsonl").write_text("")
    subject = read_subject(run)
    assert len(subject.pairs) == 9
    assert "the oracle's tokens are shown, with the same share selected." in " ".join(subject.missing)
    changed = {"select": {**SELECT, "rule": "mean"}, "token_weight": {"name": "position", "decay": 0.5}}
    weighed = make_run(tmp_path / "weighed", store.path, recorded=(), reward_scale=1.0, **changed)
    subject = read_subject(weighed)
    assert "tokens are shown, selected by the same rule, without weights." in " ".join(subject.missing)
    assert subject.pairs[0].chosen.weights is None


def test_token_rewards_of_a_run_that_selects_nothing(store, tmp_path):
    rewards = {"origin": "prompts", "model": {"model": "saves/policy", "adapters": [], "quantization_bit": None}}
    run = make_run(
        tmp_path / "run", None, token_scorer="none", select=None, rejected_selects=None, token_rewards=rewards,
        token_reward_scores={"train": str(store.path)}, oracle=None,
    )  # fmt: skip
    subject = read_subject(run)
    assert subject.missing == []
    assert subject.scored_by == "token rewards: saves/policy (not used for selection)"
    assert all(pair.rejected.selected.all() for pair in subject.pairs)


def test_a_store_that_moved_is_found_by_its_key(store, tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", store.path)
    shutil.move(store.path.parent, tmp_path / "moved")
    subject = read_subject(run)
    assert [pair.row for pair in subject.pairs] == [3, 0]
    assert any(f"score store {store.path} does not exist any more" in sentence for sentence in subject.missing)
    monkeypatch.setenv("SEPO_TOKEN_SCORES_DIR", str(tmp_path / "moved"))
    assert len(read_subject(run).pairs) == 9
    assert read_subject(store.key[:6]).path == tmp_path / "moved" / store.key


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("trainer_state.json", {"step": 1, "loss": 0.7, "epoch": 0.1}),
        ("trainer_log.jsonl", {"step": 1, "loss": 0.75, "learning_rate": 1e-5}),
    ],
)
def test_the_hosts_logs_are_read_without_a_sepo_log(tmp_path, name, first):
    run = make_run(tmp_path / "run", None)
    for other in {"sepo_log.jsonl", "trainer_state.json", "trainer_log.jsonl"} - {name}:
        (run / other).unlink()
    assert read_subject(run).log[0] == first


def test_the_last_checkpoint_of_a_killed_run_has_its_log(tmp_path):
    run = tmp_path / "run"
    for number, loss in ((2, 0.5), (10, 0.25)):
        (run / f"checkpoint-{number}").mkdir(parents=True)
        state = {"log_history": [{"step": number, "loss": loss}]}
        (run / f"checkpoint-{number}" / "trainer_state.json").write_text(json.dumps(state))
    assert read_subject(run).log == [{"step": 10, "loss": 0.25}]


def test_neither_run_nor_store_is_an_error(store, tmp_path, monkeypatch):
    monkeypatch.setenv("SEPO_TOKEN_SCORES_DIR", str(tmp_path / "no_root"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SepoError, match=r"has neither a run .* nor a score store"):
        read_subject(tmp_path / "empty")
    with pytest.raises(SepoError, match=f"It contains: {re.escape(str(store.path))}"):
        read_subject(store.path.parent)
    for nothing in (tmp_path / "nowhere", "ffff", "\0"):
        with pytest.raises(SepoError, match="neither the directory of a score store nor the prefix of a key"):
            read_subject(nothing)


def test_a_row_recorded_twice_is_two_pairs(tmp_path):
    run = make_run(tmp_path / "run", None, token_scorer="confidence", recorded=((1, 1), (1, 4)))
    with (run / "_sepo_tokens.jsonl").open("a") as file:
        file.write(record_line(None, 4) + "\n")
    assert [(pair.row, pair.step) for pair in read_subject(run).pairs] == [(1, 1), (1, 4), (-1, 4)]
