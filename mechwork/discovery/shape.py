"""The numbers that a stage's cost depends on, all known before anything is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..circuits import EdgeSpace
from ..models.anatomy import read_anatomy
from ..tasks.task import Task
from .settings import Settings

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SITES = ("resid_pre", "attn_out", "mlp_out", "z")
"""Where effects are measured: the stream and what is written to it by position, heads at all positions."""


@dataclass(frozen=True)
class Shape:
    """Of a model, a task and settings. `n_size` train pairs beside `n_train` help to choose the size. `flops` is what
    one forward of the train pairs multiplies and adds, roughly, and `unembedding` the share of it that turns states
    into logits.
    """

    n_layers: int
    n_heads: int
    n_pos: int
    n_train: int
    n_size: int
    n_test: int
    n_per_question: int
    aligned: bool
    n_edges: int
    n_cells: int
    n_steps: int
    spans: bool
    again: bool
    scored: bool
    flops: float
    unembedding: float
    pair_bytes: int
    memory: int

    @classmethod
    def of(cls, model: TransformerBridge, task: Task, settings: Settings, *, again: bool) -> Shape:
        """Reads nothing but sizes."""
        anatomy = read_anatomy(model)
        space = EdgeSpace.of(anatomy)
        pairs = task.pairs
        n_pos = int(pairs.clean_tokens.shape[1])
        columns = len(pairs.spans) if pairs.spans and not pairs.one_length else n_pos if pairs.one_length else 1
        kinds = [kind for kind in SITES if anatomy.has_site(kind)]
        cells = sum(anatomy.n_layers * (anatomy.n_heads if kind == "z" else columns) for kind in kinds)
        n_train = len(task.train)
        weights = sum(parameter.numel() for parameter in model.parameters())
        return cls(
            n_layers=anatomy.n_layers,
            n_heads=anatomy.n_heads,
            n_pos=n_pos,
            n_train=n_train,
            n_size=0,
            n_test=len(task.test),
            n_per_question=pairs.n_per_question,
            aligned=pairs.aligned,
            n_edges=space.n_edges,
            n_cells=cells,
            n_steps=settings.ig_steps,
            spans=bool(pairs.spans),
            again=again,
            scored=settings.n_edges is None and settings.fraction is None,
            flops=2.0 * weights * n_pos * n_train,
            unembedding=float(model.cfg.d_model) * float(model.cfg.d_vocab) / weights,
            pair_bytes=int(4 * n_pos * anatomy.d_model * space.n_writers * 3.2 * anatomy.n_layers),
            memory=settings.memory,
        )

    def share(self, n_pairs: int) -> float:
        """What a forward of so many pairs costs, in F: weights are read once, for one pair as for many."""
        return (n_pairs + 1) / (self.n_train + 1)

    def n_tested(self, at_most: int = 32) -> int:
        """Test pairs on which completeness and minimality fit the memory budget; 0 when not even one does."""
        return min(at_most, self.n_test, self.memory // self.pair_bytes)
