"""Hand-made files in the published formats of the data sets of `sepo credit`, about 20 rows each."""

from pathlib import Path

FILES = Path(__file__).parents[1] / "credit" / "files"
SOURCES = {
    "qa_feedback": "qa_feedback.json",
    "prmbench": "prmbench.jsonl",
    "big_bench_mistake": "word_sorting.jsonl",
    "wmt_mqm": "mqm_hand_ende.tsv",
    "ragtruth": "ragtruth",
    "prm800k": "phase2_hand.jsonl",
}
