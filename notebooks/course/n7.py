"""Exercises of notebook 7, Logit lens and tuned lens."""

from __future__ import annotations

from typing import Any

from .build import Case, judges, trials
from .exercise import Exercise, add, same

BLOCK_4, AFTER_A = "resid_pre.4", 12
"""The stream and the position that exercise 7.1 asks for: the word after `` a``."""


def _word(answer: Any, table: Any) -> str | None:
    row = table.places.index(BLOCK_4)
    truth = table.texts[int(table.top_ids[row, 0, AFTER_A, 0])]
    if not isinstance(answer, str):
        return "give the word as text: model.tokenizer.decode(...)."
    if same(answer, truth.strip()):
        return None
    for position, where in ((AFTER_A, "there"), (-1, "at the last position; position 12 is asked for")):
        for i, place in enumerate(table.places):
            if same(answer, table.texts[int(table.top_ids[i, 0, position, 0])].strip()):
                return f"this is what {place} says {where}."
    return "take that one position, the final norm (without it another word wins), the unembedding, the largest logit."


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
    if abs(float(answer) - (effect - corrupt["a1.h3"])) < 0.05:
        return "this takes off the corrupt share alone: what goes straight to the answer is the *change* of the share."
    if abs(float(answer) - (effect + change)) < 0.05:
        return "the sign of the change: clean minus corrupt, and then taken off."
    if abs(float(answer) - (change - effect)) < 0.05:
        return "the sign: the effect comes first, and the direct part is taken off."
    if abs(float(answer) - (1 - change / effect)) < 0.05:
        return "this is a share of the effect; logits are asked for."
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


def _other_shares(model: Any, task: Any, layer: int, head: int) -> tuple[tuple[str, float], ...]:
    """Shares with one factor forgotten, or of another place."""
    import torch

    z, scale = f"blocks.{layer}.attn.hook_z", "ln_final.hook_scale"
    right, wrong = (model.W_U[:, tokens[:, 0]].T for tokens in (task.pairs.correct, task.pairs.incorrect))
    gain, out, centres = model.ln_final.weight, model.W_O[layer], model.cfg.normalization_type.startswith("LN")
    with torch.no_grad():
        clean, corrupt = (
            model.run_with_cache(tokens, names_filter=[z, scale])[1]
            for tokens in (task.pairs.clean_tokens, task.pairs.corrupt_tokens)
        )

        def share(write: Any, by: Any = clean[scale][:, -1], gain: Any = gain, way: Any = right - wrong) -> float:
            write = write - write.mean(-1, keepdim=True) if centres else write
            return float((write / by * gain * way).sum(-1).mean())

        write = clean[z][:, -1, head] @ out[head]
        bias = 0 * gain if (own := getattr(model.ln_final, "bias", None)) is None else own
        odd = write if centres else write - write.mean(-1, keepdim=True)
        return (
            ("the scale of the final norm is missing: divide by it.", share(write, by=1)),
            ("multiplied by the scale; the norm divides by it.", share(write, by=1 / clean[scale][:, -1])),
            ("the gain of the final norm is missing.", share(write, gain=1)),
            (
                "the write is not centred; this model's final norm does that."
                if centres
                else "the write is centred; this model's final norm (RMSNorm) does not do that.",
                float((odd / clean[scale][:, -1] * gain * (right - wrong)).sum(-1).mean()),
            ),
            ("the scale is that of another position: take the last.", share(write, by=clean[scale][:, 0])),
            ("this is the write at the first position; the answer stands at the last.",
             share(clean[z][:, 0, head] @ out[head])),
            ("this is the sum over positions; the answer stands at the last.",
             share(clean[z].sum(1)[:, head] @ out[head])),
            ("these are all heads of the layer; one is asked for.",
             share(torch.einsum("bhe,hed->bd", clean[z][:, -1], out))),
            ("this is the share of the right answer's logit alone: take the wrong one's off.", share(write, way=right)),
            ("this is the corrupt run; the clean one is asked for.",
             share(corrupt[z][:, -1, head] @ out[head], by=corrupt[scale][:, -1])),
            ("the write was normed by itself: the divisor is the scale of the whole stream.",
             float((model.ln_final(write[:, None])[:, 0] * (right - wrong)).sum(-1).mean())),
            ("the norm's bias is in it: it belongs to no head.",
             share(write) + float((bias * (right - wrong)).sum(-1).mean())),
        )  # fmt: skip


@judges
def _direct_share() -> list[Case]:
    from mechwork.lenses import attribute_logits

    cases = []
    for name, model, task in trials():
        rows = dict(attribute_logits(model, task).top(10_000))
        for layer, head in ((5, 1), (4, 1)):
            truth = rows[f"a{layer}.h{head}"]
            mistakes = (
                ("this is summed over pairs; the mean is asked for.", truth * len(task)),
                *_other_shares(model, task, layer, head),
            )
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


def _other_maps(x: Any, y: Any, new: Any, penalty: float) -> tuple[tuple[str, Any], ...]:
    """Translations with one mistake each."""
    import torch

    mean_x, mean_y, one = x.mean(0), y.mean(0), torch.eye(x.shape[1]).to(x)

    def map_of(added: Any) -> Any:
        return torch.linalg.solve((x - mean_x).T @ (x - mean_x) + added, (x - mean_x).T @ (y - mean_y))

    right = map_of(penalty * one)
    return (
        ("the mean of x was not taken off `new`.", new @ right + mean_y),
        ("the mean of `new` was taken off; it is that of x.", (new - new.mean(0)) @ right + mean_y),
        ("A is the wrong way round: rows come first.", (new - mean_x) @ right.T + mean_y),
        ("the penalty is missing.", (new - mean_x) @ map_of(0 * one) + mean_y),
        ("the penalty is squared.", (new - mean_x) @ map_of(penalty**2 * one) + mean_y),
        ("the penalty is times the number of tokens.", (new - mean_x) @ map_of(len(x) * penalty * one) + mean_y),
        ("the penalty was added to every entry; it belongs on the diagonal: times torch.eye.",
         (new - mean_x) @ map_of(penalty) + mean_y),
        ("the penalty is taken off.", (new - mean_x) @ map_of(-penalty * one) + mean_y),
        ("one mean was taken over everything: each column has its own.",
         (new - x.mean()) @ torch.linalg.solve(
             (x - x.mean()).T @ (x - x.mean()) + penalty * one, (x - x.mean()).T @ (y - y.mean())
         ) + y.mean()),
    )  # fmt: skip


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
                *_other_maps(*given),
            )
            cases.append(Case(f"{name}, penalty {penalty:g}", None, given, _ridge(*given), mistakes))
    return cases


add(
    Exercise(
        "7.1",
        _word,
        asks="a word, as text,",
        hint="stream[4] is what enters block 4, one row per position. The norm and the unembedding take all rows "
        "at once.",
        solution=(
            "read = model.unembed(model.ln_final(stream[4]))\nword = model.tokenizer.decode(int(read[0, 12].argmax()))"
        ),
        why="That is the whole of the logit lens: a norm and a matrix.",
    ),
    Exercise(
        "7.2",
        _first,
        asks="the name of a place, as text,",
        hint="Look for the first rank 0.",
        solution="first = next(place for i, place in enumerate(table.places) if int(table.rank[i, 0, -1]) == 0)",
        why="The right name wins only at the end; until then the other one is ahead.",
    ),
    Exercise(
        "7.3",
        _gains_most,
        asks="the name of a place, as text,",
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
