"""Exercises of notebook 10, Features."""

from __future__ import annotations

from typing import Any

from .build import Case, judge_function, judges
from .exercise import Exercise, add

PLACES = ("resid_post.1", "resid_post.4")


def _shipped() -> tuple[Any, Any, Any]:
    """(model, its features, a task)."""
    import mechwork as mw
    from mechwork.features import load_features

    model = mw.load_model("gpt2-6l")
    return model, load_features(model), mw.tasks.agreement(model, n=8, seed=3)


RECONSTRUCT = """
import torch


def reconstruct(x, coder):
    p = ((x - coder.b_in) @ coder.W_enc + coder.b_enc).relu()
    largest = p.topk(coder.activation.k, dim=-1)
    f = torch.zeros_like(p).scatter(-1, largest.indices, largest.values)
    return f @ coder.W_dec + coder.b_dec
"""


@judges
def _reconstruct() -> list[Case]:
    import mechwork as mw

    model, shipped, task = _shipped()
    cases = []
    for place in PLACES:
        coder = shipped[place]
        x = mw.record_run(model, task.pairs, ["resid_post"])["resid_post"][coder.writes.layer]
        f = coder.encode(x)
        centred = (x - coder.b_in) @ coder.W_enc + coder.b_enc
        plain = (x @ coder.W_enc + coder.b_enc).relu()
        largest = plain.topk(coder.activation.k, dim=-1)
        not_centred = plain.new_zeros(plain.shape).scatter(-1, largest.indices, largest.values)
        mistakes = (
            ("all features are kept. Keep the k largest of each position.", coder.decode(centred.relu())),
            ("b_in has to be taken off before W_enc.", coder.decode(not_centred)),
            ("b_dec is missing at the end.", f @ coder.W_dec),
            ("this is x itself: did the features get used at all?", x),
        )
        cases.append(Case(place, None, (x, coder), coder.decode(f), mistakes))
    return cases


UNEXPLAINED = """
def unexplained(x, reconstruction):
    missed = (x - reconstruction).pow(2).sum()
    return missed / (x - x.mean(dim=0)).pow(2).sum()
"""


def _unexplained(answer: Any) -> str | None:
    import torch

    cases = []
    for seed in (0, 1):
        made = torch.Generator().manual_seed(seed)
        x = torch.randn(40, 6, generator=made) + 3
        guess = x + 0.4 * torch.randn(40, 6, generator=made)
        missed, whole = (x - guess).pow(2).sum(), (x - x.mean(0)).pow(2).sum()
        mistakes = (
            ("the mean has to be taken off x: a constant explains nothing.", missed / x.pow(2).sum()),
            ("this is the explained share; the missed one is asked for.", 1 - missed / whole),
            ("lengths are squared before they are added up.", (x - guess).abs().sum() / (x - x.mean(0)).abs().sum()),
            ("this is the squared error, not yet a share.", missed),
            ("one mean per coordinate, not one for all numbers.", missed / (x - x.mean()).pow(2).sum()),
        )
        cases.append(Case(f"random numbers {seed}", None, (x, guess), missed / whole, mistakes))
    return judge_function(answer, cases, 1e-4)


def _better(answer: Any, found: Any) -> str | None:
    table = found.to_dataframe()
    truth = int((table["distance"] > table["random"]).sum())
    if int(answer) == truth:
        return None
    if int(answer) == int(table["passes"].sum()):
        return "this is the column 'passes', which does not look at random directions."
    if int(answer) == int((table["distance"] >= table["random"]).sum()):
        return "as good as is not better."
    if int(answer) == len(table) - truth:
        return "this is at how many places it does not."
    return "compare the columns 'distance' and 'random', row by row."


ABLATE = """
import torch


def ablate_feature(model, task, coder, feature):
    name = f"blocks.{coder.writes.layer}.hook_resid_post"

    def take_out(x, hook):
        f = coder.encode(x)[..., feature]
        return x - f[..., None] * coder.W_dec[feature]

    with torch.no_grad():
        plain = task.measure(model(task.pairs.clean_tokens))
        without = task.measure(model.run_with_hooks(task.pairs.clean_tokens, fwd_hooks=[(name, take_out)]))
    return float((plain - without).mean())
"""


@judges
def _ablate_feature() -> list[Case]:
    import torch

    from mechwork.features import FeatureWrite, intervene_features, record_features
    from mechwork.interventions import Entries, Value, Write, Zero, intervene

    model, shipped, task = _shipped()
    tokens = task.pairs.clean_tokens
    cases = []
    for place in PLACES:
        coder = shipped[place]
        coded = record_features(model, tokens, [coder])[0].features
        feature = int(coded.mean(dim=(0, 1)).argmax())
        kept = coded.clone()
        kept[..., feature] = 0

        def measure(context: Any) -> float:
            with torch.no_grad(), context:
                return float(task.measure(model(tokens)).mean())

        def replaced(value: Any, coder: Any = coder) -> Any:
            return intervene(model, [Write(coder.writes, Value(value))])

        with torch.no_grad():
            plain = float(task.measure(model(tokens)).mean())
        without = measure(intervene_features(model, [FeatureWrite(coder, Entries(Zero(), (feature,)))]))
        mistakes = (
            ("the reconstruction was put in place of the activation: the error must stay.",
             plain - measure(replaced(coder.decode(kept)))),
            ("this is the metric without the feature. Take it off the metric with it.", without),
            ("nothing was changed: does the hook *return* the new activation?", 0.0),
        )  # fmt: skip
        arguments = (model, task, coder, feature)
        cases.append(Case(f"{place}, feature {feature}", model, arguments, plain - without, mistakes))
    return cases


SCORE = """
import torch


def score_features(model, task, coder):
    name, kept = f"blocks.{coder.writes.layer}.hook_resid_post", {}

    def keep(x, hook):
        kept["x"] = x.detach().requires_grad_()
        return kept["x"]

    with torch.no_grad():
        clean = model.run_with_cache(task.pairs.clean_tokens, names_filter=name)[1][name]
    logits = model.run_with_hooks(task.pairs.corrupt_tokens, fwd_hooks=[(name, keep)])
    (slope,) = torch.autograd.grad(task.measure(logits).sum(), kept["x"])
    change = coder.encode(clean) - coder.encode(kept["x"].detach())
    return (change * (slope @ coder.W_dec.T)).sum(dim=1).mean(dim=0)
"""


@judges
def _score_features() -> list[Case]:
    from mechwork.features import FeatureSet, score_features

    model, shipped, task = _shipped()
    cases = []
    for place in PLACES:
        coder = shipped[place]
        alone = FeatureSet((coder,), shipped.model)
        denoise, noise = (
            score_features(model, task, alone, rules="gradient", direction=direction).values[: coder.n_features]
            for direction in ("denoise", "noise")
        )
        mistakes = (
            ("this is summed over pairs; the mean is asked for.", denoise * len(task)),
            ("the slope was taken at the clean run.", noise),
            ("this is corrupt minus clean.", -denoise),
        )
        cases.append(Case(place, model, (model, task, coder), denoise, mistakes))
    return cases


add(
    Exercise(
        "10.1",
        _reconstruct,
        hint="Four lines, one per line of the formula. topk gives values and indices; scatter puts them into zeros.",
        solution=RECONSTRUCT,
        why="The features of a place are a list of directions and a rule that says which few are on.",
    ),
    Exercise(
        "10.2",
        _unexplained,
        hint="Two sums of squares. In the lower one each coordinate has its own mean.",
        solution=UNEXPLAINED,
        why="A small share can still hold what matters: the model's loss is the better judge.",
    ),
    Exercise(
        "10.3",
        _better,
        hint="found.to_dataframe() has both columns. 'Better' is strict.",
        solution='table = found.to_dataframe()\nbetter = int((table["distance"] > table["random"]).sum())',
        why="A concept that is everywhere in the stream is found by random directions as well. These are 32 prompts: "
        "with 256 the best feature is ahead at five places of six, by .06 at most. Nearly as good, then.",
    ),
    Exercise(
        "10.4",
        _ablate_feature,
        hint="A feature writes its activation times its row of W_dec. The hook returns the activation without that.",
        solution=ABLATE,
        why="By writing a *change*, what the features do not explain is left alone, and no change costs nothing.",
    ),
    Exercise(
        "10.5",
        _score_features,
        hint="Exercise 4.5 gives the slope at the activation. A feature moves it along its row of W_dec.",
        solution=SCORE,
        why="One product of matrices for all features; the library adds the error as one more node.",
    ),
)
