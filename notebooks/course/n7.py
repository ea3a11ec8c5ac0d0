"""Exercises of notebook 7, Logit lens and tuned lens."""

from __future__ import annotations

from typing import Any

from .build import Case, judges, trials
from .exercise import Exercise, add, same

BLOCK_4 = "resid_pre.4"


def _word(answer: Any, table: Any) -> str | None:
    row = table.places.index(BLOCK_4)
    truth = table.texts[int(table.top_ids[row, 0, -1, 0])]
    if not isinstance(answer, str):
        return "give the word as text: model.tokenizer.decode(...)."
    if same(answer, truth.strip()):
        return None
    if same(answer, "Mary"):
        return "this is what the *last* stream says. Read the one that enters block 4."
    readings = {place: table.texts[int(table.top_ids[i, 0, -1, 0])].strip() for i, place in enumerate(table.places)}
    for place, word in readings.items():
        if same(answer, word):
            return f"this is what {place} says."
    return "take stream[4, 0, -1], the final norm, the unembedding, and the largest logit."


def _first(answer: Any, table: Any) -> str | None:
    ranks = [int(table.rank[i, 0, -1]) for i in range(len(table.places))]
    truth = table.places[ranks.index(0)]
    if same(answer, truth):
        return None
    if answer in table.places:
        rank = ranks[table.places.index(answer)]
        return "there it is on top, but not for the first time." if rank == 0 else f"there its rank is {rank}."
    return f"the places are {', '.join(table.places)}."


def _gains_most(answer: Any, model: Any, text: Any, lens: Any) -> str | None:
    from mechwork.lenses import evaluate_lens

    gain = evaluate_lens(model, lens, text, n_rows=48).to_dataframe().set_index("place")["gain"]
    if same(answer, gain.idxmax()):
        return None
    if answer in gain.index:
        return f"there it gains {gain[answer]:.1f} bits; another place gains more."
    return f"the places are {', '.join(gain.index)}."


def _indirect(answer: Any, clean: Any, corrupt: Any, needed: Any) -> str | None:
    effect, change = float(needed.values[1, 3]), clean["a1.h3"] - corrupt["a1.h3"]
    if abs(float(answer) - (effect - change)) < 0.05:
        return None
    if abs(float(answer) - change) < 0.05:
        return "this is what goes straight to the answer: what does *not* go through others."
    if abs(float(answer) - effect) < 0.05:
        return "this is the whole effect. Take off what goes straight to the answer."
    if abs(float(answer) - (effect - clean["a1.h3"])) < 0.05:
        return (
            "this takes off the clean share alone. The head's output is replaced, not removed: what changes directly?"
        )
    return "it is the effect, without the part that goes straight to the answer."


DIRECT_SHARE = """
import torch


def direct_share(model, task, layer, head):
    z, scale = f"blocks.{layer}.attn.hook_z", "ln_final.hook_scale"
    with torch.no_grad():
        _, cache = model.run_with_cache(task.pairs.clean_tokens, names_filter=[z, scale])
        write = cache[z][:, -1, head] @ model.W_O[layer, head]
        if model.cfg.normalization_type.startswith("LN"):
            write = write - write.mean(dim=-1, keepdim=True)
        write = write / cache[scale][:, -1] * model.ln_final.weight
        answer = model.W_U[:, task.pairs.correct[:, 0]] - model.W_U[:, task.pairs.incorrect[:, 0]]
        return float((write * answer.T).sum(dim=-1).mean())
"""


@judges
def _direct_share() -> list[Case]:
    from mechwork.lenses import attribute_logits

    cases = []
    for name, model, task in trials():
        rows = dict(attribute_logits(model, task).top(10_000))
        for layer, head in ((5, 1), (4, 1)):
            truth = rows[f"a{layer}.h{head}"]
            mistakes = (("this is summed over pairs; the mean is asked for.", truth * len(task)),)
            cases.append(Case(f"{name}, a{layer}.h{head}", model, (model, task, layer, head), truth, mistakes))
    return cases


TRANSLATE = """
import torch


def translate(x, y, new, penalty):
    mean_x, mean_y = x.mean(dim=0), y.mean(dim=0)
    x, y = x - mean_x, y - mean_y
    A = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1]).to(x), x.T @ y)
    return (new - mean_x) @ A + mean_y
"""


def _ridge(x: Any, y: Any, new: Any, penalty: float, *, centre: bool = True) -> Any:
    import torch

    mean_x, mean_y = (x.mean(0), y.mean(0)) if centre else (0 * x[0], 0 * y[0])
    x, y = x - mean_x, y - mean_y
    return (new - mean_x) @ torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1]).to(x), x.T @ y) + mean_y


@judges
def _translate() -> list[Case]:
    import mechwork as mw

    cases = []
    for name, model, task in trials(("gpt2-6l", "llama-6l"), n=16):
        stream = mw.record_run(model, task.pairs, ["resid_pre", "resid_post"])
        x, y = stream["resid_pre"][2].flatten(0, 1).double(), stream["resid_post"][-1].flatten(0, 1).double()
        for penalty in (1.0, 30.0):
            given = (x[:150], y[:150], x[150:], penalty)
            mistakes = (
                ("b is missing: take the means off first, and put y's back in the end.", _ridge(*given, centre=False)),
                ("these are the translations of x, not of `new`.", _ridge(x[:150], y[:150], x[:150], penalty)),
                ("the mean of y is not put back in the end.", _ridge(*given) - y[:150].mean(0)),
            )
            cases.append(Case(f"{name}, penalty {penalty:g}", None, given, _ridge(*given), mistakes))
    return cases


add(
    Exercise(
        "7.1",
        _word,
        hint="stream[4] is what enters block 4; its last position is stream[4, 0, -1].",
        solution=(
            "logits = model.unembed(model.ln_final(stream[4][:, -1:]))\n"
            "word = model.tokenizer.decode(int(logits[0, -1].argmax()))"
        ),
        why="That is the whole of the logit lens: a norm and a matrix.",
    ),
    Exercise(
        "7.2",
        _first,
        hint="Look for the first rank 0.",
        solution="first = next(place for i, place in enumerate(table.places) if int(table.rank[i, 0, -1]) == 0)",
        why="The right name wins only at the end; until then the other one is ahead.",
    ),
    Exercise(
        "7.3",
        _gains_most,
        hint="Read the column 'gain'.",
        solution='gains_most = evaluation.to_dataframe().set_index("place")["gain"].idxmax()',
        why="The earlier the stream, the further its dialect is from that of the last layer.",
    ),
    Exercise(
        "7.4",
        _indirect,
        hint="Three numbers of one line: the effect, and by how much the direct share changes.",
        solution='indirect = float(needed.values[1, 3]) - (clean_share["a1.h3"] - corrupt_share["a1.h3"])',
        why="More than all of it: what it writes straight to the answer even speaks against. This head writes for "
        "other heads to read, and no lens at the answer can see that.",
    ),
    Exercise(
        "7.5",
        _direct_share,
        hint="Four factors in this order: write, centring (LN only), scale and gain of the final norm, answer's "
        "direction.",
        solution=DIRECT_SHARE,
        why="Added up over all heads, MLPs, embeddings and biases, these shares are the logit difference itself.",
    ),
    Exercise(
        "7.6",
        _translate,
        hint="Take the means of x and of y off, solve for A, then translate new minus x's mean and add y's mean.",
        solution=TRANSLATE,
        why="This map minimises the distance of the streams; a tuned lens goes on from it and minimises the distance "
        "of the *readings*.",
    ),
)
