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
# # 1. First circuit
#
# > **Goals.** After this notebook you can
# > 1. say where in a small model an answer is computed, by *measuring*;
# > 2. estimate the same map from three passes, and say how far to trust it;
# > 3. find the circuit, and test it on prompts it was not found on.
#
# This is the whole story once, in half an hour; every step has a lesson of its own, and nothing here must be understood
# to the end. No network, no GPU. The model is small, but it was trained, and the circuit in it is real.
#
# Three words: at every position a transformer keeps one vector, the **stream**. Attention **heads** read it at other
# positions, **MLPs** at their own, and both add what they find. (Lesson 0 takes them apart.)

# %%
import course

course.begin("1")

# %%
import mechwork as mw

model = mw.load_model("gpt2-6l")
task = mw.tasks.ioi(model, n=48, seed=0)
print(task.describe(2))

# %% [markdown]
# In the *clean* prompt one of two people is named a second time, and the answer is the other one. The *corrupt* prompt
# names the other person again, which turns the answer round. The **metric** is the logit of the right name minus the
# logit of the wrong one: large when the model is right, negative when it is wrong.
#
# The pairs have different lengths, so positions have names instead of numbers: `IO` (the indirect object), `S1` and
# `S2` (the subject, first and second time), `END` (the last word), and `S2+` for what lies between `S2` and `END`.
#
# ### Exercise 1.4 (build it; easy; about 10 minutes)
# `gap(clean, corrupt, right, wrong)`: how far the metric of the clean run lies above that of the corrupt run, for one
# pair. `clean` and `corrupt` are each one row of logits, one number per word of the vocabulary; `right` and `wrong` are
# the two names as numbers of words. The right name is the *clean* prompt's, in both runs. Which sign do you expect?


# %%
def gap(clean, corrupt, right, wrong):
    """The metric of the clean run minus that of the corrupt run."""


course.check("1.4", gap)
# Stuck? Run course.hint("1.4"), then course.solution("1.4")

# %% [markdown]
# ## Predict first
#
# We will copy one activation of the clean run into the corrupt run and look whether the right answer comes back. The
# two prompts differ at one position only. (`resid_pre` is the stream as it enters a layer; layers count from 0.)
# **Before you run the next cell, write down:** at which position will this work in layer 0? And in the last layer?

# %%
prediction = ...
course.predict("1", prediction)

# %% jupyter={"outputs_hidden": true}
exact = mw.patch(model, task, sites=["resid_pre"])
exact["resid_pre"]

# %% [markdown]
# Each cell of the map is one experiment. Numbers are in units of the metric; `normalized()` divides them by the gap
# between the two runs, so that 1 means "the whole answer came back".

# %% jupyter={"outputs_hidden": true}
effect = exact["resid_pre"].normalized()
positions = effect.labels["pos"]
for layer in (0, 5):
    best = int(effect.values[layer].argmax())
    print(f"layer {layer}: strongest at {positions[best]:<4} ({float(effect.values[layer, best]):4.0%} of the gap)")

# %% [markdown]
# ### Exercise 1.1 (easy; about 5 minutes)
# The answer is read at `END`. At which position does the stream carry the information when it enters **layer 3**? (One
# of the names above.)

# %%
where = ...
course.check("1.1", where, exact)
# Stuck? Run course.hint("1.1"), then course.solution("1.1")

# %% [markdown]
# ## Estimate instead of measuring
#
# Measuring took one run per cell. Two forward passes and one backward pass *estimate* all cells at once. An estimate is
# worth what its agreement with the measurement is worth, so the two always stand side by side. (`relp` names the rules
# of the backward pass; lessons 4 and 5 are about them.)

# %%
approx = mw.attribute(model, task, sites=exact.sites, rules="relp")
print(approx.agreement(exact))
approx["resid_pre"]

# %% [markdown]
# A correlation near 1 says that the *pattern* is right: Pearson's compares the numbers themselves, Spearman's only
# their ranks. The relative error says how far the *sizes* are off. Both are worth knowing: an estimate can rank places
# well and still be wrong about how much each of them matters.
#
# ## The circuit
#
# Now every **edge** of the computational graph: which head or MLP reads what which other one wrote. An edge's *score*
# estimates what happens to the metric when the clean value runs along this edge alone: (clean write - corrupt write)
# times the slope of the metric at the reader (*edge attribution patching*, EAP). The default averages the slope over
# five points between the two runs (EAP-IG). The circuit keeps the edges with the largest scores, here 60, less those
# that lead nowhere. We find it on the training pairs. The test pairs have other names and other templates.
#
# How to read an edge: in `input->a0.h3<v>` the embeddings (`input`) are read by head 3 of layer 0 as its value; `<q>`
# and `<k>` are queries and keys, `m2` is the MLP of layer 2, `logits` the end. Numbers in brackets are a 95 % interval.

# %%
scores = mw.score_edges(model, task.train)
circuit = scores.circuit(n_edges=60)
result = mw.evaluate(model, task.test, circuit)
print(circuit)
print(result)

# %% [markdown]
# **Faithfulness**: cut every edge outside the circuit (a cut edge carries its corrupt value) and measure the mean
# metric m. Then (m(circuit) - m(all cut)) / (m(whole model) - m(all cut)): 1 means that the model answers as before, 0
# that it does no better than with everything cut. The random circuits of the same size are the control. Without them, a
# number like 0.9 says little.

# %%
circuit

# %% [markdown]
# ### Exercise 1.2 (easy; about 5 minutes)
# These few edges do the job. What is left of the answer when we do the opposite and cut *exactly these* out? Measure
# the faithfulness of `circuit.complement()` on the test pairs.

# %%
left_over = ...
course.check("1.2", left_over, model, task, circuit)
# Stuck? Run course.hint("1.2"), then course.solution("1.2")

# %% [markdown]
# ### Exercise 1.3 (easy; about 5 minutes)
# How small can the circuit be? Give the smallest number of edges **in this table** whose faithfulness on the test pairs
# is at least 0.8. (Its row of 55 is a smaller circuit than the one above: the strongest 55, and then less those that
# lead nowhere. CPR is the area under the curve, where more is better; CMD is the area between the curve and 1, where 0
# is best.)

# %%
curve = mw.evaluate(model, task.test, scores)
print(curve)

# %%
smallest = ...
course.check("1.3", smallest, curve)
# Stuck? Run course.hint("1.3"), then course.solution("1.3")

# %% [markdown]
# ## Ask the model live
#
# The picture can ask the model. Press *Tour* (three minutes), or click a box of step 2 and press *Ablate*: beside each
# effect stands what the same does at random other places. Then try the strongest head of your circuit, and one outside.

# %%
course.workbench(model, task, scores=scores, circuit=circuit)

# %% [markdown]
# ## Keep it
#
# Everything above as one file that opens in any browser, without a network. `audience="class"` puts a question before
# each result.

# %%
report = mw.report(
    course.place("first_circuit.html"), task, exact, approx, scores, circuit, curve, force=True, audience="class"
)
print(report)

# %% [markdown]
# ## Optional: now with GPT-2
#
# Set the switch to True. The weights (0.5 GB) are downloaded once, and the run takes some minutes on a laptop.

# %%
NOW_WITH_GPT2 = False
if NOW_WITH_GPT2:
    gpt2 = mw.load_model("openai-community/gpt2")
    large = mw.tasks.ioi(gpt2, n=16, seed=0)
    print(mw.attribute(gpt2, large, ["resid_pre"], rules="relp")["resid_pre"].top(5))
