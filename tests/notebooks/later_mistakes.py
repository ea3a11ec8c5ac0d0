"""Mistakes of a student in the functions of lessons 9 to 11, each with words of the message that it must get; and other
right ways to write the same.
"""

from .answers import _wrong

RECONSTRUCTED = "kept = coder.encode(x)\n        kept[..., feature] = 0\n        return coder.decode(kept)"
ONLY_LAST = """
    def push(stream, hook):
        stream = stream.clone()
        stream[:, -1] += strength * vector
        return stream
"""
EVERYWHERE = """
    def push(stream, hook):
        return stream + strength * vector
"""

LATER_MISTAKES: dict[str, tuple[tuple[str, str], ...]] = {
    "9.2": (
        (_wrong("9.2", "k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)",
                "k.repeat(1, q.shape[1] // k.shape[1], 1, 1)"), "heads take turns here"),
        (_wrong("9.2", " / q.shape[-1] ** 0.5", ""), "the square root of the width is missing"),
        (_wrong("9.2", '.masked_fill(ahead, float("-inf"))', ""), "must not see what comes after"),
        (_wrong("9.2", "k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)", "pass"), "Print the shapes"),
        (_wrong("9.2", "ahead, float(\"-inf\")).softmax(dim=-1)", "ahead, float(\"-inf\"))"), "NaN or infinity"),
    ),
    "9.5": (
        (_wrong("9.5", ".abs()", ""), "choose by absolute size"),
        (_wrong("9.5", "measure(i)", "estimates[i]"), "call measure(i)"),
        (_wrong("9.5", "topk(k)", "topk(len(estimates))"), "everything was measured"),
        (_wrong("9.5", "topk(k)", "topk(k, largest=False)"), "the smallest were measured"),
        (_wrong("9.5", "measured[i] = measure(i)", "measure(i)\n        measured[i] = measure(i)"),
         "each call is a run"),
    ),
    "10.1": (
        (_wrong("10.1", "(x - coder.b_in)", "x"), "b_in has to be taken off"),
        (_wrong("10.1", " + coder.b_dec", ""), "b_dec is missing"),
        (_wrong("10.1", "return f @", "return p @"), "all features are kept"),
        (_wrong("10.1", "return f @ coder.W_dec + coder.b_dec", "return x"), "did the features get used"),
        (_wrong("10.1", "return f @ coder.W_dec + coder.b_dec", "return f"), "it returned the shape"),
    ),
    "10.2": (
        (_wrong("10.2", "x - x.mean(dim=0)", "x"), "a constant explains nothing"),
        (_wrong("10.2", "return missed /", "return 1 - missed /"), "the explained share"),
        (_wrong("10.2", ".mean(dim=0)", ".mean()"), "one mean per coordinate"),
        (_wrong("10.2", "missed / (x - x.mean(dim=0)).pow(2).sum()", "missed"), "not yet a share"),
        (_wrong("10.2", ".pow(2)", ".abs()"), "squared before they are added up"),
    ),
    "10.4": (
        (_wrong("10.4", "return x - f[..., None] * coder.W_dec[feature]", RECONSTRUCTED), "the error must stay"),
        (_wrong("10.4", "(plain - without)", "without"), "the metric without the feature"),
        (_wrong("10.4", "(plain - without)", "(without - plain)"), "the sign is the wrong way round"),
        (_wrong("10.4", "return x - f", "x - f"), "nothing was changed"),
        (_wrong("10.4", ".mean())", ".sum())"), "a sum over the 8 pairs"),
    ),
    "10.5": (
        (_wrong("10.5", ".mean(dim=0)", ".sum(dim=0)"), "summed over pairs"),
        (_wrong("10.5", "task.pairs.corrupt_tokens, fwd", "task.pairs.clean_tokens, fwd"), "0 everywhere"),
        (_wrong("10.5", "coder.encode(clean) - coder", "-coder.encode(clean) + coder"), "corrupt minus clean"),
        (_wrong("10.5", ".sum(dim=1)", ".mean(dim=1)"), "a mean over the"),
        (_wrong("10.5", ".sum(), kept", ", kept"), "sum the metric over pairs first"),
    ),
    "11.1": (
        (_wrong("11.1", "task.pairs.lengths - 1", "-1"), "padding in the shorter prompts"),
        (_wrong("11.1", "hook_resid_post", "hook_resid_pre"), "the stream before the block"),
        (_wrong("11.1", "streams[0].mean(dim=0) - streams[1].mean(dim=0)", "(streams[0] - streams[1]).sum(dim=0)"),
         "summed over pairs"),
        (_wrong("11.1", "[rows, last]", ".mean(1)"), "the mean over positions too"),
        (_wrong("11.1", "streams[0].mean(dim=0) - streams[1].mean(dim=0)",
                "streams[1].mean(dim=0) - streams[0].mean(dim=0)"), "the sign is the wrong way round"),
    ),
    "11.2": (
        (_wrong("11.2", "return stream + strength * vector", "stream + strength * vector"), "nothing was changed"),
        (_wrong("11.2", "strength * vector", "vector"), "the strength was not used"),
        (_wrong("11.2", "return (m[0] - m[1]) / (m[2] - m[1])", "return m[0] - m[1]"), "divide it by the gap"),
        (_wrong("11.2", "(m[0] - m[1])", "m[0]"), "has to be taken off above"),
        (_wrong("11.2", EVERYWHERE, ONLY_LAST), "at the last position only"),
        (_wrong("11.2", "run_with_hooks(corrupt,", "run_with_hooks(task.pairs.clean_tokens,"),
         "clean prompts were steered"),
    ),
    "11.3": (
        (_wrong("11.3", "log_p.exp()", "log_q.exp()").replace("(log_p - log_q)", "(log_q - log_p)"),
         "the other way round"),
        (_wrong("11.3", "return float(", "return 1 / 0.6931471805599453 * float("), "these are bits"),
        (_wrong("11.3", ".sum(-1).mean()", ".sum()"), "summed over prompts"),
        (_wrong("11.3", "[:, -1]", ""), "over all positions"),
        (_wrong("11.3", ".sum(-1).mean()", ".mean()"), "the mean over words"),
    ),
    "11.4": (
        (_wrong("11.4", " * vector.norm()", ""), "the vector is"),
        (_wrong("11.4", "randn", "rand"), "lean to one side"),
        (_wrong("11.4", "manual_seed(seed)", "manual_seed(0)"), "two seeds gave the same vector"),
        (_wrong("11.4", ", generator=torch.Generator().manual_seed(seed)", ""), "make a generator from the seed"),
        (_wrong("11.4", "draw = torch", "draw = vector + 0.01 * torch"), "it still points along the vector"),
        ("def random_control(vector, seed):\n    return vector[:3]", "it returned the shape"),
    ),
}  # fmt: skip

LATER_RIGHT: dict[str, tuple[str, ...]] = {
    "9.2": (_wrong("9.2", "k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)",
                   "k = k[:, torch.arange(q.shape[1]) // (q.shape[1] // k.shape[1])]"),),
    "9.5": (_wrong("9.5", "torch.as_tensor(estimates).abs().topk(k).indices.tolist()",
                   "sorted(range(len(estimates)), key=lambda j: -abs(estimates[j]))[:k]"),),
    "10.1": (_wrong("10.1", "return f @ coder.W_dec + coder.b_dec", "return coder.decode(f)"),),
    "10.2": (_wrong("10.2", "(x - x.mean(dim=0)).pow(2).sum()", "(x.var(dim=0, unbiased=False) * len(x)).sum()"),),
    "10.4": (_wrong("10.4", "f[..., None] * coder.W_dec[feature]",
                    "torch.einsum('bp,d->bpd', f, coder.W_dec[feature])"),),
    "10.5": (_wrong("10.5", "slope @ coder.W_dec.T", "torch.einsum('bpd,fd->bpf', slope, coder.W_dec)"),),
    "11.1": (_wrong("11.1", "streams[0].mean(dim=0) - streams[1].mean(dim=0)",
                    "(streams[0] - streams[1]).mean(dim=0)"),),
    "11.2": (_wrong("11.2", "return stream + strength * vector",
                    "stream += strength * vector\n        return stream"),),
    "11.3": (_wrong("11.3", "(log_p.exp() * (log_p - log_q)).sum(-1).mean()",
                    "torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction='batchmean')"),),
    "11.4": (_wrong("11.4", "draw / draw.norm() * vector.norm()", "draw * (vector.norm() / draw.norm())"),),
}  # fmt: skip

EVIDENCE: dict[str, tuple[object, ...]] = {"9.2": (None,)}
"""What a judge gets beside the answer: no real model."""
