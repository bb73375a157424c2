"""Memory of a process that scores a large data set: it is independent of the number of rows.

    python benchmarks/scoring_memory.py                        # 200,000 short pairs; a minute, a few hundred MB of disk
    python benchmarks/scoring_memory.py --rows 2000            # a smoke test
    python benchmarks/scoring_memory.py --scorer tiny          # two tiny models instead of fake scores

The pairs are in an Arrow file as written by the host, and are processed as in `sepo score` and `sepo train`: rows with
an empty response are dropped, all rows are hashed, scored shard by shard into a store, their texts stored with the
scores, joined, summarized, and read again in batches. Memory is the anonymous memory of the process (RssAnon), as the
system can drop pages of mapped files.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from sepo.errors import SepoError

RESULTS = Path(__file__).parent / "results"
SCORERS = ("fake", "tiny")
ALLOWED_GROWTH = 96 * 2**20
VOCABULARY = 256


def own_memory():
    """Return the anonymous resident memory of this process in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise SepoError("/proc/self/status has no RssAnon; this benchmark needs Linux.")


def dataset(rows, folder):
    """Return pairs with 4 prompt tokens and responses of 1 to 24 tokens, mapped from a file; every 1000th has none."""
    import numpy as np
    import pyarrow as pa
    from datasets import Dataset

    draw = np.random.default_rng(0)
    file = folder / "rows.arrow"
    names = [f"{side}_{name}" for side in ("chosen", "rejected") for name in ("input_ids", "labels")]
    schema = pa.schema([(name, pa.list_(pa.int64())) for name in names])
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for start in range(0, rows, 1000):
            columns = {name: [] for name in names}
            for row in range(start, min(rows, start + 1000)):
                for side in ("chosen", "rejected"):
                    answer = draw.integers(1, VOCABULARY, 0 if row % 1000 == 999 else int(draw.integers(1, 25)))
                    columns[f"{side}_input_ids"].append(np.concatenate([draw.integers(1, VOCABULARY, 4), answer]))
                    columns[f"{side}_labels"].append(np.concatenate([np.full(4, -100), answer]))
            writer.write_batch(
                pa.record_batch([pa.array(columns[name], schema.field(name).type) for name in names], schema)
            )
    return Dataset.from_file(str(file))


def tokenizer():
    """Return a tokenizer with one word for each id of the vocabulary."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{index} ": index for index in range(VOCABULARY)}, unk_token="w0 "))
    words.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def scorer_of(kind, folder, watch):
    """Return a stored scorer without models or with two tiny ones."""
    import contextlib

    import numpy as np
    import torch

    from sepo.forward.sequences import OracleScorer, ScoringModel
    from sepo.scoring.row_texts import PolicyTokens
    from sepo.scoring.stored_columns import StoredScores, row_sequences
    from sepo.training.selection_columns import SCORE_COLUMNS

    class Scores(StoredScores):
        columns, what = SCORE_COLUMNS, "token scores"

        def _score(self, rows, start, stop, on_batch):
            sequences = row_sequences(rows[start:stop])
            if kind == "fake":
                scores = [np.asarray(s.input_ids[s.response_start :], dtype=np.float32) for s in sequences]
            else:
                scores = [row.numpy() for row in self._loaded().score(sequences)]
            on_batch(len(sequences))
            watch(stop)
            return dict(zip(SCORE_COLUMNS, (scores[: stop - start], scores[stop - start :]), strict=True))

        def _loaded(self):
            if self._scorer is None:
                from transformers import LlamaConfig, LlamaForCausalLM

                config = LlamaConfig(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                     num_attention_heads=2, max_position_embeddings=64)  # fmt: skip
                pair = (ScoringModel(LlamaForCausalLM(config).eval(), contextlib.nullcontext) for _ in range(2))
                torch.manual_seed(0)
                self._scorer = OracleScorer(oracle=next(pair), base=next(pair), batch_tokens=8192)
            return self._scorer

        def _refuse_zeros(self):
            raise SepoError("all scores are zero")

    settings = SimpleNamespace(token_scores_dir=str(folder / "scores"), score_batch_tokens=8192, head_chunk_tokens=None)
    one_process = SimpleNamespace(world_size=1, process_index=0, device="cpu", output_dir=str(folder))
    row_texts = PolicyTokens(tokenizer())
    return Scores(settings, identity={"scorer": kind}, row_texts=row_texts, training_args=one_process)


def measure(options, folder):
    from sepo.score_store import ScoreStore
    from sepo.score_store.summary import summarize
    from sepo.training.row_losses import RowLosses
    from sepo.training.trainable_rows import keep_trainable

    points, began = [], time.perf_counter()

    def note(step, rows=None):
        points.append({"step": step, "rows": rows, "bytes": own_memory(), "seconds": time.perf_counter() - began})

    made = dataset(options.rows, folder)
    note("rows written")
    words = SimpleNamespace(decode=lambda ids, **options: " ".join(map(str, ids)))
    kept = keep_trainable(made, name="train", tokenizer=words, losses=RowLosses())
    note("empty rows dropped")
    every = max(1, len(kept) // 20)
    reached = [0]

    def watch(row):
        if row >= reached[0]:
            reached[0] += every
            note("scored", row)

    scorer = scorer_of(options.scorer, folder, watch)
    joined = scorer.attach(kept, name="train")
    note("joined")
    (path,) = scorer.stores.values()
    tokens = summarize(ScoreStore.at(Path(path))).tokens
    note("summed up")
    for start in range(0, len(joined), 1000):
        joined[start : start + 1000]
    note("read again")
    if len(kept) != len(made) - options.rows // 1000:
        raise SepoError(f"{len(kept)} rows are left of {len(made)}")
    return points, tokens


def parsed(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--scorer", choices=SCORERS, default="fake")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    return parser.parse_args(argv)


def run(options):
    if options.rows < 1000:
        raise SepoError(f"--rows is {options.rows}; at least 1000 are expected.")
    from sepo.hosts.llamafactory.recipe import quiet_on_one_device

    quiet_on_one_device()
    from sepo.console import print_table, size
    from sepo.hosts.llamafactory.bench.machine import machine, versions
    from sepo.hosts.llamafactory.bench.run import write_result

    with tempfile.TemporaryDirectory(prefix="sepo-scoring-memory-") as folder:
        points, tokens = measure(options, Path(folder))
    rows = [
        [p["step"], "" if p["rows"] is None else f"{p['rows']:,}", f"{p['seconds']:.1f}", size(p["bytes"])]
        for p in points
    ]
    print_table(f"{options.rows:,} pairs, {tokens:,} tokens", ("after", "rows", "seconds", "own memory"), rows)
    settled = next(p["bytes"] for p in points if p["step"] == "scored")
    growth = max(p["bytes"] for p in points) - settled
    print(f"grown since the first shard: {size(max(0, growth))}; at most {size(ALLOWED_GROWTH)} are expected")
    setting = {"rows": options.rows, "scorer": options.scorer, "tokens": tokens}
    result = {
        "versions": versions(),
        "machine": machine(cuda=False),
        "setting": setting,
        "points": points,
        "growth_bytes": growth,
    }
    output = options.output or RESULTS / f"scoring_memory-{options.scorer}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_result(result, output)
    if growth > ALLOWED_GROWTH:
        raise SepoError(f"memory grew by {json.dumps(growth)} bytes while {options.rows:,} rows were scored")


def main(argv=None):
    try:
        run(parsed(argv))
    except SepoError as error:
        sys.exit(f"scoring_memory: error: {error}")


if __name__ == "__main__":
    main()
