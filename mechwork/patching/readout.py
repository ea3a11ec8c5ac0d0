"""From the final residual stream to metrics, unembedding no more than the metrics read.

| what the metrics read | what is unembedded |
|---|---|
| the answers' logits at the last token | the answers' columns, at that token |
| logits at the last token | all columns, at that token |
| whole answers | all columns, at the tokens before the answers' |
| anything | all columns, at every changed position |

Logits that were not computed are NaN, so that a metric which reads them after all is refused, never wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import UnsupportedModelError
from ..models.anatomy import ModelAnatomy
from ..sites import FINAL_NORM, UNEMBED
from ..tasks.metrics import Metric
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class MetricReadout:
    """Metrics of runs of `pairs` (host as clean side), from their final stream. `sparing`: compute only what the
    metrics read.
    """

    model: TransformerBridge
    anatomy: ModelAnatomy
    task: Task
    metrics: tuple[Metric, ...]
    pairs: PromptPairs
    host_logits: Float[Tensor, "batch tail d_vocab"]
    sparing: bool

    @property
    def ends(self) -> Int[Tensor, "batch n_columns"] | None:
        """The columns each row is read at; None when all logits are wanted."""
        return self.pairs.read_columns if self.sparing and all(m.reads_final for m in self.metrics) else None

    @property
    def narrow(self) -> bool:
        """Whether only the answers' columns are unembedded."""
        return self.sparing and all(metric.reads_answers for metric in self.metrics)

    def measure(self, logits: Float[Tensor, "batch tail d_vocab"]) -> Float[Tensor, "metric batch"]:
        """Every metric of one run."""
        values = [replace(self.task, metric=metric).measure(logits, self.pairs) for metric in self.metrics]
        return torch.stack([value.detach().clone() for value in values])

    def measure_stream(
        self, final: Float[Tensor, "row column d_model"], start: int
    ) -> Float[Tensor, "metric batch cell"]:
        """Every metric of runs (cells x pairs) from the final stream: at ``ends`` alone, or at columns ``start ..``."""
        normed = getattr(self.model, FINAL_NORM).original_component(final)
        runs = normed.split(len(self.pairs))
        if self.narrow:
            read = normed[:, 0].unflatten(0, (-1, len(self.pairs))).to(self._weights.device)
            answers = torch.einsum("nbd,bcd->nbc", read, self._weights)
            answers = self._cap(answers if self._bias is None else answers + self._bias)
            return torch.stack([self.measure(self._scattered(one)) for one in answers], dim=-1)
        return torch.stack([self.measure(self._placed(self.unembed(one), start)) for one in runs], dim=-1)

    def unembed(self, normed: Float[Tensor, "batch column d_model"]) -> Float[Tensor, "batch column d_vocab"]:
        """All logits of a normed stream, soft cap included."""
        return self._cap(getattr(self.model, UNEMBED).original_component(normed))

    def check(self, final: Float[Tensor, "batch pos d_model"]) -> None:
        """Raises `UnsupportedModelError` when the host's own logits do not come out (e.g. they are scaled)."""
        last = int(self.pairs.lengths[0]) - 1
        expected = self.host_logits[0, last - (final.shape[1] - self.host_logits.shape[1])]
        found = self.unembed(getattr(self.model, FINAL_NORM).original_component(final[:1, last : last + 1]))[0, 0]
        tolerance = min(2000 * torch.finfo(found.dtype).eps, 0.05) * float(expected.abs().max())
        if not float((found.to(expected.device) - expected).abs().max()) <= tolerance:
            raise UnsupportedModelError(
                f"the unembedding of {self.anatomy.architecture} does more than norm, matrix and soft cap. "
                "Patch with tricks=Tricks(suffix=False, readout=False), which runs whole forwards."
            )

    def _placed(self, logits: Tensor, start: int) -> Tensor:
        if self.ends is None:
            full = self.host_logits.clone()
            full[:, start:] = logits
            return full
        full = self._blank
        full[self._rows[:, None], self._tail] = logits.to(full.device)
        return full

    def _scattered(self, answers: Float[Tensor, "batch column"]) -> Tensor:
        logits = self._blank
        logits[self._rows[:, None], self._tail, self._answers] = answers.to(logits)
        return logits

    @cached_property
    def _blank(self) -> Tensor:
        """Logits of NaN; each run writes the same entries, so that one tensor serves all."""
        return torch.full_like(self.host_logits[:, -self.pairs.n_tail :], torch.nan)

    @cached_property
    def _rows(self) -> Tensor:
        return torch.arange(len(self.pairs), device=self.host_logits.device)

    @cached_property
    def _tail(self) -> Tensor:
        columns = self.pairs.read_columns - (self.pairs.clean_tokens.shape[1] - self.pairs.n_tail)
        return columns.to(self._rows.device)

    @cached_property
    def _answers(self) -> Tensor:
        """The columns each row needs, as metrics gather them: column 0 stands for an absent answer."""
        return torch.cat([self.pairs.correct, self.pairs.incorrect], dim=1).to(self._rows.device).clamp(min=0)

    @cached_property
    def _weights(self) -> Tensor:
        weight: Any = getattr(self.model, UNEMBED).original_component.weight
        return weight[self._answers.to(weight.device)]

    @cached_property
    def _bias(self) -> Tensor | None:
        bias: Any = getattr(getattr(self.model, UNEMBED).original_component, "bias", None)
        return None if bias is None else bias[self._answers.to(bias.device)]

    def _cap(self, logits: Tensor) -> Tensor:
        cap = self.anatomy.final_soft_cap
        return logits if cap is None else torch.tanh(logits / cap) * cap


def build_readout(
    model: TransformerBridge,
    anatomy: ModelAnatomy,
    task: Task,
    metrics: Sequence[Metric],
    pairs: PromptPairs,
    host_logits: Tensor,
    *,
    sparing: bool,
) -> MetricReadout:
    """The readout of runs of `pairs`."""
    return MetricReadout(model, anatomy, task, tuple(metrics), pairs, host_logits, sparing)
