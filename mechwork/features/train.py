"""Train sparse coders at many places of a model at once, from one forward pass per batch.

    training = train_features(model, "gpt2-6l", [Site("resid_post", 3)], folder="runs/features")
    training.features.save("my-features")

Every place is centred and scaled to a root mean square of 1 per dimension; the loss of a coder is the mean squared
error there (the share of variance not explained), plus a penalty for ReLU coders and AuxK for top-k ones (see
`FeatureRecipe`). Centre and scale are folded into the weights at the end, so that features are in the model's own units
and decoder rows have length 1.

All of a run's state is in every checkpoint: a killed run that is started again ends in identical weights, bit for bit.
The forward pass runs in the model's dtype, coders are float32. Cost of a step: one forward of its tokens, and per place
about five products of tokens by features by width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..checkpoint import Checkpoint
from ..display import Readable
from ..errors import InputError, MetricError
from ..lenses.fingerprint import fingerprint
from ..lenses.text import Row, TextStream, open_text
from ..lenses.units import States, rows_states, states_ahead
from ..models.anatomy import check_ready, device_of
from ..models.borrow import borrows
from ..provenance import build_provenance, hash_json
from ..sites import Site
from .activations import Relu, TopK
from .coder import SparseCoder, check_feature_site
from .feature_set import FeatureSet
from .recipe import FeatureRecipe

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

STATE = ("cursor", "data", "step", "tokens", "seconds", "history")
WEIGHTS = ("W_enc", "b_enc", "W_dec", "b_dec")


@dataclass(frozen=True)
class FeatureProgress:
    """What the progress callback receives: the step just finished, the mean share of variance left, dead
    share, speed.
    """

    step: int
    steps: int
    unexplained: float
    dead: float
    tokens: int
    seconds: float


@dataclass
class FeatureTraining(Readable):
    """Trained (or interrupted) features with their history: per recorded step, the share of variance left at every
    place.
    """

    features: FeatureSet
    step: int
    finished: bool
    tokens: int
    seconds: float
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _FeatureRun:
    """Everything that changes while training; weights are stacked over places, ``[place, ...]``."""

    weights: dict[str, Tensor]
    optimizer: torch.optim.Adam
    silent: Int[Tensor, "place feature"]
    norms: dict[str, Tensor]
    cursor: int
    data: str = ""
    """sha256 of the rows trained on so far, chained step by step."""
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


@borrows
def train_features(
    model: TransformerBridge,
    text: Any,
    places: Sequence[Site | tuple[Site, Site]],
    recipe: FeatureRecipe | None = None,
    *,
    folder: str | Path | None = None,
    progress: Callable[[FeatureProgress], None] | None = None,
    stop_after: int | None = None,
    checkpoint_every: int = 100,
) -> FeatureTraining:
    """Coders at `places` (a pair of sites: a transcoder from the first to the second), trained on `text` (see
    `lenses.open_text`).

    Goes on from the checkpoint in `folder` if there is one. `stop_after` ends the call after that many further steps,
    with a checkpoint; an interrupted run goes on from the last one, every `checkpoint_every` steps.

    Raises:
        InputError: places of different width, or without vectors; text too short to hold out the recipe's rows.
        ArtefactError: a checkpoint of another model, text, recipe or of other places.
        MetricError: a loss that is not finite.
    """
    recipe = recipe or FeatureRecipe()
    work = _FeatureWork(model, text, places, recipe)
    identity = {
        "recipe": recipe.to_dict(), "text": work.stream.facts, "model": fingerprint(model),
        "places": [[str(a), str(b)] for a, b in work.places],
    }  # fmt: skip
    keeper = None if folder is None else Checkpoint(Path(folder), identity)
    kept = None if keeper is None else keeper.load()
    run = work.begin() if kept is None else work.resume(*kept)
    end = recipe.steps if stop_after is None else min(recipe.steps, run.step + stop_after)
    with closing(work.ahead(run.cursor)) as ahead:
        while run.step < end:
            work.step(run, ahead, progress)
            if keeper is not None and run.step % checkpoint_every == 0:
                keeper.save(*work.state(run))
    if keeper is not None:
        keeper.save(*work.state(run))
    return work.result(run)


class _FeatureWork:
    """The fixed side of a run: model, recipe, text."""

    def __init__(
        self, model: TransformerBridge, text: Any, places: Sequence[Site | tuple[Site, Site]], recipe: FeatureRecipe
    ) -> None:
        anatomy = check_ready(model)
        self.model, self.recipe, self.device = model, recipe, device_of(model)
        self.places = [(place, place) if isinstance(place, Site) else place for place in places]
        if not self.places:
            raise InputError("features are trained at one place or more; got none")
        self.sites = list(dict.fromkeys(site for place in self.places for site in place))
        for site in self.sites:
            check_feature_site(site)
            anatomy.check_site(site)
        self.stream = text if isinstance(text, TextStream) else open_text(model, text)
        if len(self.stream.rows(0, recipe.held_out_rows + 1)) <= recipe.held_out_rows:
            raise InputError(
                f"the text has too few rows to hold out {recipe.held_out_rows} and train on others. Give more text, "
                "shorter rows "
                "(open_text(..., width=...)), or hold out less: FeatureRecipe(held_out_rows=...)."
            )

    def begin(self) -> _FeatureRun:
        """Decoder rows drawn at random with length 1, the encoder its transpose (Gao et al. 2024)."""
        recipe = self.recipe
        norms, cursor = self._norms()
        widths = {(len(norms[f"centre.{a}"]), len(norms[f"centre.{b}"])) for a, b in self.places}
        if len(widths) > 1:
            raise InputError(
                f"places trained together have one width; these have {sorted(widths)}. Train them one kind at a time."
            )
        d_in, d_out = widths.pop()
        generator = torch.Generator().manual_seed(recipe.seed)
        n = len(self.places)
        W_dec = torch.randn(n, recipe.n_features, d_out, generator=generator)
        W_dec = W_dec / W_dec.norm(dim=2, keepdim=True)
        W_enc = W_dec.transpose(1, 2).clone()
        if any(a != b for a, b in self.places):
            W_enc = torch.randn(n, d_in, recipe.n_features, generator=generator) / d_in**0.5
        weights = {
            "W_enc": W_enc, "b_enc": torch.zeros(n, recipe.n_features), "W_dec": W_dec, "b_dec": torch.zeros(n, d_out),
        }  # fmt: skip
        silent = torch.zeros(n, recipe.n_features, dtype=torch.int64, device=self.device)
        return _FeatureRun(*self._optimizer(weights), silent, norms, cursor)

    def ahead(self, cursor: int) -> Generator[tuple[list[Row], int, States]]:
        """The rows of every step from `cursor` on, with the cursor after it and their states."""
        batches = self.stream.batches(cursor, self.recipe.step_tokens, self.recipe.held_out_rows)
        yield from states_ahead(self.model, batches, self.sites, skip=self.recipe.skip)

    def step(
        self,
        run: _FeatureRun,
        ahead: Iterator[tuple[list[Row], int, States]],
        progress: Callable[[FeatureProgress], None] | None,
    ) -> None:
        begun, recipe = time.monotonic(), self.recipe
        rows, cursor, states = next(ahead)
        x, y = self._inputs(run, self._vectors(states))
        f, loss, left = self._losses(run, x, y)
        if not bool(loss.isfinite()):
            place = int((~left.isfinite()).nonzero()[0]) if not bool(left.isfinite().all()) else 0
            raise MetricError(
                f"the loss at {self.places[place][0]} is not finite at step {run.step + 1}; lower the learning rate, "
                "or check the model's weights"
            )
        run.optimizer.zero_grad()
        loss.backward()
        for group in run.optimizer.param_groups:
            group["lr"] = recipe.rate(run.step)
        run.optimizer.step()
        with torch.no_grad():
            W_dec = run.weights["W_dec"]
            W_dec.div_(W_dec.norm(dim=2, keepdim=True).clamp(min=1e-8))
        fired = (f > 0).any(dim=1)
        run.silent = torch.where(fired, 0, run.silent + x.shape[1])
        run.data = hash_json([run.data, rows])
        run.step, run.cursor, run.tokens = run.step + 1, cursor, run.tokens + x.shape[1]
        dead = (run.silent > recipe.dead_tokens).float().mean(dim=1)
        if run.step % 50 == 0 or run.step == recipe.steps:
            run.history.append({"step": run.step, "unexplained": left.tolist(), "dead": dead.tolist()})
        run.seconds += time.monotonic() - begun
        if progress is not None:
            progress(
                FeatureProgress(run.step, recipe.steps, float(left.mean()), float(dead.mean()), run.tokens, run.seconds)
            )

    def _losses(
        self, run: _FeatureRun, x: Float[Tensor, "place token d_in"], y: Float[Tensor, "place token d_out"]
    ) -> tuple[Float[Tensor, "place token feature"], Float[Tensor, ""], Float[Tensor, " place"]]:
        """Features, the loss summed over places, and the share of variance left at each."""
        recipe, weights = self.recipe, run.weights
        value = torch.baddbmm(weights["b_enc"][:, None], x, weights["W_enc"]).relu()
        if recipe.kind == "relu":
            f = value
        else:
            top = value.topk(recipe.k, dim=-1, sorted=False)
            f = torch.zeros_like(value).scatter(-1, top.indices, top.values)
        error = y - torch.baddbmm(weights["b_dec"][:, None], f, weights["W_dec"])
        left = error.pow(2).mean(dim=(1, 2))
        loss = left.sum()
        if recipe.kind == "relu":
            return f, loss + recipe.penalty * f.sum(dim=2).mean(dim=1).sum() / y.shape[2], left.detach()
        dead = run.silent > recipe.dead_tokens
        if recipe.revive and bool(dead.any()):
            k = min(max(1, y.shape[2] // 2), recipe.n_features)
            asleep = (torch.baddbmm(weights["b_enc"][:, None], x, weights["W_enc"])).masked_fill(
                ~dead[:, None], -torch.inf
            )
            top = asleep.topk(k, dim=-1, sorted=False)
            revived = torch.zeros_like(value).scatter(-1, top.indices, top.values.clamp(min=0))
            loss = (
                loss
                + recipe.revive
                * (error.detach() - torch.bmm(revived, weights["W_dec"])).pow(2).mean(dim=(1, 2))[dead.any(dim=1)].sum()
            )
        return f, loss, left.detach()

    def _vectors(self, states: States) -> dict[Site, Float[Tensor, "token d"]]:
        """Vectors at every site at the real positions that are not skipped; the heads of a position side by side."""
        parts = zip(*states, strict=True)
        return {
            site: torch.cat([x.flatten(1).float() for x in part]) for site, part in zip(self.sites, parts, strict=True)
        }

    def _inputs(
        self, run: _FeatureRun, states: dict[Site, Float[Tensor, "token d"]]
    ) -> tuple[Float[Tensor, "place token d_in"], Float[Tensor, "place token d_out"]]:
        scaled = {s: (v - run.norms[f"centre.{s}"]) / run.norms[f"scale.{s}"] for s, v in states.items()}
        x = torch.stack([scaled[a] for a, _ in self.places])
        return x, x if all(a == b for a, b in self.places) else torch.stack([scaled[b] for _, b in self.places])

    def _norms(self) -> tuple[dict[str, Tensor], int]:
        """Mean and root mean square (about it, per dimension) of every site, and the cursor, which is where it was."""
        rows, _ = next(
            self.stream.batches(self.recipe.held_out_rows, self.recipe.scale_tokens, self.recipe.held_out_rows)
        )
        norms = {}
        states = rows_states(self.model, rows, self.sites, self.recipe.skip)
        for site, value in self._vectors(states).items():
            centre = value.double().mean(dim=0)
            scale = (value.double() - centre).pow(2).mean().sqrt()
            if not bool(scale.isfinite()) or float(scale) <= 0:
                raise MetricError(f"vectors at {site} do not vary or are not finite: nothing can be learnt there")
            norms |= {f"centre.{site}": centre.float(), f"scale.{site}": scale.float()}
        return norms, self.recipe.held_out_rows

    def _optimizer(self, weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], torch.optim.Adam]:
        live = {name: value.to(self.device).clone().requires_grad_(True) for name, value in weights.items()}
        return live, torch.optim.Adam(list(live.values()), lr=self.recipe.learning_rate)

    def state(self, run: _FeatureRun) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The run as tensors and JSON values."""
        tensors = {f"weight.{name}": value.detach() for name, value in run.weights.items()}
        for name, value in run.weights.items():
            tensors |= {f"adam.{key}.{name}": torch.as_tensor(part) for key, part in run.optimizer.state[value].items()}
        tensors |= {"silent": run.silent, **{f"norm.{name}": value for name, value in run.norms.items()}}
        facts = {name: getattr(run, name) for name in STATE}
        return tensors, facts

    def resume(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> _FeatureRun:
        """The inverse of `state`."""
        weights, optimizer = self._optimizer({name: tensors[f"weight.{name}"] for name in WEIGHTS})
        for name, value in weights.items():
            own = {
                key.split(".")[1]: part
                for key, part in tensors.items()
                if key.startswith("adam.") and key.split(".")[2] == name
            }
            if own:
                optimizer.state[value] = {
                    key: part if key == "step" else part.to(self.device) for key, part in own.items()
                }
        norms = {
            key.removeprefix("norm."): part.to(self.device) for key, part in tensors.items() if key.startswith("norm.")
        }
        rest = {name: facts[name] for name in STATE}
        return _FeatureRun(weights, optimizer, tensors["silent"].to(self.device), norms, **rest)

    def result(self, run: _FeatureRun) -> FeatureTraining:
        recipe = self.recipe
        provenance = build_provenance(
            method="sparse coders", recipe=recipe.to_dict(), text={**self.stream.facts, "rows_sha256": run.data},
            steps=run.step,
            tokens=run.tokens,
            unexplained=run.history[-1]["unexplained"] if run.history else [],
        )  # fmt: skip
        coders = []
        for i, (reads, writes) in enumerate(self.places):
            w = {name: value[i].detach().clone() for name, value in run.weights.items()}
            s_in, s_out = run.norms[f"scale.{reads}"], run.norms[f"scale.{writes}"]
            coders.append(
                SparseCoder(
                    reads, writes, w["W_enc"] * (s_out / s_in), w["b_enc"] * s_out, w["W_dec"],
                    w["b_dec"] * s_out + run.norms[f"centre.{writes}"],
                    TopK(recipe.k) if recipe.kind == "topk" else Relu(),
                    run.norms[f"centre.{reads}"].clone(),
                ).to("cpu")
            )  # fmt: skip
        features = FeatureSet(
            tuple(coders), fingerprint(self.model), provenance, f"features of {self.model.cfg.model_name}"
        )
        return FeatureTraining(features, run.step, run.step >= recipe.steps, run.tokens, run.seconds, list(run.history))
