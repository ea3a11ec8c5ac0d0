"""What scores of features cost: CPU time of relevance patching and of integrated gradients, as multiples of plain
forwards.

    python -m tests.benchmarks.features              # the bundled gpt2-6l with its shipped features, about a minute

Float32, one thread, process time, median of three turns, 32 agreement pairs. "sites" is integrated gradients along each
place's own two values (Marks et al. 2024), "inputs" along the embeddings.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch

import mechwork as mw
from mechwork.features import load_features, measure_feature_circuits, score_features
from tests.benchmarks.common import cpu, plain_forward

STEPS = 10


def main() -> None:
    """Print one row per way."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = mw.load_model("gpt2-6l")
    features = load_features(model)
    task = mw.tasks.agreement(model, n=64).train
    unit = cpu(lambda: plain_forward(model, task), 9)

    def score(**settings: Any) -> Any:
        return lambda: score_features(model, task, features, **settings)

    everything = torch.ones(sum(coder.n_features + 1 for coder in features), dtype=torch.bool)
    rows = {
        "relp": score(rules="relp"),
        "gradient": score(rules="gradient"),
        f"gradient, {STEPS} steps, inputs": score(rules="gradient", ig_steps=STEPS, path="inputs"),
        f"gradient, {STEPS} steps, sites": score(rules="gradient", ig_steps=STEPS),
        "one circuit": lambda: measure_feature_circuits(model, task, features, [everything]),
    }
    print(
        f"one forward of {len(task)} pairs: {1000 * unit:.0f} ms; {features.n_features} features at {len(features)} "
        "places"
    )
    for name, work in rows.items():
        print(f"{name:<28}{cpu(work, 3) / unit:8.1f} forwards")


if __name__ == "__main__":
    main()
