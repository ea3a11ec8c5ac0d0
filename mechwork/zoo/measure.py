"""How well a model does the tasks on words and templates it was not trained on, and whether its layers compose.

Accuracy: the share of examples whose most likely next token, of the whole vocabulary, is a right answer.
Logit difference: mean logit of the right answers minus mean logit of the wrong ones, averaged over examples.

Composition: with layer 0 intact, the attention outputs of all layers above are replaced by their mean over the
examples; a mechanism that lives in layer 0 (or in a table per name) keeps its logit difference, a composed one loses
it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..tasks.sampling.examples import SAMPLERS, Example, draw_example
from ..tasks.sampling.lexicon import Lexicon, Split
from .architecture import attention_writers, unembed

CHUNK = 100


@dataclass(frozen=True)
class Score:
    """One task on one split: `n` examples, their accuracy and logit difference; accuracy per raw template."""

    n: int
    accuracy: float
    logit_difference: float
    per_template: Mapping[str, float]


@dataclass(frozen=True)
class Composition:
    """A task's logit difference, of the intact model and with attention outputs mean-ablated, by place of the ablation.

    ``above`` is layers 1 and up, ``first`` is layer 0; ``end`` only at the last position, ``all`` at every one.
    """

    intact: float
    above_end: float
    above_all: float
    first_end: float
    first_all: float

    @property
    def passed(self) -> bool:
        """Whether ablating the attention above layer 0, at the last position, costs at least half."""
        return self.above_end <= 0.5 * self.intact and self.above_all <= 0.5 * self.intact


def draw_examples(task: str, split: Split, n: int, seed: int) -> list[Example]:
    """`n` examples of a split, a pure function of the arguments."""
    rng, lexicon = random.Random(f"{task}/{split}/{seed}"), Lexicon(split)
    return [draw_example(task, rng, lexicon) for _ in range(n)]


def encode(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, " batch"]]:
    """Token ids, padded on the right, and the index of each text's last token."""
    rows = [[tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)] for text in texts]
    width = max(len(row) for row in rows)
    tokens = torch.tensor([row + [tokenizer.pad_token_id] * (width - len(row)) for row in rows])
    return tokens, torch.tensor([len(row) - 1 for row in rows])


def _token(tokenizer: PreTrainedTokenizerBase, text: str) -> int:
    ids = tokenizer.encode(text, add_special_tokens=False)
    if len(ids) != 1:
        raise InputError(f"an answer must be one token, {text!r} is {len(ids)} under this tokenizer")
    return ids[0]


@torch.no_grad()
def final_logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> Float[Tensor, "batch d_vocab"]:
    """Logits for the token after each text. The model is read in eval mode and left in the mode it was in."""
    training = model.training
    model.eval()
    try:
        rows = []
        for start in range(0, len(texts), CHUNK):
            tokens, last = encode(tokenizer, texts[start : start + CHUNK])
            hidden = model.base_model(tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
            rows.append(unembed(model, hidden[torch.arange(len(last)), last]))
        return torch.cat(rows)
    finally:
        model.train(training)


def _differences(
    logits: Float[Tensor, "batch d_vocab"], tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example]
) -> tuple[Bool[Tensor, " batch"], Float[Tensor, " batch"]]:
    """Per example: whether the most likely token is right, and mean right minus mean wrong logit."""
    right, difference = [], []
    for row, example in zip(logits, examples, strict=True):
        correct = [_token(tokenizer, text) for text in example.correct]
        incorrect = [_token(tokenizer, text) for text in example.incorrect]
        right.append(int(row.argmax()) in correct)
        difference.append(row[correct].mean() - row[incorrect].mean())
    return torch.tensor(right), torch.stack(difference)


def measure_task(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    split: Split = "test",
    n: int = 200,
    seed: int = 0,
) -> Score:
    """Accuracy and logit difference of one task on one split."""
    examples = draw_examples(task, split, n, seed)
    right, difference = _differences(
        final_logits(model, tokenizer, [e.clean.text for e in examples]), tokenizer, examples
    )
    per_template = {
        template: right[[e.template == template for e in examples]].float().mean().item()
        for template in dict.fromkeys(e.template for e in examples)
    }
    return Score(n, right.double().mean().item(), difference.mean().item(), per_template)


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    split: Split = "test",
    n: int = 200,
    seed: int = 0,
    tasks: Sequence[str] = tuple(SAMPLERS),
) -> dict[str, Score]:
    """`measure_task` for every task."""
    return {task: measure_task(model, tokenizer, task, split, n, seed) for task in tasks}


Where = Literal["end", "all"]


def _written(output: Any) -> Float[Tensor, "batch pos d_model"]:
    """An attention module returns its pattern too, a norm after it does not."""
    return output[0] if isinstance(output, tuple) else output


@contextmanager
def _attention_mean_ablated(
    model: PreTrainedModel, layers: Sequence[int], means: Float[Tensor, "layer d_model"], where: Where
) -> Iterator[Callable[[Int[Tensor, " batch"]], None]]:
    """Replace the attention outputs of `layers` by their means; call the yielded function with each batch's last
    positions.
    """
    last: list[Tensor] = []

    def hook(layer: int) -> Callable[..., Any]:
        def replace(_module: object, _inputs: object, output: Any) -> Any:
            before = _written(output)
            written = means[layer].expand_as(before) if where == "all" else before.clone()
            if where == "end":
                written[torch.arange(len(written)), last[-1]] = means[layer]
            return (written, *output[1:]) if isinstance(output, tuple) else written

        return replace

    handles = [
        attention.register_forward_hook(hook(i)) for i, attention in enumerate(attention_writers(model)) if i in layers
    ]
    try:
        yield last.append
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def measure_composition(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: str = "ioi",
    split: Split = "test",
    n: int = 200,
    seed: int = 0,
) -> Composition:
    """Mean-ablate attention above layer 0, and in layer 0 only, on one task (see the module's docstring).

    The mean is that of the attention output at the ablated position(s): at the last token of every example for
    ``end``, over all tokens of all examples for ``all``.
    """
    examples = draw_examples(task, split, n, seed)
    tokens, last = encode(tokenizer, [e.clean.text for e in examples])
    rows = torch.arange(len(last))
    real = torch.arange(tokens.shape[1]) <= last[:, None]
    written: dict[int, Tensor] = {}
    n_layers = len(attention_writers(model))

    def keep(layer: int) -> Callable[..., None]:
        return lambda _module, _inputs, output: written.__setitem__(layer, _written(output))

    handles = [attention.register_forward_hook(keep(i)) for i, attention in enumerate(attention_writers(model))]
    training = model.training
    model.eval()

    def difference() -> float:
        hidden = model.base_model(tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
        logits = unembed(model, hidden[rows, last])
        return _differences(logits, tokenizer, examples)[1].mean().item()

    try:
        intact = difference()
        for handle in handles:
            handle.remove()
        means: dict[Where, Tensor] = {
            "end": torch.stack([written[i][rows, last].mean(0) for i in range(n_layers)]),
            "all": torch.stack([written[i][real].mean(0) for i in range(n_layers)]),
        }
        found: dict[tuple[str, Where], float] = {}
        for name, layers in (("above", range(1, n_layers)), ("first", range(1))):
            for where, mean in means.items():
                with _attention_mean_ablated(model, layers, mean, where) as tell:
                    tell(last)
                    found[name, where] = difference()
    finally:
        for handle in handles:
            handle.remove()
        model.train(training)
    return Composition(
        intact, found["above", "end"], found["above", "all"], found["first", "end"], found["first", "all"]
    )


def to_table(scores: Mapping[str, Score]) -> dict[str, Any]:
    """Plain data for JSON."""
    return {task: asdict(score) for task, score in scores.items()}
