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
# # 4. Attribution patching, and where it lies
#
# > **Goals.** After this notebook you can
# > 1. say what attribution patching assumes, and draw it;
# > 2. build a case in which it fails, on purpose;
# > 3. tell from agreement with measured effects when to believe it, and what a better path costs.

# %%
import course

course.begin("4")

# %% [markdown]
# ## A straight line
#
# Patching moves an activation from its corrupt value (0) to its clean value (1) and looks what the metric does.
# Attribution patching does not make that move. It takes the slope at the start and assumes that the metric follows it
# all the way:
#
#     estimate = (a_clean - a_corrupt) * slope of the metric at the corrupt run
#
# Here is a metric that *saturates*: it is flat at both ends, as a softmax or a norm can be.

# %%
import math


def metric(x):
    """A switch: 0 before, 1 after, steep in the middle."""
    return 1 / (1 + math.exp(-12 * (x - 0.5)))


def slope(x):
    """Its derivative."""
    return 12 * metric(x) * (1 - metric(x))


steps = [i / 50 for i in range(51)]
course.lines(
    steps,
    {
        "metric": [metric(x) for x in steps],
        "straight line from the corrupt run": [metric(0) + slope(0) * x for x in steps],
    },
    title="A metric that saturates, and what the slope at the start says about it",
    x_title="from corrupt (0) to clean (1)",
    y_title="metric",
)

# %% [markdown]
# ### Exercise 4.1 (easy; about 5 minutes)
# What does the straight line say the effect of going from 0 to 1 is? (The true effect is `metric(1) - metric(0)`.)

# %%
estimate = ...
course.check("4.1", estimate)
# Stuck? Run course.hint("4.1"), then course.solution("4.1")

# %% [markdown]
# ## More points on the way
#
# *Integrated gradients* averages the slope over several points between the two runs. With `n` steps, mechwork takes the
# midpoints 0.5/n, 1.5/n, ...
#
# ### Exercise 4.2 (easy; about 10 minutes)
# What is the smallest number of steps from which on **this** metric's estimate is within 5 % of the true effect, for it
# and for every larger number? Try.


# %%
def integrated(n):
    """The estimate with n steps."""
    return sum(slope((k + 0.5) / n) for k in range(n)) / n


true_effect = metric(1) - metric(0)
for n in (1, 2, 3, 4, 5, 6, 8):
    print(f"{n} steps: {integrated(n):.3f}   true {true_effect:.3f}")

# %%
n_steps = ...
course.check("4.2", n_steps)
# Stuck? Run course.hint("4.2"), then course.solution("4.2")

# %% [markdown]
# Note what one midpoint says: it sits where the slope is largest, and is wrong by a factor of three in the *other*
# direction.
#
# ## Predict first
#
# Now a trained model. We move its input embeddings from the corrupt to the clean prompts in small steps and look at the
# metric. It is a plain logit *difference*, with no softmax in it. **Before you run the next cell, write down:** will
# the line be straight?

# %%
prediction = ...
course.predict("4", prediction)

# %% jupyter={"outputs_hidden": true}
import torch

import mechwork as mw
from mechwork.interventions import Value, Write, intervene

model = mw.load_model("gpt2-6l")
task = mw.tasks.ioi(model, n=32, seed=0)
start, end = (mw.record_run(model, task.pairs, ["resid_pre"], corrupt=c)["resid_pre"][0] for c in (True, False))


def metric_at(fraction, task):
    """The mean metric with the embeddings moved by `fraction` of the way."""
    here = Write(mw.Site("resid_pre", 0), Value(start + fraction * (end - start)))
    with torch.no_grad(), intervene(model, [here]):
        return float(task.measure(model(task.pairs.clean_tokens)).mean())


way = [i / 20 for i in range(21)]
difference = [metric_at(x, task) for x in way]
course.lines(
    way,
    {"logit difference": difference},
    title="The metric between the corrupt and the clean prompts",
    x_title="from corrupt (0) to clean (1)",
    y_title="logit difference",
)

# %% jupyter={"outputs_hidden": true}
print("slope of the first step, times the whole way:", round((difference[1] - difference[0]) * 20, 2))
print("what really happens:                         ", round(difference[-1] - difference[0], 2))

# %% [markdown]
# <details><summary>What came out: open it after your own guess</summary>
#
# The line is flat at both ends, and at the start it even goes *down*. Norms and attention saturate too. So the slope at
# the corrupt run has the wrong sign.
#
# </details>
#
# This is what it does to the map. (`rules="gradient"` is the plain slope; Pearson's correlation compares the numbers,
# Spearman's their ranks; the relative error says how far the sizes are off.)

# %%
exact = mw.patch(model, task, ["resid_pre", "mlp_out", "z"])
plain = mw.attribute(model, task, exact.sites, rules="gradient")
print(plain.agreement(exact))

# %%
from mechwork.render import agreement_figure

course.show(agreement_figure(plain, exact), "Estimated against measured effects: gradients, one step")

# %% [markdown]
# Points on the diagonal are right. Many of the *largest* measured effects have an estimate of the wrong sign, and a
# method that is wrong about the largest effects is worse than a noisy one.
#
# ### Exercise 4.3 (easy; about 5 minutes)
# At `mlp_out` the correlation is above 0.9, and it looks as if the estimates were usable there. Before you believe a
# correlation, ask how many cells make it. How many of the `mlp_out` cells have a measured effect of more than 1 % of
# the gap? (`exact["mlp_out"].values`, `exact.baseline.gap`.)

# %%
n_cells = ...
course.check("4.3", n_cells, exact)
# Stuck? Run course.hint("4.3"), then course.solution("4.3")

# %%
values, guesses = exact["mlp_out"].values.flatten(), plain["mlp_out"].values.flatten()
rest = values.abs() < values.abs().max()
print(f"correlation of all {len(values)} cells: {float(torch.corrcoef(torch.stack([values, guesses]))[0, 1]):+.2f}")
print(f"without the largest:         {float(torch.corrcoef(torch.stack([values[rest], guesses[rest]]))[0, 1]):+.2f}")

# %% [markdown]
# One cell makes the correlation. Whenever you read one, in a paper too, ask how many points carry it.

# %% [markdown]
# ## What helps
#
# More points on the path, or other rules for the backward pass (the next notebook).

# %%
five = mw.attribute(model, task, exact.sites, rules="gradient", ig_steps=5)
relp = mw.attribute(model, task, exact.sites, rules="relp")
for name, estimates in (("gradient, 1 step", plain), ("gradient, 5 steps", five), ("relp, 1 step", relp)):
    print(name, estimates.agreement(exact), sep="\n")

# %%
course.show(agreement_figure(five, exact), "Estimated against measured effects: gradients, five steps")

# %% [markdown]
# ### Exercise 4.4 (medium; about 5 minutes)
# A plain estimate costs two forward passes and one backward pass. Each of several steps costs one forward and one
# backward pass more *instead of* the one backward pass. How many passes, forward and backward together, does
# `ig_steps=5` take?

# %%
passes = ...
course.check("4.4", passes)
# Stuck? Run course.hint("4.4"), then course.solution("4.4")

# %% [markdown]
# ## Build it
#
# Attribution patching is one line of algebra and one backward pass. To get the slope at an activation, let a hook put a
# tensor in its place that asks for gradients: `kept["x"] = x.detach().requires_grad_()`, returned by the hook; then
# `torch.autograd.grad(metric, kept["x"])`.
#
# ### Exercise 4.5 (build it; hard; about 25 minutes)
# `attribution(model, task, layer)`: the estimated effect of the stream that enters `layer`, one number per position:
# `(a_clean - a_corrupt) * slope`, summed over the width, averaged over pairs; the slope is the one at the **corrupt**
# run. All prompts have one length.


# %%
def attribution(model, task, layer):
    """The estimate of one row of the map, by hand."""


course.check("4.5", attribution)
# Stuck? Run course.hint("4.5"), then course.solution("4.5")

# %% [markdown]
# ### Exercise 4.6 (build it; hard; about 20 minutes)
# `integrated_gradients(model, task, n_steps)`: the same for the stream that enters **layer 0**, with the slope averaged
# over `n_steps` midpoints of the straight way from the corrupt to the clean stream: `corrupt + (k + 0.5) / n_steps *
# (clean - corrupt)`. With one step it is *not* exercise 4.5: the midpoint is not the start.


# %%
def integrated_gradients(model, task, n_steps):
    """Integrated gradients of the embeddings, by hand."""


course.check("4.6", integrated_gradients)
# Stuck? Run course.hint("4.6"), then course.solution("4.6")

# %% [markdown]
# ## A worse ruler, on purpose
#
# Measure the same effects by the difference of *probabilities*. In both runs a probability is nearly 1, so the slope is
# nearly 0 on both sides.

# %%
bent = task.with_metric("probability_difference")
exact_bent = mw.patch(model, bent, ["resid_pre"])
plain_bent = mw.attribute(model, bent, ["resid_pre"], rules="gradient")
largest = exact_bent["resid_pre"].values.argmax()
print("largest measured effect:", round(float(exact_bent["resid_pre"].values.flatten()[largest]), 3))
print("estimated there:        ", round(float(plain_bent["resid_pre"].values.flatten()[largest]), 3))
print(plain_bent.agreement(exact_bent))

# %% [markdown]
# Look at the *relative error*, not at the correlation: the pattern can even look better than before, because most cells
# are nearly zero in both, while the sizes are lost altogether. A correlation says nothing about size.
#
# ## Keep it

# %%
print(mw.report(course.place("attribution_patching.html"), task, exact, plain, force=True, audience="class"))

# %% [markdown]
# ## Optional: now with GPT-2
#
# Set the switch to True (0.5 GB, downloaded once; some minutes). Does the gradient lie there, too?

# %%
NOW_WITH_GPT2 = False
if NOW_WITH_GPT2:
    gpt2 = mw.load_model("openai-community/gpt2")
    large = mw.tasks.ioi(gpt2, n=16, seed=0)
    truth = mw.patch(gpt2, large, ["attn_out", "mlp_out"])
    for rules in ("gradient", "relp"):
        print(rules, mw.attribute(gpt2, large, truth.sites, rules=rules).agreement(truth), sep="\n")
