"""Memory of the head besides its weight and the hidden states, at the default chunk, in a separate process."""

import subprocess
import sys
from pathlib import Path

import pytest

STATUS = Path("/proc/self/status")

CHILD = """
import ctypes, sys, torch
from sepo.forward import token_log_probs

def memory(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

tokens, vocabulary, width, dtype = int(sys.argv[1]), 262_144, 16, getattr(torch, sys.argv[2])
# Fixed thresholds: otherwise glibc keeps freed memory, which would count twice.
ctypes.CDLL(None).mallopt(-3, 1 << 17), ctypes.CDLL(None).mallopt(-1, 1 << 17)
hidden = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
weight = torch.randn(vocabulary, width, dtype=dtype)
targets = torch.randint(0, vocabulary, (tokens,))
token_log_probs(hidden[:2], weight, targets[:2]).sum().backward()  # one-time allocations
open("/proc/self/clear_refs", "w").write("5")
before = memory("VmRSS")
token_log_probs(hidden, weight, targets).sum().backward()
print(memory("VmHWM") - before)
"""


@pytest.mark.skipif(not STATUS.exists(), reason="memory is read from /proc")
@pytest.mark.parametrize(("dtype", "tokens"), [("float32", 4096), ("bfloat16", 1024)])
def test_a_vocabulary_of_262144_takes_less_than_300_mb(dtype, tokens):
    """At least sixteen chunks; bfloat16 has fewer tokens, since many CPUs multiply it five times as slowly."""
    done = subprocess.run([sys.executable, "-c", CHILD, str(tokens), dtype], check=True, capture_output=True, text=True)
    used = int(done.stdout)
    assert 16e6 < used < 300e6, f"{used / 1e6:.0f} MB"  # full logits: 4,295 MB of float32, 537 MB of bfloat16
