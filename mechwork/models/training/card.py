"""From a finished run to a folder that ships: weights, tokenizer, card, manifest.

The folder loads with ``AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer.from_pretrained``, offline. Weights are
stored as float16 when that changes no reported accuracy by more than `TOLERANCE`, as float32 otherwise.
"""

from __future__ import annotations

import copy
import json
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from ...bundled import write_manifest
from ...errors import InputError
from .examples import task_data
from .measure import Composition, Score, measure, measure_composition, to_table
from .tokenizer import save_tokenizer
from .train import Run

TOLERANCE = 0.002
PAIRS = 500

REQUIRED: Mapping[str, float] = {
    "ioi": 0.97, "greater_than": 0.95, "pronoun": 0.95, "agreement": 0.95, "docstring": 0.95, "induction": 0.95,
}  # fmt: skip

LIMITS = (
    (
        "Trained on sentences generated from a small grammar: good for method work, teaching and tests, not for claims "
        "about large language models."
    ),
    "The vocabulary is closed: a word outside it falls apart into bytes, which the model has hardly seen.",
    "Training texts are short (at most about 60 tokens), so later positions of the context of 128 are hardly trained.",
    (
        "Held-out names and words do occur in other training text: filler, copying, repeated lists, and sentences about "
        "two people of whom one is named twice. They never occur in a training sentence of the task they are held out of."
    ),
    (
        "Checkpoints were chosen on validation words and templates, but the recipe itself was settled while looking at "
        "test accuracies of earlier runs, so they are slightly optimistic."
    ),
    "It knows the tasks below in templates like the ones it was trained on; paraphrases with unknown words will fail.",
)


def measure_run(model: PreTrainedModel, run: Run, n: int = PAIRS) -> tuple[dict[str, Score], Composition]:
    """The reported numbers: `n` held-out examples per task, and the composition test."""
    return measure(model, run.tokenizer, "test", n), measure_composition(model, run.tokenizer, "test", n)


def export(run: Run, folder: Path, *, n: int = PAIRS, note: str = "") -> dict[str, Any]:
    """Write the model's folder (replacing an older one) and return the card's content.

    The new folder is made beside the old one and moved into place, so nothing half-written is left.

    Raises:
        InputError: the run is not finished and no `note` says why it is exported all the same.
    """
    if not run.finished and not note:
        raise InputError(
            f"only a finished run is exported, this one is at step {run.step} of {run.recipe.steps}; add a note"
        )
    scores, composition = measure_run(run.model, run, n)
    small = copy.deepcopy(run.model).half()
    half_scores = measure(copy.deepcopy(small).float(), run.tokenizer, "test", n)
    shipped, stored = run.model, "float32"
    if all(abs(half_scores[task].accuracy - scores[task].accuracy) <= TOLERANCE for task in scores):
        shipped, stored, scores = small, "float16", half_scores
    card = _card(run, scores, composition, stored, note)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    _save_weights(shipped, part, stored)
    save_tokenizer(run.tokenizer, part)
    (part / "card.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (part / "card.md").write_text(render_card(card), encoding="utf-8")
    for file in part.iterdir():
        file.chmod(0o644)
    write_manifest(part)
    if folder.exists():
        shutil.rmtree(folder)
    part.replace(folder)
    return card


def _save_weights(model: PreTrainedModel, folder: Path, stored: str) -> None:
    """The files that ``AutoModelForCausalLM.from_pretrained`` reads; the unembedding is the embedding and not stored twice."""
    tensors = {name: parameter.detach().contiguous() for name, parameter in model.named_parameters()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = stored
    config.save_pretrained(str(folder))


def _card(run: Run, scores: Mapping[str, Score], composition: Composition, stored: str, note: str) -> dict[str, Any]:
    return {
        "name": run.recipe.name,
        "architecture": type(run.model).__name__,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "vocabulary": len(run.tokenizer),
        "stored_as": stored,
        "note": note,
        "required": dict(REQUIRED),
        "passed": {task: scores[task].accuracy >= least for task, least in REQUIRED.items()},
        "test": to_table(scores),
        "composition": {**asdict(composition), "passed": composition.passed},
        "recipe": run.recipe.to_dict(),
        "step": run.best.get("step", run.step),
        "tokens": run.tokens,
        "seconds": round(run.seconds),
        "hardware": _hardware(run.recipe.threads),
        "versions": {"torch": torch.__version__, "transformers": _version("transformers")},
        "validation_history": run.history,
        "limits": list(LIMITS),
    }


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
    recipe, composition = card["recipe"], card["composition"]
    summary = "\n".join(
        f"| {task} | {score['accuracy']:.3f} | {card['required'][task]:.2f} | {score['logit_difference']:.2f} | {score['n']} |"
        for task, score in card["test"].items()
    )
    details = "\n".join(
        f"| {task} | {accuracy:.3f} | `{json.dumps(template)[1:-1]}` |"
        for task, score in card["test"].items()
        for template, accuracy in score["per_template"].items()
    )
    mixture = "; ".join(
        f"{phase['steps']} steps (peak {phase['peak']:g}) of "
        + ", ".join(f"{kind} {share:.0%}" for kind, share in phase["mixture"].items())
        for phase in recipe["phases"]
    )
    ablated = " | ".join(
        f"{composition[k]:.2f}" for k in ("intact", "above_end", "above_all", "first_end", "first_all")
    )
    limits = "\n".join(f"- {limit}" for limit in card["limits"])
    citations = "\n".join(f"- {task}: {task_data(task)['citation']}" for task in card["test"])
    note = f"**{card['note']}**\n\n" if card["note"] else ""
    return f"""# {card["name"]}

{note}A {card["architecture"]} with {recipe["n_layers"]} layers, {recipe["n_heads"]} heads, d_model {recipe["d_model"]}, d_mlp {recipe["d_mlp"]},
{card["parameters"]:,} parameters, {card["vocabulary"]} tokens; stored as {card["stored_as"]}.

## What it can do

On held-out words (for IOI and pronoun: held-out names) *and* held-out templates. Accuracy: the most likely token of the
whole vocabulary is a right answer. Logit difference: mean of the right answers minus mean of the wrong ones.

| task | accuracy | required | logit difference | examples |
|---|---|---|---|---|
{summary}

| task | accuracy | template |
|---|---|---|
{details}

## Does the IOI mechanism compose across layers?

Logit difference with attention outputs replaced by their mean over the examples:

| intact | layers 1 and up, last position | layers 1 and up, everywhere | layer 0, last position | layer 0, everywhere |
|---|---|---|---|---|
| {ablated} |

The test (ablating the attention of all layers above 0 costs at least half of the logit difference) is {"passed" if composition["passed"] else "**not passed**"}.

## How it was made

`mechwork train {card["name"]}`: {mixture};
{recipe["documents"]} texts per step, seed {recipe["seed"]},
AdamW, peak learning rate {recipe["learning_rate"]}, {recipe["precision"]} matrix products.
{card["tokens"] / 1e6:.1f} million tokens in {card["seconds"] / 60:.0f} minutes on {card["hardware"]}.
Weights of step {card["step"]} (choice: {recipe["select"]}). Training is deterministic on one machine
with one set of library versions; elsewhere it amplifies rounding, so expect the same accuracies rather than the same bytes.

## Limits

{limits}

## Tasks

{citations}
"""
