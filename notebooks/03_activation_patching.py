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
# # 3. Activation patching done right
#
# > **Goals.** After this notebook you can
# > 1. line up prompts of different length, so that what you copy belongs where you put it;
# > 2. choose a metric, and say what another one would have hidden;
# > 3. choose between *denoise* and *noise*, and say which question each answers.

# %%
import course

course.begin("3")

# %%
import mechwork as mw

model = mw.load_model("gpt2-6l")

# %% [markdown]
# ## Alignment
#
# Patching copies an activation from one run into another. "Position 10" is a good address only if position 10 means the
# same in both prompts. One word more, and everything behind it has moved.

# %%
clean = "When Mary and John went to the store, John gave a drink to"
corrupt = "When Mary and John went to the big store, Mary gave a drink to"
clean_ids, corrupt_ids = (model.to_tokens(text)[0].tolist() for text in (clean, corrupt))
for i in range(max(len(clean_ids), len(corrupt_ids))):
    words = [model.tokenizer.decode(ids[i]) if i < len(ids) else "" for ids in (clean_ids, corrupt_ids)]
    print(f"{i:2d}  {words[0]:<16}{words[1]}")

# %%
right, wrong = (model.to_single_token(name) for name in (" Mary", " John"))
try:
    mw.Task.from_tokens([clean_ids], [corrupt_ids], [right], [wrong])
except mw.errors.InputError as error:
    print(error)

# %% [markdown]
# The refusal is on purpose: a heat map of misaligned prompts looks fine and means nothing. The remedy is to give
# positions **names** (spans). What lies between two named spans becomes a span of its own.
#
# ### Exercise 3.1 (easy; about 5 minutes)
# The second subject stands at position 10 of the clean prompt. At which position of the **corrupt** prompt does it
# stand?

# %%
s2_in_corrupt = ...
course.check("3.1", s2_in_corrupt)
# Stuck? Run course.hint("3.1"), then course.solution("3.1")

# %%
s2 = 11 if s2_in_corrupt is ... else s2_in_corrupt
named = mw.Task.from_tokens(
    [clean_ids],
    [corrupt_ids],
    [right],
    [wrong],
    spans=[{"S1": [4], "S2": [10]}],
    corrupt_spans=[{"S1": [4], "S2": [s2]}],
)
aligned = mw.patch(model, named, ["resid_pre"])
aligned["resid_pre"]

# %% [markdown]
# One pair is an anecdote. From here on we use the bundled task, whose pairs come with such names.
#
# ## The metric decides what you see
#
# One sweep can be read under several metrics at once.

# %%
task = mw.tasks.ioi(model, n=32, seed=0)
metrics = ["logit_difference", "probability_difference", "log_probability"]
denoise = mw.patch(model, task, ["resid_pre", "z"], metrics=metrics)
noise = mw.patch(model, task, ["resid_pre", "z"], metrics=metrics, direction="noise")


def share(effects, metric, layer, head):
    """The effect of a head as a share of the gap between the clean and the corrupt run."""
    return float(effects.under(metric)["z"].normalized().values[layer, head])


heads = [(0, 3), (1, 3), (4, 1), (5, 1)]
print(f"{'share of the gap':<32}" + "".join(f"a{layer}.h{head:<9}" for layer, head in heads))
for metric in metrics:
    for name, effects in (("denoise", denoise), ("noise", noise)):
        print(f"{metric:<24}{name:<8}" + "".join(f"{share(effects, metric, *head):<12.3f}" for head in heads))

# %% [markdown]
# Look at `a5.h1`. By the logit difference it carries about a sixth of the gap in both directions. By the log
# probability it carries a third of the gap in one direction and next to nothing in the other. The head is the same; the
# *ruler* is bent: a probability near 1 hardly changes when a logit falls by 5, so the clean run hides what the head
# does.
#
# ### Exercise 3.2 (easy; about 5 minutes)
# For which of the three metrics do the two directions agree best on these four heads? (Give its name.)

# %%
straight = ...
course.check("3.2", straight, denoise, noise)
# Stuck? Run course.hint("3.2"), then course.solution("3.2")

# %% [markdown]
# ## Denoise and noise ask different questions
#
# *Denoise* puts a clean value into the corrupt run: is this **enough**? *Noise* puts a corrupt value into the clean
# run: is this **needed**? Two tiny models show the difference; their weights are written by hand. Each has two switches
# A and B, both on in the clean prompt and both off in the corrupt one. The answer of one model is `A and B`, of the
# other `A or B`.
#
# ## Predict first
#
# **Before you run the next cell, write down** four numbers, 0 or 1: the effect of patching switch A alone, for AND and
# for OR, by denoise and by noise.

# %%
prediction = ...
course.predict("3", prediction)

# %% jupyter={"outputs_hidden": true}
for gate in ("and_gate", "or_gate"):
    case = mw.ground_truth.find_case(gate)
    for direction in ("denoise", "noise"):
        effects = mw.patch(case.model, case.task, ["resid_pre"], direction=direction)["resid_pre"].values[0]
        print(f"{gate:<9} {direction:<8} switch A {float(effects[0]):.0f}   switch B {float(effects[1]):.0f}")

# %% [markdown]
# <details><summary>What came out: open it after your own guess</summary>
#
# One of the two directions sees nothing at all: an AND hides its inputs from denoise (one input is not enough), an OR
# hides them from noise (no input is needed, since the other one is still there). Nobody tells you which kind of gate is
# in your model.
#
# </details>
#
# ### Exercise 3.3 (medium; about 10 minutes)
# A model has a head that names the answer, and a *backup* head that takes over when the first one fails. Each alone is
# enough. Which direction shows an effect for each of them?

# %%
direction = ...
course.check("3.3", direction)
# Stuck? Run course.hint("3.3"), then course.solution("3.3")

# %% [markdown]
# ## What a number in the map means
#
# An effect is a difference of metrics, and you can always go back to the metric itself.

# %%
effect = denoise["resid_pre"]
base = effect.baseline
print(f"clean run {base.clean:.2f}   corrupt run {base.corrupt:.2f}   gap {base.gap:.2f}")
column = effect.labels["pos"].index("S2+")
print(f"share of the gap at layer 4, S2+: {float(effect.normalized().values[4, column]):.3f}")

# %% [markdown]
# ### Exercise 3.4 (easy; about 5 minutes)
# What was the **metric** of the patched run itself, at layer 4 and `S2+`? Work it out from the numbers printed above.

# %%
metric_there = ...
course.check("3.4", metric_there, effect)
# Stuck? Run course.hint("3.4"), then course.solution("3.4")

# %% [markdown]
# A last surprise: shares need not add up to 1. What flows through several heads one after another is counted at each of
# them.

# %%
print("all heads together, in shares of the gap:", round(float(denoise["z"].normalized().values.sum()), 2))
denoise["z"]

# %% [markdown]
# ## Build it
#
# Everything above came from one function of the library. Now write it: twelve lines of hooks.
#
# A *hook* is a function that sees an activation on its way through the model and may return another one in its place.
# `model.run_with_cache(tokens, names_filter=name)` returns `(logits, cache)`; `model.run_with_hooks(tokens,
# fwd_hooks=[(name, hook)])` runs with a hook and takes it off again. The stream that enters block 2 is called
# `blocks.2.hook_resid_pre` and has the shape (batch, position, width).
#
# ### Exercise 3.5 (build it; medium; about 25 minutes)
# `patch_stream(model, task, layer, position)`: put the clean run's stream at `layer` and `position` into the corrupt
# run. Return the mean over pairs of the metric of the patched run, minus that of the corrupt run, as one number.
# (`task.pairs.clean_tokens`, `task.pairs.corrupt_tokens`, `task.measure(logits)`; all prompts of this task have one
# length.) It is tried on three models. Values are enough here, so `with torch.no_grad():` saves time (`import torch`
# first: no cell above has).


# %%
def patch_stream(model, task, layer, position):
    """The effect of one cell, by hand."""


course.check("3.5", patch_stream)
# Stuck? Run course.hint("3.5"), then course.solution("3.5")

# %% [markdown]
# ## Keep it

# %%
print(mw.report(course.place("activation_patching.html"), task, denoise, force=True, audience="class"))

# %% [markdown]
# ## Optional: now with GPT-2
#
# Set the switch to True (0.5 GB, downloaded once; some minutes). Do the two directions agree there?

# %%
NOW_WITH_GPT2 = False
if NOW_WITH_GPT2:
    gpt2 = mw.load_model("openai-community/gpt2")
    large = mw.tasks.ioi(gpt2, n=16, seed=0)
    for way in ("denoise", "noise"):
        print(way, mw.patch(gpt2, large, ["z"], direction=way)["z"].top(5))
