"""A trained model whose circuit is known: are the first and the third letter equal?

Prompts ``x y z END``; the answer is YES or NO. The model was trained under interchange pressure (see `training`) to
fetch x with a0.h0 and z with a0.h1, to compare them in m1, and to carry nothing along any other edge; y, the first MLP
and the second layer's heads are there to be ignored.

A ranking can be right where sizes are not: equality is a step, so slopes at one prompt say little about what another
letter would do. Gradients rank the five edges first, with scores of the inputs at a tenth of the measured effects or
less, two of them negative (tests).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from ... import bundled
from ...artefact import read_tensors, write_tensors
from ...files import make_folder, write_json, write_text
from ...models.load import load_model
from ...runs.record import record_run
from ...tasks.metrics import accuracy
from ...tasks.pairs import PromptPairs
from ...tasks.task import Task
from ..graph.run import as_circuit
from ..graph.writers import record_writers, writer_kinds
from ..scoring.exact_edges import measure_edges
from .case import KnownCircuit
from .training import EqualityRecipe, Program, Weights, train

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformer_lens.model_bridge import TransformerBridge

N_LETTERS = 8
END, YES, NO = N_LETTERS, N_LETTERS + 1, N_LETTERS + 2
N_POS = 4
FOLDER = ("ground_truth", "equality")
WEIGHTS, CARD = "model.safetensors", "card.json"

RECIPE = EqualityRecipe()


def _draw(generator: torch.Generator, n: int) -> Int[Tensor, "batch pos"]:
    """Random letters; in half of the prompts the third equals the first."""
    letters = torch.randint(N_LETTERS, (n, 3), generator=generator)
    equal = torch.rand(n, generator=generator) < 0.5
    letters[:, 2] = torch.where(equal, letters[:, 0], letters[:, 2])
    return torch.cat([letters, torch.full((n, 1), END)], dim=1)


def _draw_both(generator: torch.Generator, n: int) -> tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Prompts and sources. In a third of the sources each, the first letter is the prompt's third, or the third its
    first.

    Otherwise a switched letter would hardly ever equal the other one, and the model need not learn that it may.
    """
    tokens, source = _draw(generator, n), _draw(generator, n)
    kind = torch.randint(3, (n,), generator=generator)
    source[:, 0] = torch.where(kind == 1, tokens[:, 2], source[:, 0])
    source[:, 2] = torch.where(kind == 2, tokens[:, 0], source[:, 2])
    return tokens, source


def _answer(values: Int[Tensor, "batch variable"]) -> Int[Tensor, " batch"]:
    return torch.where(values[:, 0] == values[:, 1], YES, NO)


PROGRAM = Program(
    d_vocab=N_LETTERS + 3,
    n_pos=N_POS,
    draw=_draw_both,
    values=lambda tokens: tokens[:, [0, 2]],
    answer=_answer,
    carriers=(("input->a0.h0<v>", "a0.h0->m1"), ("input->a0.h1<v>", "a0.h1->m1")),
    output=("m1->logits",),
)


def build_equality() -> TransformerBridge:
    """The bundled model. Raises `ArtefactError` when its file is not what was shipped."""
    folder = bundled.path(*FOLDER)
    bundled.verify(folder)
    return build_from(read_tensors(folder / WEIGHTS)[1])


def build_from(
    weights: Weights, recipe: EqualityRecipe = RECIPE, program: Program = PROGRAM, name: str = "equality"
) -> TransformerBridge:
    """A native model with these weights."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources import boot_native

    settings: dict[str, Any] = recipe.config(program.d_vocab, program.n_pos)
    model: Any = boot_native(TransformerBridgeConfig(**settings, init_weights=False), model_name=name)
    found = model.load_state_dict({**weights, "head.bias": torch.zeros(program.d_vocab)}, strict=False)
    assert not found.unexpected_keys, found.unexpected_keys
    return load_model(model)


def equality_task(n: int = 64, seed: int = 0) -> Task:
    """Pairs with opposite answers; all letters may differ."""
    generator = torch.Generator().manual_seed(seed)
    clean, corrupt = _draw(generator, 20 * n), _draw(generator, 20 * n)
    answers = [_answer(PROGRAM.values(tokens)) for tokens in (clean, corrupt)]
    rows = (answers[0] != answers[1]).nonzero().flatten()[:n]
    return Task.from_tokens(
        clean[rows], corrupt[rows], answers[0][rows], answers[1][rows], name="equality of the first and third letter"
    )


def train_equality(
    folder: Path, recipe: EqualityRecipe | None = None, progress: Callable[[int, int, str], None] | None = None
) -> dict[str, Any]:
    """Train again and write weights, card and manifest into `folder`. Returns the card. About two minutes on one
    thread.
    """
    recipe = recipe or RECIPE
    weights = train(PROGRAM, recipe, progress)
    card = measure(build_from(weights, recipe), recipe)
    make_folder(folder)
    write_tensors(folder / WEIGHTS, weights)
    write_json(folder / CARD, card)
    write_text(folder / "card.md", describe(card))
    bundled.write_manifest(folder)
    return card


def describe(card: dict[str, Any]) -> str:
    """The card for people."""
    recipe = "\n".join(f"- {name}: {value}" for name, value in card["recipe"].items())
    circuit = "\n".join(f"- `{edge}`: {EQUALITY.reasons[edge]}" for edge in card["circuit"])
    return f"""# equality

A transformer of {card["parameters"]:,} parameters that says whether the third letter of `x y z END` equals the first. It was trained
under interchange pressure so that its circuit is known, although its weights look like those of any trained model
({EQUALITY.citation}). Made for trying methods on; it shows nothing about language models.

## Circuit

{circuit}

Measured on {card["pairs"]} pairs, corrupt ablation, logit difference, mean of the absolute effect of single edges: every edge
above at least {card["smallest effect inside"]:.3f}, every other edge at most {card["largest effect outside"]:.3f}. Effects outside are small and not
zero, as in any trained model: the truth is these five edges because training asked for them, and because of that gap. It
holds for interchange with other prompts only; zero and mean ablation were not trained for, and no truth is stated.

Accuracy on all {N_LETTERS**3} prompts: {card["accuracy on all prompts"]:.4f}. With one letter's edge switched to another prompt's letter, the answer
is that of the program with this letter in at least {100 * card["interchange accuracy"]:.1f} % of the prompts whose answer changes, to YES or to NO.

## Recipe

`mechwork truth --retrain --out DIR` trains it again from its seed; other processors and versions of torch may round differently.

{recipe}
"""  # noqa: E501


def interchange_accuracy(model: TransformerBridge, n: int = 1000, seed: int = 0) -> dict[tuple[str, str], float]:
    """(edge, expected answer) -> how often the model gives it when the edge carries the letter of another prompt.

    Only prompts whose answer the other letter changes are counted; half of them change to YES.
    """
    tokens, source = _draw_both(torch.Generator().manual_seed(seed), n)
    own, theirs = PROGRAM.values(tokens), PROGRAM.values(source)
    accuracies: dict[tuple[str, str], float] = {}
    for variable, stages in enumerate(PROGRAM.carriers):
        mixed = own.clone()
        mixed[:, variable] = theirs[:, variable]
        before, expected = _answer(own), _answer(mixed)
        rows = (before != expected).nonzero().flatten()
        pairs = Task.from_tokens(tokens[rows], source[rows], expected[rows], before[rows]).pairs
        for edge in stages:
            answers = _answers_with(model, pairs, edge)
            for name, answer in (("YES", YES), ("NO", NO)):
                of = expected[rows] == answer
                accuracies[edge, name] = float((answers[of] == answer).double().mean())
    return accuracies


def _answers_with(model: TransformerBridge, pairs: PromptPairs, edge: str) -> Int[Tensor, " batch"]:
    """The model's answers to the clean prompts when one edge carries the corrupt prompt's write."""
    space = RECIPE.space
    mask = space.mask.clone()
    mask[space.edge_index(edge)] = False
    other = record_writers(model, space, record_run(model, pairs, writer_kinds(space), corrupt=True))
    with torch.no_grad(), as_circuit(model, space, mask, other):
        return model(pairs.clean_tokens)[:, -1].argmax(dim=-1)


def measure(model: TransformerBridge, recipe: EqualityRecipe = RECIPE) -> dict[str, Any]:
    """What the card states: accuracy on all prompts, and measured effects inside and outside the circuit."""
    letters = torch.cartesian_prod(*[torch.arange(N_LETTERS)] * 3)
    tokens = torch.cat([letters, torch.full((len(letters), 1), END)], dim=1)
    answers = _answer(PROGRAM.values(tokens))
    every = Task.from_tokens(tokens, tokens.roll(1, 0), answers, YES + NO - answers)
    with torch.no_grad():
        right = accuracy(model(tokens), every.pairs).double().mean()
    effects = measure_edges(model, equality_task())
    inside = torch.zeros_like(effects.space.mask)
    for edge in PROGRAM.edges:
        inside[effects.space.edge_index(edge)] = True
    outside = effects.space.mask & ~inside
    return {
        "what": "equality of the first and third letter of 'x y z END'",
        "recipe": recipe.to_json(),
        "parameters": sum(p.numel() for p in model.original_model.parameters()),
        "pairs": len(effects.per_example),
        "circuit": list(PROGRAM.edges),
        "accuracy on all prompts": float(right),
        "interchange accuracy": min(interchange_accuracy(model).values()),
        "smallest effect inside": float(effects.magnitude[inside].min()),
        "largest effect outside": float(effects.magnitude[outside].max()),
    }


EQUALITY = KnownCircuit(
    name="equality",
    description="trained so that its circuit is known: is the third letter equal to the first?",
    citation="Geiger et al. 2022, arXiv:2112.00826; Gupta et al. 2024 (InterpBench), arXiv:2407.14494",
    build_model=build_equality,
    build_task=equality_task,
    edges={"corrupt": PROGRAM.edges},
    reasons={
        "input->a0.h0<v>": "a0.h0 fetches the first letter",
        "a0.h0->m1": "m1 reads the first letter at END",
        "input->a0.h1<v>": "a0.h1 fetches the third letter",
        "a0.h1->m1": "m1 reads the third letter at END",
        "m1->logits": "whether they are equal is the answer",
    },
)
