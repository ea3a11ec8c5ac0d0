"""A trained model whose circuit is known: are the first and the third letter equal?

Prompts ``x y z END``; the answer is YES or NO. The model was trained under interchange pressure (see `training`) to fetch
x with a0.h0 and z with a0.h1, to compare them in m1, and to carry nothing along any other edge; y, the first MLP and the
second layer's heads are there to be ignored.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from ... import bundled
from ...models.load import load_model
from ...tasks.metrics import accuracy
from ...tasks.task import Task
from ..exact_edges import measure_edges
from .case import KnownCircuit
from .training import Program, Recipe, Weights, train

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformer_lens.model_bridge import TransformerBridge

N_LETTERS = 8
END, YES, NO = N_LETTERS, N_LETTERS + 1, N_LETTERS + 2
N_POS = 4
FOLDER = ("ground_truth", "equality")
WEIGHTS, CARD = "model.safetensors", "card.json"

RECIPE = Recipe()


def _draw(generator: torch.Generator, n: int) -> Int[Tensor, "batch pos"]:
    """Random letters; in half of the prompts the third equals the first."""
    letters = torch.randint(N_LETTERS, (n, 3), generator=generator)
    equal = torch.rand(n, generator=generator) < 0.5
    letters[:, 2] = torch.where(equal, letters[:, 0], letters[:, 2])
    return torch.cat([letters, torch.full((n, 1), END)], dim=1)


def _answer(values: Int[Tensor, "batch variable"]) -> Int[Tensor, " batch"]:
    return torch.where(values[:, 0] == values[:, 1], YES, NO)


PROGRAM = Program(
    d_vocab=N_LETTERS + 3,
    n_pos=N_POS,
    draw=_draw,
    values=lambda tokens: tokens[:, [0, 2]],
    answer=_answer,
    carriers=(("input->a0.h0<v>", "a0.h0->m1"), ("input->a0.h1<v>", "a0.h1->m1")),
    output=("m1->logits",),
)


def build_equality() -> TransformerBridge:
    """The bundled model. Raises `ArtefactError` when its file is not what was shipped."""
    folder = bundled.path(*FOLDER)
    bundled.verify(folder)
    return build_from(load_file(folder / WEIGHTS))


def build_from(weights: Weights, recipe: Recipe = RECIPE) -> TransformerBridge:
    """A native model with these weights."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge.sources import boot_native

    settings: dict[str, Any] = recipe.config(PROGRAM.d_vocab, N_POS)
    model: Any = boot_native(TransformerBridgeConfig(**settings, init_weights=False), model_name="equality")
    found = model.load_state_dict({**weights, "head.bias": torch.zeros(PROGRAM.d_vocab)}, strict=False)
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
    folder: Path, recipe: Recipe | None = None, progress: Callable[[int, int, str], None] | None = None
) -> dict[str, Any]:
    """Train again and write weights, card and manifest into `folder`. Returns the card. About two minutes on one thread."""
    recipe = recipe or RECIPE
    weights = train(PROGRAM, recipe, progress)
    card = measure(build_from(weights, recipe), recipe)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / WEIGHTS)
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (folder / "card.md").write_text(describe(card), encoding="utf-8")
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

Accuracy on all {N_LETTERS**3} prompts: {card["accuracy on all prompts"]:.4f}.

## Recipe

`mechwork truth --retrain DIR` trains it again from its seed; other processors and versions of torch may round differently.

{recipe}
"""


def measure(model: TransformerBridge, recipe: Recipe = RECIPE) -> dict[str, Any]:
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
        "smallest effect inside": float(effects.magnitude[inside].min()),
        "largest effect outside": float(effects.magnitude[outside].max()),
    }


_STEP = (
    "equality is a step: the slope of m1 at one prompt says little about what another letter would do, so from pair to pair "
    "the scores of its inputs have either sign, unrelated to the measured effects, and nearly cancel in the mean, below the score of an edge "
    "outside. Single pairs are no better estimated by relp or eap-ig (correlation with the measured effects below 0.2); their means stay above"
)

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
    explanations={"gradient": _STEP},
)
