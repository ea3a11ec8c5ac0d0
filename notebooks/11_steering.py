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
# # 11. Steering and what it costs
#
# > **Goals.** After this notebook you can
# > 1. fit a steering vector, and say what share of a behaviour it brings about;
# > 2. say what else it changes, in nats;
# > 3. put controls beside it that could have done as well.

# %%
import course

course.begin("11")

# %%
import torch

import mechwork as mw
from mechwork.directions import Examples, fit_direction, study_steering

model = mw.load_model("gpt2-6l")
task = mw.tasks.pronoun(model, n=128, seed=0)
she = model.to_single_token(" she")


def only_she(part):
    """The pairs whose clean answer is " she"."""
    return part[[i for i in range(len(part)) if int(part.pairs.correct[i, 0]) == she]]


train, test = only_she(task.train), only_she(task.test)
print(len(train), "pairs to fit,", len(test), "pairs to test")
print(test.describe(1))

# %% [markdown]
# ## A vector
#
# *Steering* adds something to the stream while the model runs, so that it behaves as if the prompt were another one.
# Here: prompts with a man's name are to be answered with " she". The simplest steering vector is a **difference of
# means**: the mean stream of the prompts that behave as wanted, minus that of the others.
#
# ### Exercise 11.1 (build it; easy; about 15 minutes)
# `steering_vector(model, task, layer)`: the mean over pairs of the stream **after** block `layer`
# (`blocks.2.hook_resid_post`) at the last position of the clean prompts, minus that of the corrupt prompts. The prompts
# have different lengths and are padded at the end: the last position of prompt i is `task.pairs.lengths[i] - 1`.


# %%
def steering_vector(model, task, layer):
    """The difference of means at the last word."""


course.check("11.1", steering_vector)
# Stuck? Run course.hint("11.1"), then course.solution("11.1")

# %% [markdown]
# ## How much of what was wanted?
#
# A success of 0: the corrupt prompts stay what they are. A success of 1: they reach the metric of the clean prompts.
#
# ### Exercise 11.2 (build it; medium; about 20 minutes)
# `success(model, task, layer, vector, strength)`: add `strength * vector` to the stream after block `layer` at
# **every** position of the corrupt prompts. With m the mean metric, return (m(steered corrupt) - m(corrupt)) /
# (m(clean) - m(corrupt)).


# %%
def success(model, task, layer, vector, strength):
    """The share of the behaviour that the vector brings about."""


course.check("11.2", success)
# Stuck? Run course.hint("11.2"), then course.solution("11.2")

# %% [markdown]
# ## What else changes?
#
# A vector that turns " he" into " she" may turn everything else into something else, too. The ruler is the divergence
# of the steered from the plain model on prompts that have nothing to do with it: with p the plain probabilities of the
# next word and q the steered ones, KL = sum of p (log p - log q), in **nats** (natural logarithm).
#
# ### Exercise 11.3 (build it; medium; about 20 minutes)
# `side_effect(model, tokens, layer, vector, strength)`: this KL at the last position, averaged over the prompts, which
# all have one length. The vector is added at every position, as before.


# %%
def side_effect(model, tokens, layer, vector, strength):
    """How far the steered model is from the plain one, in nats."""


course.check("11.3", side_effect)
# Stuck? Run course.hint("11.3"), then course.solution("11.3")

# %% [markdown]
# ## A control
#
# Any hard push changes something. A *random* direction, as long as the fitted one, shows how much.
#
# ### Exercise 11.4 (build it; easy; about 10 minutes)
# `random_control(vector, seed)`: a vector of the same length in a random direction, every direction being as likely as
# any other; the same seed gives the same vector.


# %%
def random_control(vector, seed):
    """As long as the vector, and otherwise nothing to do with it."""


course.check("11.4", random_control)
# Stuck? Run course.hint("11.4"), then course.solution("11.4")

# %% [markdown]
# ## Predict first
#
# Now the library's study: the same vector, added (`add`) with rising strength, and its random control. **Before you run
# the next cell, write down:** in what share of the prompts will the *random* vector, at strength 4, make " she" more
# probable than " he"?

# %%
prediction = ...
course.predict("11", prediction)

# %% jupyter={"outputs_hidden": true}
direction = fit_direction(model, Examples.of_task(train), mw.Site("resid_post", 1))
others = [mw.tasks.agreement(model, n=32, seed=0).test]
strengths = (0.25, 0.5, 1.0, 2.0, 4.0)
study = study_steering(
    model, test, direction, methods=["add", "mirror_below", "rotate_below"], strengths=strengths, others=others,
    n_random=1,
)  # fmt: skip
print(study)

# %% [markdown]
# <details><summary>What came out: open it after your own guess</summary>
#
# *Accuracy* is that share. The random vector reaches it in nearly every prompt, and a success above one half: it
# destroys the answer " he", and what is left is a model that says much the same to everything. Look at *others* and
# *KL*: it has forgotten the grammar of other sentences as well. **Success without its side effects is no result**, and
# a success of one half is what mere destruction gives.
#
# </details>
#
# The two other methods ask first: `mirror_below` reflects a state at the boundary between the classes, and only if it
# lies on the wrong side; `rotate_below` turns it and keeps its length.

# %%
lines = {}
for method in ("add", "mirror_below", "rotate_below"):
    lines[method] = [row.success for row in study.of(method)]
lines["add (random)"] = [row.success for row in study.of("add", "random 0")]
course.lines(strengths, lines, title="Success, by strength", x_title="strength", y_title="success")

# %% [markdown]
# ### Exercise 11.5 (easy; about 10 minutes)
# You may change the next word of other prompts by at most 0.1 nats on average. Which methods reach a success of at
# least 0.8 at some strength within this budget? (A list of names; `study.best(method, max_kl=0.1)` helps.)

# %%
good = ...
course.check("11.5", good, study)
# Stuck? Run course.hint("11.5"), then course.solution("11.5")

# %% [markdown]
# ## What it looks like

# %%
from mechwork.directions import steering_write
from mechwork.interventions import Write, intervene

prompts = [test.pairs.corrupt_tokens[0, : int(test.pairs.lengths[0])], others[0].pairs.clean_tokens[0]]
prompts[1] = prompts[1][: int(others[0].pairs.lengths[0])]


def continued(tokens, write=None):
    """The prompt and the next four words."""
    settings = {"max_new_tokens": 4, "do_sample": False, "verbose": False}
    with torch.no_grad(), intervene(model, [] if write is None else [write]):
        return model.tokenizer.decode(model.generate(tokens[None], **settings)[0].tolist())


for tokens in prompts:
    print("plain        ", continued(tokens))
    for method, strength in (("add", 2.0), ("mirror_below", 1.0)):
        print(f"{method:<13}", continued(tokens, Write(direction.site, steering_write(direction, method, strength))))

# %% [markdown]
# Read more: Turner et al. 2023, *Steering Language Models With Activation Engineering*; Rimsky et al. 2024, *Steering
# Llama 2 via Contrastive Activation Addition*; Arditi et al. 2024, *Refusal in Language Models Is Mediated by a Single
# Direction*.
#
# ## Keep it

# %%
saved = course.place("steering.csv")
study.to_dataframe().to_csv(saved, index=False)
print(saved)
print(course.export(course.place("grades_11.csv"), student="my name"))

# %% [markdown]
# ## Optional: now with GPT-2
#
# Set the switch to True (0.5 GB, downloaded once; some minutes). Does the difference of means steer GPT-2?

# %%
NOW_WITH_GPT2 = False
if NOW_WITH_GPT2:
    gpt2 = mw.load_model("openai-community/gpt2")
    large = mw.tasks.pronoun(gpt2, n=32, seed=0)
    she_there = gpt2.to_single_token(" she")
    large = large[[i for i in range(len(large)) if int(large.pairs.correct[i, 0]) == she_there]]
    towards = fit_direction(gpt2, Examples.of_task(large.train), mw.Site("resid_post", 5))
    grammar = [mw.tasks.agreement(gpt2, n=16, seed=0)]
    print(study_steering(gpt2, large.test, towards, methods=["mirror_below"], others=grammar, n_random=1))
