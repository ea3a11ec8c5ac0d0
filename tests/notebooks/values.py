"""Exercises whose answer is a value: made-up evidence for their judges, typical wrong answers with words of the message
that each must get, and several ways to write the right one. What a judge would compute is in FAKES.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace as Made
from typing import Any

import pandas as pd
import torch

from notebooks.course.n2 import GPT2_BYTES
from notebooks.course.n4 import _metric, _slope

PLACES = ["IO", "S1", "S2", "S2+", "END"]


@dataclass(frozen=True)
class Asked:
    """`evidence` as the notebook gives it, `wrong` answers with their message's words, `right` ones."""

    wrong: tuple[tuple[Any, str], ...]
    right: tuple[Any, ...]
    evidence: tuple[Any, ...] = ()
    fakes: dict[str, Any] = field(default_factory=dict[str, Any])


class Table(dict[str, Any]):
    """A result: effects by site, with a baseline, or effects under another metric."""

    baseline = Made(clean=20.0, corrupt=-7.0, gap=27.0)


def one(row: int, column: int, value: float) -> torch.Tensor:
    """A map of layer x place (or head) with one large number, small ones elsewhere."""
    made = torch.full((6, 5), 0.1)
    made[row, column] = value
    return made


EFFECT = Made(labels={"pos": PLACES}, values=one(3, 3, 9.0), baseline=Table.baseline)


def recorded() -> dict[str, list[torch.Tensor]]:
    """Four blocks that each add two writes to the stream."""
    draw = torch.Generator().manual_seed(0)
    attention, mlp = torch.randn(2, 4, 2, 3, 4, generator=draw)
    after = torch.randn(2, 3, 4, generator=draw) + (attention + mlp).cumsum(0)
    return {
        "attn_out": list(attention), "mlp_out": list(mlp), "resid_pre": list(after - attention - mlp),
        "resid_post": list(after),
    }  # fmt: skip


RUN = recorded()
BEFORE, WRITTEN, ADDED, AFTER = (RUN[kind][2] for kind in ("resid_pre", "attn_out", "mlp_out", "resid_post"))
MLP = one(0, 0, 9.0)
MLP[0, 1] = 0.001
LOGITS = torch.tensor([1.0, 2.0, 3.0, -1.0])


class Under(Made):
    """Effects under three metrics: heads differ between the directions by `apart` under each."""

    metrics = ("logit_difference", "log_probability", "probability_difference")

    def under(self, metric: str) -> Any:
        values = one(4, 1, self.shares[metric])
        return {"z": Made(normalized=lambda: Made(values=values))}


DENOISE = Under(shares={"logit_difference": 0.2, "log_probability": 0.5, "probability_difference": 0.9})
NOISE = Under(shares={"logit_difference": 0.21, "log_probability": 0.1, "probability_difference": 0.1})
FITS = {"LN-rule": 0.9, "Identity-rule": 0.3, "AH-rule": 0.6, "gradient": 0.7, "relp": 0.8, "relp_ah": 0.2}
CIRCUIT = Made(kept=0.9, complement=lambda: Made(kept=0.03))
KINDS = {"zero": -2.0, "mean": -1.5, "corrupt": 6.0, "resample": 3.0}
REPAIR = Made(
    share=lambda: -0.4,
    to_dataframe=lambda: pd.DataFrame({"head": ["a3.h3"], "direct": [2.0], "total": [1.4], "repaired": [0.6]}),
)
PREVIOUS = [("a0.h0", 0.9), ("a1.h0", 0.3), ("a0.h1", 0.1)]
TEXTS = [" Mary", " John", " necklace", " bottle"]
LENS = Made(
    places=["resid_pre.3", "resid_pre.4", "resid_pre.5", "resid_post.5"],
    texts=TEXTS,
    top_ids=torch.tensor([[2, 1], [3, 1], [2, 0], [2, 0]])[:, None, [0] * 13 + [1], None],
    rank=torch.tensor([4, 2, 0, 0])[:, None, None],
)
NEEDED = Made(values=one(1, 3, 6.0))
SHARES = ({"a1.h3": 1.5}, {"a1.h3": -0.5})
RESULT = Made(faithfulness=0.92, same_degree=(0.5, 0.6, 0.4, 0.45, 0.55))
OVERLAPS = [Made(edges=0.2, edges_by_chance=0.02, nodes=0.6, nodes_by_chance=0.2),
            Made(edges=0.1, edges_by_chance=0.025, nodes=0.6, nodes_by_chance=0.2)]  # fmt: skip
REUSE = Made(
    tasks=["ioi", "pronoun", "greater_than"],
    comparison=Made(overlaps=OVERLAPS),
    evaluations={("greater_than", "ioi"): Made(faithfulness=0.01), ("greater_than", "pronoun"): Made(faithfulness=0.8)},
)
SMOL = {"layers": 30, "heads": 9, "key/value heads": 3}
FOUND = Made(
    to_dataframe=lambda: pd.DataFrame(
        {"distance": [0.2, 0.6, 0.9, 1.0], "random": [0.3, 0.5, 0.8, 1.0], "passes": [False, True, False, False]}
    )
)
BEST = {"add": 0.2, "mirror_below": 0.9, "rotate": 0.85}
STUDY = Made(methods=tuple(BEST), best=lambda method, max_kl: BEST[method])

VALUES: dict[str, Asked] = {
    "0.1": Asked(
        ((128, "the size of the product"), (64, "at most the rank of the narrower")), (32, 32.0),
        (Made(cfg=Made(d_head=32, d_model=128)),),
    ),
    "0.2": Asked(
        ((5, "what came *after* it"), (16, "a previous-token head"), (18, "cannot look ahead"),
         (4, "on the other side"), (9, "go on by one")), (6,),
    ),
    "1.1": Asked(
        (("END", "has it arrived there yet"), ("S2", "three blocks later"), ("IO", "another position in the row"),
         ("the end", "the positions are called IO, S1")), ("S2+", " s2+ "), ({"resid_pre": EFFECT},),
    ),
    "1.2": Asked(
        ((0.9, "the faithfulness of the circuit itself"), (0.1, "need not add up to 1"), (0.5, "not what the other")),
        (0.03, 0.033, Made(faithfulness=0.03)), (None, Made(test=None), CIRCUIT),
        {"mechwork.evaluate": lambda model, task, circuit, n_random: Made(faithfulness=circuit.kept)},
    ),
    "1.3": Asked(
        ((100, "a smaller one does too"), (20, "stays below 0.8"), (30, "the table has the sizes 20, 50, 100")), (50,),
        (Made(sizes=[20, 50, 100], faithfulness=torch.tensor([0.4, 0.85, 0.9])),),
    ),
    "2.1": Asked(
        ((AFTER, "the recorded stream itself"), (BEFORE + WRITTEN, "between attention and MLP"),
         (RUN["resid_post"][1].clone(), "Counting starts at 0"), (RUN["resid_post"][3].clone(), "Counting starts at 0"),
         (BEFORE + ADDED, "what attention writes is missing"), (WRITTEN + ADDED, "To what does it add that"),
         (AFTER + WRITTEN + ADDED, "added twice"),
         (RUN["resid_pre"][0] + WRITTEN + ADDED, "the stream that enters block 0"),
         (AFTER[:1].clone(), "has the shape"), (AFTER * 2, "differs from the stream after block 2")),
        (AFTER.clone(), AFTER.double(), AFTER.tolist()), (RUN,),
    ),
    "2.2": Asked(
        ((75, "in percent"), (0.25, "gets wrong"), (1.25, "the mean of the metric"), (3, "the number of right pairs"),
         (0.6, "not the share of pairs")), (0.75, torch.tensor(0.75)),
        (Made(measure=lambda logits: logits), Made(logits=LOGITS)),
    ),
    "2.3": Asked(
        (((6, 8, 28, 64), "five axes"), ((6, 8, 28, 4, 32), "the shape of the queries"),
         ((8, 6, 28, 2, 32), "go through the axes")), ((6, 8, 28, 2, 32), torch.zeros(6, 8, 28, 2, 32).shape),
        (Made(n_layers=6, n_kv_heads=2, n_heads=4, d_head=32),),
    ),
    "2.4": Asked(
        ((GPT2_BYTES * 8, "these are bits"), (GPT2_BYTES * 2, "in float64"), (GPT2_BYTES // 64, "one prompt"),
         (GPT2_BYTES // 128, "one token of each"), (GPT2_BYTES // 4, "How many bytes"), (GPT2_BYTES // 12, "one layer"),
         (302, "in megabytes"), (288, "in megabytes"), (2**30, "bytes per number")),
        (GPT2_BYTES, 302_000_000),
    ),
    "3.1": Asked(((10, "the comma"), (9, "another token"), (2, "another token"), (4, "before 'gave'")), (11,)),
    "3.2": Asked(
        (("accuracy", "the metrics are"), ("log_probability", "differs by 0.40"),
         ("probability_difference", "differs by 0.80")), ("logit_difference",), (DENOISE, NOISE),
    ),
    "3.3": Asked((("noise", "the other one does the work"), ("both", "the two directions are")), ("denoise",)),
    "3.4": Asked(
        ((9.0, "this is the effect"), (9 / 27, "the share of the gap"), (11.0, "a noised run"), (-16.0, "the sign"),
         (29.0, "starts at the clean run"), (-7 + 9 / 27, "A share of what"), (20.0, "without the patch"),
         (-7.0, "without the patch"), (100.0, "which of the two runs")), (2.0, 2.1),
        (Made(labels=EFFECT.labels, values=one(4, 3, 9.0), baseline=Table.baseline),),
    ),
    "4.1": Asked(
        ((_metric(1) - _metric(0), "the true effect"), (_slope(0.5), "the slope in the middle"),
         (_metric(0), "the metric at the start"), (_metric(0) + _slope(0), "where the line stands"),
         (-_slope(0), "the sign"), (0.5, "which slope does the formula take")), (_slope(0), round(_slope(0), 4)),
    ),
    "4.2": Asked(
        ((0, "at least one step"), (1, "with 1 steps the estimate is off by"), (2, "off by"),
         (20, "a smaller number")), (4,),
    ),
    "4.3": Asked(
        ((30, "these are all cells"), (29, "1 % of the gap, not 0.01"), (7, "count the cells")), (1, 1.0),
        (Table(mlp_out=Made(values=MLP)),),
    ),
    "4.4": Asked(
        ((5, "the backward passes alone"), (7, "the forward passes alone"), (10, "clean and corrupt, are missing"),
         (3, "this is one step"), (15, "not once per step"), (99, "two forward passes first")), (12, 2 + 5 + 5),
    ),
    "5.1": Asked(
        ((0.0, "the plain gradient"), (3, "it is still there"), (0.2, "times the activation"),
         (1.4, "times the activation"), (5, "the second has no coefficient"), (9, "what is its slope")), (0.6, 3 / 5),
    ),
    "5.2": Asked(
        ((6.0, "this is in logits"), (0.4, "the share that the words have"), (4.0, "have together, in logits"),
         (10.0, "the whole metric"), (-0.6, "the sign"), (1.5, "a share of what the words have"), (60, "in percent"),
         (0.99, "has to be added")), (0.6, torch.tensor(0.6)),
        (Made(remainder=6.0, value=10.0, values=torch.tensor([1.0, 3.0])),),
    ),
    "5.3": Asked(
        (("relp", "the rules are"), ("Identity-rule", "it gives +0.300"), ("AH", "it gives +0.600")),
        ("LN-rule", "ln"), (None, None, None),
        {"mechwork.attribute": lambda model, task, sites, rules: Made(
            agreement=lambda exact: {"resid_pre": Made(pearson=FITS[rules[0]])})},
    ),
    "5.4": Asked(
        (("gim", "the three are"), ("gradient", "has +0.700"), ("relp", "has +0.800")), ("relp_ah",),
        (None, None, None),
        {"mechwork.attribute": lambda model, task, sites, rules: Made(
            agreement=lambda exact: {"resid_pre": Made(pearson=FITS[rules])})},
    ),
    "6.1": Asked(
        (("patch", "the kinds are"), (["zero", "corrupt"], "under 'zero' the effect is -2.00"),
         (["corrupt"], "not all"), ([], "the list is empty")), (["corrupt", "resample"],),
        ({kind: Made(values=one(1, 3, value)) for kind, value in KINDS.items()},),
    ),
    "6.2": Asked(
        ((2.0, "the sign"), (5.0, "this is losing both"), (7.0, "added up. Compare"), (0.4, "losing both, minus")),
        (-2.0,), ([Made(effect=3.0), Made(effect=4.0)], Made(effect=5.0)),
    ),
    "6.3": Asked(
        ((-0.3, "the sign"), (0.6, "in logits"), (0.7, "the share that is lost"), (0.6 / 1.4, "of the total effect"),
         (-0.4, "over all heads"), (2.0, "one of the two effects"), (1.4, "one of the two effects"),
         (9.0, "row a3.h3")), (0.3, 0.31), (REPAIR,),
    ),
    "6.4": Asked(
        (("a1.h0", "its score is 0.30"), ("a0.h1", "its score is 0.10"), ("a5.h1", "the heads are")), ("a0.h0",),
        (Made(top=lambda role, n: PREVIOUS[:n], heads=[name for name, _ in PREVIOUS]),),
    ),
    "7.1": Asked(
        ((" necklace", "this is what resid_pre.3 says there"), (" John", "at the last position"), (921, "as text"),
         (" shop", "take that one position")), (" bottle", "bottle"), (LENS,),
    ),
    "7.2": Asked(
        (("resid_post.5", "not for the first time"), ("resid_pre.4", "its rank is 2"), ("block 5", "the places are")),
        ("resid_pre.5",), (LENS,),
    ),
    "7.3": Asked(
        (("b", "it gains 1.0 bits"), ("the first", "the places are a, b")), ("a",), (None, None, None),
        {"mechwork.lenses.evaluate_lens": lambda model, lens, text, n_rows: Made(
            to_dataframe=lambda: pd.DataFrame({"place": ["a", "b"], "gain": [9.0, 1.0]}))},
    ),
    "7.4": Asked(
        ((2.0, "straight to the answer: what does *not*"), (6.0, "the whole effect"), (4.5, "the clean share alone"),
         (6.5, "the corrupt share alone"), (8.0, "the sign of the change"), (-4.0, "the effect comes first"),
         (1 - 2 / 6, "a share of the effect"), (0.0, "without the part that goes straight")), (4.0, 4.04),
        (*SHARES, NEEDED),
    ),
    "8.1": Asked(
        ((0.5, "what the right nodes alone give"), (0.92, "are the harder control"), (-0.42, "the sign"),
         (0.32, "one of the controls"), (0.52, "one of the controls"), (0.92 - 2.5, "summed here"),
         (0.92 / 0.5, "how many times as much"), (7.0, "compare the circuit's")), (0.42,), (RESULT,),
    ),
    "8.2": Asked(
        ((5, "at least once"), (60, "not always the same ones"), (4, "a share of 1 is asked for"),
         (1, "a share of how much")), (3, 3.0), (torch.tensor([1.0, 1.0, 1.0, 0.9, 0.2, 0.0]),),
    ),
    "8.3": Asked(
        ((0.2, "the Jaccard index"), (3.0, "these are nodes"), (0.18, "the difference"), (0.1, "upside down"),
         (4.0, "another pair of tasks"), (77.0, "a quotient of two numbers")), (10.0, 10.2), (REUSE,),
    ),
    "8.4": Asked(
        (("greater_than", "its own circuit"), ("ioi", "gives greater_than 0.010"), ("chess", "the tasks are")),
        ("pronoun", "Pronoun"), (REUSE,),
    ),
    "9.1": Asked(
        ((7, "there are 3 key/value heads"), (7 % 3, "do not take turns"), (0, "how many query heads share")), (2,),
        (SMOL,),
    ),
    "9.3": Asked(
        (("chess", "'chess' is none of them"), (["ioi", "greater_than"], "ioi has 0.90"), ([], "one more is below")),
        (["greater_than"], "greater_than"), ({"ioi": 0.9, "greater_than": 0.3},),
    ),
    "9.4": Asked(
        ((270, "the whole model for every head"), (9 * 29 / 2, "layer l itself"), (15.5, "one head per layer"),
         (3, "Add them up")), (139.5,), (SMOL,),
    ),
    "10.3": Asked(
        ((1, "the column 'passes'"), (3, "as good as is not better"), (0, "compare the columns")), (2,), (FOUND,),
    ),
    "11.5": Asked(
        ((["add"], "add reaches 0.20"), (["mirror_below"], "not all"), ("jump", "the methods are")),
        (["mirror_below", "rotate"], ("rotate", "mirror_below")), (STUDY,),
    ),
}  # fmt: skip
