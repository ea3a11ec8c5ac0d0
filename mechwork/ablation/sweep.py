"""Single-target sweeps: every head, MLP, attention layer or neuron ablated alone, through the exact engine of
`patching`.

    effect = m(model) - m(model with the target ablated);   positive = the target raises the metric

The engine runs only what an ablation can change (the blocks from the target on; see `mechwork.patching`), so a sweep
costs about half of one forward per target, and of it the unembedding only at the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..errors import InputError, UnknownNameError
from ..execute import MemoryBudget, Progress
from ..models.anatomy import ModelAnatomy, device_of
from ..models.borrow import borrows
from ..patching.exact import plan_sweep
from ..patching.grids import Neurons
from ..patching.result import Effects
from ..runs.record import check_task, read_columns, record_run
from ..tasks.task import Task
from .fitted import Ablation, fit_ablation
from .run import ensure_fitted
from .spec import AblationSpec
from .targets import all_heads, all_mlps, parse_target
from .units import OPERATION, given_by, pack_fitted

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

WHAT = {"heads": "z", "mlps": "mlp_out", "attention": "attn_out", "neurons": "mlp_post"}
"""What can be swept -> the kind of site of its effects."""


@borrows
def sweep_ablations(
    model: TransformerBridge,
    task: Task,
    what: Sequence[str] = ("heads", "mlps"),
    *,
    kind: str = "mean",
    reference: Task | None = None,
    positions: str = "all",
    n_neurons: int = 32,
    value: float = 0.0,
    strength: float = 1.0,
    seed: int = 0,
    memory_budget: MemoryBudget | None = None,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> Effects:
    """Ablate every target of the given sorts alone and measure the metric.

    `what`: ``"heads"``, ``"mlps"``, ``"attention"`` (whole layers' attention), ``"neurons"`` (the `n_neurons` of
    largest estimated
    effect). `kind`, `reference` (default: the task), `value`, `strength`, `seed`: as in `AblationSpec`. `positions`:
    ``"all"``, ``"spans"`` or ``"each"``. `memory_budget`, `checkpoint`: as in `mechwork.patch`.

    Returns effects by kind of site (``z``: layer, head; ``mlp_out``, ``attn_out``: layer; ``mlp_post``: neuron), per
    pair and averaged, with ``baseline.clean`` the model's own metric and ``baseline.corrupt`` that of the corrupt
    prompts. Cost: 2 forwards, the fitting, and per target the blocks from its own on; ``optimal`` learns each target's
    constants alone, 60 x (forward + backward).

    >>> sweep_ablations(model, task)["z"].top(5)
    """
    anatomy = check_task(model, task)
    _check_what(anatomy, what)
    settings = AblationSpec(["a0"], kind, value=value, strength=strength, seed=seed)
    neurons = None
    if "neurons" in what:
        ranked = top_neurons(model, task, replace(settings, targets=_mlp_posts(anatomy)), n_neurons, reference)
        neurons = {layer: [n for at, n in ranked if at == layer] for layer, _ in ranked}
    fitted = {
        WHAT[name]: _fit(model, task, replace(settings, targets=targets_of(anatomy, [name], neurons)), reference)
        for name in what
    }
    sites = [WHAT[name] for name in what]
    job = plan_sweep(
        model, task, sites, direction="noise", positions=positions, neurons=neurons, memory_budget=memory_budget
    )
    about = {"method": "ablation sweep", "ablation": {site: one.provenance() for site, one in fitted.items()}}
    settings, data = pack_fitted(fitted)
    given = given_by(model, task, fitted)
    job = replace(job, given=given, about=about, operation=OPERATION, settings=settings, data=data)
    return job.run(checkpoint=checkpoint, progress=progress)


def targets_of(anatomy: ModelAnatomy, what: Sequence[str], neurons: Neurons | None = None) -> tuple[str, ...]:
    """The targets of the given sorts, as text."""
    chosen = {
        "heads": all_heads(anatomy),
        "mlps": all_mlps(anatomy),
        "attention": tuple(f"a{layer}" for layer in range(anatomy.n_layers)),
        "neurons": tuple(f"m{layer}.n{n}" for layer, members in (neurons or {}).items() for n in members),
    }
    return tuple(target for name in what for target in chosen[name])


def top_neurons(
    model: TransformerBridge, task: Task, spec: AblationSpec, n: int, reference: Task | None = None
) -> list[tuple[int, int]]:
    """(layer, neuron) of the `n` neurons of largest absolute estimated effect of their ablation, strongest first.

    Estimate: sum over positions of (activation - what replaces it) . d metric / d activation, mean over pairs. Cost:
    the fitting, 1 forward and 1 backward.
    """
    fitted = ensure_fitted(model, task, spec, reference)
    pairs = task.pairs.to(device_of(model))
    run = record_run(model, pairs, ["mlp_post"], grad=True, n_tail=read_columns(task, pairs))
    activations = run.layers["mlp_post"]
    grads = torch.autograd.grad(task.metric(run.logits, pairs).sum(), activations)
    given = given_by(model, task, {"mlp_post": fitted})(slice(0, len(task)))
    scores = []
    for layer, (activation, grad) in enumerate(zip(activations, grads, strict=True)):
        change = activation.detach() - given("mlp_post", layer, activation.detach())
        scores.append(torch.einsum("bpd,bpd,bp->d", change, grad, pairs.mask.to(grad)) / len(pairs))
    table = torch.stack(scores)
    order = table.abs().flatten().argsort(descending=True)[:n].tolist()
    return [divmod(index, table.shape[1]) for index in order]


def _check_what(anatomy: ModelAnatomy, what: Sequence[str]) -> None:
    if isinstance(what, str) or not what:
        raise InputError(f"what is a list of {', '.join(WHAT)}; got {what!r}")
    for name in what:
        if name not in WHAT:
            raise UnknownNameError("sort of target", name, WHAT)
        if not anatomy.has_site(WHAT[name]):
            raise InputError(f"{anatomy.architecture} has no {name} that could be ablated. Leave them out of what.")


def _mlp_posts(anatomy: ModelAnatomy) -> tuple[str, ...]:
    """One neuron per layer: enough for the tables of whole layers."""
    return tuple(f"m{layer}.n0" for layer in range(anatomy.n_layers))


def _fit(model: TransformerBridge, task: Task, spec: AblationSpec, reference: Task | None) -> Ablation:
    """The spec with its tables; under ``optimal`` each target's constants learned with that target alone ablated."""
    if spec.kind != "optimal":
        return ensure_fitted(model, task, spec, reference)
    whole = fit_ablation(model, replace(spec, kind="mean"), reference or task)
    tables = {name: table.clone() for name, table in whole.tables.items()}
    for text in spec.targets:
        learned = fit_ablation(model, spec.only(text), reference or task)
        for site, entries in parse_target(text).parts:
            key = f"{site}.{parse_target(text).layer}"
            index = ... if entries is None else list(entries)
            tables[key][index] = learned.tables[key][index]
    return Ablation(spec, tables, whole.model, whole.reference)
