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
# # 0. Inside a transformer
#
# > **Goals.** After this notebook you can
# > 1. say what tokens, the residual stream, a head, Q, K, V and O are, with their shapes;
# > 2. take a head apart into where it looks (QK) and what it writes (OV);
# > 3. explain induction by hand, and say when it appears in training.
#
# You need some Python, matrix products, and a rough idea of what a neural network is. No more.

# %%
import course

course.begin("0")

# %%
import mechwork as mw

model = mw.load_model("attn-only-2l")  # two layers of two heads; trained on lists of words that are said again
text = "The words: "
tokens = model.to_tokens(text)
print(tokens.tolist(), model.to_str_tokens(text))

# %% [markdown]
# ## Tokens and the stream
#
# A model reads **tokens**: numbers that stand for words or parts of words. Each token becomes a vector, its row in the
# matrix `W_E`. From then on there is one vector at every position, the **residual stream**. Every part of the model
# reads from the stream and *adds* something to it. At the end the stream times `W_U` gives one **logit** for every
# token of the vocabulary; the highest is the model's next word.
#
# A **head** is the only part that carries something from one position to another. It has four matrices:
#
# | matrix | what it makes of the stream | for what |
# |---|---|---|
# | `W_Q` | the **query** of a position | what this position looks for |
# | `W_K` | the **key** of a position | what this position offers to be found by |
# | `W_V` | the **value** of a position | what is taken along from there |
# | `W_O` | what the taken value adds to the stream | what is written here |
#
# Query times key, then softmax over the earlier positions, is the **attention pattern**: where the head looks.

# %%
for name in ("W_E", "W_Q", "W_K", "W_V", "W_O", "W_U"):
    print(name, tuple(getattr(model, name).shape))

# %% [markdown]
# The first two axes of `W_Q` to `W_O` are layer and head. Queries and keys only ever meet as a product, `W_Q W_K^T`:
# the **QK circuit** decides where a head looks. Values are always followed by `W_O`, so `W_V W_O`, the **OV circuit**,
# decides what it writes. (This model also turns queries and keys by an angle that grows with the position, which is
# how it knows about distance; and a norm scales the stream before each layer.)
#
# ### Exercise 0.1 (easy; about 5 minutes)
# `W_V W_O` of one head maps the stream to the stream. What is the highest rank that it can have?

# %%
rank = ...
course.check("0.1", rank, model)
# Stuck? Run course.hint("0.1"), then course.solution("0.1")

# %% [markdown]
# ## Induction by hand
#
# Say random tokens twice: `A B C D A B C`. What comes next can be known without any knowledge of language: look for the
# token that is there now where it stood *before*, and say what came after it. Two heads do this together. One in an
# early layer copies each token one position on (a *previous-token head*); so position 1 knows that it comes after `A`.
# One in a later layer looks for a position that "comes after what I am" (an *induction head*) and copies its token.
#
# ### Exercise 0.2 (easy; about 5 minutes)
# Positions count from 0. Twelve different tokens stand at positions 0 to 11, and the same twelve again at 12 to 23. To
# which position should an induction head at position 17 attend?

# %%
looks_at = ...
course.check("0.2", looks_at)
# Stuck? Run course.hint("0.2"), then course.solution("0.2")

# %% [markdown]
# ### Exercise 0.3 (build it; medium; about 15 minutes)
# `induction_score(pattern, period)`: how much an attention pattern does what you have just worked out, as a mean over
# all positions of the second half. `pattern` is a tensor of the shape (query position, key position), twice `period`
# each: `pattern[q, k]` is how much position `q` looks at position `k`. It is tried on patterns that are made up.


# %%
def induction_score(pattern, period):
    """The mean attention that positions of the second half pay to where an induction head looks."""


course.check("0.3", induction_score)
# Stuck? Run course.hint("0.3"), then course.solution("0.3")

# %% [markdown]
# ## When does it appear?
#
# ## Predict first
#
# The model was saved during its training. **Before you run the next cell, write down:** does induction grow evenly
# over the 2,500 steps, or suddenly? And which of the two kinds of head comes first?

# %%
prediction = ...
course.predict("0", prediction)

# %% jupyter={"outputs_hidden": true}
print("step   previous token   induction   (the best head of each)")
steps, previous, induction = (0, 300, 400, 500, 600, 800, 1000, 2500), [], []
for step in steps:
    then = mw.load_model(f"attn-only-2l@{step}")
    roles = mw.ablation.measure_roles(then)  # on random tokens, said twice
    previous.append(roles.top("previous token", 1)[0][1])
    induction.append(roles.top("induction", 1)[0][1])
    print(f"{step:>4} {previous[-1]:>16.2f} {induction[-1]:>11.2f}")

# %% [markdown]
# <details><summary>What came out: open it after your own guess</summary>
#
# Induction hardly exists at step 300 and is strong by step 800. A weak
# previous-token head is there first, then both rise together. Both fall a little towards the end. These are random
# tokens; on the words of its own task the model keeps getting better (see its card).
#
# </details>
#
# As a picture:

# %% jupyter={"outputs_hidden": true}
course.lines(
    steps,
    {"previous token (best head)": previous, "induction (best head)": induction},
    title="Attention of the best head of each kind, along training",
    x_title="step of training",
    y_title="attention",
)

# %% [markdown]
# ## What a head writes
#
# ### Exercise 0.4 (build it; medium; about 15 minutes)
# `write_of(model, layer, head, token)`: the logits, one per word of the vocabulary, that a head would write if it
# attended only to `token` and the stream there held nothing but the token's embedding. Leave the norms out.


# %%
def write_of(model, layer, head, token):
    """The OV circuit, from a token to logits."""


course.check("0.4", write_of)
# Stuck? Run course.hint("0.4"), then course.solution("0.4")

# %% [markdown]
# If the token itself is among the highest of these logits, the head *copies*. The library measures both halves, where
# heads look and what they write, on random repeated tokens. (*Duplicate token*: how much it attends to the same token
# where it stood before. *Copying*: 1 if what it attends to is raised above the whole vocabulary, -1 if it is lowered
# below it. *Anti-induction*: it finds the token that comes next, and lowers it. The last line is what chance gives.)

# %%
print(mw.ablation.measure_roles(model))

# %% [markdown]
# Read more: Elhage et al. 2021, *A Mathematical Framework for Transformer Circuits* (QK and OV); Olsson et al. 2022,
# *In-context Learning and Induction Heads* (the sudden change in training).
#
# ## Keep it

# %%
print(course.export(course.place("grades_0.csv"), student="my name"))

# %% [markdown]
# ## Optional: now with GPT-2
#
# Set the switch to True (0.5 GB, downloaded once; some minutes). GPT-2 has several induction heads.

# %%
NOW_WITH_GPT2 = False
if NOW_WITH_GPT2:
    gpt2 = mw.load_model("openai-community/gpt2")
    print(mw.ablation.measure_roles(gpt2))
