"""Imports what `sepo train`, `sepo pairs` and `sepo sample` import."""

import matplotlib.pyplot  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

from sepo.hosts.llamafactory.recipe import load_host

load_host("train")

from llamafactory.train import tuner  # noqa: E402, F401

from sepo.hosts.llamafactory import pipeline, sampled_pairs, sampled_responses, workflow  # noqa: E402, F401
