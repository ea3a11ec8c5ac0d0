"""Exercises of notebook 6, Ablation."""

from __future__ import annotations

from typing import Any

from .build import Case, judges, trials
from .exercise import Exercise, add, close, same

HEAD = (1, 3)


def _helps(answer: Any, sweeps: Any) -> str | None:
    answer = [answer] if isinstance(answer, str) else list(answer)
    if unknown := [name for name in answer if name not in sweeps]:
        return f"the kinds are {', '.join(sweeps)}; {unknown[0]!r} is none of them."
    truth = [kind for kind, effect in sweeps.items() if float(effect.values[HEAD]) > 0]
    if same(answer, truth):
        return None
    wrong = next((name for name in answer if name not in truth), None)
    if wrong is not None:
        return f"under {wrong!r} the effect is {float(sweeps[wrong].values[HEAD]):+.2f}: the model does better without."
    return "these are right, but not all." if answer else "the list is empty; under some kinds the head helps."


def _interaction(answer: Any, alone: Any, both: Any) -> str | None:
    total = sum(result.effect for result in alone)
    if abs(float(answer) - (both.effect - total)) < 0.01:
        return None
    if close(answer, total - both.effect) and abs(total - both.effect) > 0.01:
        return "the sign: positive means that losing both is worse."
    if close(answer, both.effect, 0.001):
        return "this is losing both. Subtract what the two single losses come to."
    if close(answer, total, 0.001):
        return "these are the two single losses added up. Compare with losing both."
    return "losing both, minus the two single losses added up."


def _repaired(answer: Any, repair: Any) -> str | None:
    row = repair.to_dataframe().set_index("head").loc["a3.h3"]
    truth, answer = row["repaired"] / row["direct"], float(answer)
    if abs(answer - truth) < 0.02:
        return None
    if abs(answer + truth) < 0.02:
        return "the sign: something is repaired when the model loses *less* than the head writes."
    if close(answer, row["repaired"]):
        return "this is in logits; a share of the direct effect is asked for."
    if close(answer, row["total"] / row["direct"]):
        return "this is the share that is lost. Without repair it would be 1."
    if close(answer, row["repaired"] / row["total"]):
        return "this is a share of the total effect; one of the direct effect is asked for."
    if close(answer, repair.share()):
        return "this is the share over all heads; a3.h3 is asked for."
    if close(answer, row["direct"]) or close(answer, row["total"]):
        return "this is one of the two effects; compare them."
    return "ask how much less is lost than the head writes, as a share of what it writes: row a3.h3."


def _previous(answer: Any, roles: Any) -> str | None:
    best = roles.top("previous token", 1)[0][0]
    if same(answer, best):
        return None
    scores = dict(roles.top("previous token", len(roles.heads)))
    if str(answer) in scores:
        return f"its score is {scores[str(answer)]:.2f}. Compare the column with the line of chance."
    return f"the heads are {', '.join(sorted(scores))}."


MEAN_ABLATION = """
import torch


def mean_ablate(model, task, layer, head):
    name, tokens = f"blocks.{layer}.attn.hook_z", task.pairs.clean_tokens

    def put(z, hook):
        z = z.clone()
        z[:, :, head] = z[:, :, head].mean(dim=0)
        return z

    with torch.no_grad():
        ablated = model.run_with_hooks(tokens, fwd_hooks=[(name, put)])
        return float((task.measure(model(tokens)) - task.measure(ablated)).mean())
"""


def _other_means(model: Any, task: Any, layer: int, head: int) -> tuple[tuple[str, float], ...]:
    """What other means, places and runs give."""
    import torch

    clean, corrupt = task.pairs.clean_tokens, task.pairs.corrupt_tokens
    name = f"blocks.{layer}.attn.hook_z"

    def metric(change: Any, tokens: Any = clean) -> float:
        def put(z: Any, hook: Any) -> Any:
            z = z.clone()
            change(z)
            return z

        with torch.no_grad():
            return float(task.measure(model.run_with_hooks(tokens, fwd_hooks=[(name, put)])).mean())

    def right(z: Any) -> None:
        z[:, :, head] = z[:, :, head].mean(dim=0)

    def over_positions(z: Any) -> None:
        z[:, :, head] = z[:, :, head].mean(dim=1, keepdim=True)

    def all_heads(z: Any) -> None:
        z[:] = z.mean(dim=0)

    def position(z: Any) -> None:
        z[:, head] = z[:, head].mean(dim=0)

    def nothing(z: Any) -> None:
        pass

    def last(z: Any) -> None:
        z[:, -1, head] = z[:, -1, head].mean(dim=0)

    whole, gone = metric(nothing), metric(right)
    return (
        ("this is the mean over positions: each prompt keeps what it says. Average over the prompts.",
         whole - metric(over_positions)),
        ("these are all heads of the layer; one is asked for.", whole - metric(all_heads)),
        ("the second axis of z is the position; the head is the third.", whole - metric(position)),
        ("this is the last position alone; all of them are asked for.", whole - metric(last)),
        ("this is the metric without the head. Take it off that of the whole model.", gone),
        ("this is the metric of the whole model; what is left without the head?", whole),
        ("this is a share of the metric; the drop itself is asked for.", (whole - gone) / whole),
        ("these are the corrupt prompts; the clean ones are asked for.",
         metric(nothing, corrupt) - metric(right, corrupt)),
        ("one of the two runs is the corrupt one; both are clean.", metric(nothing, corrupt) - gone),
        ("one of the two runs is the corrupt one; both are clean.", whole - metric(right, corrupt)),
    )  # fmt: skip


@judges
def _mean_ablate() -> list[Case]:
    from mechwork.ablation import sweep_ablations

    cases = []
    for name, model, task in trials():
        effect, zero, mean = (
            sweep_ablations(model, task, ["heads"], kind=kind)["z"].values
            for kind in ("mean_by_position", "zero", "mean")
        )
        for layer, head in ((1, 3), (4, 1)):
            mistakes = (
                ("this is zero ablation: the mean over prompts is asked for.", float(zero[layer, head])),
                ("this is the mean over positions too: average over the prompts only.", float(mean[layer, head])),
                ("nothing was changed: does the hook *return* the new z?", 0.0),
                *_other_means(model, task, layer, head),
            )
            label = f"{name}, a{layer}.h{head}"
            cases.append(Case(label, model, (model, task, layer, head), float(effect[layer, head]), mistakes))
    return cases


add(
    Exercise(
        "6.1",
        _helps,
        asks="a list of names",
        hint="Read the column a1.h3, and keep the lines with a plus.",
        solution="helps = [kind for kind, effect in sweeps.items() if float(effect.values[1, 3]) > 0]",
        why="Only values that carry another prompt's message show what this head is for.",
    ),
    Exercise(
        "6.2",
        _interaction,
        hint="Add the two single effects first, then ask what the joint effect has beyond that.",
        solution="interaction = both.effect - sum(result.effect for result in alone)",
        why="Next to nothing: the two heads add up, and neither covers for the other.",
    ),
    Exercise(
        "6.3",
        _repaired,
        hint="If the rest repaired something, would the total be larger or smaller than what the head writes itself? "
        "table.loc[head, column] reads the table.",
        solution='repaired = 1 - table.loc["a3.h3", "total"] / table.loc["a3.h3", "direct"]',
        why="It is negative: losing this head costs more than it writes itself, because later heads read it.",
    ),
    Exercise(
        "6.4",
        _previous,
        asks="a head, as text,",
        hint="Read the first column of numbers, or roles.top('previous token', 1).",
        solution='previous = roles.top("previous token", 1)[0][0]',
        why="It looks one token back far more than chance; induction heads of the next layer build on such a head.",
    ),
    Exercise(
        "6.5",
        _mean_ablate,
        hint="z has the shape (batch, position, head, width). The mean over prompts keeps the position.",
        solution=MEAN_ABLATION,
        why="One line decides which of the five kinds it is. That line belongs in every paper that says 'we ablated'.",
    ),
)
