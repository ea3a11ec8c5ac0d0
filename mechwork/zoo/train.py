"""The training loop: weights are a pure function of the recipe, also when it is interrupted and resumed.

Text of step s depends on (seed, s) only and there is no dropout, so the state of a run is weights, optimizer moments
and the number of the next step. A checkpoint is one file, replaced at once (see `mechwork.checkpoint`).
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..artefact import write_tensors
from ..checkpoint import FILE, WHAT, Checkpoint
from ..files import make_folder, reading
from .architecture import build_model, document_mask, unembed
from .clamps import clamped, donor_hashes, load_donors
from .grammar import Document, step_documents
from .measure import measure
from .recipe import Recipe
from .tokenizer import END_OF_TEXT, build_tokenizer, grammar_vocabulary

log = logging.getLogger(__name__)

KEPT = "step-{:06d}.safetensors"
"""Weights after a step of the recipe's `keep`; in a model's folder they are loaded as ``NAME@STEP``."""


@dataclass(frozen=True)
class TrainingProgress:
    """What the progress callback receives: the step just finished, of how many, loss, speed, last validation."""

    step: int
    steps: int
    loss: float
    tokens: int
    seconds: float
    validation: dict[str, float]


@dataclass
class TrainingRun:
    """A trained (or interrupted) model with its history; ``finished`` says which."""

    recipe: Recipe
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    selected: dict[str, Tensor] = field(default_factory=dict)
    kept: dict[int, Path] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        return self.step >= self.recipe.steps


def learning_rate(recipe: Recipe, step: int) -> float:
    """Within each phase: linear warm-up, then a cosine down to ``final_learning_rate`` of the phase's peak."""
    phase, step = recipe.phase(step)
    peak = recipe.learning_rate * phase.peak
    horizon = phase.horizon or phase.steps
    rise = max(1, round(recipe.warm_up * horizon))
    if step < rise:
        return peak * (step + 1) / rise
    part = (step - rise) / max(1, horizon - rise)
    low = recipe.final_learning_rate
    return peak * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * part)))


@dataclass(frozen=True)
class PackedRows:
    """Several documents per row; none sees another, and each counts its positions from 0.

    `weights` belong to tokens as *targets*; `document` numbers the documents of a row, -1 where the row is padded.
    """

    tokens: Int[Tensor, "row pos"]
    weights: Float[Tensor, "row pos"]
    positions: Int[Tensor, "row pos"]
    document: Int[Tensor, "row pos"]


class RowPacker:
    """Documents to packed rows of at most `width` tokens, each document opened by the begin token."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, width: int) -> None:
        self._core = tokenizer.backend_tokenizer
        self._start = tokenizer.get_vocab()[END_OF_TEXT]
        self._width = width

    def _encode(self, documents: list[Document]) -> Iterator[tuple[list[int], list[float]]]:
        encoded = iter(
            self._core.encode_batch_fast(
                [text for document in documents for text, _ in document], add_special_tokens=False
            )
        )
        for document in documents:
            ids, weights = [self._start], [0.0]
            for _, weight in document:
                piece = next(encoded).ids
                ids += piece
                weights += [weight] * len(piece)
            yield ids[: self._width], weights[: self._width]

    def __call__(self, documents: list[Document]) -> PackedRows:
        """First fit, longest document first (ties in the given order), so that rows are nearly full."""
        rows: list[list[tuple[list[int], list[float]]]] = []
        free: list[int] = []
        for ids, weights in sorted(self._encode(documents), key=lambda pair: -len(pair[0])):
            row = next((i for i, left in enumerate(free) if left >= len(ids)), len(rows))
            if row == len(rows):
                rows.append([])
                free.append(self._width)
            rows[row].append((ids, weights))
            free[row] -= len(ids)
        width = self._width - min(free)
        columns: tuple[list[list[Any]], ...] = ([], [], [], [])
        for row in rows:
            parts = (
                [i for ids, _ in row for i in ids],
                [w for _, weights in row for w in weights],
                [p for ids, _ in row for p in range(len(ids))],
                [n for n, (ids, _) in enumerate(row) for _ in ids],
            )
            for column, values, padding in zip(columns, parts, (0, 0.0, 0, -1), strict=True):
                column.append(values + [padding] * (width - len(values)))
        tokens, weight, position, document = (torch.tensor(column) for column in columns)
        return PackedRows(tokens, weight, position, document)


def weighted_loss(model: PreTrainedModel, batch: PackedRows) -> Float[Tensor, ""]:
    """Weighted mean cross-entropy; logits are made only for tokens that weigh anything."""
    hidden = model.base_model(
        batch.tokens, attention_mask=document_mask(model, batch.document), position_ids=batch.positions
    ).last_hidden_state[:, :-1]
    targets, weight = batch.tokens[:, 1:], batch.weights[:, 1:]
    chosen = weight > 0
    logits = unembed(model, hidden[chosen])
    losses = torch.nn.functional.cross_entropy(logits, targets[chosen], reduction="none")
    return (losses * weight[chosen]).sum() / weight.sum()


def _optimizer(recipe: Recipe, model: PreTrainedModel) -> torch.optim.AdamW:
    """Weight matrices decay, biases and norms do not; embeddings have a decay of their own."""
    groups: dict[float, list[torch.nn.Parameter]] = {}
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    for parameter in model.parameters():
        decay = recipe.embedding_decay if id(parameter) in embeddings else recipe.weight_decay
        if parameter.requires_grad:
            groups.setdefault(decay if parameter.ndim == 2 else 0.0, []).append(parameter)
    tables = [{"params": parameters, "weight_decay": decay} for decay, parameters in groups.items()]
    return torch.optim.AdamW(tables, lr=recipe.learning_rate, betas=recipe.betas, fused=True)


@contextlib.contextmanager
def _threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def save_checkpoint(folder: Path, run: TrainingRun, optimizer: torch.optim.Optimizer) -> None:
    """Everything from which training goes on: weights, moments, selected weights, step and history."""
    tensors = {f"model.{name}": p.detach() for name, p in run.model.named_parameters()}
    for name, parameter in run.model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{key}.{name}"] = torch.as_tensor(value)
    tensors |= {f"selected.{name}": value for name, value in run.selected.items()}
    state = {
        "step": run.step, "tokens": run.tokens, "seconds": run.seconds, "history": run.history, "best": run.best,
    }  # fmt: skip
    _keeper(folder, run).save(tensors, state)


def _keeper(folder: Path, run: TrainingRun) -> Checkpoint:
    donors = donor_hashes(run.recipe)
    return Checkpoint(folder, {"recipe": run.recipe.to_dict(), **({"clamped_to": donors} if donors else {})})


def load_checkpoint(folder: Path, run: TrainingRun, optimizer: torch.optim.Optimizer) -> bool:
    """Restore what `save_checkpoint` wrote; False when there is none.

    Raises:
        ArtefactError: the files are damaged, do not belong together, or were made by another recipe.
    """
    kept = _keeper(folder, run).load()
    if kept is None:
        return False
    tensors, state = kept
    with reading(folder / FILE, WHAT):
        with torch.no_grad():
            for name, parameter in run.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
                mine = {
                    k.split(".")[1]: v
                    for k, v in tensors.items()
                    if k.startswith("optimizer.") and k.endswith(f".{name}")
                }
                if mine:
                    optimizer.state[parameter] = mine
        run.selected = {k.removeprefix("selected."): v for k, v in tensors.items() if k.startswith("selected.")}
        run.step, run.tokens, run.seconds = state["step"], state["tokens"], state["seconds"]
        run.history, run.best = state["history"], state["best"]
    return True


def _keep(run: TrainingRun, folder: Path) -> None:
    """Write the weights as they are now, if the recipe wants this step."""
    if run.step in run.recipe.keep:
        make_folder(folder)
        tensors = {name: p.detach() for name, p in run.model.named_parameters()}
        write_tensors(folder / KEPT.format(run.step), tensors)


def _validate(run: TrainingRun) -> dict[str, float]:
    scores = measure(run.model, run.tokenizer, "validation", run.recipe.validate_pairs, tasks=run.recipe.tasks)
    accuracy = {task: round(score.accuracy, 4) for task, score in scores.items()}
    run.history.append({"step": run.step, **accuracy})
    merit = [min(accuracy.values()), sum(accuracy.values()) / len(accuracy)]
    if run.recipe.select == "best" and merit > run.best.get("worst_and_mean", [-1.0, -1.0]):
        run.best = {"step": run.step, "worst_and_mean": merit}
        run.selected = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    return accuracy


def train(
    recipe: Recipe,
    folder: str | Path,
    *,
    progress: Callable[[TrainingProgress], None] | None = None,
    stop_after: int | None = None,
) -> TrainingRun:
    """Train `recipe`, going on from the checkpoint in `folder` if there is one.

    A ``KeyboardInterrupt`` saves a checkpoint and is raised again. `stop_after` ends the call early, after that many
    further steps, with a checkpoint. When the run is finished its model holds the selected weights.

    Raises:
        InputError: the recipe does not fit the tokenizer, or a clamp's model the recipe.
        ArtefactError: the folder's checkpoint is damaged or belongs to another recipe.
    """
    folder = Path(folder)
    tokenizer = build_tokenizer(grammar_vocabulary(recipe.vocabulary_tasks))
    vocabulary = recipe.check_vocabulary(len(tokenizer))
    donors = load_donors(recipe, vocabulary)
    with _threads(recipe.threads):
        run = TrainingRun(recipe, build_model(recipe, vocabulary), tokenizer)
        optimizer = _optimizer(recipe, run.model)
        if load_checkpoint(folder, run, optimizer):
            log.info("resumed %s at step %d", recipe.name, run.step)
        end = recipe.steps if stop_after is None else min(recipe.steps, run.step + stop_after)
        try:
            with clamped(run.model, recipe.clamps, donors):
                _loop(run, optimizer, folder, end, progress)
        except KeyboardInterrupt:
            save_checkpoint(folder, run, optimizer)
            raise
        save_checkpoint(folder, run, optimizer)
    if run.finished and run.selected:
        with torch.no_grad():
            for name, parameter in run.model.named_parameters():
                parameter.copy_(run.selected[name])
    run.kept = {step: file for step in recipe.keep if (file := folder / KEPT.format(step)).is_file()}
    run.model.eval()
    return run


def _loop(
    run: TrainingRun,
    optimizer: torch.optim.Optimizer,
    folder: Path,
    end: int,
    progress: Callable[[TrainingProgress], None] | None,
) -> None:
    recipe, model = run.recipe, run.model
    encode = RowPacker(run.tokenizer, recipe.row)
    parameters = [p for p in model.parameters() if p.requires_grad]
    model.train()
    accuracy: dict[str, float] = {}
    _keep(run, folder)
    while run.step < end:
        begun = time.monotonic()
        batch = encode(step_documents(recipe.mixture(run.step), recipe.documents, recipe.seed, run.step))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, run.step)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss = weighted_loss(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimizer.step()
        run.step += 1
        run.tokens += int((batch.document >= 0).sum())
        run.seconds += time.monotonic() - begun
        _keep(run, folder)
        if run.step % recipe.validate_every == 0 or run.step == recipe.steps:
            accuracy = _validate(run)
        if progress is not None:
            progress(TrainingProgress(run.step, recipe.steps, loss.item(), run.tokens, run.seconds, accuracy))
        if run.step % recipe.checkpoint_every == 0 and run.step < end:
            save_checkpoint(folder, run, optimizer)
