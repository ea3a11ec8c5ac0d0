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
# # 6. Ablation: zero, mean, resample
#
# > **Goals.** After this notebook you can
# > 1. ablate a head in five ways, and say which question each way answers;
# > 2. test whether a model repairs itself when a head is gone;
# > 3. name a head's role from measurements, beside chance.

# %%
import course

course.begin("6")

# %%
import mechwork as mw
from mechwork.ablation import AblationSpec, ablate, measure_roles, study_self_repair, sweep_ablations

model = mw.load_model("gpt2-6l")
template = "Then, {IO} and {S1} went to the {place}. {S2} gave a {object} to"
task = mw.tasks.ioi(model, n=32, seed=0, template=template)
print(task.describe(1))

# %% [markdown]
# To *patch* is to put in another run's value. To *ablate* is to put in a value without the information. There are
# several such values:
#
# | kind | what is put in | what stays in it |
# |---|---|---|
# | `zero` | zero | nothing |
# | `mean` | the mean over all prompts and positions | what is always there |
# | `mean_by_position` | the mean over prompts, position by position | what is there at this place of the template |
# | `resample` | the value in another, random prompt | everything but which prompt it is |
# | `corrupt` | the value in the paired corrupt prompt | everything but what differs within the pair |
#
# We use one template here, so that a position means the same in all prompts.
#
# ## Predict first
#
# In notebook 3, patching head `a1.h3` took more than a third of the gap: it carries information about the repeated
# name. **Before you run the next cell, write down:** will ablating it *lower* the logit difference with each of the
# five kinds? A positive effect means: the head helps.

# %%
prediction = ...
course.predict("6", prediction)

# %% jupyter={"outputs_hidden": true}
kinds = ("zero", "mean", "mean_by_position", "resample", "corrupt")
sweeps = {kind: sweep_ablations(model, task, ["heads"], kind=kind)["z"] for kind in kinds}
heads = [(0, 0), (0, 3), (1, 3), (4, 1), (5, 1)]
print(f"{'effect of ablating':<20}" + "".join(f"a{layer}.h{head}".rjust(9) for layer, head in heads))
for kind, effect in sweeps.items():
    print(f"{kind:<20}" + "".join(f"{float(effect.values[head]):>+9.2f}" for head in heads))

# %% [markdown]
# <details><summary>What came out: open it after your own guess</summary>
#
# The late heads `a4.h1` and `a5.h1` help under all five, by 2 to 4 logits. `a1.h3` even changes its **sign**. Nothing
# is broken: with its message taken away altogether, this model does *better*; with a message that says the wrong name,
# it follows that.
#
# So "the effect of ablating this head" is not one number. Say which kind.
#
# </details>
#
# ### Exercise 6.1 (easy; about 5 minutes)
# Under which kinds does `a1.h3` help (a positive effect)? Give a list of names.

# %%
helps = ...
course.check("6.1", helps, sweeps)
# Stuck? Run course.hint("6.1"), then course.solution("6.1")

# %%
sweeps["mean"]

# %% [markdown]
# ## Two at once
#
# If one head is the *backup* of another, losing both is worse than the two losses added up. `a4.h1` and `a5.h1` both
# write the answer. Does each cover for the other?

# %%
alone = [ablate(model, task, AblationSpec([head], kind="mean")) for head in ("a4.h1", "a5.h1")]
both = ablate(model, task, AblationSpec(["a4.h1", "a5.h1"], kind="mean"))
for result in (*alone, both):
    print(result, "\n")

# %% [markdown]
# ### Exercise 6.2 (easy; about 5 minutes)
# By how much is losing both worse than the two single losses added up? (`result.effect` is the mean drop.)

# %%
interaction = ...
course.check("6.2", interaction, alone, both)
# Stuck? Run course.hint("6.2"), then course.solution("6.2")

# %% [markdown]
# ## Self-repair
#
# A head writes something straight into the answer: its *direct* effect. When it is ablated, the metric drops by the
# *total* effect. If the total is smaller than the direct effect, the rest of the model has made up for the loss; the
# study says whether the final norm did, other heads, or MLPs (all in logits), and which heads step in as *backups*. In
# large language models this has often been seen (Rushing & Nanda 2024).

# %%
repair = study_self_repair(model, task)
print(repair)

# %% [markdown]
# ### Exercise 6.3 (medium; about 5 minutes)
# Which **share** of the direct effect of `a3.h3` is repaired? (1: all of it; 0: nothing; below 0: the loss is larger
# than what the head itself had written.) Work it out from *direct* and *total*; `table` has them.

# %%
table = repair.to_dataframe().set_index("head")
repaired = ...
course.check("6.3", repaired, repair)
# Stuck? Run course.hint("6.3"), then course.solution("6.3")

# %% [markdown]
# In this model hardly anything is repaired. The numbers are mostly negative: what later heads read from a lost head is
# lost as well. That is a finding, too. (Perhaps a small model that was trained on few tasks has little reason to keep a
# spare; this run does not show why.)
#
# ## Roles
#
# Where a head looks and what it writes can be measured on *random repeated tokens*, which no head can know by heart.
# Each score stands beside chance: what a head of the same strength would reach on shuffled prompts. We take the
# smallest bundled model, in which an induction circuit is made of two layers.

# %%
small = mw.load_model("attn-only-2l")
roles = measure_roles(small)
print(roles)

# %% [markdown]
# ### Exercise 6.4 (easy; about 5 minutes)
# Which head of `attn-only-2l` is a previous-token head? (Written like `a1.h1`.)

# %%
previous = ...
course.check("6.4", previous, roles)
# Stuck? Run course.hint("6.4"), then course.solution("6.4")

# %% [markdown]
# The table is the textbook picture: one head of layer 0 looks one token back, and the heads of layer 1 look at what
# came after the same word the first time (*induction*) and write it (*copying*). But note what it does *not* say: a
# role is a word for a measurement on some prompts, not a property of a head.
#
# The same question on the task's own prompts, in the larger model: the effect of ablating, the direct effect, and where
# the head looks.

# %%
study = mw.study_heads(model, task)
study

# %% [markdown]
# ## Build it
#
# ### Exercise 6.5 (build it; medium; about 20 minutes)
# `mean_ablate(model, task, layer, head)`: the drop of the metric on the **clean** prompts when a head's output `z`
# (`blocks.2.attn.hook_z`, shape: batch, position, head, width) is replaced by its mean over the prompts, position by
# position. Positive: the head helps. All prompts have one length, so that a position means the same in all of them.


# %%
def mean_ablate(model, task, layer, head):
    """The effect of ablating one head by its mean, by hand."""


course.check("6.5", mean_ablate)
# Stuck? Run course.hint("6.5"), then course.solution("6.5")

# %% [markdown]
# ## Keep it

# %%
print(mw.report(course.place("ablation.html"), task, study, force=True, audience="class"))

# %% [markdown]
# ## Optional: now with GPT-2
#
# Set the switch to True (0.5 GB, downloaded once; some minutes). Wang et al. (2022) report backup heads for this task
# there; do you find them?

# %%
NOW_WITH_GPT2 = False
if NOW_WITH_GPT2:
    gpt2 = mw.load_model("openai-community/gpt2")
    large = mw.tasks.ioi(gpt2, n=32, seed=0, template=template)
    print(study_self_repair(gpt2, large, ["a9.h6", "a9.h9", "a10.h0"]))
