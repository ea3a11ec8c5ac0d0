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
# # 10. Features
#
# > **Goals.** After this notebook you can
# > 1. take an activation apart into sparse features and an error, and say how much the features miss;
# > 2. take one feature out of a running model, and score all of them at once;
# > 3. say why "this feature separates singular from plural" is weaker than it sounds.

# %%
import course

course.begin("10")

# %%
import torch

import mechwork as mw
from mechwork import features as ft
from mechwork.interventions import Entries, Zero

model = mw.load_model("gpt2-6l")
shipped = ft.load_features(model)  # 512 features at each of 18 places
coder = shipped["resid_post.4"]  # the stream after block 4
task = mw.tasks.agreement(model, n=64, seed=0)
print(coder)
print(task.describe(2))

# %% [markdown]
# ## A dictionary for a place
#
# A stream of 128 numbers holds more than 128 things at once, so single coordinates mean little. A **sparse
# autoencoder** learns a longer list of directions, of which only a few are used at a time. With x the activation:
#
#     p = (x - b_in) W_enc + b_enc
#     f = the k largest of max(p, 0), every other entry 0        the features; here k = 16 of 512
#     x' = f W_dec + b_dec                                       the reconstruction
#     error = x - x'                                             what the features miss
#
# ### Exercise 10.1 (build it; medium; about 15 minutes)
# `reconstruct(x, coder)`: the reconstruction x'. The coder has `W_enc` (width, feature), `b_enc`, `W_dec` (feature,
# width), `b_dec`, `b_in`, and k is `coder.activation.k`. `x` may have any axes before the last.


# %%
def reconstruct(x, coder):
    """Encode, keep the k largest, decode."""


course.check("10.1", reconstruct)
# Stuck? Run course.hint("10.1"), then course.solution("10.1")

# %% [markdown]
# ### Exercise 10.2 (build it; easy; about 10 minutes)
# `unexplained(x, reconstruction)`: the share of the variance that is missed: the squared length of the error, summed,
# divided by the squared length of x minus its mean over all positions, summed. `x` has the shape (position, width).


# %%
def unexplained(x, reconstruction):
    """0: nothing is missed; 1: no better than the mean."""


course.check("10.2", unexplained)
# Stuck? Run course.hint("10.2"), then course.solution("10.2")

# %% [markdown]
# The library's account, on text that the features were not trained on. *Random* is the same with random directions, as
# many and as sparse. *Recovered* asks what matters more: how much of the model's loss stays when the reconstruction is
# put in the activation's place.

# %%
text = mw.lenses.open_text(model, "gpt2-6l", seed=1)
print(ft.evaluate_features(model, shipped.only("resid_post"), text, n_rows=8))

# %% [markdown]
# ## Which feature is "plural"?
#
# For every feature: how far apart are its activations on the two classes of prompts, singular and plural? The distance
# (Jensen-Shannon) is 0 for the same distribution and 1 for no overlap. It is measured on prompts that did not choose
# the feature. *Best dimension* is the best single coordinate of the stream, *random* the best of 512 random directions.

# %%
number = ft.concept_of_answer(model, task.train, " are", name="number")
found = ft.measure_separability(model, shipped.only("resid_post"), number, n_permutations=20)
print(found)

# %% [markdown]
# ### Exercise 10.3 (easy; about 5 minutes)
# The column *passes* compares with chance and with single dimensions. Apply a harder rule: at how many of the six
# places does the best feature separate better than the best **random** direction?

# %%
better = ...
course.check("10.3", better, found)
# Stuck? Run course.hint("10.3"), then course.solution("10.3")

# %% [markdown]
# ## Predict first
#
# After block 4 there is a feature that separates singular from plural perfectly on held-out prompts. **Before you run
# the next cells, write down:** if it is set to 0 everywhere, how much of the logit difference on plural prompts is
# lost: all, half, or a tenth?

# %%
prediction = ...
course.predict("10", prediction)

# %% jupyter={"outputs_hidden": true}
plural = " are"
answers = [model.tokenizer.decode(int(token)) for token in task.test.pairs.correct[:, 0]]
plurals = task.test[[i for i, word in enumerate(answers) if word == plural]]
singulars = task.test[[i for i, word in enumerate(answers) if word != plural]]
elsewhere = [mw.tasks.ioi(model, n=16, seed=0).test]
best = found["resid_post.4"].top[:1]
study = ft.study_suppression(model, shipped, "resid_post.4", best, number, plurals, singulars, others=elsewhere)
print(study)

# %% [markdown]
# <details><summary>What came out: open it after your own guess</summary>
#
# Less than a tenth (*concept*: the share of the metric that is left). The feature can be read perfectly, and the model
# hardly needs it: the same thing is said again elsewhere. **Decodable is not used.**
#
# </details>
#
# ### Exercise 10.4 (build it; medium; about 20 minutes)
# `ablate_feature(model, task, coder, feature)`: the drop of the metric on the clean prompts when one feature is set to
# 0 at every position. The rest of the activation stays, its error too: subtract what the feature writes, and nothing
# else. The coder sits after block `coder.writes.layer`: `blocks.4.hook_resid_post`. `coder.encode(x)` gives the
# features. Positive: the feature helps.


# %%
def ablate_feature(model, task, coder, feature):
    """What one feature does, by taking it away."""


course.check("10.4", ablate_feature)
# Stuck? Run course.hint("10.4"), then course.solution("10.4")

# %% [markdown]
# ## All features at once
#
# As in lesson 4: an estimate for all of them from one backward pass. A feature's score is (its clean value - its
# corrupt value) times the slope of the metric along what it writes.
#
# ### Exercise 10.5 (build it; hard; about 25 minutes)
# `score_features(model, task, coder)`: one number per feature: (f_clean - f_corrupt) * (slope @ W_dec[feature]), the
# slope taken at the activation of the **corrupt** run; summed over positions, averaged over pairs.


# %%
def score_features(model, task, coder):
    """Attribution patching of features, by hand."""


course.check("10.5", score_features)
# Stuck? Run course.hint("10.5"), then course.solution("10.5")

# %%
scores = ft.score_features(model, task.train, shipped.only("resid_post"), rules="gradient")
exact = ft.patch_features(model, task.train, shipped.only("resid_post"), [name for name, _ in scores.top(8)])
for name, effect in zip(exact.names, exact.values.tolist(), strict=True):
    print(f"{name:<20} estimated {dict(scores.top(8))[name]:5.2f}   measured {effect:5.2f}")

# %% [markdown]
# How many features carry the answer after block 4? We set more and more of them to 0: those with the largest scores,
# and as many others by lot.

# %%
here = [int(name.split("/f")[1]) for name, _ in scores.top(10_000) if name.startswith("resid_post.4/f")]
by_lot = [here[i] for i in torch.randperm(len(here), generator=torch.Generator().manual_seed(0)).tolist()]
sizes = [0, 1, 2, 5, 10, 20, 50, 100]


def left(chosen):
    """The metric on test pairs with features set to 0."""
    if not chosen:
        return float(task.test.measure(model(task.test.pairs.clean_tokens)).mean())
    with torch.no_grad(), ft.intervene_features(model, [ft.FeatureWrite(coder, Entries(Zero(), tuple(chosen)))]):
        return float(task.test.measure(model(task.test.pairs.clean_tokens)).mean())


curves = {"largest scores": [left(here[:n]) for n in sizes], "by lot": [left(by_lot[:n]) for n in sizes]}
for name, values in curves.items():
    print(f"{name:<16}" + "".join(f"{value:8.2f}" for value in values))
course.lines(
    sizes, curves, title="Features set to 0 after block 4", x_title="number of features", y_title="logit difference"
)

# %% [markdown]
# Read more: Cunningham et al. 2023, *Sparse Autoencoders Find Highly Interpretable Features in Language Models*; Marks
# et al. 2024, *Sparse Feature Circuits*; Gao et al. 2024, *Scaling and Evaluating Sparse Autoencoders* (top-k).
#
# ## Keep it

# %%
saved = course.place("features.csv")
exact.to_dataframe().to_csv(saved, index=False)
print(saved)

# %% [markdown]
# ## Optional: now with GPT-2
#
# Set the switch to True (0.5 GB, downloaded once; some minutes). No features are shipped for GPT-2; published ones are
# read with `ft.import_features(path)`. Which layer's neurons would you train features for first?

# %%
NOW_WITH_GPT2 = False
if NOW_WITH_GPT2:
    gpt2 = mw.load_model("openai-community/gpt2")
    large = mw.tasks.agreement(gpt2, n=16, seed=0)
    print(mw.attribute(gpt2, large, ["mlp_post"], rules="gradient")["mlp_post"].top(5))
