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
# # 8. From scores to a circuit report
#
# > **Goals.** After this notebook you can
# > 1. test a circuit on pairs it was not found on, beside controls that could have beaten it;
# > 2. say how much a result depends on the ablation and on the data;
# > 3. compare the circuits of two tasks, and write it all into one report.

# %%
import course

course.begin("8")

# %%
import mechwork as mw

model = mw.load_model("gpt2-6l")
task = mw.tasks.ioi(model, n=48, seed=0)
scores = mw.score_edges(model, task.train)
circuit = scores.circuit(n_edges=60)
print(len(task.train), "pairs to find it,", len(task.test), "pairs to test it")
print(circuit)

# %% [markdown]
# `scores` has a number for every edge: an edge runs from what a head or MLP *writes* to what a later one *reads*.
# **Edge attribution patching** (EAP) estimates what happens when the clean value runs along this edge alone: (what the
# source writes in the clean run - what it writes in the corrupt run) times the slope of the metric at the target's
# input. EAP-IG, the default here, averages the slope over five points on the way. The circuit keeps the strongest 60
# edges, less those that lead nowhere.
#
# **Faithfulness** of a circuit: run the model with every other edge cut (it carries the corrupt value). With m the mean
# metric over pairs, faithfulness is (m(circuit) - m(nothing)) / (m(whole model) - m(nothing)): 1 is the whole model's
# answer, 0 is no better than nothing; it can exceed 1.
#
# ### Exercise 8.5 (build it; hard; about 30 minutes)
# One edge by hand: from head `a{layer}.h{head}` to the logits. `score_edge(model, task, layer, head)` returns (clean
# write - corrupt write) times the slope of the metric at the last stream (`blocks.5.hook_resid_post` in a model of six
# blocks), the slope taken at the **corrupt** run; summed over width and positions, averaged over pairs. The write of a
# head is `z @ model.W_O[layer, head]`. (No cell above has said `import torch`.)


# %%
def score_edge(model, task, layer, head):
    """Edge attribution patching for one edge into the logits, by hand."""


course.check("8.5", score_edge)
# Stuck? Run course.hint("8.5"), then course.solution("8.5")

# %% [markdown]
# ### Exercise 8.6 (build it; medium; about 20 minutes)
# An estimate is worth its agreement with a measurement, so now *cut* that edge. `cut_edge(model, task, layer, head)`:
# in the **clean** run, take the head's clean write out of the last stream and put its corrupt write in; everything else
# that the head does, through later heads and MLPs, stays clean. Return the mean clean metric minus the mean metric with
# the edge cut. (`model.run_with_hooks` at the last stream, as in 8.5; positive: the edge helps.)


# %%
def cut_edge(model, task, layer, head):
    """The measured effect of one edge into the logits, by hand."""


course.check("8.6", cut_edge)
# Stuck? Run course.hint("8.6"), then course.solution("8.6")

# %% [markdown]
# ## Controls
#
# A circuit is interesting only if something easier does not do as well. *Random circuits* have as many edges. Random
# circuits *of the same degrees* are harder to beat: every node keeps its number of edges, so the right **nodes** are in
# it, with the wrong **wiring**.

# %%
result = mw.evaluate(model, task.test, circuit, n_random=5, n_same_degree=5)
print(result)

# %% [markdown]
# ### Exercise 8.1 (easy; about 5 minutes)
# How much faithfulness does the right wiring add to the right nodes? Give the circuit's faithfulness minus the mean of
# `result.same_degree`.

# %%
wiring = ...
course.check("8.1", wiring, result)
# Stuck? Run course.hint("8.1"), then course.solution("8.1")

# %% [markdown]
# ## Predict first
#
# To test a circuit, all other edges are cut, and a cut edge has to carry *something*: the value of the corrupt prompt
# (as above), zero, or the mean over many prompts. **Before you run the next cell, write down:** which of the three will
# give the lowest faithfulness?

# %%
prediction = ...
course.predict("8", prediction)

# %% jupyter={"outputs_hidden": true}
for ablation in ("corrupt", "zero", "mean"):
    print(mw.evaluate(model, task.test, circuit, ablation=ablation, source=task.train), "\n")

# %% [markdown]
# <details><summary>What came out: open it after your own guess</summary>
#
# The same circuit is nearly the whole model under one ablation and worthless under two others. Both answers are right;
# the questions differ. With `corrupt` values everything that the two prompts share stays as it was: the grammar, the
# template, which names are in play. With zeros and means that is gone as well, and sixty edges cannot rebuild it. **A
# faithfulness without its ablation is no result.**
#
# </details>
#
# ## Is it stable?
#
# If we had drawn other pairs, would the same edges have been chosen? Resampling the scores answers this without another
# run of the model. (The *Jaccard index* of two circuits: edges in both, divided by edges in either; 1 if they are the
# same. Once pairs are drawn again, once whole templates.)

# %%
print(scores.stability(60))
print(scores.stability(60, over="templates"))
inclusion = scores.inclusion(60)
often = inclusion[inclusion > 0].sort(descending=True).values
print("edges chosen at least once:", len(often))
course.lines(
    range(1, len(often) + 1),
    {"share of resamples": often.tolist()},
    title="How often each edge is chosen",
    x_title="edge, most frequent first",
    y_title="share of resamples",
)

# %% [markdown]
# ### Exercise 8.2 (easy; about 5 minutes)
# How many edges are chosen in **every** resample?

# %%
always = ...
course.check("8.2", always, inclusion)
# Stuck? Run course.hint("8.2"), then course.solution("8.2")

# %% [markdown]
# ## Ask the model live
#
# Take nodes out of your circuit by a click and watch its faithfulness beside random circuits; ablate its strongest
# head, then one outside it. *Tour* is a walk of three minutes.

# %%
course.workbench(model, task, scores=scores, circuit=circuit)

# %% [markdown]
# ## Two tasks, one circuit?
#
# Three tasks of this model: indirect objects, gendered pronouns (" he" or " she" after a first name), and greater-than
# (a span of years ends after it began). A circuit is found for each. Then each circuit has to run the *other* tasks, on
# held-out pairs. Overlap alone proves little.

# %%
from mechwork.circuits import study_reuse

others = [mw.tasks.pronoun(model, n=32, seed=0), mw.tasks.greater_than(model, n=32, seed=0)]
reuse = study_reuse(model, [task, *others], n_edges=60)
print(reuse)

# %% [markdown]
# ### Exercise 8.3 (easy; about 5 minutes)
# How many times more edges do indirect objects and pronouns share than two random circuits would? (Jaccard index
# divided by the one of chance; `reuse.comparison.overlaps[0]` has both.)

# %%
times = ...
course.check("8.3", times, reuse)
# Stuck? Run course.hint("8.3"), then course.solution("8.3")

# %% [markdown]
# ### Exercise 8.4 (easy; about 5 minutes)
# And does that let the circuit of pronouns do the task of indirect objects? Which **other** task's circuit runs
# `greater_than` best? (A task's name.)

# %%
donor = ...
course.check("8.4", donor, reuse)
# Stuck? Run course.hint("8.4"), then course.solution("8.4")

# %% [markdown]
# Indirect objects share edges with both other tasks far beyond chance, and cannot be run by either circuit. The other
# two tasks can mostly be run by each other's circuits. (Why? A guess worth testing: both have to carry one word's
# property to the end of the prompt.) Only running the circuit tells the two situations apart.
#
# ## The report
#
# The circuit, its curve over sizes, its evaluation, and the words that you add: what was done, and what was *not*.

# %%
curve = mw.evaluate(model, task.test, scores)
words = {
    "summary": "Found on 24 pairs, tested on 24 others. Faithful under corrupt ablation only; not tested on other "
    "models.",
    "limits": "Under zero and mean ablation this circuit does not work; see notebook 8.",
}
print(mw.report(course.place("circuit_report.html"), task, scores, circuit, result, curve, texts=words, force=True))
circuit.save(course.place("ioi_circuit.json"))
circuit

# %% [markdown]
# ## Optional: now with GPT-2
#
# Set the switch to True (0.5 GB, downloaded once; some minutes).

# %%
NOW_WITH_GPT2 = False
if NOW_WITH_GPT2:
    gpt2 = mw.load_model("openai-community/gpt2")
    large = mw.tasks.ioi(gpt2, n=32, seed=0)
    found = mw.score_edges(gpt2, large.train)
    print(mw.evaluate(gpt2, large.test, found.circuit(n_edges=500), n_same_degree=2))
