"""Second mistakes of a student in the exercises that build something, each with words of the message that it must get;
and other right ways to write the same.
"""

from .answers import _wrong

SUMMED = "this is summed over pairs"
LEAVES = "the stream that *leaves* the layer"
MEASURED = """
import mechwork


def attribution(model, task, layer):
    return mechwork.patch(model, task, ["resid_pre"], positions="each")["resid_pre"].values[layer]
"""
WHOLE_HEAD = """
import torch


def cut_edge(model, task, layer, head):
    z, clean = f"blocks.{layer}.attn.hook_z", task.pairs.clean_tokens
    with torch.no_grad():
        other = model.run_with_cache(task.pairs.corrupt_tokens, names_filter=z)[1][z].clone()

        def put(value, hook):
            value = value.clone()
            value[:, :, head] = other[:, :, head]
            return value

        without = model.run_with_hooks(clean, fwd_hooks=[(z, put)])
        return float((task.measure(model(clean)) - task.measure(without)).mean())
"""
LOOP = """
def induction_score(pattern, period):
    return sum(float(pattern[q, q - period + 1]) for q in range(period, 2 * period)) / period
"""

MISTAKES: dict[str, tuple[tuple[str, str], ...]] = {
    "0.3": (
        (_wrong("0.3", "arange(period, 2", "arange(period - 1, 2"), "one position too many"),
        (_wrong("0.3", "2 * period)\n", "2 * period - 1)\n"), "the last position of the second half is missing"),
        (_wrong("0.3", "pattern[here, here - period + 1]", "pattern[period:, 1 : period + 1]"), "a whole block"),
        (_wrong("0.3", ".mean()", ""), "a single number is asked for"),
        (_wrong("0.3", "import torch", "").replace("torch.", "numbers."), "name 'numbers' is not defined"),
        (_wrong("0.3", "pattern, period", "pattern"), "Compare your parameters"),
    ),
    "0.4": (
        (_wrong("0.4", "W_V", "W_Q"), "W_Q in place of W_V"),
        (_wrong("0.4", "[layer, head]", "[head, layer]"), "layer and head are swapped"),
        (_wrong("0.4", "return ", "return model.W_E[token] @ model.W_U + "), "the embedding is still in it"),
        (_wrong("0.4", "return ", "return torch.softmax(").rstrip() + ", -1)", "these are probabilities"),
        (_wrong("0.4", "return ", "model.W_E.data[token] /= 2\n    return "), "weights are changed afterwards"),
    ),
    "1.4": (
        (_wrong("1.4", " - corrupt_difference", " / corrupt_difference"), "this divides the two metrics"),
        (_wrong("1.4", "wrong):", "wrong):\n    return (clean.log_softmax(-1) - corrupt.log_softmax(-1))[right]"),
         "and a log softmax"),
        (_wrong("1.4", "clean[right]", "clean[-1][right]"), "Print the shape of what is indexed"),
    ),
    "2.5": (
        (_wrong("2.5", "W_O[layer, head]", "W_O[layer, head] + model.blocks[layer].attn.b_O"), "the bias is in it"),
        (_wrong("2.5", "[:, :, head]", "[0, :, head]"), "the first prompt alone"),
        (_wrong("2.5", "W_O[layer, head]", "W_O[layer, head].T"), "Print the shapes of the two"),
        (_wrong("2.5", "    return ", "    return 0 * "), "0 everywhere"),
        (_wrong("2.5", "    return ", "    return float('nan') * "), "NaN or infinity"),
    ),
    "3.5": (
        (_wrong("3.5", "plain)).mean()", "plain)).sum()"), "a sum over the 8 pairs"),
        (_wrong("3.5", "resid_pre", "resid_post"), LEAVES),
        (_wrong("3.5", "{layer}", "{layer + 1}"), LEAVES),
        (_wrong("3.5", "[:, position]", "[:, position - 1]"), "one position further to the left"),
        (_wrong("3.5", "plain = model(task.pairs.corrupt", "plain = model(task.pairs.clean"), "effect minus the gap"),
        (_wrong("3.5", "[:, position]", "[:, :]"), "all positions were copied"),
        (_wrong("3.5", "run_with_cache(task.pairs.clean", "run_with_cache(task.pairs.corrupt"), "nothing was changed"),
        (_wrong("3.5", "put(stream, hook)", "put(stream)"), "A hook takes two arguments"),
        (_wrong("3.5", "    with torch.no_grad():", "    torch.set_grad_enabled(False)\n    if True:"), "no_grad"),
        (_wrong("3.5", "patched = model.run", "model.add_hook(name, put)\n        patched = model.run"), "a hook is"),
    ),
    "4.5": (
        (_wrong("4.5", "measure(logits).sum()", "measure(logits)"), "sum the metric over pairs first"),
        (_wrong("4.5", ".sum(-1).mean(0)", ".mean(-1).mean(0)"), "a mean over the 128 numbers of the stream"),
        (_wrong("4.5", '(clean - kept["x"].detach())', "clean"), "the slope times the clean stream"),
        (_wrong("4.5", '(clean - kept["x"].detach())', 'kept["x"].detach()'), "the slope times the corrupt stream"),
        (_wrong("4.5", '(clean - kept["x"].detach()) * slope', "slope"), "the slope alone"),
        (_wrong("4.5", "* slope).sum", "* slope).abs().sum"), "signs are lost"),
        (_wrong("4.5", "resid_pre", "resid_post"), LEAVES),
        (_wrong("4.5", "{layer}", "0"), "layer 0, whichever is asked for"),
        (_wrong("4.5", ".detach().requires_grad_()", ""), "let the hook *return* it"),
        (_wrong("4.5", "run_with_hooks(task.pairs.corrupt", "run_with_hooks(task.pairs.clean"), "0 everywhere"),
        (MEASURED, "the measured effect"),
    ),
    "4.6": (
        (_wrong("4.6", "(k + 0.5)", "k"), "start at the corrupt run and end before"),
        (_wrong("4.6", "(k + 0.5)", "(k + 1)"), "end at the clean one"),
        (_wrong("4.6", "range(n_steps)", "range(1, n_steps + 1)"), "k starts at 0"),
        (_wrong("4.6", "range(n_steps)", "range(n_steps - 1)"), "the last point is missing"),
        (_wrong("4.6", "total +=", "total ="), "only the last point counts"),
        (_wrong("4.6", "n_steps):\n    name", "n_steps):\n    n_steps = 1\n    name"), "one step, whatever n_steps is"),
        (_wrong("4.6", "(corrupt + (k", "(clean + (k"), "leads away from it"),
    ),
    "5.5": (
        (_wrong("5.5", "centred / divisor", "x / divisor"), "nothing is centred"),
        (_wrong("5.5", ".sqrt()", ""), "the root is missing"),
        (_wrong("5.5", " + 1e-5", ""), "1e-5 is missing"),
        (_wrong("5.5", "x.mean(dim=-1, keepdim=True)", "x.mean()"), "the mean of everything"),
        (_wrong("5.5", "x.mean(dim=-1, keepdim=True)", "x.mean(dim=0, keepdim=True)"), "over another axis"),
        (_wrong("5.5", "x.mean(dim=-1, keepdim=True)", "x.mean(dim=-1)"), "keepdim=True keeps its axis"),
        (_wrong("5.5", "gain + bias", "gain"), "the bias is missing"),
    ),
    "5.6": (
        (_wrong("5.6", "x * ratio.detach()", "value.detach()"), "everything is detached"),
        (_wrong("5.6", "x * ratio.detach()", "[one for one in x * ratio.detach()]"), "a tensor is asked for"),
    ),
    "6.5": (
        (_wrong("6.5", ".mean(dim=0)", ".mean(dim=1, keepdim=True)"), "the mean over positions: each prompt"),
        (_wrong("6.5", "z[:, :, head]", "z[:]"), "all heads of the layer"),
        (_wrong("6.5", "z[:, :, head]", "z[:, head]"), "the second axis of z is the position"),
        (_wrong("6.5", "z[:, :, head]", "z[:, -1, head]"), "the last position alone"),
        (_wrong("6.5", "task.measure(model(tokens)) - ", ""), "the metric without the head"),
        (_wrong("6.5", "clean_tokens", "corrupt_tokens"), "these are the corrupt prompts"),
        (_wrong("6.5", "model(tokens)", "model(task.pairs.corrupt_tokens)"), "one of the two runs is the corrupt one"),
        (_wrong("6.5", ".mean())", ".sum())"), "a sum over the 8 pairs"),
    ),
    "7.5": (
        (_wrong("7.5", " / cache[scale][:, -1]", ""), "the scale of the final norm is missing"),
        (_wrong("7.5", "/ cache", "* cache"), "multiplied by the scale"),
        (_wrong("7.5", " * model.ln_final.weight", ""), "the gain of the final norm is missing"),
        (_wrong("7.5", '.startswith("LN")', ' == "none"'), "the write is not centred"),
        (_wrong("7.5", 'if model.cfg.normalization_type.startswith("LN")', "if True"), "RMSNorm"),
        (_wrong("7.5", "cache[scale][:, -1]", "cache[scale][:, 0]"), "that of another position"),
        (_wrong("7.5", "cache[z][:, -1, head]", "cache[z][:, 0, head]"), "the write at the first position"),
        (_wrong("7.5", "cache[z][:, -1, head]", "cache[z].sum(1)[:, head]"), "the sum over positions"),
        (_wrong("7.5", " - model.W_U[:, task.pairs.incorrect[:, 0]]", ""), "the right answer's logit alone"),
        (_wrong("7.5", "clean_tokens", "corrupt_tokens"), "this is the corrupt run"),
        (_wrong("7.5", "write / cache[scale][:, -1] * model.ln_final.weight", "model.ln_final(write[:, None])[:, 0]"),
         "normed by itself"),
    ),
    "7.6": (
        (_wrong("7.6", "(new - mean_x)", "new"), "the mean of x was not taken off"),
        (_wrong("7.6", "(new - mean_x)", "(new - new.mean(0))"), "the mean of `new` was taken off"),
        (_wrong("7.6", "@ A +", "@ A.T +"), "A is the wrong way round"),
        (_wrong("7.6", "penalty * torch", "0 * torch"), "the penalty is missing"),
        (_wrong("7.6", "penalty * torch", "len(x) * penalty * torch"), "times the number of tokens"),
        (_wrong("7.6", "penalty * torch.eye(x.shape[1]).to(x)", "penalty"), "it belongs on the diagonal"),
        (_wrong("7.6", "+ penalty", "- penalty"), "the penalty is taken off"),
    ),
    "8.5": (
        (_wrong("8.5", "model.cfg.n_layers - 1", "5"), "this model has 12 blocks"),
        (_wrong("8.5", "model.cfg.n_layers - 1", "layer"), "*enters* the last block"),
        (_wrong("8.5", "resid_post", "resid_pre"), "*enters* the last block"),
        (_wrong("8.5", 'clean - kept["z"]', "clean"), "the clean write alone"),
        (_wrong("8.5", "(clean - kept[\"z\"])[:, :, head] @ model.W_O[layer, head]",
                "torch.einsum('bphe,hed->bpd', clean - kept['z'], model.W_O[layer])"), "all heads of the layer"),
        (_wrong("8.5", ".sum(dim=(-1, -2)).mean()", ".mean()"), "numbers of the stream at all positions"),
        (_wrong("8.5", " @ model.W_O[layer, head]", ""), "Print the shapes of the two"),
    ),
    "8.6": (
        (_wrong("8.6", "- clean + corrupt", "+ clean - corrupt"), "the other way round"),
        (_wrong("8.6", "- clean + corrupt", "- clean"), "the corrupt one is not put in"),
        (_wrong("8.6", "- clean + corrupt", "+ corrupt"), "the clean one is not taken out"),
        (_wrong("8.6", "- clean + corrupt", "- 2 * clean + 2 * corrupt"), "taken twice"),
        (_wrong("8.6", "hooks(task.pairs.clean", "hooks(task.pairs.corrupt"), "this is the corrupt run"),
        (_wrong("8.6", "{model.cfg.n_layers - 1}", "{layer}"), "later readers see it, too"),
        (_wrong("8.6", "model.cfg.n_layers - 1", "5"), "this model has 12 blocks"),
        (WHOLE_HEAD, "the effect of the whole head"),
    ),
}  # fmt: skip

RIGHT: dict[str, tuple[str, ...]] = {
    "0.3": (
        _wrong("0.3", "pattern[here, here - period + 1]", "pattern.diagonal(1 - period)[1:]"),
        LOOP,
    ),
    "0.4": (
        _wrong("0.4", "    return", "    import torch\n    return").replace(
            "model.W_E[token] @ model.W_V[layer, head] @ model.W_O[layer, head] @ model.W_U",
            "torch.einsum('d,dh,he,ev->v', model.W_E[token], model.W_V[layer, head], model.W_O[layer, head], "
            "model.W_U).double()",
        ),
    ),
    "2.5": (_wrong("2.5", "W_O[layer, head]", "blocks[layer].attn.W_O[head]").replace(", names_filter=name", ""),),
    "3.5": (
        _wrong("3.5", "            stream = stream.clone()\n", "").replace("            return stream\n", ""),
        _wrong("3.5", "with torch.no_grad():", "if True:").replace("return float(", "return ("),
    ),
    "4.5": (
        _wrong("4.5", ".sum(-1).mean(0)", ".mean(0).sum(-1).tolist()"),
        _wrong("4.5", "measure(logits).sum()", "measure(logits).mean()").replace(".mean(0)", ".sum(0)"),
    ),
    "4.6": (_wrong("4.6", "range(n_steps)", "reversed(range(n_steps))"),),
    "5.5": (_wrong("5.5", "centred.pow(2).mean(dim=-1, keepdim=True)", "x.var(-1, keepdim=True, unbiased=False)"),),
    "5.6": ("import torch\n\n\ndef gelu(x):\n    return x * torch.special.ndtr(x).detach()",),
    "6.5": (_wrong("6.5", "z[:, :, head].mean(dim=0)", "torch.einsum('bpe->pe', z[:, :, head]) / len(z)"),),
    "7.5": (_wrong("7.5", "(write * answer.T).sum(dim=-1)", "torch.einsum('bd,db->b', write, answer).double()"),),
    "7.6": (_wrong("7.6", "torch.linalg.solve(", "torch.linalg.inv(").replace(", x.T @ y)", ") @ (x.T @ y)"),),
    "8.5": (_wrong("8.5", "(write * slope).sum(dim=(-1, -2))", "torch.einsum('bpd,bpd->b', write, slope)"),),
    "8.6": (_wrong("8.6", "[:, :, head] @", "[:, -1:, head] @"),),
}  # fmt: skip
