"""From a finished run to a folder that ships, and from a shipped folder back to its numbers.

The folder loads with ``AutoModelForCausalLM.from_pretrained`` and ``AutoTokenizer.from_pretrained``, offline. Weights
are stored as float16 when that changes no reported accuracy by more than `TOLERANCE`, as float32 otherwise.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ..artefact import read_tensors, write_tensors
from ..bundled import write_manifest
from ..errors import InputError
from ..files import make_folder, read_json, write_json, write_text
from .card import PAIRS, build_card, limits, measure_weights, render_card
from .heads import score_heads
from .measure import Score, measure
from .recipe import Recipe
from .tokenizer import save_tokenizer
from .train import KEPT, TrainingRun

TOLERANCE = 0.002
KEPT_PAIRS = 200
CARD, TEXT = "card.json", "card.md"


def export(run: TrainingRun, folder: Path, *, n: int = PAIRS, note: str = "") -> dict[str, Any]:
    """Write the model's folder (replacing an older one) and return the card's content.

    The new folder is made beside the old one and moved into place, so nothing half-written is left.

    Raises:
        InputError: the run is not finished and no `note` says why it is exported all the same.
    """
    if not run.finished and not note:
        raise InputError(
            f"only a finished run is exported, this one is at step {run.step} of {run.recipe.steps}; add a note"
        )
    scores = measure(run.model, run.tokenizer, "test", n, tasks=run.recipe.tasks)
    rounded = _with_weights(run.model, {name: p.half().float() for name, p in run.model.named_parameters()})
    half_scores = measure(rounded, run.tokenizer, "test", n, tasks=run.recipe.tasks)
    small = all(abs(half_scores[task].accuracy - scores[task].accuracy) <= TOLERANCE for task in scores)
    dtype = torch.float16 if small else torch.float32
    measured = measure_weights(rounded if small else run.model, run.tokenizer, run.recipe, n)
    card = build_card(run, measured, str(dtype).removeprefix("torch."), note)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    _save_model(run.model, part, dtype)
    save_tokenizer(run.tokenizer, part)
    if run.kept:
        card["kept"] = [_save_kept(run, step, file, part, min(n, KEPT_PAIRS)) for step, file in run.kept.items()]
    _save_card(card, part)
    for file in part.iterdir():
        file.chmod(0o644)
    write_manifest(part)
    if folder.exists():
        shutil.rmtree(folder)
    part.replace(folder)
    return card


def save_steps(run: TrainingRun, folder: str | Path) -> list[Path]:
    """Every kept step as a folder that loads, first to last, in float32: a list of checkpoints for the studies.

    Raises:
        InputError: the recipe keeps no steps, or none is reached.
    """
    if not run.kept:
        raise InputError(f"recipe {run.recipe.name!r} has kept no weights; give it steps to keep, keep=(0, 100, ...)")
    folders = []
    for step, file in run.kept.items():
        place = make_folder(Path(folder) / f"step-{step:06d}")
        _save_model(_with_weights(run.model, read_tensors(file)[1]), place, torch.float32)
        save_tokenizer(run.tokenizer, place)
        folders.append(place)
    return folders


def _with_weights(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> PreTrainedModel:
    """A copy of the model with other values in its parameters."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            parameter.copy_(tensors[name])
    return other


def _save_model(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    """The unembedding is the embedding and not stored twice."""
    tensors = {name: parameter.detach().to(dtype).contiguous() for name, parameter in model.named_parameters()}
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = str(dtype).removeprefix("torch.")
    config.save_pretrained(str(folder))


def _save_kept(run: TrainingRun, step: int, file: Path, folder: Path, n: int) -> dict[str, Any]:
    """Store one checkpoint along training as float16, and measure it: a row of the card."""
    tensors = {name: value.half() for name, value in read_tensors(file)[1].items()}
    write_tensors(folder / KEPT.format(step), tensors, {"format": "pt"})
    model = _with_weights(run.model, {name: value.float() for name, value in tensors.items()}).eval()
    scores = measure(model, run.tokenizer, "test", n, tasks=run.recipe.tasks)
    heads = score_heads(model, run.tokenizer, n=n)
    return {
        "name": f"{run.recipe.name}@{step}",
        "accuracy": {task: score.accuracy for task, score in scores.items()},
        "previous_token": float(heads.previous_token.max()),
        "induction": float(heads.induction.max()),
    }


def _save_card(card: Mapping[str, Any], folder: Path) -> None:
    write_json(folder / CARD, card)
    write_text(folder / TEXT, render_card(card))


def load_exported(folder: Path) -> tuple[PreTrainedModel, Any, Recipe]:
    """The model in float32, its tokenizer, and the recipe of its card."""
    model = AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=torch.float32, local_files_only=True, use_safetensors=True, attn_implementation="eager"
    )
    recipe = Recipe.from_dict(read_json(folder / CARD)["recipe"])
    return model.eval(), AutoTokenizer.from_pretrained(str(folder), local_files_only=True), recipe


def remeasure(folder: Path, n: int = PAIRS) -> dict[str, Score]:
    """The accuracies of a shipped folder's weights, on the examples its card was made with when `n` is the same."""
    model, tokenizer, recipe = load_exported(folder)
    return measure(model, tokenizer, "test", n, tasks=recipe.tasks)


def rewrite_card(folder: Path, n: int = PAIRS) -> dict[str, Any]:
    """Measure a folder's weights again and write its card and manifest anew; for when what a card shows has changed.

    Weights, tokenizer and what the card says about the training stay as they are.
    """
    model, tokenizer, recipe = load_exported(folder)
    card = read_json(folder / CARD)
    card |= measure_weights(model, tokenizer, recipe, n)
    card |= {"recipe": recipe.to_dict(), "limits": limits(recipe)}
    _save_card(card, folder)
    write_manifest(folder)
    return card
