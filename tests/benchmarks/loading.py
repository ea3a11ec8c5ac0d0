"""What loading costs: mechwork beside transformers (a folder) and beside the `gguf` package (a file), in new processes.

    python -m tests.benchmarks.loading                          # $MECHWORK_REAL_MODEL; about three minutes
    python -m tests.benchmarks.loading --model model.gguf --repeats 5

CPU seconds of one thread after the imports that both need, the least of some repeats; peak resident memory beside what
the process had before, over the bytes of the weights. `transformers` reads the config, the weights and the tokenizer
of a folder, `bridge` builds TransformerLens's bridge around them, which no load of mechwork can do without; `gguf`
reads a file and dequantises every tensor to float32. The folder is one as others write it: without mechwork's list of
changes, for which the weights are hashed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

IMPORTS = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import torch, transformers, gguf, numpy
import mechwork as mw
import transformer_lens.model_bridge
from transformer_lens.model_bridge.sources import build_bridge_from_module
from mechwork.models.gguf import load_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast
torch.set_num_threads(1)
path = sys.argv[1]
def peak():  # getrusage would say the parent's, which a new process inherits
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
before, begun = peak(), time.process_time()
"""
READS = {
    "transformers": (
        'kept = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager"); '
        "also = AutoTokenizer.from_pretrained(path)"
    ),
    "bridge": (
        'raw = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager"); '
        "words = AutoTokenizer.from_pretrained(path); "
        "kept = build_bridge_from_module("
        "raw, type(raw).__name__, hf_config=raw.config, tokenizer=words, model_name=path)"
    ),
    "mechwork": "kept = mw.load_model(path)",
    "gguf": "kept = [gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors]",
}
SAYS = '\nprint(json.dumps({"seconds": time.process_time() - begun, "bytes": peak() - before}))'


def main() -> None:
    """A row per way of loading."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("MECHWORK_REAL_MODEL"), required=False)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    import mechwork as mw
    from mechwork.models.changed import CHANGES

    model = mw.load_model(args.model)
    size = sum(parameter.numel() * 4 for parameter in model.parameters())
    with tempfile.TemporaryDirectory() as place:
        folder = str(mw.save_model(model, Path(place) / "saved"))
        (Path(folder) / CHANGES).unlink()
        del model
        print(f"{Path(args.model).name}: {size / 1e6:.0f} MB of float32 weights, the least of {args.repeats} repeats")
        for what, path, ways in (
            ("folder", folder, ("transformers", "bridge", "mechwork")),
            ("GGUF", args.model, ("gguf", "mechwork")),
        ):
            least = {way: min(measure(way, path) for _ in range(args.repeats)) for way in ways}
            base = least[ways[0]][0]
            for way, (seconds, n_bytes) in least.items():
                print(
                    f"{what:<8}{way:<14}{seconds:>7.2f} s{seconds / base:>7.2f}x{n_bytes / size:>8.2f} weights at peak",
                    flush=True,
                )


def measure(way: str, path: str) -> tuple[float, float]:
    """(CPU seconds, bytes) of one way of loading in a fresh process."""
    code = f"{IMPORTS}{READS[way]}{SAYS}"
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
    said = json.loads(done.stdout.splitlines()[-1])
    return said["seconds"], said["bytes"]


if __name__ == "__main__":
    main()
