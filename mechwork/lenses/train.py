"""Train a tuned lens: closed-form start, then all places at once, from one forward pass per batch.

    training = train_lens(model, "gpt2-12l", folder="runs/lens")       # a recipe's own text; or any other text
    training.lens.save("my-lens")

The state of a run is the translators, Adam's moments, the step, the cursor of the text and the random generator; all of
it is in every checkpoint, so a killed run that is started again ends in identical weights, bit for bit. The forward
pass runs in the model's dtype, translators and moments are float32 at least. Cost of a step: one forward of its tokens,
and per place two products with the unembedding.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..checkpoint import Checkpoint
from ..display import Readable
from ..errors import InputError, MetricError
from ..models.anatomy import ModelAnatomy, check_ready, device_of, dtype_of, final_norm
from ..models.borrow import borrows
from ..provenance import build_provenance
from ..sites import Site
from .checkpoint import LensRun, load_run, save_run
from .distil import descend, divergences
from .fingerprint import fingerprint
from .readout import BITS, Readout
from .recipe import LensRecipe
from .states import lens_sites
from .text import Row, TextStream, open_text
from .translators import Form, Parts, PlaceMoments, find_form, translate
from .tuned import TunedLens
from .units import FORWARD_TOKENS, States, rows_states, states_ahead

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LensProgress:
    """What the progress callback receives: the step just finished, the mean loss over places in bits, held-out mean,
    speed.
    """

    step: int
    steps: int
    loss: float
    held_out: float
    tokens: int
    seconds: float


@dataclass
class LensTraining(Readable):
    """A trained (or interrupted) lens with its history. Divergences in bits per place, on the validation rows.

    `stopped` says why training ended before its last step: nothing improved, or a loss that is not finite.
    """

    lens: TunedLens
    places: tuple[str, ...]
    logit_lens: Float[Tensor, " place"]
    start: Float[Tensor, " place"]
    best: Float[Tensor, " place"]
    best_step: tuple[int, ...]
    step: int
    finished: bool
    stopped: str
    tokens: int
    seconds: float
    history: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        head = (
            f"{'place':<14}{'logit lens':>12}{'start':>10}{'trained':>10}   D(model || reading) in bits, "
            "validation rows"
        )
        rows = zip(self.places, self.logit_lens.tolist(), self.start.tolist(), self.best.tolist(), strict=True)
        tail = [f"stopped at step {self.step}: {self.stopped}"] if self.stopped else []
        return "\n".join([head, *(f"{place:<14}{a:12.3f}{b:10.3f}{c:10.3f}" for place, a, b, c in rows), *tail])


@borrows
def train_lens(
    model: TransformerBridge,
    text: Any,
    recipe: LensRecipe | None = None,
    *,
    folder: str | Path | None = None,
    progress: Callable[[LensProgress], None] | None = None,
    stop_after: int | None = None,
    checkpoint_every: int = 50,
) -> LensTraining:
    """A tuned lens of `model`, trained on `text` (see `open_text`), going on from the checkpoint in `folder` if there
    is one.

    The lens holds, for each place, the translators that were best on the validation rows. `stop_after` ends the call
    after that many further steps, with a checkpoint; so does ``KeyboardInterrupt``, which is raised again.

    Raises `InputError` for text too short to hold out the recipe's rows, `ArtefactError` for a checkpoint of another
    model, text or recipe, `MetricError` when the very first loss is not finite.
    """
    recipe = recipe or LensRecipe()
    anatomy = check_ready(model)
    stream = text if isinstance(text, TextStream) else open_text(model, text)
    form = find_form(recipe.form)
    form.shapes(anatomy.d_model)
    sites = lens_sites(anatomy, [recipe.kind])
    held_out = stream.rows(0, recipe.held_out_rows + 1)
    if len(held_out) <= recipe.held_out_rows:
        raise InputError(
            f"the text has {len(held_out)} rows, too few to hold out {recipe.held_out_rows} and train on others. "
            "Give more text, shorter rows (width=...), or hold out less: LensRecipe(held_out_rows=...)."
        )
    if recipe.top_k > anatomy.d_vocab:
        raise InputError(f"the teacher has {anatomy.d_vocab} tokens; got top_k={recipe.top_k}")
    work = _LensWork(model, anatomy, recipe, form, sites, stream, held_out[: recipe.held_out_rows : 2])
    keeper = (
        None
        if folder is None
        else Checkpoint(Path(folder), {"recipe": recipe.to_dict(), "text": stream.facts, "model": fingerprint(model)})
    )
    run = (load_run(keeper, work) if keeper is not None else None) or work.begin()
    end = recipe.steps if stop_after is None else min(recipe.steps, run.step + stop_after)
    try:
        if run.step < end and not run.stopped:
            with closing(work.ahead(run.cursor, recipe.step_tokens)) as ahead:
                while run.step < end and not run.stopped:
                    work.step(run, ahead, progress)
                    if keeper is not None and run.step % checkpoint_every == 0:
                        save_run(keeper, run)
    except KeyboardInterrupt:
        if keeper is not None:
            save_run(keeper, run)
        raise
    if keeper is not None:
        save_run(keeper, run)
    return work.result(run)


class _LensWork:
    """The fixed side of a run: model, recipe, text."""

    def __init__(
        self, model: TransformerBridge, anatomy: ModelAnatomy, recipe: LensRecipe, form: Form, sites: Sequence[Site],
        stream: TextStream, validation: Sequence[Row]
    ) -> None:  # fmt: skip
        self.model, self.anatomy, self.recipe, self.form, self.sites, self.stream = (
            model,
            anatomy,
            recipe,
            form,
            sites,
            stream,
        )
        self.validation = validation
        self.readout = Readout.of(model)
        self.n_places = len(sites) - 1
        self.dtype = torch.promote_types(dtype_of(model), torch.float32)
        self.device = device_of(model)

    def ahead(self, cursor: int, n_tokens: int) -> Generator[tuple[list[Row], int, States]]:
        """Batches of at least `n_tokens` tokens from `cursor` on, with the cursor after each and their states."""
        first = self.recipe.held_out_rows
        yield from states_ahead(self.model, self.stream.batches(cursor, n_tokens, first), self.sites)

    def begin(self) -> LensRun:
        """The start of a run: the ridge regression, or where that reads worse than nothing, the identity."""
        recipe = self.recipe
        moments = [PlaceMoments.zeros(self.anatomy.d_model, self.device) for _ in range(self.n_places)]
        norm, seen, cursor = final_norm(self.model), 0, recipe.held_out_rows
        with closing(self.ahead(recipe.held_out_rows, FORWARD_TOKENS)) as ahead:
            for _, cursor, batches in ahead:
                for *places, last in map(self.wide, batches):
                    weight = torch.ones(len(last), device=last.device) if norm is None else norm.scale(last)[:, 0] ** -2
                    for place, x in zip(moments, places, strict=True):
                        place.add(x, last, weight)
                    seen += len(last)
                if seen >= recipe.ridge_tokens or (not self.stream.endless and cursor == recipe.held_out_rows):
                    break
        fitted = [self.form.fit(place, recipe.ridge) for place in moments]
        ridge = {name: torch.stack([one[name] for one in fitted]).to(self.device, self.dtype) for name in fitted[0]}
        start, untrained = self.measure(ridge), self.measure(self.form.still(ridge))
        if not bool(torch.isfinite(start + untrained).all()):
            place = int((~torch.isfinite(start + untrained)).nonzero()[0])
            raise MetricError(
                f"the loss at {self.sites[place]} is not finite before any step; are the model's weights finite?"
            )
        better = start < untrained
        still = self.form.still(ridge)
        parts = {
            name: torch.where(better.to(self.device).reshape(-1, *[1] * (part.ndim - 1)), part, still[name])
            for name, part in ridge.items()
        }
        generator = torch.Generator().manual_seed(recipe.seed)
        best = torch.minimum(start, untrained)
        run = LensRun(
            *self.optimizer(parts),
            generator,
            cursor,
            start,
            untrained,
            best,
            {n: p.clone() for n, p in parts.items()},
            [0] * self.n_places,
        )
        run.tokens = seen
        run.history.append({"step": 0, "held_out_bits": best.tolist()})
        return run

    def optimizer(self, parts: Parts) -> tuple[Parts, torch.optim.Adam]:
        live = {name: part.clone().requires_grad_(True) for name, part in parts.items()}
        return live, torch.optim.Adam(list(live.values()), lr=self.recipe.learning_rate)

    def wide(self, states: Sequence[Tensor]) -> list[Tensor]:
        """States in the working type, float32 at least."""
        return [x.to(self.dtype) for x in states]

    def step(
        self,
        run: LensRun,
        ahead: Iterator[tuple[list[Row], int, States]],
        progress: Callable[[LensProgress], None] | None,
    ) -> None:
        begun, recipe = time.monotonic(), self.recipe
        _, cursor, batches = next(ahead)
        states = [torch.cat(place) for place in zip(*map(self.wide, batches), strict=True)]
        n = len(states[0])
        if recipe.share < 1:
            chosen = torch.randperm(n, generator=run.generator)[: max(1, round(recipe.share * n))].to(self.device)
            states = [x[chosen] for x in states]
        run.optimizer.zero_grad()
        places = [{name: part[i] for name, part in run.parts.items()} for i in range(self.n_places)]
        losses = descend(self.readout, self.form, places, states, recipe.top_k)
        norms = torch.stack([p.grad.flatten(1).norm(dim=1) for p in run.parts.values() if p.grad is not None]).norm(
            dim=0
        )
        bad = (~torch.isfinite(losses.to(norms.device) + norms)).nonzero()
        if len(bad):
            run.stopped = (
                f"the loss at {self.sites[int(bad[0])]} is not finite at step {run.step + 1}; the lens is "
                "the best one before it"
            )
            log.warning(run.stopped)
            return
        shrink = (recipe.clip / norms.clamp(min=1e-30)).clamp(max=1.0)
        rate = recipe.rate(run.step)
        for part in run.parts.values():
            assert part.grad is not None
            part.grad.mul_(shrink.reshape(-1, *[1] * (part.ndim - 1)))
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        with torch.no_grad():
            for part in run.parts.values():
                part.mul_(1 - rate * recipe.weight_decay)
        run.optimizer.step()
        run.step, run.cursor, run.tokens = run.step + 1, cursor, run.tokens + n
        if run.step % recipe.check_every == 0 or run.step == recipe.steps:
            self.validate(run)
        run.seconds += time.monotonic() - begun
        if progress is not None:
            progress(
                LensProgress(
                    run.step, recipe.steps, float(losses.mean()) * BITS, float(run.best.mean()), run.tokens, run.seconds
                )
            )

    def validate(self, run: LensRun) -> None:
        """Keeps the better translators place by place; stops when no place has improved often enough."""
        now = self.measure({name: part.detach() for name, part in run.parts.items()})
        improved = now < run.best
        for place in improved.nonzero()[:, 0].tolist():
            run.best_step[place] = run.step
            for name, part in run.parts.items():
                run.best_parts[name][place] = part.detach()[place]
        run.best = torch.minimum(now, run.best)
        run.stale = 0 if bool(improved.any()) else run.stale + 1
        run.history.append({"step": run.step, "held_out_bits": now.tolist()})
        if run.stale >= self.recipe.patience:
            run.stopped = f"no place has improved on held-out rows for {run.stale * self.recipe.check_every} steps"

    def measure(self, parts: Parts) -> Float[Tensor, " place"]:
        """Mean divergence in bits on the validation rows."""
        total, n = torch.zeros(self.n_places, dtype=torch.float64), 0
        for states in map(self.wide, rows_states(self.model, self.validation, self.sites)):
            maps = [
                lambda x, i=i: translate(self.form, {name: part[i] for name, part in parts.items()}, x)
                for i in range(self.n_places)
            ]
            total += divergences(self.readout, maps, states).double().sum(dim=1).cpu() * BITS
            n += len(states[0])
        return total / n

    def result(self, run: LensRun) -> LensTraining:
        places = tuple(map(str, self.sites[:-1]))
        provenance = build_provenance(
            method="tuned lens", recipe=self.recipe.to_dict(), text=self.stream.facts, steps=run.step,
            tokens=run.tokens, stopped=run.stopped,
            validation_bits={"logit lens": run.untrained.tolist(), "start": run.start.tolist(),
            "trained": run.best.tolist()},
        )  # fmt: skip
        lens = TunedLens(
            self.form,
            self.recipe.kind,
            {n: p.detach().cpu().clone() for n, p in run.best_parts.items()},
            fingerprint(self.model),
            provenance,
        )
        return LensTraining(
            lens, places, run.untrained, run.start, run.best, tuple(run.best_step), run.step,
            run.step >= self.recipe.steps or bool(run.stopped),
            run.stopped, run.tokens, run.seconds, list(run.history),
        )  # fmt: skip
