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
# # 5. Relevance patching: rules for the backward pass
#
# > **Goals.** After this notebook you can
# > 1. say what a rule does to the backward pass of a norm, an activation, attention;
# > 2. check whether relevance is conserved, and read why not;
# > 3. say when relevance patching helps, and show a case in which it does not.
#
# This lesson is **optional**: no later one needs it. It needs lesson 4, and some patience with derivatives.

# %%
import course

course.begin("5")

# %%
import torch

import mechwork as mw

model = mw.load_model("gpt2-6l")
task = mw.tasks.ioi(model, n=32, seed=0)


def metric(logits):
    """The logit difference of every pair."""
    return task.measure(logits)


# %% [markdown]
# ## Predict first
#
# A popular way to ask what the last stream contributes to the answer is *activation times gradient*, summed up. Between
# the last stream and the logits there is only a norm and a matrix. **Before you run the next cell, write down:** the
# metric, summed over all pairs, is about 440. How much of it will activation times gradient find in the last stream:
# about 440, more, or less?

# %%
prediction = ...
course.predict("5", prediction)

# %% jupyter={"outputs_hidden": true}
by_gradient = mw.check_conservation(model, task.pairs.clean_tokens, metric, "gradient")
print(f"the metric, summed over pairs:                 {by_gradient.value:8.2f}")
print(f"activation x gradient after the last block:    {by_gradient.relevance[-1]:8.2f}")

# %% [markdown]
# <details><summary>What came out: open it after your own guess</summary>
#
# Nothing! A norm divides by the size of its input: make the stream twice as long, and the answer stays the same. So the
# gradient *along the stream itself* is zero, however much the stream says. It is not a small error but a wrong
# question: the gradient asks "what if there were a little more of everything?"
#
# </details>
#
# **The LN-rule** treats the norm's divisor as a constant. Then the norm is linear, and what goes in comes out.
#
# ### Exercise 5.1 (medium; about 10 minutes)
# By hand: `f(x) = x[0] / |x|`, a norm that keeps only its first number. At `x = (3, 4)`, `|x|` is 5 and `f(x) = 0.6`.
# Under the LN-rule, what is activation times coefficient, **summed over both numbers**? (Under the plain gradient it is
# 0; the next cell shows it.)

# %%
x = torch.tensor([3.0, 4.0], requires_grad=True)
(gradient,) = torch.autograd.grad(x[0] / x.norm(), x)
print(
    "gradient:",
    gradient.tolist(),
    "  activation times gradient, summed:",
    round(float((x * gradient).sum().detach()), 6),
)

# %%
under_rule = ...
course.check("5.1", under_rule)
# Stuck? Run course.hint("5.1"), then course.solution("5.1")

# %% [markdown]
# ## Build it: rules are detached gradients
#
# `x.detach()` has the value of `x`, and no gradient. That is all a rule needs: the forward pass stays as it is to the
# last bit, and what is detached is a constant for the backward pass.
#
# ### Exercise 5.5 (build it; medium; about 15 minutes)
# `layer_norm(x, gain, bias)`: LayerNorm over the last axis (centre, divide by the root of the variance plus 1e-5, gain,
# bias), whose backward pass follows the **LN-rule**: the divisor is a constant, the centring is not. (The variance is
# the *mean* squared distance; torch's `x.var()` divides by one less, unless told otherwise.)


# %%
def layer_norm(x, gain, bias):
    """LayerNorm with a constant divisor in the backward pass."""


course.check("5.5", layer_norm)
# Stuck? Run course.hint("5.5"), then course.solution("5.5")

# %% [markdown]
# ### Exercise 5.6 (build it; medium; about 10 minutes)
# The **Identity-rule** treats an activation as multiplication by the constant act(x) / x. Write `gelu(x)` so: its value
# is `torch.nn.functional.gelu(x)`, its derivative is `gelu(x) / x`. Mind x = 0, where gelu(x) / x tends to 1/2.


# %%
def gelu(x):
    """GELU under the Identity-rule."""


course.check("5.6", gelu)
# Stuck? Run course.hint("5.6"), then course.solution("5.6")

# %% [markdown]
# ## Is relevance conserved?
#
# A *composite* is a list of rules, one per kind of module. Three are used here: `gradient` (no rule at all), `relp`
# (the LN-rule, the Identity-rule, and halves where two factors are multiplied) and `relp_ah`, which adds the
# **AH-rule**: the attention pattern is a constant, too. If every rule hands on exactly what it gets, relevance and the
# biases' share add up to the metric at every layer. `check_conservation` keeps the account (the *residue* is what is
# missing of the metric), and says why it need not close.

# %%
print(by_gradient)

# %%
print(mw.check_conservation(model, task.pairs.clean_tokens, metric, "relp"))

# %%
conserved = mw.check_conservation(model, task.pairs.clean_tokens, metric, "relp_ah")
print(conserved)

# %% [markdown]
# `relp` leaves attention as it is: its scores depend on both queries and keys, and relevance is counted on every way.
# `relp_ah` holds the pattern constant as well, and the account closes.
#
# Conservation is tidy, but it is not a proof: a method can share out the whole metric and still share it out wrongly.
# The proof is agreement with measured effects, further down.
#
# ## Relevance of tokens
#
# The everyday use: what did each word contribute?

# %%
relevance = mw.attribute_tokens(model, "When Mary and John went to the store, John gave a drink to", (" Mary", " John"))
print(relevance)
relevance

# %% [markdown]
# ### Exercise 5.2 (easy; about 5 minutes)
# The words' numbers do not add up to the metric. What share of the metric do they miss? (A number between 0 and 1, from
# `relevance`.)

# %%
missing = ...
course.check("5.2", missing, relevance)
# Stuck? Run course.hint("5.2"), then course.solution("5.2")

# %% [markdown]
# ## When it helps
#
# In notebook 4, gradients failed on this task. Which rule repairs them? Here each rule stands alone.

# %%
exact = mw.patch(model, task, ["resid_pre", "attn_out", "mlp_out"])
trials = {"no rule": "gradient", "LN-rule": ["LN-rule"], "Identity-rule": ["Identity-rule"], "AH-rule": ["AH-rule"]}
print(f"{'correlation with measured effects':<34}" + "".join(f"{kind:>12}" for kind in exact))
for name, rules in trials.items():
    rows = mw.attribute(model, task, exact.sites, rules=rules).agreement(exact)
    print(f"{name:<34}" + "".join(f"{row.pearson:>+12.3f}" for row in rows.values()))

# %% [markdown]
# ### Exercise 5.3 (easy; about 5 minutes)
# Which single rule helps most at `resid_pre`? (`"LN-rule"`, `"Identity-rule"` for activations, or `"AH-rule"` for
# attention.)

# %%
best_rule = ...
course.check("5.3", best_rule, model, task, exact)
# Stuck? Run course.hint("5.3"), then course.solution("5.3")

# %%
from mechwork.render import agreement_figure

relp = mw.attribute(model, task, exact.sites, rules="relp")
course.show(agreement_figure(relp, exact), "Estimated against measured effects: relevance patching")

# %% [markdown]
# ## When it does not
#
# In *induction* a list of words is said again, and the model continues it by looking up what came next the first time.
# There the mechanism **is** the attention pattern.

# %%
induction = mw.tasks.induction(model, n=32, seed=0)
print(induction.describe(1))
truth = mw.patch(model, induction, ["resid_pre", "attn_out"])
for rules in ("gradient", "relp", "relp_ah"):
    print(f"{rules}\n{mw.attribute(model, induction, truth.sites, rules=rules).agreement(truth)}")

# %% [markdown]
# ### Exercise 5.4 (medium; about 10 minutes)
# Which of the three agrees **least** at `resid_pre` here? Before you answer, ask yourself why it must be this one.

# %%
weakest = ...
course.check("5.4", weakest, model, induction, truth)
# Stuck? Run course.hint("5.4"), then course.solution("5.4")

# %% [markdown]
# So there is no best composite for everything, and even the better ones correlate here at less than 0.9. Measure a
# sample, look at the agreement, and say in your report which rules you used.
#
# ## Keep it

# %%
print(mw.report(course.place("relevance_patching.html"), task, exact, relp, force=True, audience="class"))

# %% [markdown]
# ## Optional: now with GPT-2
#
# Set the switch to True (0.5 GB, downloaded once). Which words does GPT-2 use?

# %%
NOW_WITH_GPT2 = False
if NOW_WITH_GPT2:
    gpt2 = mw.load_model("openai-community/gpt2")
    text = "When Mary and John went to the store, John gave a drink to"
    print(mw.attribute_tokens(gpt2, text, (" Mary", " John")))
