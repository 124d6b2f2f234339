"""Peak memory of capturing every layer's resid_post of a long prompt, against plain hooks and TransformerLens."""

import json
import subprocess
import sys
from statistics import median
from typing import Any

_PROGRAM = """
import pathlib, sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
from interp.models import Model
from interp.sites import Site
from interp.testing.probe import batch_of

torch.set_num_threads(1)
shape = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8, "num_attention_heads": 8}
config = AutoConfig.for_model("llama", vocab_size=512, num_key_value_heads=8, max_position_embeddings=2048, **shape)
module = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
tokens = torch.randint(0, 512, (1, 2048))
sites = [Site("resid_post", layer) for layer in range(8)]
model, bridge = (Model("tiny", module), None) if sys.argv[1] != "plain hooks" else (None, None)
if sys.argv[1] == "TransformerLens":
    bridge = model.bridge

def peak():
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024

def resident():
    status = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) / 1024

module(input_ids=tokens[:, :64], use_cache=False)
before = resident()
pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak is counted anew
with torch.no_grad():
    if sys.argv[1] == "plain hooks":
        kept = {}
        for i, block in enumerate(module.model.layers):
            block.register_forward_hook(lambda m, a, out, i=i: kept.__setitem__(i, out.clone()))
        module(input_ids=tokens, use_cache=False)
    elif sys.argv[1] == "interp":
        kept = model.forward(batch_of(tokens), capture=sites)
    else:
        kept = bridge.run_with_cache(tokens, names_filter=[str(site) for site in sites])
print(peak() - before)
"""
_HOW = ("plain hooks", "interp", "TransformerLens")


def run() -> dict[str, Any]:
    """Return the median growth in MB of a process over three runs each, and its ratio to plain hooks."""
    grown = {how: median(_grown(how) for _ in range(3)) for how in _HOW}
    return {
        "model": "8 layers, d_model 256, 2,048 tokens",
        "grown_mb": {how: round(mb, 1) for how, mb in grown.items()},
        "ratio_to_plain_hooks": {how: round(mb / grown["plain hooks"], 2) for how, mb in grown.items()},
    }


def _grown(how: str) -> float:
    done = subprocess.run([sys.executable, "-c", _PROGRAM, how], capture_output=True, check=True, text=True)
    return float(json.loads(done.stdout))
