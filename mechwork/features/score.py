"""Estimated effects of features and errors: attribution, relevance patching and integrated gradients on one
decomposition.

With f the features and e the error at a place whose vector is y = f W_dec + b_dec + e, the place's coefficient g = d m
/ d y gives

    score(f_i) = sum over positions of (f_i,clean - f_i,corrupt) (W_dec g)_i        score(e) = sum over positions of
    (e_clean - e_corrupt) . g

so that the scores of a place add up to its own attribution score: features cost no pass of their own. (Marks et al.
2024, eq. 2 to 4: the error is a node, and gradients pass a place as if no coder stood there.) The coefficient is a
gradient or follows a composite of rules (`RELP`), taken

path | points | cost, in forwards + backwards:

- one point | the run that is patched | 3 + 1
- ``"site"`` | midpoints between the two values *of that place*, everything before it as in the patched run (Marks et
  al.'s IG) | 2 + places x steps, + as many
- ``"inputs"`` | midpoints between the two embeddings (as in EAP-IG) | 2 + steps, + steps

Positive = the clean value raises the metric, in both directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..circuits.graph.writers import require_aligned
from ..errors import InputError
from ..execute.progress import Progress
from ..models.anatomy import device_of
from ..models.borrow import borrows, hooked, run_tail
from ..models.identity import identify_model
from ..patching.attribution import find_coefficients
from ..patching.result import check_direction
from ..provenance import build_provenance
from ..relevance import Composite, Rule, find_composite
from ..runs.record import Baseline, check_task, read_columns, record_run
from ..shapes import PerExample
from ..sites import Site, hook_name
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task
from .coder import as_vectors
from .feature_set import FeatureSet
from .record import Coded, code
from .scores import FeatureScores, NodeTable

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

PATHS = ("site", "inputs")


@borrows
def score_features(
    model: TransformerBridge,
    task: Task,
    features: FeatureSet,
    *,
    rules: str | Composite | Sequence[str | Rule] = "relp",
    ig_steps: int = 1,
    path: str = "site",
    direction: str = "denoise",
    batch_size: int = 32,
    progress: Progress | None = None,
) -> FeatureScores:
    """Scores of every feature and error, ``[batch, node]``; see the module for formula and cost.

    Raises:
        InputError: features of another layer or width, pairs of unequal length, unknown rules, path or direction, steps
            below 1.
        ArtefactError: features of another model.
        MetricError: a metric without gradient, equal on both prompts, or coefficients that overflow.

    >>> score_features(model, task.train, features, rules="relp").top(5)
    """
    composite, direction = find_composite(rules), check_direction(direction)
    if composite.grad_drop or composite.query_key_fix:
        raise InputError(
            f"features are scored with one backward pass per point; {composite.name!r} needs several or exact queries"
        )
    if ig_steps < 1 or path not in PATHS:
        raise InputError(f"ig_steps is at least 1 and path is {' or '.join(PATHS)}; got {ig_steps} and {path!r}")
    check_task(model, task)
    features.check(model)
    require_aligned(task)
    rows, varies, ends = [], [], []
    for done, pairs in enumerate(task.pairs.batches(batch_size)):
        batch = _Batch(model, task, pairs.to(device_of(model)), features, composite, direction)
        score, moved = batch.score(ig_steps, path)
        rows.append(score.cpu())
        varies.append(moved.cpu())
        ends.append(batch.baseline)
        if progress is not None:
            progress(min((done + 1) * batch_size, len(task)), len(task), "pairs")
    baseline = Baseline(
        torch.cat([b.clean_per_example for b in ends]), torch.cat([b.corrupt_per_example for b in ends])
    )
    baseline.require_gap()
    points = "" if ig_steps == 1 else f", {ig_steps} points along {path}"
    provenance = build_provenance(
        method="feature scores", rules=composite.to_json(), ig_steps=ig_steps, path=path, direction=direction,
        features=features.describe(), model=identify_model(model), task=task.provenance(),
    )  # fmt: skip
    return FeatureScores(
        NodeTable.of(features), torch.cat(rows), torch.stack(varies).any(dim=0), f"{composite.name}{points}",
        task.metric.name,
        baseline, provenance,
    )  # fmt: skip


class _Batch:
    """Some pairs: both runs through all coders."""

    def __init__(
        self,
        model: TransformerBridge,
        task: Task,
        pairs: PromptPairs,
        features: FeatureSet,
        composite: Composite,
        direction: str,
    ) -> None:
        self.model, self.task, self.features, self.composite = model, task, features, composite
        self.sign = 1.0 if direction == "denoise" else -1.0
        clean, corrupt = pairs, pairs.corrupt_as_host()
        self.host, donor = (corrupt, clean) if direction == "denoise" else (clean, corrupt)
        self.sites = list(dict.fromkeys(whole(c.writes) for c in features))
        self.own, self.own_coded, own_metric = self._coded(self.host)
        self.other, self.other_coded, other_metric = self._coded(donor)
        ends = (other_metric, own_metric) if direction == "denoise" else (own_metric, other_metric)
        self.baseline = Baseline(*ends)

    def _coded(self, pairs: PromptPairs) -> tuple[dict[Site, Tensor], list[Coded], PerExample]:
        """Vectors at every place, what the coders make of them, and the metric. Cost: 1 forward."""
        named = [Site("resid_pre", 0), *(site for c in self.features for site in (c.reads, c.writes))]
        sites = list(dict.fromkeys(map(whole, named)))
        run = record_run(self.model, pairs, sites, n_tail=read_columns(self.task, pairs))
        by_site = dict(_by_site(run.layers, sites))
        found = {site: as_vectors(_of_head(by_site[whole(site)], site)) for site in named}
        coded = [code(c, found[c.reads], found[c.writes]) for c in self.features]
        return found, coded, self.task.measure(run.logits, pairs).detach().cpu()

    def score(self, ig_steps: int, path: str) -> tuple[Float[Tensor, "batch node"], Bool[Tensor, " node"]]:
        """Scores of all nodes, and whether each varies."""
        coefficients = self._along_sites(ig_steps) if ig_steps > 1 and path == "site" else self._along_inputs(ig_steps)
        mask = self.host.mask
        parts, moved = [], []
        pieces = zip(self.features, self.own_coded, self.other_coded, coefficients, strict=True)
        for coder, own, other, coefficient in pieces:
            delta = (other.features - own.features) * mask[..., None]
            error = (other.error - own.error) * mask[..., None]
            parts.append((delta * coder.pull_back(coefficient)).sum(dim=1))
            parts.append((error * coefficient).sum(dim=(1, 2))[:, None])
            moved += [(delta != 0).any(dim=1).any(dim=0), (error != 0).any().reshape(1)]
        return self.sign * torch.cat(parts, dim=1).detach(), torch.cat(moved)

    def _along_inputs(self, ig_steps: int) -> list[Float[Tensor, "batch pos d"]]:
        """Mean coefficients of every place over points between the two embeddings (one point: the host itself)."""
        first = Site("resid_pre", 0)
        fractions = (0.0,) if ig_steps == 1 else tuple((k + 0.5) / ig_steps for k in range(ig_steps))
        total: list[Any] = [0.0] * len(self.features)
        for fraction in fractions:
            start = None if fraction == 0 else self.own[first] + fraction * (self.other[first] - self.own[first])
            put = [] if start is None else [(hook_name(first), _leaf(start))]
            with self.composite.context(self.model), hooked(self.model, put):
                run = record_run(
                    self.model, self.host, self.sites, grad=True, n_tail=read_columns(self.task, self.host)
                )
                value = self.task.measure(run.logits, self.host).sum()
            by_site = dict(_by_site(find_coefficients(run, value, list(run.layers)), self.sites))
            for i, coder in enumerate(self.features):
                g = as_vectors(_of_head(by_site[whole(coder.writes)], coder.writes))
                total[i] = total[i] + g / len(fractions)
        return total

    def _along_sites(self, ig_steps: int) -> list[Float[Tensor, "batch pos d"]]:
        """Mean coefficients of every place over points between its own two values, one place at a time."""
        found = []
        for coder in self.features:
            site, total = coder.writes, None
            for k in range(ig_steps):
                value = torch.lerp(self.own[site], self.other[site], (k + 0.5) / ig_steps).detach().requires_grad_(True)
                with (
                    torch.enable_grad(),
                    self.composite.context(self.model),
                    hooked(self.model, [(hook_name(site), _put(value, site))]),
                ):
                    logits = run_tail(self.model, self.host.clean_tokens, read_columns(self.task, self.host))
                    metric = self.task.measure(logits, self.host).sum()
                    (grad,) = torch.autograd.grad(metric, value)
                total = grad / ig_steps if total is None else total + grad / ig_steps
            assert total is not None
            found.append(total)
        return found


def whole(site: Site) -> Site:
    """The site with all its heads."""
    return Site(site.kind, site.layer)


def _of_head(activation: Tensor, site: Site) -> Tensor:
    return activation if site.head is None else activation[:, :, site.head]


def _by_site(found: dict[str, list[Tensor]], sites: Sequence[Site]) -> Iterator[tuple[Site, Tensor]]:
    """Recorded tensors of a kind come layer by layer."""
    for kind, tensors in found.items():
        own = sorted(
            {site for site in sites if site.kind == kind}, key=lambda site: (site.layer is not None, site.layer)
        )
        yield from zip(own, tensors, strict=True)


def _leaf(value: Tensor) -> Any:
    def hook(activation: Tensor, hook: Any) -> Tensor:
        return value.detach().requires_grad_(True)

    return hook


def _put(value: Tensor, site: Site) -> Any:
    """`value` (heads side by side) in place of the activation, of the named head alone where one is."""

    def hook(activation: Tensor, hook: Any) -> Tensor:
        if site.head is None:
            return value.reshape(activation.shape)
        new = activation.clone()
        new[:, :, site.head] = value
        return new

    return hook
