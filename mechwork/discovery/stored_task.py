"""A task as a result, so that a discovery's folder can be read where its model is not."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..result import Result, Table
from ..tasks.metrics import METRICS
from ..tasks.pairs import PromptPairs
from ..tasks.task import Task


@dataclass(frozen=True, eq=False)
class StoredTask(Result, what="task"):
    """The pairs and words of a task, its metric by name."""

    name: str
    pairs: PromptPairs
    metric: str
    description: str
    citation: str
    splits: tuple[str, ...]
    texts: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]
    answer_texts: tuple[tuple[str, str], ...]
    chat_template: str = ""

    @classmethod
    def of(cls, task: Task) -> StoredTask:
        """Raises `InputError` for a metric that has no name here: it could not be read back."""
        if METRICS.get(task.metric.name) is not task.metric:
            raise InputError(
                f"a discovery in a folder needs one of the metrics {', '.join(METRICS)}; this task's is "
                f"{task.metric.name!r}. Leave out= away, or use task.with_metric"
            )
        return cls(
            task.name, task.pairs, task.metric.name, task.description, task.citation, task.splits, task.texts,
            task.answer_texts, task.chat_template,
        )  # fmt: skip

    def task(self) -> Task:
        return Task(
            self.name, self.pairs, METRICS[self.metric], self.description, self.citation, self.splits, self.texts,
            self.answer_texts, self.chat_template,
        )  # fmt: skip

    def _table(self) -> Table:
        """One row per pair: the prompts as text."""
        return [{"clean": "".join(a), "corrupt": "".join(b)} for a, b in self.texts]
