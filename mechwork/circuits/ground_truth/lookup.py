"""A trained mixture of experts whose circuit is known: which expert looks an answer up.

Prompts ``r x y END``: r is one of four rules, x a letter; the answer is x under r (each rule is a permutation of the
letters, drawn once), y is there to be ignored. One block with two heads and four experts, of which every token goes to
one. Trained so that a0.h0 fetches r, a0.h1 fetches x, the router sends END to the expert of its rule, and nothing but
that expert's write says the answer. Per step, of a batch and three others (the *sources*):

    loss = CE(plain run, answer) + CE(switched run, answer) + DRIFT x mean (switched - plain logits)^2
         + ROUTE x (CE(router at END, rule), of both runs)

In the switched run head 0 comes from a source with the same rule, head 1 from one with the same letter, both with keys
of other prompts, and the unembedding reads a third one's stream before the MLP beside this MLP's write. What carries
the answer in that run is the circuit alone (interchange, as in `training`; Geiger et al. 2022).

The choice of an expert has no gradient: patching the router's logits undoes the answer, and their estimate is
nothing (tests).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from ... import bundled
from ...artefact import read_tensors, write_tensors
from ...files import make_folder, write_json, write_text
from ...interventions import Routing, intervene
from ...models.load import load_model
from ...names import expert_name
from ...tasks.metrics import accuracy
from ...tasks.task import Task
from ..scoring.exact_edges import measure_edges
from .case import KnownCircuit
from .training import Weights

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_RULES, N_LETTERS, N_POS = 4, 8, 4
END = N_RULES + N_LETTERS
D_VOCAB = END + 1
DRIFT, ROUTE = 0.3, 0.3
FOLDER = ("ground_truth", "lookup")
WEIGHTS, CARD = "model.safetensors", "card.json"


@dataclass(frozen=True)
class LookupRecipe:
    """Sizes and schedule; with the seed they give the weights, to the bit on one thread of one machine."""

    d_model: int = 32
    d_head: int = 8
    d_mlp: int = 24
    steps: int = 1500
    batch_size: int = 96
    learning_rate: float = 3e-3
    seed: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


RECIPE = LookupRecipe()


def draw_rules(seed: int = 0) -> Int[Tensor, "rule letter"]:
    """What every rule makes of every letter."""
    generator = torch.Generator().manual_seed(seed + 10)
    return torch.stack([torch.randperm(N_LETTERS, generator=generator) for _ in range(N_RULES)])


RULES = draw_rules()


def answer(tokens: Int[Tensor, "batch pos"]) -> Int[Tensor, " batch"]:
    """The answer's token."""
    return N_RULES + RULES[tokens[:, 0], tokens[:, 1] - N_RULES]


def _draw(generator: torch.Generator, n: int) -> Int[Tensor, "batch pos"]:
    rule = torch.randint(N_RULES, (n, 1), generator=generator)
    letters = N_RULES + torch.randint(N_LETTERS, (n, 2), generator=generator)
    return torch.cat([rule, letters, torch.full((n, 1), END)], dim=1)


def _every() -> Int[Tensor, "batch pos"]:
    parts = (torch.arange(N_RULES), *[torch.arange(N_RULES, END)] * 2, torch.tensor([END]))
    return torch.cartesian_prod(*parts)


def build_module(recipe: LookupRecipe = RECIPE) -> Any:
    """The Hugging Face module with its first weights: Qwen 3 MoE, one expert per token."""
    import transformers as hf

    sizes: dict[str, Any] = {
        "vocab_size": D_VOCAB, "hidden_size": recipe.d_model, "head_dim": recipe.d_head, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": recipe.d_mlp,
        "moe_intermediate_size": recipe.d_mlp, "num_experts": N_RULES, "num_experts_per_tok": 1,
        "norm_topk_prob": False, "max_position_embeddings": 16, "initializer_range": 0.2, "bos_token_id": None,
        "eos_token_id": None, "pad_token_id": None, "attn_implementation": "eager",
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        module = hf.Qwen3MoeForCausalLM(hf.Qwen3MoeConfig(**sizes))
    module.set_experts_implementation("eager")
    return module


def build_lookup() -> TransformerBridge:
    """The bundled model. Raises `ArtefactError` when its file is not what was shipped."""
    folder = bundled.path(*FOLDER)
    bundled.verify(folder)
    return build_from(read_tensors(folder / WEIGHTS)[1])


def build_from(weights: Weights, recipe: LookupRecipe = RECIPE) -> TransformerBridge:
    """The model with these weights."""
    module = build_module(recipe)
    module.load_state_dict(weights)
    return load_model(module.eval())


def lookup_task(n: int = 64, seed: int = 0) -> Task:
    """Pairs with other rules and other answers; the letters may be anything."""
    generator = torch.Generator().manual_seed(seed)
    clean, corrupt = _draw(generator, 20 * n), _draw(generator, 20 * n)
    differ = (clean[:, 0] != corrupt[:, 0]) & (answer(clean) != answer(corrupt))
    rows = differ.nonzero().flatten()[:n]
    clean, corrupt = clean[rows], corrupt[rows]
    return Task.from_tokens(clean, corrupt, answer(clean), answer(corrupt), name="a letter under one of four rules")


class _Parts:
    """What a run of the module passes by: the heads' outputs, the stream before the MLP, the router's logits.

    Of a batch followed by its three sources, the first two sources attend by keys of other prompts.
    """

    def __init__(self, module: Any, n: int) -> None:
        self.module, self.n, self.block = module, n, module.model.layers[0]
        self.seen: dict[str, Tensor] = {}
        attn = self.block.self_attn
        attn.o_proj.register_forward_pre_hook(lambda _, args: self.seen.update(z=args[0]))
        attn.k_proj.register_forward_hook(self._keys)
        self.block.post_attention_layernorm.register_forward_pre_hook(lambda _, args: self.seen.update(mid=args[0]))
        self.block.mlp.gate.register_forward_hook(lambda *passed: self.seen.update(router=passed[2][0]))

    def _keys(self, _: Any, args: Any, keys: Tensor) -> Tensor | None:
        if len(keys) != 4 * self.n:
            return None
        new = keys.clone()
        new[self.n : 3 * self.n] = keys[2 * self.n :].roll(7, 0)
        return new

    def run(self, tokens: Int[Tensor, "batch4 pos"], d_head: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(plain logits, switched logits, router of either) of the batch, at END."""
        n, block = self.n, self.block
        plain = self.module(tokens).logits[:n, -1]
        router = self.seen["router"].view(len(tokens), N_POS, -1)[:n, -1]
        z, mid = self.seen["z"][:, -1], self.seen["mid"][:, -1]
        mixed = torch.cat([z[n : 2 * n, :d_head], z[2 * n : 3 * n, d_head:]], dim=-1)
        stream = self.module.model.embed_tokens(tokens[:n, -1]) + block.self_attn.o_proj(mixed)
        write = block.mlp(block.post_attention_layernorm(stream)[:, None])[:, 0]
        switched = self.module.lm_head(self.module.model.norm(mid[3 * n :] + write))
        return plain, switched, router, self.seen["router"]


def train(recipe: LookupRecipe = RECIPE, progress: Callable[[int, int, str], None] | None = None) -> Weights:
    """The weights. 25 s of CPU on one thread."""
    generator, module = torch.Generator().manual_seed(recipe.seed), build_module(recipe)
    parts = _Parts(module, recipe.batch_size)
    optimiser = torch.optim.AdamW(module.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    for step in range(recipe.steps):
        for group in optimiser.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
            group["lr"] = recipe.learning_rate * min(1.0, (step + 1) / 100) * cosine
        own, rule, letter, stream = (_draw(generator, recipe.batch_size) for _ in range(4))
        rule[:, 0], letter[:, 1] = own[:, 0], own[:, 1]
        with torch.enable_grad():
            loss = _loss(parts, own, torch.cat([own, rule, letter, stream]), recipe.d_head)
            optimiser.zero_grad()
            loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        if progress is not None and (step + 1) % 100 == 0:
            progress(step + 1, recipe.steps, f"loss {loss.item():.4f}, step")
    return {name: weight.detach().clone() for name, weight in module.state_dict().items()}


def _loss(parts: _Parts, own: Tensor, tokens: Tensor, d_head: int) -> Float[Tensor, ""]:
    plain, switched, *routers = parts.run(tokens, d_head)
    right = functional.cross_entropy(plain, answer(own)) + functional.cross_entropy(switched, answer(own))
    routed = sum(functional.cross_entropy(router, own[:, 0]) for router in routers)
    return right + DRIFT * (switched - plain).pow(2).mean() + ROUTE * routed


@torch.no_grad()
def without_experts(model: TransformerBridge) -> Float[Tensor, "expert rule"]:
    """Accuracy of every rule's prompts with every expert switched off, its tokens going to the next."""
    tokens = _every()
    rows = []
    for expert in range(N_RULES):
        with intervene(model, [Routing(0, off=(expert,))]):
            right = (model(tokens)[:, -1].argmax(dim=-1) == answer(tokens)).double()
        rows.append(torch.stack([right[tokens[:, 0] == rule].mean() for rule in range(N_RULES)]))
    return torch.stack(rows)


def measure(model: TransformerBridge, recipe: LookupRecipe = RECIPE) -> dict[str, Any]:
    """What the card states: accuracy on all prompts, effects inside and outside the circuit, rules without experts."""
    tokens = _every()
    every = Task.from_tokens(tokens, tokens.roll(1, 0), answer(tokens), (answer(tokens) + 1 - N_RULES) % 8 + N_RULES)
    with torch.no_grad():
        right = accuracy(model(tokens), every.pairs).double().mean()
    effects = measure_edges(model, lookup_task(), split_experts=True)
    inside = torch.zeros_like(effects.space.mask)
    for edge in LOOKUP.edges["corrupt"]:
        inside[effects.space.edge_index(edge)] = True
    outside = effects.space.mask & ~inside
    off = without_experts(model)
    own = torch.eye(N_RULES, dtype=torch.bool)
    return {
        "what": "a letter under one of four rules, each looked up by an expert of its own",
        "recipe": recipe.to_json(),
        "parameters": sum(p.numel() for p in model.original_model.parameters()),
        "pairs": len(effects.per_example),
        "circuit": list(LOOKUP.edges["corrupt"]),
        "accuracy on all prompts": float(right),
        "best accuracy of a rule without its expert": float(off[own].max()),
        "worst accuracy of a rule without another": float(off[~own].min()),
        "smallest effect inside": float(effects.magnitude[inside].min()),
        "largest effect outside": float(effects.magnitude[outside].max()),
    }


def train_lookup(
    folder: Path, recipe: LookupRecipe = RECIPE, progress: Callable[[int, int, str], None] | None = None
) -> dict[str, Any]:
    """Train again and write weights, card and manifest into `folder`. Returns the card."""
    weights = train(recipe, progress)
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
    circuit = "\n".join(f"- `{edge}`: {LOOKUP.reasons[edge]}" for edge in card["circuit"])
    return f"""# lookup

A mixture of experts of {card["parameters"]:,} parameters (Qwen 3 MoE, one block, four experts, one per token) that says what
the letter x of `r x y END` is under the rule r. It was trained under interchange pressure, its router with the rule as a
label, so that its circuit is known ({LOOKUP.citation}). Made for trying methods on experts; it shows nothing about language models.

## Circuit

{circuit}

Measured on {card["pairs"]} pairs, corrupt ablation, logit difference, mean of the absolute effect of single edges: every edge
above at least {card["smallest effect inside"]:.3f}, every other edge at most {card["largest effect outside"]:.3f}. It holds for interchange with
other prompts only; zero and mean ablation were not trained for.

Accuracy on all {N_RULES * N_LETTERS**2} prompts: {card["accuracy on all prompts"]:.4f}. With a rule's expert switched off in the router, at most
{100 * card["best accuracy of a rule without its expert"]:.1f} % of that rule's answers are right (chance {100 / N_LETTERS:.1f} %); with another one off, at least
{100 * card["worst accuracy of a rule without another"]:.1f} %.

## Recipe

`mechwork truth lookup --retrain --out DIR` trains it again from its seed; other processors and versions of torch may round
differently.

{recipe}
"""  # noqa: E501


_READS = {
    "input->a0.h0<v>": "a0.h0 fetches the rule",
    "input->a0.h1<v>": "a0.h1 fetches the letter",
    "a0.h0->m0": "the router reads the rule",
    "a0.h1->m0": "the expert reads the letter",
}
_SAYS = {f"{expert_name(0, e)}->logits": f"the expert of rule {e} says the answer" for e in range(N_RULES)}

LOOKUP = KnownCircuit(
    name="lookup",
    description="a trained mixture whose circuit is known: a letter under one of four rules, an expert for each",
    citation="Geiger et al. 2022, arXiv:2112.00826; Gupta et al. 2024 (InterpBench), arXiv:2407.14494",
    build_model=build_lookup,
    build_task=lookup_task,
    edges={"corrupt": (*_READS, *_SAYS)},
    reasons={**_READS, **_SAYS},
    explanations={
        "gradient": "letters are looked up in steps and the choice of an expert has no slope, so that what the MLP "
        "reads gets scores as small as keys, which were trained to carry nothing"
    },
    split_experts=True,
)
