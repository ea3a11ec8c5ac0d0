"""Exercises of notebook 2, Cached runs."""

from __future__ import annotations

from typing import Any

from .build import Case, judges, trials
from .exercise import Exercise, add, close

GPT2_BYTES = 12 * 64 * 128 * 768 * 4


def _rebuilt(answer: Any, run: Any) -> str | None:
    import torch

    truth, before, attention, mlp = (run[kind][2] for kind in ("resid_post", "resid_pre", "attn_out", "mlp_out"))
    if isinstance(answer, torch.Tensor) and answer.data_ptr() in {truth.data_ptr(), run["resid_pre"][3].data_ptr()}:
        return "this is the recorded stream itself. Build it again from what was there before and what was written."
    answer = torch.as_tensor(answer)
    if tuple(answer.shape) != tuple(truth.shape):
        return f"the stream after one block has the shape {tuple(truth.shape)}; this has {tuple(answer.shape)}."

    def fits(tensor: Any) -> bool:
        return float((answer - tensor).abs().max()) < 1e-3

    if fits(truth):
        return None
    known = (
        (before + attention, "this is the stream between attention and MLP: something is still to be added."),
        (run["resid_post"][1], "this is the stream after another block. Counting starts at 0: block 2 is the third."),
        (run["resid_post"][3], "this is the stream after another block. Counting starts at 0: block 2 is the third."),
        (before + mlp, "what attention writes is missing."),
        (attention + mlp, "this is what the block writes. To what does it add that?"),
        (truth + attention + mlp, "resid_post has the writes of its block already: they are added twice here."),
        (run["resid_pre"][0] + attention + mlp, "this starts with the stream that enters block 0."),
    )
    return next((said for tensor, said in known if fits(tensor)), "this differs from the stream after block 2.")


def _share(answer: Any, task: Any, run: Any) -> str | None:
    values = task.measure(run.logits)
    truth = float((values > 0).double().mean())
    if abs(float(answer) - truth) < 0.002:
        return None
    if close(answer, 100 * truth):
        return "this is in percent; a share lies between 0 and 1."
    if close(answer, 1 - truth):
        return "this is the share of pairs that the model gets wrong."
    if close(answer, values.mean()):
        return "this is the mean of the metric. Count the pairs in which it is positive."
    if close(answer, (values > 0).sum()):
        return "this is the number of right pairs, not their share."
    return "this is not the share of pairs with a positive metric."


def _shape(answer: Any, anatomy: Any) -> str | None:
    answer, truth = tuple(answer), (anatomy.n_layers, 8, 28, anatomy.n_kv_heads, anatomy.d_head)
    if answer == truth:
        return None
    if len(answer) != len(truth):
        return "keys have five axes: layer, pair, position, head, width of a head."
    if answer[3] == anatomy.n_heads:
        return "that is the shape of the queries. Keys are shared: there are fewer of them."
    return "go through the axes once more: layer, pair, position, key/value head, width of a head."


def _n_bytes(answer: Any) -> str | None:
    if close(answer, GPT2_BYTES, 1e-3):
        return None
    if close(answer, GPT2_BYTES * 8, 1e-3):
        return "these are bits: float32 has 32 of them, which are 4 bytes."
    if close(answer, GPT2_BYTES * 2, 1e-3):
        return "so many bytes has a number in float64; it is float32 here."
    if close(answer, GPT2_BYTES / 64, 1e-3):
        return "this is one prompt."
    if close(answer, GPT2_BYTES / 128, 1e-3):
        return "this is one token of each prompt."
    if close(answer, GPT2_BYTES / 4, 1e-6):
        return "these are numbers. How many bytes does each take?"
    if close(answer, GPT2_BYTES / 12, 1e-6):
        return "this is one layer."
    if close(answer, GPT2_BYTES / 1e6, 0.05) or close(answer, GPT2_BYTES / 2**20, 0.05):
        return "this is in megabytes; the question asks for bytes."
    return "multiply layers, prompts, tokens, width, and bytes per number."


@judges
def _head_write() -> list[Case]:
    import torch

    cases = []
    for name, model, task in trials(("gpt2-6l", "llama-6l"), n=3):
        tokens, layer, head = task.pairs.clean_tokens, 4, 1
        with torch.no_grad():
            z = model.run_with_cache(tokens, names_filter=f"blocks.{layer}.attn.hook_z")[1][
                f"blocks.{layer}.attn.hook_z"
            ]
            out = model.W_O[layer]
            truth = z[:, :, head] @ out[head]
            own = getattr(model.blocks[layer].attn, "b_O", None)
            bias = torch.zeros(truth.shape[-1]) if own is None else own
            mistakes = (
                ("this is z, in the head's own small space: W_O is still to come.", z[:, :, head]),
                ("these are all heads together: one is asked for.", torch.einsum("bphe,hed->bpd", z, out)),
                ("this is W_O of head 0: every head has its own.", z[:, :, head] @ out[0]),
                ("this is head 0: the third axis of z is the head.", z[:, :, 0] @ out[head]),
                ("the second axis of z is the position; the head is the third.", z[:, head] @ out[head]),
                ("W_O has a layer and a head in front; this is layer 0.", z[:, :, head] @ model.W_O[0, head]),
                ("the bias is in it: it belongs to no head.", truth + bias),
                ("this is the first prompt alone; all are asked for.", truth[0]),
                ("these are all heads, one beside the other: one is asked for.",
                 torch.einsum("bphe,hed->bphd", z, out)),
            )  # fmt: skip
        cases.append(Case(name, model, (model, tokens, layer, head), truth, mistakes))
    return cases


HEAD_WRITE = """
def head_write(model, tokens, layer, head):
    name = f"blocks.{layer}.attn.hook_z"
    _, cache = model.run_with_cache(tokens, names_filter=name)
    return cache[name][:, :, head] @ model.W_O[layer, head]
"""


add(
    Exercise(
        "2.5",
        _head_write,
        hint="The cache is indexed by the place's name. Which axis of z picks the head? Then a matrix product "
        "takes the head's width to the stream's.",
        solution=HEAD_WRITE,
        why="Two lines, on a model with shared keys too: what a head writes is what later parts can read from it.",
    ),
    Exercise(
        "2.1",
        _rebuilt,
        asks="a tensor",
        hint="A block writes twice, and both writes are recorded. The first axis of each kind is the block.",
        solution='rebuilt = run["resid_pre"][2] + run["attn_out"][2] + run["mlp_out"][2]',
        why="A block never overwrites the stream; it adds two things to it.",
    ),
    Exercise(
        "2.2",
        _share,
        hint="task.measure(run.logits) has one number per pair; compare with 0. A mean wants numbers, not True and "
        "False: .float() makes them.",
        solution="share = float((task.measure(run.logits) > 0).double().mean())",
        why="A metric per pair, never averaged too early, lets you ask such questions afterwards.",
    ),
    Exercise(
        "2.3",
        _shape,
        asks="a tuple of five numbers",
        hint="Only one of the five numbers differs from the shape of the queries.",
        solution="shape = (anatomy.n_layers, 8, 28, anatomy.n_kv_heads, anatomy.d_head)",
        why="With grouped attention, several query heads read the same keys and values.",
    ),
    Exercise(
        "2.4",
        _n_bytes,
        hint="layers x prompts x tokens x width x bytes per number.",
        solution="n_bytes = 12 * 64 * 128 * 768 * 4",
        why="About 302 MB for one kind of site. All kinds of a larger model would not fit.",
    ),
)
