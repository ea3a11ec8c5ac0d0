"""Wrong answers that a student might well give, as code that runs in the notebook where the exercise stands."""

from notebooks.course import EXERCISES


def _wrong(name: str, part: str, instead: str) -> str:
    """The solution of an exercise with a mistake in it."""
    solution = EXERCISES[name].solution
    assert part in solution, (name, part)
    return solution.replace(part, instead)


WRONG: dict[str, tuple[str, ...]] = {
    "0.1": ("rank = 128", "rank = 2476", "rank = 'full'"),
    "0.2": ("looks_at = 5", "looks_at = 16", "looks_at = 7"),
    "0.3": (
        _wrong("0.3", " + 1]", "]"),
        _wrong("0.3", ".mean()", ".sum()"),
        _wrong("0.3", "pattern[here, here - period + 1]", "pattern.T[here, here - period + 1]"),
    ),
    "0.4": (
        _wrong("0.4", "W_V", "W_K"),
        _wrong("0.4", "[layer, head]", "[layer, 0]"),
        _wrong("0.4", " @ model.W_U", ""),
    ),
    "1.1": ('where = "END"', 'where = "S2"', 'where = "IO"', 'where = "the end"'),
    "1.2": (
        "left_over = mw.evaluate(model, task.test, circuit).faithfulness",
        "left_over = 1 - mw.evaluate(model, task.test, circuit).faithfulness",
        "left_over = 0.5",
    ),
    "1.3": ("smallest = curve.sizes[-1]", "smallest = curve.sizes[0]", "smallest = 80", "smallest = 'few'"),
    "1.4": (
        _wrong("1.4", "return clean_difference - corrupt_difference", "return corrupt_difference - clean_difference"),
        _wrong("1.4", "return clean_difference - corrupt_difference", "return clean_difference"),
        _wrong("1.4", "corrupt[right] - corrupt[wrong]", "corrupt[wrong] - corrupt[right]"),
        _wrong("1.4", "wrong):", "wrong):\n    clean, corrupt = clean.softmax(-1), corrupt.softmax(-1)"),
        _wrong("1.4", " - clean[wrong]", "").replace(" - corrupt[wrong]", ""),
    ),
    "2.1": (
        'rebuilt = run["resid_pre"][2] + run["attn_out"][2]',
        'rebuilt = run["resid_pre"][1] + run["attn_out"][1] + run["mlp_out"][1]',
        'rebuilt = run["resid_pre"]',
    ),
    "2.2": (
        "share = float(task.measure(run.logits).mean())",
        "share = int((task.measure(run.logits) > 0).sum())",
        "share = 0.1",
    ),
    "2.3": ("shape = (6, 8, 28, 4, 32)", "shape = (6, 8, 28, 64)", "shape = (8, 6, 28, 2, 32)"),
    "2.4": ("n_bytes = 12 * 64 * 128 * 768", "n_bytes = 64 * 128 * 768 * 4", "n_bytes = 302", "n_bytes = 2 ** 30"),
    "2.5": (
        _wrong("2.5", " @ model.W_O[layer, head]", ""),
        _wrong("2.5", "W_O[layer, head]", "W_O[layer, 0]"),
        _wrong("2.5", "W_O[layer, head]", "W_O[0, head]"),
        _wrong("2.5", "[:, :, head]", "[:, :, 0]"),
        _wrong("2.5", "[:, :, head]", "[:, head]"),
        _wrong("2.5", "[:, :, head] @ model.W_O[layer, head]", ".flatten(2) @ model.W_O[layer].flatten(0, 1)"),
    ),
    "3.1": ("s2_in_corrupt = 10", "s2_in_corrupt = 9", "s2_in_corrupt = 4"),
    "3.2": ('straight = "probability_difference"', 'straight = "log_probability"', 'straight = "accuracy"'),
    "3.3": ('direction = "noise"', 'direction = "both"'),
    "3.4": (
        "metric_there = float(effect.values[4, column])",
        "metric_there = float(effect.normalized().values[4, column])",
        "metric_there = base.clean - float(effect.values[4, column])",
    ),
    "3.5": (
        _wrong(
            "3.5",
            "        return float((task.measure(patched) - task.measure(plain)).mean())",
            "        return float(task.measure(patched).mean())",
        ),
        _wrong("3.5", "stream[:, position] = cache[name][:, position]", "stream[:] = cache[name]"),
        _wrong("3.5", "            return stream\n", ""),
        _wrong(
            "3.5",
            "put(stream, hook):",
            "put(stream, hook):\n            next(model.original_model.parameters()).data.mul_(1.001)",
        ),
        "patch_stream = 3",
        "def patch_stream(model, task, layer, position):\n    raise RuntimeError('what?')",
        "def patch_stream(model, task, layer, position):\n    return torch.tensor(float('nan'))",
    ),
    "4.1": ("estimate = metric(1) - metric(0)", "estimate = slope(0.5)", "estimate = metric(0)"),
    "4.2": ("n_steps = 1", "n_steps = 2", "n_steps = 20"),
    "4.3": ('n_cells = exact["mlp_out"].values.numel()', 'n_cells = int((exact["mlp_out"].values.abs() > 0.01).sum())'),
    "4.4": ("passes = 5", "passes = 10", "passes = 3"),
    "4.5": (
        _wrong("4.5", ".mean(0)", ".sum(0)"),
        _wrong("4.5", ".mean(0)", ".mean()"),
        _wrong("4.5", ".sum(), kept", ".mean(), kept"),
        _wrong("4.5", "(clean - kept", "(kept").replace('kept["x"].detach()) *', 'kept["x"].detach() - clean) *'),
        _wrong("4.5", "task.pairs.corrupt_tokens, fwd", "task.pairs.clean_tokens, fwd"),
    ),
    "4.6": (
        _wrong("4.6", "total / n_steps", "total"),
        _wrong("4.6", ".sum(), point", ".mean(), point"),
        _wrong("4.6", "(k + 0.5) / n_steps", "0.0"),
    ),
    "5.1": ("under_rule = 0.0", "under_rule = 3", "under_rule = 1 / 5"),
    "5.2": ("missing = float(relevance.values.sum())", "missing = relevance.remainder", "missing = 0"),
    "5.3": ('best_rule = "Identity-rule"', 'best_rule = "AH-rule"', 'best_rule = "relp"'),
    "5.4": ('weakest = "gradient"', 'weakest = "relp"', 'weakest = "gim"'),
    "5.5": (
        _wrong("5.5", ".detach()", ""),
        _wrong("5.5", "x.mean(dim=-1, keepdim=True)", "x.mean(dim=-1, keepdim=True).detach()"),
        _wrong("5.5", " + bias", ""),
        _wrong("5.5", ".detach()", ".detach() * (8 / 7) ** 0.5"),
    ),
    "5.6": (
        _wrong("5.6", ".detach()", ""),
        _wrong("5.6", "0.5)", "1.0)"),
        _wrong("5.6", "return x * ratio.detach()", "return value"),
    ),
    "6.1": ("helps = list(kinds)", 'helps = ["zero", "mean"]', 'helps = ["corrupt"]', 'helps = "patch"'),
    "6.2": (
        "interaction = both.effect",
        "interaction = sum(result.effect for result in alone)",
        "interaction = both.effect - alone[0].effect",
    ),
    "6.3": (
        'repaired = table.loc["a3.h3", "direct"] - table.loc["a3.h3", "total"]',
        'repaired = table.loc["a3.h3", "total"] / table.loc["a3.h3", "direct"]',
        'repaired = table.loc["a3.h3", "total"] / table.loc["a3.h3", "direct"] - 1',
        'repaired = 1 - table.loc["a4.h1", "total"] / table.loc["a4.h1", "direct"]',
    ),
    "6.4": ('previous = "a1.h0"', 'previous = "a0.h1"', 'previous = "a5.h1"'),
    "6.5": (
        _wrong("6.5", "z[:, :, head].mean(dim=0)", "0.0"),
        _wrong("6.5", "z[:, :, head].mean(dim=0)", "z[:, :, head].mean(dim=(0, 1))"),
        _wrong("6.5", "        return z\n", ""),
    ),
    "7.1": ('word = " necklace"', 'word = " John"', "word = 921", 'word = " bottle"'),
    "7.2": ('first = "resid_pre.4"', 'first = "resid_post.5"', 'first = "block 5"'),
    "7.3": ('gains_most = "resid_pre.5"', 'gains_most = "resid_pre.3"', 'gains_most = "the first"'),
    "7.4": (
        'indirect = clean_share["a1.h3"] - corrupt_share["a1.h3"]',
        "indirect = float(needed.values[1, 3])",
        'indirect = float(needed.values[1, 3]) - clean_share["a1.h3"]',
    ),
    "7.5": (_wrong("7.5", ".mean())", ".sum())"), _wrong("7.5", " / cache[scale][:, -1]", ""), "direct_share = None"),
    "8.1": (
        "wiring = result.faithfulness - sum(result.random) / len(result.random)",
        "wiring = sum(result.same_degree) / len(result.same_degree)",
        "wiring = result.faithfulness",
    ),
    "8.2": ("always = int((inclusion > 0).sum())", "always = 60", "always = 3"),
    "8.3": (
        "times = reuse.comparison.overlaps[0].edges",
        "times = reuse.comparison.overlaps[0].nodes / reuse.comparison.overlaps[0].nodes_by_chance",
        "times = 1",
    ),
    "8.5": (
        _wrong("8.5", ".mean())", ".sum())"),
        _wrong("8.5", ".sum(), kept", ".mean(), kept"),
        _wrong("8.5", ".sum(dim=(-1, -2)).mean())", ".sum(dim=-1).mean())"),
        _wrong("8.5", "task.pairs.corrupt_tokens, fwd", "task.pairs.clean_tokens, fwd"),
        _wrong("8.5", '(clean - kept["z"])', '(kept["z"] - clean)'),
    ),
    "7.6": (
        _wrong("7.6", "x.mean(dim=0), y.mean(dim=0)", "0 * x[0], 0 * y[0]"),
        _wrong("7.6", "penalty * torch", "0 * torch"),
        _wrong("7.6", " @ A + mean_y", " @ A"),
    ),
    "8.6": (
        _wrong("8.6", "return stream - clean + corrupt", "stream - clean + corrupt"),
        _wrong("8.6", "return float((task.measure(model(task.pairs.clean_tokens)) - ", "return float(("),
        _wrong("8.6", ".mean())", ".sum())"),
    ),
    "8.4": ('donor = "ioi"', 'donor = "greater_than"', 'donor = "induction"'),
    "9.1": ("reads = 7 % 3", "reads = 7", "reads = 0"),
    "9.2": (
        _wrong(
            "9.2", "k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)", "k.repeat(1, q.shape[1] // k.shape[1], 1, 1)"
        ),
        _wrong("9.2", " / q.shape[-1] ** 0.5", ""),
        _wrong("9.2", '.masked_fill(ahead, float("-inf"))', ""),
    ),
    "9.3": ("unfit = list(accuracy)", "unfit = []", 'unfit = "ioi"', 'unfit = ["chess"]'),
    "9.4": ("forwards = 270", "forwards = 130.5", "forwards = 15.5", "forwards = 3"),
    "9.5": (
        _wrong("9.5", ".abs()", ""),
        _wrong("9.5", "measure(i)", "estimates[i]"),
        _wrong("9.5", "topk(k)", "topk(len(estimates))"),
    ),
    "10.1": (
        _wrong("10.1", "(x - coder.b_in)", "x"),
        _wrong("10.1", " + coder.b_dec", ""),
        _wrong("10.1", "return f @", "return p @"),
    ),
    "10.2": (
        _wrong("10.2", "x - x.mean(dim=0)", "x"),
        _wrong("10.2", "return missed /", "return 1 - missed /"),
        _wrong("10.2", ".mean(dim=0)", ".mean()"),
    ),
    "10.3": ('better = int(found.to_dataframe()["passes"].sum())', "better = 6", "better = 1"),
    "10.4": (
        _wrong(
            "10.4",
            "return x - f[..., None] * coder.W_dec[feature]",
            "kept = coder.encode(x)\n        kept[..., feature] = 0\n        return coder.decode(kept)",
        ),
        _wrong("10.4", "(plain - without)", "without"),
        _wrong("10.4", "(plain - without)", "(without - plain)"),
        _wrong("10.4", "return x - f", "x - f"),
    ),
    "10.5": (
        _wrong("10.5", ".mean(dim=0)", ".sum(dim=0)"),
        _wrong("10.5", "task.pairs.corrupt_tokens, fwd", "task.pairs.clean_tokens, fwd"),
        _wrong("10.5", "coder.encode(clean) - coder", "-coder.encode(clean) + coder"),
    ),
    "11.1": (
        _wrong("11.1", "task.pairs.lengths - 1", "-1"),
        _wrong("11.1", "hook_resid_post", "hook_resid_pre"),
        _wrong("11.1", "streams[0].mean(dim=0) - streams[1].mean(dim=0)", "(streams[0] - streams[1]).sum(dim=0)"),
    ),
    "11.2": (
        _wrong("11.2", "return stream + strength * vector", "stream + strength * vector"),
        _wrong("11.2", "strength * vector", "vector"),
        _wrong("11.2", "return (m[0] - m[1]) / (m[2] - m[1])", "return m[0] - m[1]"),
    ),
    "11.3": (
        _wrong("11.3", "log_p.exp()", "log_q.exp()").replace("(log_p - log_q)", "(log_q - log_p)"),
        _wrong("11.3", "return float(", "return 1 / 0.6931471805599453 * float("),
        _wrong("11.3", ".sum(-1).mean()", ".sum()"),
    ),
    "11.4": (
        _wrong("11.4", " * vector.norm()", ""),
        _wrong("11.4", "randn", "rand"),
        _wrong("11.4", "manual_seed(seed)", "manual_seed(0)"),
        "def random_control(vector, seed):\n    return -vector",
    ),
    "11.5": ('good = ["add"]', 'good = ["mirror_below"]', 'good = "scale"'),
}

CLAIMS: dict[str, tuple[str, ...]] = {
    "00": (
        "induction[steps.index(300)] < 0.1",
        "induction[steps.index(800)] > 0.6",
        "previous[steps.index(300)] > 2 * induction[steps.index(300)]",
        "induction[-1] < induction[-2] and previous[-1] < previous[-2]",
    ),
    "01": (
        "approx.agreement(exact)['resid_pre'].pearson > 0.95",
        "approx.agreement(exact)['resid_pre'].relative_error > 0.2",  # "sizes are off"
        "result.faithfulness > 0.85 > 0.05 > max(map(abs, result.random))",
        "abs(mw.evaluate(model, task.test, circuit.complement()).faithfulness) < 0.05",
        "20 < min(n for n, f in zip(curve.sizes, curve.faithfulness.tolist()) if f >= 0.8) < 100",
    ),
    "02": (
        "float((total - run['resid_post'][-1]).abs().max()) < 1e-4",
        "torch.equal(logits, run.logits)",
        "int((task.measure(run.logits) > 0).sum()) == 23",
    ),
    "03": (
        (
            "0.14 < share(denoise, 'logit_difference', 5, 1) < 0.20 and 0.14 < share(noise, 'logit_difference', 5, 1) "
            "< "
            "0.20"
        ),
        "share(denoise, 'log_probability', 5, 1) > 0.3 and abs(share(noise, 'log_probability', 5, 1)) < 0.02",
        "float(denoise['z'].normalized().values.sum()) > 1.5",
        "aligned['resid_pre'].normalized().values[0, list(aligned['resid_pre'].labels['pos']).index('S2')] > 0.9",
    ),
    "04": (
        # flat at both ends, down at first
        "difference[1] < difference[0] and (difference[-1] - difference[-2]) * 20 < 5",
        "plain.agreement(exact)['resid_pre'].pearson < 0 and plain.agreement(exact)['z'].pearson < 0",
        (
            "(lambda e, p: (p[e.abs() > 0.5 * e.abs().max()] * e[e.abs() > 0.5 * e.abs().max()] < 0).double().mean() "
            "> 0.5)"
            "(exact['resid_pre'].values, plain['resid_pre'].values)"
        ),  # most of the largest have the wrong sign
        "five.agreement(exact)['resid_pre'].pearson > 0.95 and relp.agreement(exact)['resid_pre'].pearson > 0.95",
        "float(plain_bent['resid_pre'].values.flatten()[largest]) < 0.05 * float(exact_bent['resid_pre'].values.max())",
        (
            "exact['mlp_out'].values.numel() == 48 and abs(float(torch.corrcoef(torch.stack([values[rest], "
            "guesses[rest]]))[0, 1])) < 0.5"
        ),
        "integrated(1) > 2.9 and abs(integrated(5) / true_effect - 1) < 0.05",
    ),
    "05": (
        "abs(by_gradient.relevance[-1]) < 0.01 and 430 < by_gradient.value < 450",
        "conserved.expected and conserved.holds(1e-4)",
        "abs(x[0].item() / x.norm().item() - 0.6) < 1e-6 and abs(float((x * gradient).sum().detach())) < 1e-6",
        (
            "all(mw.attribute(model, induction, ['resid_pre'], rules=r).agreement(truth)['resid_pre'].pearson < 0.9 "
            "for r in ('gradient', 'relp', 'relp_ah'))"
        ),
    ),
    "06": (
        "all(2 < float(e.values[h]) < 4.1 for e in sweeps.values() for h in ((4, 1), (5, 1)))",
        "float(sweeps['mean'].values[1, 3]) < -1 and float(sweeps['corrupt'].values[1, 3]) > 5",
        "abs(both.effect - sum(result.effect for result in alone)) < 0.2",
        "repair.share() < 0 and (repair.repaired.mean(dim=1) < 0).double().mean() > 0.5",
        "all({'induction', 'copying'} <= set(roles.roles_of(head)) for head in ('a1.h0', 'a1.h1'))",
        "'previous token' in roles.roles_of('a0.h0')",
        "sweep_ablations(small, mw.tasks.induction(small, n=32), ['heads'])['z'].baseline.clean > 5",
    ),
    "07": (
        (
            "[table.texts[int(table.top_ids[i, 0, -1, 0])] for i in range(7)] "
            "== [' to', ' to', ' John', ' John', ' John', ' Mary', ' Mary']"
        ),
        "all(evaluation.to_dataframe()['gain'][:6] > 0)",
        "float(needed.values[0, 3]) > 10 * abs(clean_share['a0.h3'] - corrupt_share['a0.h3'])",
        "clean_share['a5.h1'] - corrupt_share['a5.h1'] > float(needed.values[5, 1])",  # the norm takes part of it back
    ),
    "08": (
        "result.faithfulness > 0.85 and 0.3 < sum(result.same_degree) / len(result.same_degree) < 0.7",
        (
            "all(mw.evaluate(model, task.test, circuit, ablation=a, source=task.train).faithfulness < 0.1 for a in "
            "('zero', 'mean'))"
        ),
        "45 < int((inclusion == 1).sum()) < 56 and 0.3 < result.faithfulness - sum(result.same_degree) / 5 < 0.5",
        "all(o.edges > 4 * o.edges_by_chance for o in reuse.comparison.overlaps)",
        (
            "all(abs(reuse.evaluations[a, b].faithfulness) < 0.1 for a, b in "
            "(('ioi', 'pronoun'), ('ioi', 'greater_than'), ('pronoun', 'ioi'), ('greater_than', 'ioi')))"
        ),
        (
            "all(reuse.evaluations[a, b].faithfulness > 0.6 for a, b in (('pronoun', 'greater_than'), ('greater_than', "
            "'pronoun')))"
        ),
    ),
    "09": (
        "accuracy['pronoun'] > 0.9 and accuracy['colored_objects'] < 0.5",
        "mlp['top'][0][0] == 'mlp_out.0@NAME'",
        "float(torch.corrcoef(torch.stack([truth, torch.tensor(mlp['one gradient'])]))[0, 1]) < 0.8",
        "float(torch.corrcoef(torch.stack([truth[others], torch.tensor(mlp['one gradient'])[others]]))[0, 1]) > 0.95",
        "'0 of 10 random control cells' in heads['words']",
    ),
    "10": (
        "study.rows[0].method == 'mask' and 0.9 < study.rows[0].concept < 1",
        "float(found['resid_post.4'].distance) > 0.99",
        "curves['largest scores'][-1] < 0.1 * curves['largest scores'][0]",
        "curves['by lot'][-1] > 0.9 * curves['by lot'][0]",
    ),
    "11": (
        "study.of('add', 'random 0')[-1].accuracy > 0.8 and study.of('add', 'random 0')[-1].success > 0.5",
        "study.of('add', 'random 0')[-1].other_accuracy < 0.7 and study.of('add', 'random 0')[-1].kl > 1",
        "study.of('mirror_below')[2].success > 0.8 and study.of('mirror_below')[2].kl < 0.05",
    ),
}
"""What the notebooks' prose says about their numbers, by the notebook's number: true at the end of the run."""
