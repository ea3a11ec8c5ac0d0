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
    return "take result.faithfulness and subtract the mean of result.same_degree."


def _always(answer: Any, inclusion: Any) -> str | None:
    truth = int((inclusion == 1).sum())
    if int(answer) == truth:
        return None
    if int(answer) == int((inclusion > 0).sum()):
        return "so many are chosen at least once. How many always?"
    if int(answer) == 60:
        return "so many are chosen each time, but not always the same ones."
    return "count the entries of inclusion that are exactly 1."


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
    return "divide overlap.edges by overlap.edges_by_chance."


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


@judges
def _score_edge() -> list[Case]:
    import mechwork as mw

    cases = []
    for name, model, task in trials(("gpt2-6l", "neox-6l")):
        scores, noise = (
            mw.score_edges(model, task, rules="gradient", ig_steps=1, direction=direction)
            for direction in ("denoise", "noise")
        )
        reader = scores.space.readers.index("logits")
        for layer, head in ((5, 1), (4, 1)):
            writer = scores.space.writers.index(f"a{layer}.h{head}")
            truth = float(scores.values[writer, reader])
            mistakes = (
                ("this is summed over pairs; the mean is asked for.", truth * len(task)),
                (AVERAGED_TWICE, truth / len(task)),
                ("this is the mean over positions; they add up.", truth / task.pairs.clean_tokens.shape[1]),
                ("the slope was taken at the clean run.", float(noise.values[writer, reader])),
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
    for name, model, task in trials(("gpt2-6l", "neox-6l")):
        heads = mw.patch(model, task, ["z"], direction="noise")["z"].values
        for layer, head in ((4, 1), (3, 0)):
            place = f"a{layer}.h{head}"
            truth, denoised = (
                float(mw.patching.patch_paths(model, task, [place], ["logits"], direction=way)["path"].values[0, 0])
                for way in ("noise", "denoise")
            )
            with_all = float(task.measure(model(task.pairs.clean_tokens)).mean())
            mistakes = (
                ("this is the effect of the whole head: later heads and MLPs read the change too.",
                 float(heads[layer, head])),
                ("the clean write was put into the corrupt run.", denoised),
                ("this is the metric with the edge cut. Take it off the clean one.", with_all - truth),
                ("nothing was changed: does the hook *return* the new stream?", 0.0),
                ("this is summed over pairs; the mean is asked for.", truth * len(task)),
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
