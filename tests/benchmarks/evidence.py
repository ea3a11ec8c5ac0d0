"""The rest of the evidence page: what is not an agreement of estimates, on one real model, part by part.

    python -m tests.benchmarks.evidence --out evidence                  # $MECHWORK_REAL_MODEL, every part
    python -m tests.benchmarks.evidence --parts roles circuits --out evidence
    python -m tests.benchmarks.evidence --model gpt2-6l --n 4 --parts roles suppression

Each part is a page of its own in the folder, PART.md; one that is there is not run again. Numbers depend on the model,
`--n` and `--seed` alone: no times are written, and two runs on one thread give the same bytes.

roles        heads of highest score by role, on repeated random tokens
circuits     circuits of two tasks by EAP-IG at 1 % of the edges: overlap beside chance, each tested on held-out pairs
suppression  copy suppression of heads on IOI, by effects and by weights
repair       self-repair of the heads of largest estimated effect on IOI, under mean ablation
steering     a direction of the pronoun task added at several strengths, beside random ones
dtype        estimates in bfloat16 against float32 of the same pairs
docstring    can the model do the docstring task, and which estimate agrees there
atp_star     AtP* beside plain gradients on one task, at queries, keys, heads and MLPs
lens         a diagonal lens from its closed form (a recipe's text) against the logit lens
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

import mechwork as mw
from mechwork.ablation import measure_roles, repeated_tokens, study_copy_suppression, study_self_repair
from mechwork.circuits.graph.compare import compare_circuits
from mechwork.directions import Examples, fit_direction
from mechwork.directions.study import study_steering
from mechwork.files import write_text
from mechwork.lenses import LensRecipe, evaluate_lens, open_text, train_lens
from mechwork.patching import study_agreement
from mechwork.patching.estimators import find_estimator
from mechwork.statistics import pearson

SITES = ("resid_pre", "attn_out", "mlp_out", "z")


@dataclass
class Bench:
    """The model by name, pairs per task, and the seed of all that is drawn."""

    source: str
    n: int
    seed: int

    @cached_property
    def model(self) -> Any:
        return mw.load_model(self.source)

    def task(self, name: str, n: int | None = None) -> mw.Task:
        return getattr(mw.tasks, name)(self.model, n=n or self.n, seed=self.seed)


def main() -> None:
    """Run the parts that the folder lacks, and print all that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=os.environ.get("MECHWORK_REAL_MODEL", "gpt2-6l"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--n", type=int, default=8, help="pairs per task")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    bench = Bench(args.model, args.n, args.seed)
    for name in args.parts:
        file = None if args.out is None else args.out / f"{name}.md"
        if file is not None and file.is_file():
            print(file.read_text(encoding="utf-8"), flush=True)
            continue
        text = f"### {name}: {args.n} pairs, seed {args.seed}\n\n{PARTS[name](bench)}\n"
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, text)
        print(text, flush=True)


def table(head: list[str], rows: list[list[Any]]) -> str:
    """A table in Markdown, numbers with three digits."""
    cells = [[f"{x:.3f}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *cells])


def roles(bench: Bench) -> str:
    found = measure_roles(bench.model, repeated_tokens(bench.model, bench.n, seed=bench.seed), seed=bench.seed)
    rows = [
        [role, ", ".join(f"{head} {score:.2f}" for head, score in found.top(role, 4)),
         float(found.null_mean[role].mean()), sum(role in found.roles_of(head) for head in found.heads)]
        for role in found.scores
    ]  # fmt: skip
    return table(["role", "heads of highest score", "chance", "heads that have it"], rows)


def circuits(bench: Bench) -> str:
    chosen, lines = {}, []
    for name in ("ioi", "pronoun"):
        task = bench.task(name, 2 * bench.n)
        scores = mw.score_edges(bench.model, task.train, preset="eap-ig")
        chosen[name] = scores.circuit(max(1, scores.space.n_edges // 100))
        tested = mw.evaluate(bench.model, task.test, chosen[name], n_random=1, seed=bench.seed)
        lines.append([name, chosen[name].n_edges, tested.faithfulness, tested.random[0]])
    (both,) = compare_circuits(chosen).overlaps
    tests = table(["task", "edges", "faithfulness on held-out pairs", "a random circuit"], lines)
    shared = table(
        ["overlap", "edges", "by chance", "nodes", "by chance"],
        [["Jaccard", both.edges, both.edges_by_chance, both.nodes, both.nodes_by_chance]],
    )
    return f"{tests}\n\n{shared}\n\nShared nodes: {', '.join(both.shared_nodes)}."


def suppression(bench: Bench) -> str:
    found = study_copy_suppression(bench.model, bench.task("ioi"), seed=bench.seed)
    rows = [
        [r.head, r.direct_effect, r.ov_among_lowest, r.ov_percentile, r.qk_percentile, r.share_explained]
        for r in found.rows
    ]
    chance = f"Chance: OV among the lowest {found.chance_lowest:.3f}, percentiles 0.5."
    names = ["head", "direct effect", "OV among lowest", "OV percentile", "QK percentile", "explained"]
    return f"{table(names, rows)}\n\n{chance}"


def repair(bench: Bench) -> str:
    task = bench.task("ioi")
    effects = mw.attribute(bench.model, task, ["z"], rules="relp", positions="all")["z"].values
    order = effects.flatten().argsort(descending=True, stable=True)[:4].tolist()
    heads = [f"a{i // effects.shape[-1]}.h{i % effects.shape[-1]}" for i in order]
    found = study_self_repair(bench.model, task, heads, seed=bench.seed).to_dataframe()
    names = ["head", "direct", "total", "repaired", "by_norm", "by_heads", "by_mlps"]
    return table([name.replace("_", " ") for name in names], found[names].to_numpy().tolist())


def steering(bench: Bench) -> str:
    task, layer = bench.task("pronoun", 4 * bench.n), bench.model.cfg.n_layers // 2
    direction = fit_direction(bench.model, Examples.of_task(task.train), mw.Site("resid_post", layer))
    found = study_steering(
        bench.model, task.test, direction, methods=["add"], strengths=(0.5, 1.0, 2.0, 4.0),
        others=[bench.task("ioi")], n_random=2, seed=bench.seed,
    ).to_dataframe()  # fmt: skip
    found = found.select_dtypes(exclude="bool")
    return f"At resid_post.{layer}.\n\n" + table([str(name) for name in found], found.to_numpy().tolist())


def dtype(bench: Bench) -> str:
    half = mw.load_model(bench.source, dtype=torch.bfloat16)
    task, rows = bench.task("ioi", 4), list[list[Any]]()
    for name in ("gradient", "relp"):
        wide, narrow = (mw.attribute(model, task, list(SITES), rules=name) for model in (bench.model, half))
        for kind in SITES:
            a, b = (found[kind].values.flatten().double() for found in (wide, narrow))
            rows.append([name, kind, f"{pearson(a, b):.5f}", float((a - b).abs().sum() / a.abs().sum())])
    return table(["estimate", "kind", "Pearson of bfloat16 with float32", "relative error"], rows)


def docstring(bench: Bench) -> str:
    accuracy = bench.task("docstring", 16).accuracy(bench.model)
    said = f"Right in {accuracy:.2f} of 16 pairs."
    return f"{said}\n\n{agreement(bench, 'docstring', ['gradient', 'relp'], SITES)}"


def atp_star(bench: Bench) -> str:
    return agreement(bench, "ioi", ["gradient", "atp_star"], ("q", "k", "z", "mlp_out"))


def agreement(bench: Bench, name: str, rules: list[str], sites: tuple[str, ...]) -> str:
    """Pearson, Spearman and relative error at 24 random places of each kind."""
    study = study_agreement(
        bench.model, [bench.task(name, 4)], rules=[find_estimator(rule) for rule in rules], sites=sites, n_places=24,
        seed=bench.seed,
    )  # fmt: skip
    rows = [
        [kind, rule, row.pearson, row.spearman, row.relative_error, row.n_large, row.cost]
        for (_, kind, rule), row in study.rows.items()
    ]
    return table(["kind", "estimate", "Pearson", "Spearman", "relative error", "places over 1 %", "cost in F"], rows)


def lens(bench: Bench) -> str:
    text = open_text(bench.model, "gpt2-12l", width=32, seed=bench.seed)
    recipe = LensRecipe(form="diagonal", steps=0, ridge_tokens=1500, held_out_rows=8)
    trained = train_lens(bench.model, text, recipe).lens
    found = evaluate_lens(bench.model, trained, text.odd_rows(8), n_rows=4)
    means = [found.mean(name).tolist() for name in ("logit_kl", "kl", "logit_top1", "top1")]
    every = max(1, len(found.places) // 6)
    rows = [list(row) for row in zip(found.places, *means, strict=True)][::every]
    names = ["place", "KL of the logit lens, bits", "of the lens", "top-1 of the logit lens", "of the lens"]
    return f"Closed form alone, no steps.\n\n{table(names, rows)}"


PARTS: dict[str, Callable[[Bench], str]] = {
    "roles": roles, "circuits": circuits, "suppression": suppression, "repair": repair, "steering": steering,
    "dtype": dtype, "docstring": docstring, "atp_star": atp_star, "lens": lens,
}  # fmt: skip


if __name__ == "__main__":
    main()
