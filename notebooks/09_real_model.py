# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 9. A real model
#
# > **Goals.** After this notebook you can
# > 1. read the anatomy of a modern model, and rebuild its attention, in which heads share keys and values;
# > 2. check that a model does a task before you explain how;
# > 3. look everywhere by an estimate, measure a few places, and say what you may have missed.
#
# The model is SmolLM2-135M-Instruct: 135 million weights, trained by others on two trillion tokens. If its file is on
# this machine, everything below is computed here (about a minute on one CPU). If not, the notebook says so and shows
# numbers that were stored with the course; the exercises work in both cases.

# %%
import course

course.begin("9")

# %%
import torch

import mechwork as mw
from mechwork.models import read_anatomy

model = course.real_model()  # or course.real_model("path/of/SmolLM2-135M-Instruct.Q4_1.gguf")

# %% [markdown]
# ## The same parts, more of them
#
# Each cell asks for its numbers with `course.live(name, function)`: the function runs if the model is here.


# %%
def look():
    """The model's sizes."""
    a = read_anatomy(model)
    weights = sum(tensor.numel() for tensor in model.original_model.parameters())
    return {
        "layers": a.n_layers, "heads": a.n_heads, "key/value heads": a.n_kv_heads, "width": a.d_model,
        "width of a head": a.d_head, "words": int(model.cfg.d_vocab), "weights": weights,
    }  # fmt: skip


anatomy = course.live("anatomy", look)
for what, number in anatomy.items():
    print(f"{what:<18}{number:>12,}")

# %% [markdown]
# Three things are new against GPT-2, and all three are common today. The norms do not centre (RMSNorm). Positions are
# not added to the stream: queries and keys are *turned* by an angle that grows with the position (rotary). And several
# query heads share one head of keys and values: the first few query heads read the first one, the next few the second.
#
# ### Exercise 9.1 (easy; about 5 minutes)
# Which key/value head does query head 7 of a layer read? (Both count from 0.)

# %%
reads = ...
course.check("9.1", reads, anatomy)
# Stuck? Run course.hint("9.1"), then course.solution("9.1")

# %% [markdown]
# ### Exercise 9.2 (build it; medium; about 20 minutes)
# `grouped_pattern(q, k)`: the attention patterns of all heads of a layer. `q` has the shape (batch, position, head,
# width), `k` has fewer heads: (batch, position, key/value head, width). Both are turned by their positions already.
# Scores are products of query and key, divided by the square root of the width; a position sees itself and what is
# before it. Return the shape (batch, head, query position, key position). It is tried on recorded activations of three
# bundled models, and of the real one if it is here.


# %%
def grouped_pattern(q, k):
    """Attention patterns where heads share keys."""


course.check("9.2", grouped_pattern, model)
# Stuck? Run course.hint("9.2"), then course.solution("9.2")

# %% [markdown]
# ## Does it do the task at all?
#
# The first question, and the one most often left out. The accuracy is the share of prompts in which the right word has
# the larger logit of two: chance is one half.


# %%
def accuracies():
    """Of five tasks, on 16 prompts each."""
    names = ("ioi", "pronoun", "capitals", "agreement", "colored_objects")
    return {name: getattr(mw.tasks, name)(model, n=16, seed=0).accuracy(model) for name in names}


accuracy = course.live("accuracy", accuracies)
for name, share in accuracy.items():
    print(f"{name:<18}{share:6.2f}")

# %% [markdown]
# ### Exercise 9.3 (easy; about 5 minutes)
# Which of these tasks would you *not* look for a circuit of, in this model? Take the rule "below 0.75". (A list of
# names.)

# %%
unfit = ...
course.check("9.3", unfit, accuracy)
# Stuck? Run course.hint("9.3"), then course.solution("9.3")

# %% [markdown]
# ## What measuring costs
#
# We take pronouns: a first name decides between " he" and " she". To measure one head is to patch it in one run. A
# patch in layer l changes nothing in the layers before it, so the run may start at layer l, from recorded streams.
#
# ### Exercise 9.4 (medium; about 10 minutes)
# How many *whole* forward passes does it cost to measure every head of the model, one at a time, if layer l and all
# later ones are run again each time, and the earlier ones never? (A number with a half is fine. Leave out embedding,
# unembedding and the first recorded runs.)

# %%
forwards = ...
course.check("9.4", forwards, anatomy)
# Stuck? Run course.hint("9.4"), then course.solution("9.4")

# %% [markdown]
# An estimate of all heads at once costs two forward passes and one backward pass. So the practical way is to *screen*:
# estimate everything, measure what looks large.
#
# ### Exercise 9.5 (build it; medium; about 15 minutes)
# `screen(estimates, measure, k)`: `estimates` is a list of numbers, one per place; `measure(i)` returns the measured
# effect of place i, and costs a run. Measure the `k` places with the largest estimates, whatever their sign, each once.
# Return a tensor as long as `estimates`: measured effects where you measured, 0 elsewhere.


# %%
def screen(estimates, measure, k):
    """Estimate everything, measure a few."""


course.check("9.5", screen)
# Stuck? Run course.hint("9.5"), then course.solution("9.5")

# %% [markdown]
# ## Predict first
#
# What if the estimate is blind for a place that matters? Such a place is never measured. The remedy is a control:
# measure some places *at random* among those that look unimportant. **Before you run the next cell, write down:** of
# ten random heads, how many will have an effect as large as the typical head that the estimate chose?

# %%
prediction = ...
course.predict("9", prediction)


# %% jupyter={"outputs_hidden": true}
def screened():
    """15 heads chosen by the estimate and 10 by lot, measured."""
    task = mw.tasks.pronoun(model, n=8, seed=0)
    found = mw.patch(model, task, ["z"], screen="gradient", verify_top=0.055, verify_random=0.036)
    return {"words": str(found), "strongest": found.strongest(15), "gap": found.measured.baseline.gap}


heads = course.live("heads", screened)
print(heads["words"])
print(f"\nhead       measured  estimated   (the gap between the runs is {heads['gap']:.2f} logits)")
for place, measured, estimated in heads["strongest"][:8]:
    print(f"{place:<10}{measured:>9.2f}{estimated:>11.2f}")

# %% [markdown]
# <details><summary>What came out: open it after your own guess</summary>
#
# The control is small, and so its promise is weak: with ten random heads none of which is large, up to a quarter of the
# others might be. More control, a better promise; that is a choice, and it should be in your report.
#
# </details>
#
# ## One place can fool you
#
# MLPs, at every layer and every named position. Here all places are measured, so that the estimate can be judged.


# %%
def mlps():
    """Measured and estimated effects of every MLP at every named position."""
    task = mw.tasks.pronoun(model, n=8, seed=0)
    exact = mw.patch(model, task, ["mlp_out"])
    plain = mw.attribute(model, task, ["mlp_out"], rules="gradient")
    path = mw.attribute(model, task, ["mlp_out"], rules="gradient", ig_steps=5)
    values = {"measured": exact, "one gradient": plain, "five gradients": path}
    return {name: effects["mlp_out"].values.flatten().tolist() for name, effects in values.items()} | {
        "top": exact["mlp_out"].top(5)
    }


mlp = course.live("mlp", mlps)
truth = torch.tensor(mlp["measured"])
others = truth.abs() < truth.abs().max()
print("largest:", ", ".join(f"{place} {effect:+.2f}" for place, effect in mlp["top"]))
for name in ("one gradient", "five gradients"):
    guess = torch.tensor(mlp[name])
    r, rest = (float(torch.corrcoef(torch.stack([truth[m], guess[m]]))[0, 1]) for m in (truth == truth, others))
    print(f"{name:<16} r = {r:.2f}   without the largest place: {rest:.2f}")

# %%
order = truth.abs().argsort(descending=True)[:20]
course.lines(
    range(1, 21),
    {name: torch.tensor(mlp[name])[order].tolist() for name in ("measured", "one gradient", "five gradients")},
    title="The twenty MLP places of largest effect",
    x_title="place, largest effect first",
    y_title="effect in logits",
)

# %% [markdown]
# In lesson 4 one place *made* a correlation; here one place *spoils* it: the first MLP at the name. Without it one
# gradient is nearly as good as five. Either way the number alone would have misled you.
#
# ## When does it know?


# %%
def lens():
    """What the logit lens reads at the last word, layer by layer."""
    table = mw.read_lens(model, "When Kate left the museum,", target=" she")
    return [
        [place, table.texts[int(table.top_ids[i, 0, -1, 0])], int(table.rank[i, 0, -1])]
        for i, place in enumerate(table.places)
    ]


for place, word, rank in course.live("lens", lens)[::3]:
    print(f"{place:<14} says {word!r:<16} rank of ' she': {rank}")

# %% [markdown]
# Read more: Ben Allal et al. 2025, *SmolLM2: When Smol Goes Big* (the model); Kramár et al. 2024, *AtP\** (estimates
# that fail, and what to do); Ainslie et al. 2023, *GQA* (shared keys and values).
#
# ## Keep it

# %%
import json

saved = course.place("real_model.json")
saved.write_text(json.dumps({"accuracy": accuracy, "heads": heads, "mlp": mlp}, indent=1), encoding="utf-8")
print(saved)

# %% [markdown]
# ## Optional: now with GPT-2
#
# Set the switch to True (0.5 GB, downloaded once; some minutes). Which tasks does GPT-2 do?

# %%
NOW_WITH_GPT2 = False
if NOW_WITH_GPT2:
    gpt2 = mw.load_model("openai-community/gpt2")
    for name in ("ioi", "pronoun", "agreement"):
        print(name, getattr(mw.tasks, name)(gpt2, n=16, seed=0).accuracy(gpt2))
