"""The card of a trained model: what it can do on held-out words, whether its layers compose, how it was made.

`build_card` is plain data (``card.json``), `render_card` turns it into Markdown (``card.md``).
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..tasks.sampling.examples import task_data
from .heads import find_induction_heads
from .measure import measure, measure_composition, to_table
from .recipe import Recipe
from .train import TrainingRun

PAIRS = 500

REQUIRED: Mapping[str, float] = {
    "ioi": 0.97, "greater_than": 0.97, "pronoun": 0.97, "agreement": 0.97, "docstring": 0.97,
    "induction": 0.90, "capitals": 0.90, "colored_objects": 0.90, "in_context": 0.90,
}  # fmt: skip

LIMITS = (
    (
        "Trained on sentences generated from a small grammar: good for method work, teaching and tests, not for claims "
        "about large language models."
    ),
    "The vocabulary is closed: a word outside it falls apart into bytes, which the model has hardly seen.",
    "Training texts are short (at most about 60 tokens), so later positions of the context of 128 are hardly trained.",
    (
        "Held-out names and words do occur in other training text: filler, copying, repeated lists, and sentences "
        "about "
        "two people of whom one is named twice. They never occur in a training sentence of the task they are held out "
        "of."
    ),
    (
        "Checkpoints were chosen on validation words and templates, but the recipe itself was settled while looking at "
        "test accuracies of earlier runs, so they are slightly optimistic."
    ),
    "It knows the tasks below in templates like the ones it was trained on; paraphrases with unknown words will fail.",
)

TASK_LIMITS: Mapping[str, str] = {
    "capitals": (
        "Facts cannot be guessed: held-out countries occur in training in statements of their capital and in prompts "
        "that name no other country, never in one that names two. All templates of the test are held out."
    ),
    "colored_objects": "Held out are things and templates; every color occurs as a training answer.",
    "in_context": (
        "Held-out words occur in training in statements of their opposite and translations and as the first example of "
        "a list, never where a list wants an answer."
    ),
}

ARCHITECTURE_LIMITS: Mapping[str, str] = {
    "attn-only": (
        "Attention only: a Llama whose MLPs are one neuron wide with all their parameters at zero, so that they write "
        "nothing. Norms and rotary positions remain."
    ),
    "gemma2": "Every second layer sees a sliding window of 16 tokens only.",
}


def measure_weights(model: Any, tokenizer: Any, recipe: Recipe, n: int = PAIRS) -> dict[str, Any]:
    """The part of a card that follows from the weights: `n` held-out examples per task."""
    scores = measure(model, tokenizer, "test", n, tasks=recipe.tasks)
    required = {task: REQUIRED[task] for task in recipe.tasks}
    composition = {task: measure_composition(model, tokenizer, task, n=n) for task in recipe.tasks}
    heads = find_induction_heads(model, tokenizer, n=n) if "induction" in recipe.tasks else None
    return {
        "required": required,
        "passed": {task: scores[task].accuracy >= least for task, least in required.items()},
        "test": to_table(scores),
        "composition": {task: {**asdict(found), "passed": found.passed} for task, found in composition.items()},
        "induction_heads": asdict(heads) if heads else None,
    }


def build_card(run: TrainingRun, measured: Mapping[str, Any], stored: str, note: str) -> dict[str, Any]:
    """Everything a reader should know; `measured` is `measure_weights` of the weights as stored."""
    recipe = run.recipe
    return {
        "name": recipe.name,
        "architecture": type(run.model).__name__,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "vocabulary": len(run.tokenizer),
        "stored_as": stored,
        "note": note,
        **measured,
        "recipe": recipe.to_dict(),
        "step": run.best.get("step", run.step),
        "tokens": run.tokens,
        "seconds": round(run.seconds),
        "hardware": _hardware(recipe.threads),
        "versions": {"torch": torch.__version__, "transformers": _version("transformers")},
        "validation_history": run.history,
        "limits": limits(recipe),
    }


def limits(recipe: Recipe) -> list[str]:
    """What a model of this recipe is not."""
    return [
        *LIMITS,
        *(TASK_LIMITS[task] for task in recipe.tasks if task in TASK_LIMITS),
        *(text for kind, text in ARCHITECTURE_LIMITS.items() if kind == recipe.architecture),
    ]


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _hardware(threads: int) -> str:
    name = platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{threads} thread(s) of {os.cpu_count()} CPU cores, {name}, {platform.system()}"


def render_card(card: Mapping[str, Any]) -> str:
    """The card as Markdown."""
    recipe = card["recipe"]
    summary = "\n".join(
        f"| {task} | {score['accuracy']:.3f} | {card['required'][task]:.2f} | {score['logit_difference']:.2f} | "
        f"{score['n']} |"
        for task, score in card["test"].items()
    )
    details = "\n".join(
        f"| {task} | {accuracy:.3f} | `{json.dumps(template)[1:-1]}` |"
        for task, score in card["test"].items()
        for template, accuracy in score["per_template"].items()
    )
    mixture = "; ".join(
        f"{phase['steps']} steps ({_schedule(phase)}) of "
        + ", ".join(f"{kind} {share:.0%}" for kind, share in phase["mixture"].items())
        for phase in recipe["phases"]
    )
    limit_list = "\n".join(f"- {limit}" for limit in card["limits"])
    citations = "\n".join(f"- {task}: {task_data(task)['citation']}" for task in card["test"])
    missed = [task for task, passed in card["passed"].items() if not passed]
    below = f"\n**Below what was required: {', '.join(missed)}.**\n" if missed else ""
    note = f"**{card['note']}**\n\n" if card["note"] else ""
    return f"""# {card["name"]}

{note}A {card["architecture"]} with {recipe["n_layers"]} layers, {recipe["n_heads"]} heads, {_grouped(recipe)}d_model {recipe["d_model"]}, d_mlp {recipe["d_mlp"]},
{card["parameters"]:,} parameters, {card["vocabulary"]} tokens; stored as {card["stored_as"]}.

## What it can do

On held-out words (for IOI and pronoun: held-out names) *and* held-out templates. Accuracy: the most likely token of the
whole vocabulary is a right answer. Logit difference: mean of the right answers minus mean of the wrong ones.

| task | accuracy | required | logit difference | examples |
|---|---|---|---|---|
{summary}
{below}
| task | accuracy | template |
|---|---|---|
{details}

{_render_composition(card["composition"])}
{_render_heads(card["induction_heads"])}{_render_kept(card.get("kept"))}## How it was made

`mechwork train {card["name"]}`: {mixture};
{recipe["documents"]} texts per step, seed {recipe["seed"]},
AdamW, peak learning rate {recipe["learning_rate"]}, {recipe["precision"]} matrix products.
{card["tokens"] / 1e6:.1f} million tokens in {card["seconds"] / 60:.0f} minutes on {card["hardware"]}.
Weights of step {card["step"]} (choice: {recipe["select"]}). Training is deterministic on one machine
with one set of library versions; elsewhere it amplifies rounding, so expect the same accuracies rather than the same bytes.

## Limits

{limit_list}

## Tasks

{citations}
"""  # noqa: E501


def _schedule(phase: Mapping[str, Any]) -> str:
    horizon = phase.get("horizon")
    return f"peak {phase['peak']:g}" + (f", on the schedule of {horizon}" if horizon else "")


def _grouped(recipe: Mapping[str, Any]) -> str:
    groups = recipe.get("n_kv_heads")
    return f"{groups} key/value heads, " if groups else ""


def _render_composition(composition: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f"| {task} | "
        + " | ".join(f"{found[key]:.2f}" for key in ("intact", "above_end", "above_all", "first_end", "first_all"))
        + f" | {'passed' if found['passed'] else '**not passed**'} |"
        for task, found in composition.items()
    )
    return f"""## Do its mechanisms compose across layers?

Logit difference with attention outputs replaced by their mean over the examples. The test: ablating the attention of all
layers above 0 costs at least half of the logit difference, both at the last position and everywhere. A task that does
not pass gets its answer to the last position in layer 0 too, and is not presented as a circuit across layers.

| task | intact | layers 1 and up, last position | layers 1 and up, everywhere | layer 0, last position | layer 0, everywhere | test |
|---|---|---|---|---|---|---|
{rows}
"""  # noqa: E501


def _render_heads(heads: Mapping[str, Any] | None) -> str:
    if not heads:
        return ""
    rows = "\n".join(
        f"| {kind.replace('_', ' ')} | {head['name']} | {head['score']:.3f} | {head['next_score']:.3f} | "
        f"{head['ablated']:.2f} |"
        for kind, head in ((kind, heads[kind]) for kind in ("previous_token", "induction"))
    )
    return f"""## The heads of induction

Mean attention of the best head of each kind: from a token up to the answer's first mention to the one before it; from the
last token to the token after its first mention. Then the logit difference of induction (intact: {heads["intact"]:.2f}) with that head mean-ablated.

| kind | head | score | highest of any other head | logit difference without it |
|---|---|---|---|---|
{rows}

"""  # noqa: E501


def _render_kept(kept: list[Mapping[str, Any]] | None) -> str:
    if not kept:
        return ""
    tasks = list(kept[0]["accuracy"])
    rows = "\n".join(
        f"| `{row['name']}` | "
        + " | ".join(f"{value:.3f}" for value in (*row["accuracy"].values(), row["previous_token"], row["induction"]))
        + " |"
        for row in kept
    )
    return f"""## Checkpoints along training

Each loads by its name. Accuracy on held-out words and templates, and the highest score of a head of
either kind.

| checkpoint | {" | ".join(tasks)} | previous token | induction |
|---|{"---|" * len(tasks)}---|---|
{rows}

"""
