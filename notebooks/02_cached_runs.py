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
# # 2. Cached runs: what a model computes
#
# > **Goals.** After this notebook you can
# > 1. record a run and read the shape of every activation;
# > 2. take the residual stream apart and put it together again;
# > 3. say how much memory a recording takes, before you make it.

# %%
import course

course.begin("2")

# %%
import torch

import mechwork as mw

model = mw.load_model("gpt2-6l")
task = mw.tasks.ioi(model, n=48, seed=0).test  # 24 pairs with held-out names and templates
run = mw.record_run(
    model,
    task.pairs,
    ["embed", "resid_pre", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "pattern", "mlp_post"],
)
for kind in run.layers:
    print(f"{kind:<10} {tuple(run[kind].shape)}")

# %% [markdown]
# Read the axes from left to right. Kinds inside the blocks start with the **layer**; then come the **pair**, the
# **position**, and what is left: the width of the stream (`d_model`), or a head and its width (`head`, `d_head`), or
# neurons (`d_mlp`). Attention (`pattern`) has two positions: who looks, and where.
#
# ## Predict first
#
# A transformer block *adds* to the stream. **Before you run the next cell, write down:** if you take the stream that
# enters block 0 and add everything that all attention layers and all MLPs write, what do you get? Exactly, or nearly?

# %%
prediction = ...
course.predict("2", prediction)

# %% jupyter={"outputs_hidden": true}
total = run["resid_pre"][0] + run["attn_out"].sum(dim=0) + run["mlp_out"].sum(dim=0)
print("largest difference to the stream after the last block:", float((total - run["resid_post"][-1]).abs().max()))
print("largest number in that stream:                        ", float(run["resid_post"][-1].abs().max()))

# %% [markdown]
# <details><summary>What came out: open it after your own guess</summary>
#
# The stream *is* the sum. This is why "who wrote it?" is a question that has an answer. The small difference is
# rounding.
#
# </details>
#
# ### Exercise 2.1 (easy; about 5 minutes)
# The same for one block: rebuild the stream **after block 2** from three recorded tensors. (Give the tensor itself.)

# %%
rebuilt = ...
course.check("2.1", rebuilt, run)
# Stuck? Run course.hint("2.1"), then course.solution("2.1")

# %% [markdown]
# ## From heads to the stream
#
# `z` is what each head has gathered, in the head's own small space. The output matrix `W_O` turns it into what the head
# writes to the stream. The heads' writes add up to `attn_out`, but for a bias that belongs to no head.

# %%
attention = model.blocks[2].attn
written = torch.einsum("bphe,hed->bphd", run["z"][2], attention.W_O)
print("one write per head:", tuple(written.shape))
print("heads alone:     ", float((written.sum(dim=2) - run["attn_out"][2]).abs().max()))
print("heads and bias:  ", float((written.sum(dim=2) + attention.b_O - run["attn_out"][2]).abs().max()))

# %% [markdown]
# ### Exercise 2.5 (build it; medium; about 10 minutes)
# The same for one head, and without `record_run`: `head_write(model, tokens, layer, head)` returns what this head adds
# to the stream, with the shape (pair, position, width of the stream) and without the bias.
# `model.run_with_cache(tokens, names_filter=name)` returns the logits and a dictionary of what was recorded; `z` of
# block 2 is called `blocks.2.attn.hook_z`, with the shape (pair, position, head, width of a head). `model.W_O[layer,
# head]` is the head's own matrix. It is tried on two models.


# %%
def head_write(model, tokens, layer, head):
    """What one head adds to the stream at every position."""


course.check("2.5", head_write)
# Stuck? Run course.hint("2.5"), then course.solution("2.5")

# %% [markdown]
# ## From the stream to the answer
#
# The last stream goes through a norm and the unembedding. What comes out are the logits, one number per word of the
# vocabulary.

# %%
logits = model.unembed(model.ln_final(run["resid_post"][-1]))
print("same as the model's own logits:", bool(torch.equal(logits, run.logits)))
print("metric per pair:", [round(value, 1) for value in task.measure(run.logits).tolist()][:6], "...")

# %% [markdown]
# ### Exercise 2.2 (easy; about 5 minutes)
# How often is the model right? The metric of this task is the logit of the right name minus that of the wrong one, so a
# pair counts as right when it is positive. Give the share of right pairs, between 0 and 1.

# %%
share = ...
course.check("2.2", share, task, run)
# Stuck? Run course.hint("2.2"), then course.solution("2.2")

# %% [markdown]
# ## Where heads look
#
# A row of `pattern` says how one position spreads its attention over itself and the positions before it. Each row adds
# up to 1; nothing looks ahead.

# %%
pattern = run["pattern"]
rows = pattern.sum(dim=-1)
print("rows add up to", float(rows.min()), "...", float(rows.max()))
print("attention to later positions:", float(pattern.triu(diagonal=1).abs().max()))
mw.record_attention(model, task, ["a0.h3", "a1.h3", "a4.h1", "a5.h1"], row=0)

# %% [markdown]
# ### Exercise 2.3 (medium; about 10 minutes)
# Other models share keys and values among heads. In the bundled `llama-6l`, which shape has `run["k"]` for 8 pairs of
# 28 tokens? The anatomy says what you need. (Give a tuple of five numbers.)

# %%
from mechwork.models import read_anatomy

llama = mw.load_model("llama-6l")
anatomy = read_anatomy(llama)
print(
    f"{anatomy.n_layers} layers, {anatomy.n_heads} heads, {anatomy.n_kv_heads} key/value heads of width "
    f"{anatomy.d_head}"
)

# %%
shape = ...
course.check("2.3", shape, anatomy)
# Stuck? Run course.hint("2.3"), then course.solution("2.3")

# %% [markdown]
# ## Memory
#
# A number in float32 takes 4 bytes. The recording above:

# %%
for kind in run.layers:
    tensor = run[kind]
    print(f"{kind:<10} {tensor.numel() * tensor.element_size() / 1e6:6.2f} MB")
print(f"{'together':<10} {run.n_bytes / 1e6:6.2f} MB")

# %% [markdown]
# ### Exercise 2.4 (easy; about 5 minutes)
# GPT-2 (small) has 12 layers and a stream of width 768. How many **bytes** does `resid_pre` of all layers take for 64
# prompts of 128 tokens, in float32?

# %%
n_bytes = ...
course.check("2.4", n_bytes)
# Stuck? Run course.hint("2.4"), then course.solution("2.4")

# %% [markdown]
# This is why the methods of mechwork record only the kinds that they need, and take a `memory_budget`.
#
# ## Keep it
#
# A page with the task and where four of its heads look.

# %%
attention_of = mw.record_attention(model, task, ["a0.h3", "a1.h3", "a4.h1", "a5.h1"], row=0)
print(mw.report(course.place("cached_runs.html"), task, attention_of, force=True))

# %% [markdown]
# ## Optional: now with GPT-2
#
# Set the switch to True (0.5 GB, downloaded once). Is the sum of everything that is written still the stream?

# %%
NOW_WITH_GPT2 = False
if NOW_WITH_GPT2:
    gpt2 = mw.load_model("openai-community/gpt2")
    large = mw.tasks.ioi(gpt2, n=8, seed=0)
    big = mw.record_run(gpt2, large.pairs, ["resid_pre", "resid_post", "attn_out", "mlp_out"])
    summed = big["resid_pre"][0] + big["attn_out"].sum(dim=0) + big["mlp_out"].sum(dim=0)
    print(float((summed - big["resid_post"][-1]).abs().max()), big.n_bytes / 1e6, "MB")
