"""The training step at the papers' model sizes, on one GPU, with random weights: nothing is downloaded.

    python benchmarks/gpu_step.py                                   # Llama-2-7B's shape, LoRA in bfloat16
    python benchmarks/gpu_step.py --shape 13b --quantization 4      # 13B's, NF4 QLoRA
    python benchmarks/gpu_step.py --shape tiny --length 64          # a smoke test on a CPU

Speed and memory do not depend on the values of weights and tokens, so both are random: the weights in bfloat16, written
once to a cache directory, and words of a word-level vocabulary, so that a text of n words has n tokens. Half of every
sequence is prompt. LoRA of rank 16 on all linear layers, 2 pairs per step; everything else is LLaMA-Factory's default.
Steps are measured as in `sepo bench`: the trainers' training step, without the optimizer step.

Besides pairs per second and peak memory above the weights, it reports model FLOPs per second, as a share of the rate of
one large bfloat16 matrix product on the same GPU. Counted per step, with N parameters in matrix products (without
embedding lookups, attention's products and LoRA weights) and T tokens of the batch without padding: 2 N T for a forward
pass, 2 N T for the backward pass (frozen weights have no gradient), 2 N T for a reference that runs in the step.
Recomputed activations are not counted, and a stage that computes less than the plain method is counted as if it did
not, which results in a higher share.
"""

import argparse
import json
import platform
import random
import sys
import tempfile
import time
from pathlib import Path

from random_models import random_weights, saved_once

from sepo.errors import SepoError

RESULTS = Path(__file__).parent / "results"
STAGES = ("host_dpo", "host_simpo", "sepo", "dpo", "selective_dpo")
# The shapes of Llama-2 (7b, 13b), Llama-3.1 (8b), TinyLlama (1b) and Qwen2.5 (0.5b).
SHAPES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
    "8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "1b": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "0.5b": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "tiny": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
}  # fmt: skip
VOCABULARY = {"7b": 32000, "13b": 32000, "8b": 128256, "1b": 32000, "0.5b": 151936, "tiny": 512}
SPECIAL = ["<unk>", "<|im_start|>", "<|im_end|>", "<pad>", "user", "assistant", "system"]
PAIRS_PER_STEP = 2
PROMPT_OVERHEAD, RESPONSE_OVERHEAD = 5, 1  # tokens of the template chatml in this vocabulary


def save_tokenizer(folder, size):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*SPECIAL, *(f"w{number}" for number in range(size - len(SPECIAL)))]
    raw = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<pad>"
    )
    wrapped.save_pretrained(folder)


def random_model(shape, device):
    """Create random weights of a shape on the device, in bfloat16."""
    import torch
    from transformers import LlamaConfig

    config = LlamaConfig(
        **{"num_key_value_heads": SHAPES[shape]["num_attention_heads"], "tie_word_embeddings": False, **SHAPES[shape]},
        vocab_size=VOCABULARY[shape], max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, pad_token_id=3,
    )  # fmt: skip
    return random_weights(config, device=device, dtype=torch.bfloat16)


def save_model(folder, shape, device):
    """Write random weights of a shape, once; return their directory."""

    def save(folder):
        random_model(shape, device).save_pretrained(folder)
        save_tokenizer(folder, VOCABULARY[shape])

    return saved_once(folder, shape, save)


def save_pairs(folder, *, shape, length, pairs):
    draw = random.Random(0)

    def text(count):
        return " ".join(f"w{draw.randrange(VOCABULARY[shape] - len(SPECIAL))}" for _ in range(count))

    prompt, response = length // 2 - PROMPT_OVERHEAD, length - length // 2 - RESPONSE_OVERHEAD
    rows = [
        {
            "conversations": [{"from": "human", "value": text(prompt)}],
            "chosen": {"from": "gpt", "value": text(response)},
            "rejected": {"from": "gpt", "value": text(response)},
        }
        for _ in range(pairs)
    ]
    columns = {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"}
    info = {"file_name": "pairs.json", "formatting": "sharegpt", "ranking": True, "columns": columns}
    (folder / "pairs.json").write_text(json.dumps(rows))
    (folder / "dataset_info.json").write_text(json.dumps({"random_pairs": info}))


def recipe(model, data, options, cuda):
    chosen = {
        "model_name_or_path": str(model),
        "template": "chatml",
        "dataset_dir": str(data),
        "dataset": "random_pairs",
        "cutoff_len": options.length + 64,
        "stage": "sepo",
        "finetuning_type": "lora",
        "lora_rank": 16,
        "lora_target": "all",
        "per_device_train_batch_size": PAIRS_PER_STEP,
        "bf16": True,
        "use_cpu": not cuda,
    }
    if options.quantization == "4":
        chosen |= {"quantization_bit": 4, "quantization_method": "bnb", "quantization_type": "nf4"}
    return chosen


def matrix_peak(size=8192, products=50):
    """Measure FLOPs per second of one large bfloat16 matrix product on the GPU."""
    import torch

    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(4):  # the first one warms up
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(products):
            left @ right
        torch.cuda.synchronize()
        best = max(best, 2 * size**3 * products / (time.perf_counter() - start))
    return best


def multiplied(shape):
    """Count parameters in matrix products: of the layers and of the head."""
    values = SHAPES[shape]
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    grouped = hidden * values.get("num_key_value_heads", heads) // heads  # width of keys and values
    layer = 2 * hidden * (hidden + grouped) + 3 * hidden * values["intermediate_size"]
    return values["num_hidden_layers"] * layer + hidden * VOCABULARY[shape]


def model_flops(shape, tokens_per_second, *, reference):
    """Return the model FLOPs per second of a stage, with or without a reference in its step."""
    return 2 * (2 + reference) * multiplied(shape) * tokens_per_second


def with_flops(result, *, shape, peak):
    """Add model FLOPs per second, and their share of the peak, to every contender."""
    for entry in result["contenders"]:
        settings = entry["settings"]
        reference = entry["name"] == "host_dpo" or (settings is not None and settings["reference"])
        entry["model_flops_per_second"] = model_flops(shape, entry["tokens_per_second"], reference=reference)
        entry["share_of_peak"] = None if peak is None else entry["model_flops_per_second"] / peak
    result["peak_flops_per_second"] = peak
    return result


def shares(result):
    peak = result["peak_flops_per_second"]
    if peak is None:
        return "no GPU: no share of its matrix peak."
    parts = [f"{entry['label']} {entry['share_of_peak']:.1%}" for entry in result["contenders"]]
    return f"model FLOPs as a share of {peak / 1e12:.0f} TFLOP/s (bfloat16, one matrix product): {', '.join(parts)}"


def parsed(argv):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", choices=tuple(SHAPES), default="7b")
    parser.add_argument("--quantization", choices=("none", "4"), default="none")
    parser.add_argument("--length", type=int, default=2048, help="tokens per sequence, half of them prompt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--stages", default=",".join(STAGES), help="a comma-separated subset, as for `sepo bench`")
    parser.add_argument("--no-memory", dest="memory", action="store_false")
    parser.add_argument(
        "--cache", type=Path, default=Path.home() / ".cache" / "sepo" / "bench", help="directory for the random weights"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    return parser.parse_args(argv)


def run(options):
    if options.length < 32:
        raise SepoError(f"--length is {options.length}; at least 32 tokens are expected.")
    from sepo.hosts.llamafactory.recipe import quiet_on_one_device

    quiet_on_one_device()
    import torch

    cuda = torch.cuda.is_available()
    if not cuda and options.shape != "tiny":
        raise SepoError(
            f"no CUDA GPU is visible, and shape {options.shape} is too large for a CPU; run it on a GPU, or smoke-test "
            "with --shape tiny --length 64."
        )
    from sepo.hosts.llamafactory.bench.report import print_result
    from sepo.hosts.llamafactory.bench.run import measure, write_result

    model = save_model(options.cache / options.shape, options.shape, "cuda" if cuda else "cpu")
    peak = matrix_peak() if cuda else None
    if cuda:
        torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory(prefix="sepo-gpu-step-") as folder:
        save_pairs(Path(folder), shape=options.shape, length=options.length, pairs=PAIRS_PER_STEP * options.rounds)
        result = measure(
            recipe(model, folder, options, cuda),
            rounds=options.rounds,
            names=options.stages.split(","),
            memory=options.memory,
        )
    with_flops(result, shape=options.shape, peak=peak)
    print_result(result)
    print(shares(result))
    where = torch.cuda.get_device_name(0).replace(" ", "-") if cuda else platform.machine()
    quantized = "nf4" if options.quantization == "4" else "bf16"
    output = options.output or RESULTS / f"gpu_step-{options.shape}-{quantized}-{where}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_result(result, output)


def main(argv=None):
    try:
        run(parsed(argv))
    except SepoError as error:
        sys.exit(f"gpu_step: error: {error}")


if __name__ == "__main__":
    main()
