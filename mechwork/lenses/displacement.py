"""Likelihood displacement: preference pairs whose preferred answer becomes less likely when it is preferred.

With h_k the final normed state before token k of an answer (preferred +, dispreferred -), and lengths n+, n-:

    CHES = <sum_k h+_k, sum_k h-_k> - |sum_k h+_k|^2            (Razin et al. 2024; by length: each sum over n, the
    rate = |G+|^2 - <G+, G->                                     second over n+^2)

G is the gradient of an answer's log-probability with respect to the unembedding, so `rate` is how fast the preferred
answer's log-probability rises along the gradient of (log p+ - log p-) by the unembedding's part: below 0 it is
displaced. CHES looks at the states alone and ranks the pairs of one data set: the larger, the more displacement.
`agreement` is the rank correlation of CHES with -rate, `control` that with rates in an order by lot. Cost: 2 forwards
of all pairs, no backward.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..execute.memory import cut
from ..models.anatomy import check_ready, device_of, final_norm
from ..models.borrow import borrows
from ..models.identity import identify_model
from ..provenance import Provenance, build_provenance, hash_json
from ..result import Result, Table
from ..runs.room import rows_that_fit
from ..sites import Site
from ..statistics import spearman
from ..tasks.padding import TokenBatch, token_rows
from .readout import Readout
from .states import record_states

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_LOTS = 20


@dataclass(frozen=True, eq=False)
class Displacement(Result, what="likelihood displacement", strongest="ches"):
    """Scores per preference pair; `log_p` ``[batch, 2]``: log-probability of the preferred and the other answer."""

    ches: Float[Tensor, " batch"]
    by_length: Float[Tensor, " batch"]
    rate: Float[Tensor, " batch"]
    log_p: Float[Tensor, "batch 2"]
    control: float
    provenance: Provenance = field(default_factory=dict)

    @property
    def agreement(self) -> float:
        """Rank correlation of CHES with -rate over the pairs; NaN for fewer than three."""
        return spearman(self.ches, -self.rate) if len(self.ches) > 2 else float("nan")

    def _table(self) -> Table:
        """One row per pair."""
        return {
            "pair": list(range(len(self.ches))), "ches": self.ches.tolist(), "by_length": self.by_length.tolist(),
            "rate": self.rate.tolist(), "log_p_preferred": self.log_p[:, 0].tolist(),
            "log_p_other": self.log_p[:, 1].tolist(),
        }  # fmt: skip

    def __str__(self) -> str:
        n = int((self.rate < 0).sum())
        return (
            f"{len(self.rate)} preference pairs: the preferred answer is displaced in {n} by the unembedding's part; "
            f"CHES ranks the displacement with {self.agreement:.3f} (rates by lot {self.control:.3f}); most likely "
            f"pair {int(self.ches.argmax())}"
        )


@borrows
def study_displacement(
    model: TransformerBridge, prompts: TokenBatch, preferred: TokenBatch, others: TokenBatch, *, seed: int = 0
) -> Displacement:
    """CHES of preference pairs (token ids of prompts and of both answers), beside the rate that it stands for.

    Raises `InputError` for numbers of prompts and answers that differ, an empty prompt or answer, two answers that are
    the same, tokens of another model, or one-token answers alone, whose CHES is 0.

    >>> print(study_displacement(model, [[1, 2, 3], [4, 5, 6]], [[7, 8], [8, 9]], [[10, 2], [11]]))
    """
    check_ready(model)
    rows = [token_rows(part) for part in (prompts, preferred, others)]
    if len({len(part) for part in rows}) != 1 or not rows[0]:
        raise InputError(f"every prompt has two answers; got {', '.join(str(len(part)) for part in rows)}")
    for i, (prompt, yes, no) in enumerate(zip(*rows, strict=True)):
        if not prompt or not yes or not no:
            raise InputError(f"prompts and answers have at least one token; pair {i} has an empty one")
        if yes == no:
            raise InputError(f"the two answers of a pair differ; those of pair {i} are the same")
        if max(*prompt, *yes, *no) >= int(model.cfg.d_vocab):
            raise InputError(f"token ids of this model are below {int(model.cfg.d_vocab)}; pair {i} has a larger one")
    if all(len(yes) == len(no) == 1 for yes, no in zip(*rows[1:], strict=True)):
        raise InputError(
            "two answers of one token follow the same state, so that CHES is 0 for every pair; give answers of two "
            "tokens or more"
        )
    good, bad = (_answers(model, rows[0], part) for part in rows[1:])
    ches, by_length, rate = [], [], []
    for (h, e, _), (g, f, _) in zip(good, bad, strict=True):
        a, b = h.sum(dim=0), g.sum(dim=0)
        ches.append(float(a @ b - a @ a))
        by_length.append(float(a @ b) / (len(h) * len(g)) - float(a @ a) / len(h) ** 2)
        rate.append(float(((h @ h.T) * (e @ e.T)).sum() - ((h @ g.T) * (e @ f.T)).sum()))
    log_p = torch.tensor([[own for _, _, own in side] for side in (good, bad)], dtype=torch.float64).T
    scores, rates = torch.tensor(ches, dtype=torch.float64), torch.tensor(rate, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    lots = [spearman(scores, -rates[torch.randperm(len(rates), generator=generator)]) for _ in range(N_LOTS)]
    control = sum(abs(lot) for lot in lots) / N_LOTS if len(rates) > 2 else float("nan")
    facts = build_provenance(
        method="likelihood displacement", model=identify_model(model), seed=seed,
        pairs=hash_json(rows),
    )  # fmt: skip
    return Displacement(scores, torch.tensor(by_length, dtype=torch.float64), rates, log_p, control, facts)


Answer = tuple[Float[Tensor, "n d_model"], Float[Tensor, "n d_vocab"], float]
"""Normed states before each token, gradient of its log-probability with respect to the unembedding's output, and the
log-probability of the whole.
"""


@torch.no_grad()
def _answers(model: TransformerBridge, prompts: list[list[int]], answers: list[list[int]]) -> list[Answer]:
    norm, readout, cap = final_norm(model), Readout.of(model), check_ready(model).final_soft_cap
    site = Site("resid_post", int(model.cfg.n_layers) - 1)
    found: list[Answer] = []
    joined = [p + a for p, a in zip(prompts, answers, strict=True)]
    width = max(len(row) for row in joined)
    tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in joined])
    for block in cut(len(joined), rows_that_fit(model, tokens, sites=[site])):
        states = record_states(model, tokens[block].to(device_of(model)), [site])[0]
        for i, row in enumerate(joined[block]):
            n = len(answers[block.start + i])
            before = states[i, len(row) - n - 1 : len(row) - 1]
            logits = readout.logits(before).double()
            ids = torch.tensor(row[-n:], device=logits.device)
            logs = logits.log_softmax(dim=-1)
            error = torch.nn.functional.one_hot(ids, logits.shape[-1]) - logs.exp()
            error = error if cap is None else error * (1 - (logits / cap).pow(2))
            h = (before if norm is None else norm(before)).double()
            found.append((h.cpu(), error.cpu(), float(logs.gather(1, ids[:, None]).sum())))
    return found
