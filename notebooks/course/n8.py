"""Exercises of notebook 8, From scores to a circuit report."""

from __future__ import annotations

from typing import Any

from .build import AVERAGED_TWICE, Case, judges, trials
from .exercise import Exercise, add, close, same


def _mean(values: Any) -> float:
    return sum(values) / len(values)


def _wiring(answer: Any, result: Any) -> str | None:
    f = result.faithfulness
    if close(answer, f - _mean(result.same_degree)):
        return None
    if close(answer, _mean(result.same_degree)):
        return "this is what the right nodes alone give. What does the right wiring add?"
    if close(answer, f):
        return (
            "this is against nothing, or against random circuits, which do nothing here. Those of the same degrees "
            "are the harder control."
        )
    if close(answer, _mean(result.same_degree) - f):
        return "the sign: the circuit first, its control taken off."
    if close(answer, f - max(result.same_degree)) or close(answer, f - min(result.same_degree)):
        return "this is against one of the controls; take the mean of the five."
    if close(answer, f - sum(result.same_degree)):
        return "the controls are summed here; their mean is asked for."
    if close(answer, f / _mean(result.same_degree)):
        return "this is how many times as much; how much more is asked for."
    if close(answer, 1 - _mean(result.same_degree)):
        return "this is what the controls lack of the whole model; compare with the circuit."
    return "compare the circuit's faithfulness with the mean of those of the same degrees."


def _always(answer: Any, inclusion: Any) -> str | None:
    truth = int((inclusion == 1).sum())
    if int(answer) == truth:
        return None
    if int(answer) == int((inclusion > 0).sum()):
        return "so many are chosen at least once. How many always?"
    if int(answer) == 60:
        return "so many are chosen each time, but not always the same ones."
    if truth < int(answer) < 60:
        return "some of these are missing in one resample or more: a share of 1 is asked for, not nearly 1."
    return "a share of how much has an edge that no resample leaves out?"


def _times(answer: Any, reuse: Any) -> str | None:
    overlap = reuse.comparison.overlaps[0]
    if close(answer, overlap.edges / overlap.edges_by_chance, 0.03):
        return None
    if close(answer, overlap.edges):
        return "this is the Jaccard index. Divide it by the one of chance."
    if close(answer, overlap.nodes / overlap.nodes_by_chance, 0.03):
        return "these are nodes. The question is about edges."
    if close(answer, overlap.edges - overlap.edges_by_chance):
        return "this is the difference; the question asks how many times."
    if close(answer, overlap.edges_by_chance / overlap.edges, 0.03):
        return "upside down: how many times chance is it?"
    for other in reuse.comparison.overlaps[1:]:
        if close(answer, other.edges / other.edges_by_chance, 0.03):
            return "this is another pair of tasks; indirect objects and pronouns are asked for."
    return "it is a quotient of two numbers in one row of the upper table, both of edges."


def _donor(answer: Any, reuse: Any) -> str | None:
    others = [name for name in reuse.tasks if name != "greater_than"]
    if same(answer, "greater_than"):
        return "its own circuit does, of course; the question is about the others."
    best = max(others, key=lambda owner: reuse.evaluations["greater_than", owner].faithfulness)
    if same(answer, best):
        return None
    if answer in others:
        return (
            f"its circuit gives greater_than {reuse.evaluations['greater_than', answer].faithfulness:.3f}; another "
            "gives more."
        )
    return f"the tasks are {', '.join(reuse.tasks)}."


SCORE_EDGE = """
import torch


def score_edge(model, task, layer, head):
    z, end = f"blocks.{layer}.attn.hook_z", f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    kept = {}

    def see(value, hook):
        kept["z"] = value.detach()

    def keep(stream, hook):
        kept["x"] = stream.detach().requires_grad_()
        return kept["x"]

    with torch.no_grad():
        clean = model.run_with_cache(task.pairs.clean_tokens, names_filter=z)[1][z]
    logits = model.run_with_hooks(task.pairs.corrupt_tokens, fwd_hooks=[(z, see), (end, keep)])
    (slope,) = torch.autograd.grad(task.measure(logits).sum(), kept["x"])
    write = (clean - kept["z"])[:, :, head] @ model.W_O[layer, head]
    return float((write * slope).sum(dim=(-1, -2)).mean())
"""


def _writes(model: Any, task: Any, layer: int) -> tuple[Any, Any]:
    """z of all heads in the clean and the corrupt run."""
    import torch

    z = f"blocks.{layer}.attn.hook_z"
    with torch.no_grad():
        clean, corrupt = (
            model.run_with_cache(tokens, names_filter=z)[1][z].clone()
            for tokens in (task.pairs.clean_tokens, task.pairs.corrupt_tokens)
        )
    return clean, corrupt


def _score(model: Any, task: Any, write: Any, place: str, block: int | None = None) -> float:
    """A write times the slope at a place (of the last block), in the corrupt run."""
    import torch

    kept = {}

    def keep(stream: Any, hook: Any) -> Any:
        kept["x"] = stream.detach().requires_grad_()
        return kept["x"]

    name = f"blocks.{model.cfg.n_layers - 1 if block is None else block}.{place}"
    logits = model.run_with_hooks(task.pairs.corrupt_tokens, fwd_hooks=[(name, keep)])
    (slope,) = torch.autograd.grad(task.measure(logits).sum(), kept["x"])
    return float((write * slope).sum((-1, -2)).mean())


def _other_edges(model: Any, task: Any, layer: int, head: int) -> tuple[tuple[str, float], ...]:
    """Scores of other writes, and of the slope at other places."""
    import torch

    clean, corrupt = _writes(model, task, layer)
    out, last = model.W_O[layer].detach(), model.cfg.n_layers - 1

    def score(write: Any, place: str = "hook_resid_post", block: int | None = None) -> float:
        return _score(model, task, write, place, block)

    change = (clean - corrupt)[:, :, head] @ out[head]
    found = [
        ("this is the clean write alone: take the corrupt one off.", score(clean[:, :, head] @ out[head])),
        ("this is the corrupt write alone.", score(corrupt[:, :, head] @ out[head])),
        ("these are all heads of the layer; one is asked for.",
         score(torch.einsum("bphe,hed->bpd", clean - corrupt, out))),
        ("this is the stream that *enters* the last block; the one that leaves it is asked for.",
         score(change, "hook_resid_pre")),
    ]  # fmt: skip
    if layer < last - 1:
        here = score(change, block=layer)
        found.append(("this is the slope behind the head's own block: later readers are in it, too.", here))
    if last > 5:
        found.append((f"this model has {last + 1} blocks: read their number from model.cfg.n_layers.",
                      score(change, block=5)))  # fmt: skip
    return tuple(found)


def _other_cuts(model: Any, task: Any, layer: int, head: int, whole: float) -> tuple[tuple[str, float], ...]:
    """Metrics with something else put in than the corrupt write, or elsewhere."""
    import torch

    z, z_corrupt = _writes(model, task, layer)
    estimate = _score(model, task, (z - z_corrupt)[:, :, head] @ model.W_O[layer, head].detach(), "hook_resid_post")
    clean, corrupt = (of[:, :, head] @ model.W_O[layer, head].detach() for of in (z, z_corrupt))
    last = model.cfg.n_layers - 1

    def dropped(name: str, put: Any, tokens: Any = task.pairs.clean_tokens) -> float:
        with torch.no_grad():
            return whole - float(task.measure(model.run_with_hooks(tokens, fwd_hooks=[(name, put)])).mean())

    def drop(added: Any, block: int = last, tokens: Any = task.pairs.clean_tokens) -> float:
        def put(stream: Any, hook: Any) -> Any:
            return stream + added

        return dropped(f"blocks.{block}.hook_resid_post", put, tokens)

    def replaced(of: Any, hook: Any) -> Any:
        of = of.clone()
        of[:, :, head] = z_corrupt[:, :, head]
        return of

    other = task.pairs.corrupt_tokens
    fixed = (
        ()
        if last <= 5
        else (
            (
                f"this model has {last + 1} blocks: read their number from model.cfg.n_layers.",
                drop(corrupt - clean, block=5),
            ),
        )
    )
    return (
        *fixed,
        ("this is the effect of the whole head: later heads and MLPs read the change too.",
         dropped(f"blocks.{layer}.attn.hook_z", replaced)),
        ("the clean write was added and the corrupt one taken off: the other way round.", drop(clean - corrupt)),
        ("the clean write is taken out, but the corrupt one is not put in.", drop(-clean)),
        ("the corrupt write is put in, but the clean one is not taken out.", drop(corrupt)),
        ("this is the estimate of exercise 8.5; measure it.", estimate),
        ("the change is taken twice.", drop(2 * (corrupt - clean))),
        ("this is the corrupt run; the edge is cut in the clean one.", drop(corrupt - clean, tokens=other)),
        ("the clean write was put into the corrupt run.", drop(clean - corrupt, tokens=other)),
        ("this changes the stream behind the head's own block: later readers see it, too.",
         drop(corrupt - clean, block=layer)),
    )  # fmt: skip


@judges
def _score_edge() -> list[Case]:
    import mechwork as mw

    cases = []
    for name, model, task in trials(("gpt2-6l", "neox-6l", "gpt2-12l")):
        scores, noise = (
            mw.score_edges(model, task, rules="gradient", ig_steps=1, direction=direction)
            for direction in ("denoise", "noise")
        )
        reader = scores.space.readers.index("logits")
        for layer, head in ((5, 1), (4, 1)) if name != "gpt2-12l" else ((7, 1),):  # the last block is not always 5
            writer = scores.space.writers.index(f"a{layer}.h{head}")
            truth = float(scores.values[writer, reader])
            mistakes = (
                ("this is summed over pairs; the mean is asked for.", truth * len(task)),
                (AVERAGED_TWICE, truth / len(task)),
                ("this is the mean over positions; they add up.", truth / task.pairs.clean_tokens.shape[1]),
                ("the slope was taken at the clean run.", float(noise.values[writer, reader])),
                *_other_edges(model, task, layer, head),
            )
            cases.append(Case(f"{name}, a{layer}.h{head}", model, (model, task, layer, head), truth, mistakes))
    return cases


CUT_EDGE = """
import torch


def cut_edge(model, task, layer, head):
    z, end = f"blocks.{layer}.attn.hook_z", f"blocks.{model.cfg.n_layers - 1}.hook_resid_post"
    with torch.no_grad():
        clean, corrupt = (
            model.run_with_cache(tokens, names_filter=z)[1][z][:, :, head] @ model.W_O[layer, head]
            for tokens in (task.pairs.clean_tokens, task.pairs.corrupt_tokens)
        )

        def cut(stream, hook):
            return stream - clean + corrupt

        without = model.run_with_hooks(task.pairs.clean_tokens, fwd_hooks=[(end, cut)])
        return float((task.measure(model(task.pairs.clean_tokens)) - task.measure(without)).mean())
"""


@judges
def _cut_edge() -> list[Case]:
    import mechwork as mw

    cases = []
    for name, model, task in trials(("gpt2-6l", "neox-6l", "gpt2-12l")):
        for layer, head in ((4, 1), (3, 0)) if name != "gpt2-12l" else ((7, 1),):  # the last block is not always 5
            place = f"a{layer}.h{head}"
            truth, denoised = (
                float(mw.patching.patch_paths(model, task, [place], ["logits"], direction=way)["path"].values[0, 0])
                for way in ("noise", "denoise")
            )
            with_all = float(task.measure(model(task.pairs.clean_tokens)).mean())
            mistakes = (
                ("the clean write was put into the corrupt run.", denoised),
                ("this is the metric with the edge cut. Take it off the clean one.", with_all - truth),
                ("nothing was changed: does the hook *return* the new stream?", 0.0),
                ("this is summed over pairs; the mean is asked for.", truth * len(task)),
                *_other_cuts(model, task, layer, head, with_all),
            )  # fmt: skip
            cases.append(Case(f"{name}, {place}", model, (model, task, layer, head), truth, mistakes))
    return cases


add(
    Exercise(
        "8.1",
        _wiring,
        hint="result.same_degree is a tuple of numbers; take their mean.",
        solution="wiring = result.faithfulness - sum(result.same_degree) / len(result.same_degree)",
        why="The right nodes with the wrong wiring get part of the way. A control that could have won makes the rest "
        "worth telling.",
    ),
    Exercise(
        "8.2",
        _always,
        hint="inclusion is a tensor of shares between 0 and 1.",
        solution="always = int((inclusion == 1).sum())",
        why="These are the edges to build a story on. The last few of the sixty depend on the draw.",
    ),
    Exercise(
        "8.3",
        _times,
        hint="overlap = reuse.comparison.overlaps[0]; it has edges and edges_by_chance.",
        solution="times = reuse.comparison.overlaps[0].edges / reuse.comparison.overlaps[0].edges_by_chance",
        why="Many times chance, and still not enough to run the task, as the lower table shows.",
    ),
    Exercise(
        "8.4",
        _donor,
        asks="the name of a task, as text,",
        hint="Read the row of greater_than in the lower table, without its own column.",
        solution='donor = "pronoun"',
        why="Running the task is the test; overlap is only a reason to try.",
    ),
    Exercise(
        "8.5",
        _score_edge,
        hint="Exercise 4.5 with another place for the slope, and the difference of two writes instead of two streams.",
        solution=SCORE_EDGE,
        why="The library does this for every pair of writer and reader at once, as one product of matrices.",
    ),
    Exercise(
        "8.6",
        _cut_edge,
        hint="Two recorded writes of the head, one hook at the last stream that takes one out and puts the other in.",
        solution=CUT_EDGE,
        why="Between this number and that of 8.5 lie a norm and the bend of the metric. A circuit cuts thousands of "
        "edges at once.",
    ),
)
