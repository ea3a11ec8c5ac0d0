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
# # 7. Logit lens and tuned lens
#
# > **Goals.** After this notebook you can
# > 1. read a model's guess at every layer, by hand and with a table;
# > 2. train a tuned lens, and say in bits what it gains;
# > 3. tell what a lens shows from what a component *does*.

# %%
import course

course.begin("7")

# %%
import mechwork as mw
from mechwork.lenses import LOGIT_LENS, LensRecipe, attribute_logits, evaluate_lens, open_text, read_lens, train_lens

model = mw.load_model("gpt2-6l")
prompt = "When Mary and John went to the store, John gave a drink to"
run_tokens = model.to_tokens(prompt)
print(model.tokenizer.decode(int(model(run_tokens)[0, -1].argmax())), "is what the model says in the end")

# %% [markdown]
# The **logit lens** takes the stream between two blocks and reads it as if it were the last one: final norm,
# unembedding, done. Nothing is trained, nothing is changed.
#
# ## Predict first
#
# The model ends with " Mary". **Before you run the next cell, write down:** what will the lens read at the last
# position *before* that, in the middle layers: nothing, " Mary" ever more clearly, or something else?

# %%
prediction = ...
course.predict("7", prediction)

# %% jupyter={"outputs_hidden": true}
table = read_lens(model, prompt, LOGIT_LENS, target=" Mary")
print(table)

# %% [markdown]
# <details><summary>What came out: open it after your own guess</summary>
#
# Something else: first the current word, then the *wrong* name, and only at the very end the right one. A lens does not
# show how an answer grows. It shows what would come out if the rest of the model were left out.
#
# </details>
#
# ### Exercise 7.1 (medium; about 10 minutes)
# Do it by hand, at another position. Give the most probable next word (as text) after ` a` (position 12), read from
# the stream that enters **block 4**: `model.ln_final`, `model.unembed`, `argmax`, and `model.tokenizer.decode` makes
# text of a number. The recorded stream is below.

# %%
pairs = mw.PromptPairs.from_tokens(run_tokens, run_tokens.roll(1, dims=1), [1], [2])
stream = mw.record_run(model, pairs, ["resid_pre"])["resid_pre"]
print("layer, pair, position, width:", tuple(stream.shape))

# %%
word = ...
course.check("7.1", word, table)
# Stuck? Run course.hint("7.1"), then course.solution("7.1")

# %% [markdown]
# The rank of the target says how many words the lens prefers to it; 0 means that it is on top.

# %%
for number, place in enumerate(table.places):
    print(
        f"{place:<14} rank {int(table.rank[number, 0, -1]):5d}   probability "
        f"{float(table.probability[number, 0, -1]):.4f}"
    )

# %% [markdown]
# ### Exercise 7.2 (easy; about 5 minutes)
# At which place is " Mary" on top for the first time? (Its name, as printed.)

# %%
first = ...
course.check("7.2", first, table)
# Stuck? Run course.hint("7.2"), then course.solution("7.2")

# %% [markdown]
# ## A tuned lens
#
# Early streams are written in a "dialect" of their own, so reading them with the last layer's dictionary is unfair. A
# **tuned lens** learns one affine map per layer that translates, with the model itself as the teacher: the loss is the
# divergence of its reading from what the model finally says. Ten steps of training on the model's own kind of text are
# enough to see it.

# %%
text = open_text(model, "gpt2-6l")
trained = train_lens(model, text, LensRecipe(steps=10, step_tokens=1024, ridge_tokens=10_000, held_out_rows=64))
lens = trained.lens
evaluation = evaluate_lens(model, lens, text, n_rows=48)
print(evaluation)

# %% [markdown]
# *KL* is in bits: how far the reading is from the model's final answer. The column *logit lens* is the same for the
# untrained reading, *gain* the difference of the two. *CE* is how surprised the reading is by the true next word, in
# bits, and *top-1* how often its first word is the model's; *its* stands for the logit lens each time.

# %%
tuned = read_lens(model, prompt, lens, target=" Mary")
course.lines(
    range(len(table.places)),
    {"logit lens": table.kl[:, 0, -1].tolist(), "tuned lens": tuned.kl[:, 0, -1].tolist()},
    title="How far the reading at the last word is from the model's answer",
    x_title="number of blocks behind",
    y_title="KL in bits",
)

# %% [markdown]
# On this one prompt the two lenses differ little from block 2 on. One prompt is an anecdote; the table above is the
# average over some text.
#
# ### Exercise 7.3 (easy; about 5 minutes)
# At which place does the tuned lens gain most **bits** over the logit lens, on average over the text? (Its name, from
# the table of the evaluation.)

# %%
gains_most = ...
course.check("7.3", gains_most, model, text, lens)
# Stuck? Run course.hint("7.3"), then course.solution("7.3")

# %% [markdown]
# ### Exercise 7.6 (build it; medium; about 20 minutes)
# A translator needs no training loop: **ridge regression** has a closed form. `translate(x, y, new, penalty)`: find the
# matrix A and the vector b for which `x @ A + b` is as near to `y` as can be in squares, plus `penalty` times the
# squared entries of A (b is free), and return `new @ A + b`. `x` are early streams (tokens, width), `y` the last
# streams of the same tokens. With both centred, A = (x'x + penalty I)^-1 x'y, where I is the identity matrix;
# `torch.linalg.solve` does the inverse (`import torch` first).


# %%
def translate(x, y, new, penalty):
    """An affine map from early to last streams, in closed form."""


course.check("7.6", translate)
# Stuck? Run course.hint("7.6"), then course.solution("7.6")

# %% [markdown]
# A warning that belongs to every trained lens: better reading does not mean that the *model* uses what is read. The
# translator can compute something from the stream that the model would never compute.
#
# ## What is written, and what it does
#
# The logits are a sum over everything that was ever written to the stream. **Direct logit attribution** gives each head
# and each MLP its share. It is exact, and it sees only what goes *straight* to the answer.

# %%
task = mw.tasks.ioi(model, n=32, seed=0)
shares = attribute_logits(model, task)
print(shares)

# %%
needed = mw.patch(model, task, ["z"], direction="noise")["z"]
pairs = task.pairs
corrupt_prompts = [ids[:n].tolist() for ids, n in zip(pairs.corrupt_tokens, pairs.lengths.tolist(), strict=True)]
corrupt_shares = attribute_logits(model, corrupt_prompts, pairs.correct[:, 0].tolist(), pairs.incorrect[:, 0].tolist())
clean_share, corrupt_share = dict(shares.top(45)), dict(corrupt_shares.top(45))
print("head      direct share: clean   corrupt   effect of noising it")
for layer, head in ((0, 3), (1, 3), (4, 1), (5, 1)):
    name = f"a{layer}.h{head}"
    here = f"{clean_share[name]:>+19.2f}{corrupt_share[name]:>+10.2f}"
    print(f"{name:<10}{here}{float(needed.values[layer, head]):>+23.2f}")

# %% [markdown]
# ### Exercise 7.4 (medium; about 10 minutes)
# Noising a head replaces its clean output by its corrupt one. So the part of its effect that goes *straight* to the
# answer is the **change** of its direct share, clean minus corrupt, and not the share itself. How much of the effect of
# `a1.h3` reaches the answer **through other components**?

# %%
indirect = ...
course.check("7.4", indirect, clean_share, corrupt_share, needed)
# Stuck? Run course.hint("7.4"), then course.solution("7.4")

# %% [markdown]
# Now compare `a5.h1`: the change of its direct share is *larger* than its effect. Something downstream takes part of it
# back, here the final norm, whose divisor changes too. (That is why the split is exact only for a share with the
# divisor held.)
#
# ## Build it
#
# ### Exercise 7.5 (build it; hard; about 30 minutes)
# `direct_share(model, task, layer, head)`: a head's share of the logit difference on the clean prompts, by hand. Its
# write at the last position is `z @ model.W_O[layer, head]` (`blocks.2.attn.hook_z`, shape: batch, position, head,
# width). The final norm centres it (LayerNorm does, RMSNorm does not), divides it by the stream's scale
# (`ln_final.hook_scale`, recorded) and multiplies by `model.ln_final.weight`. The answer's direction is `model.W_U[:,
# correct] - model.W_U[:, incorrect]`. Return the mean over pairs. All prompts have one length;
# `model.cfg.normalization_type` says `"LN"` or `"RMS"`.


# %%
def direct_share(model, task, layer, head):
    """Direct logit attribution of one head, by hand."""


course.check("7.5", direct_share)
# Stuck? Run course.hint("7.5"), then course.solution("7.5")

# %% [markdown]
# ## Keep it

# %%
saved = course.place("lens_evaluation.csv")
evaluation.to_dataframe().to_csv(saved, index=False)
print(saved)
needed

# %% [markdown]
# ## Optional: now with GPT-2
#
# Set the switch to True (0.5 GB, downloaded once). Where does GPT-2 settle on the answer?

# %%
NOW_WITH_GPT2 = False
if NOW_WITH_GPT2:
    gpt2 = mw.load_model("openai-community/gpt2")
    print(read_lens(gpt2, prompt, target=" Mary"))
