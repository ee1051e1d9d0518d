# %% [markdown]
# # Bias and variance of meta-gradients
#
# MAML ascends J(θ + α ∇J(θ)), the return *after* an inner step. Both gradients are estimated from episodes,
# and the second derivative in the chain rule is where estimators differ: a naive one forgets that the
# episodes would be *others* if θ were. On a process of two states and three steps every episode can be
# enumerated, so that the exact meta-gradient is known, and every error is seen.

# %%
import contextlib
import functools
import os
import sys

import jax
import matplotlib.pyplot as plt

import jmeta
from benchmarks import meta_gradients
from benchmarks.meta_gradients import LIMIT, STEP_SIZE, Method, oracle

SMALL = os.environ.get("JMETA_NOTEBOOK_SIZE") == "small"  # to see that it runs, not what it finds
EPISODES, BUDGET = ((8,), 256) if SMALL else ((10, 100, 1000), 100_000)
INNER_STEPS = 2

jmeta.runtime.configure()
jax.config.update("jax_enable_x64", True)
plt.style.use("jmeta.reporting.plain")

# %% [markdown]
# ## The estimators
#
# They are updates of the library's algorithms, with one surrogate objective or another for the inner step.
#
# - *first order* (FOMAML) drops the second derivative altogether;
# - *reinforce* differentiates the log-probabilities alone, not the sampling: biased;
# - *ratio* (with it low-variance curvature, ProMP) recovers a part of that: less biased;
# - *DiCE* recovers all of it: unbiased as the number of episodes N grows;
# - *E-MAML* adds to *reinforce* the score of the sampled actions times the return after adaptation: unbiased
#   too.

# %%
first_order = functools.partial(
    oracle.meta_gradient, STEP_SIZE, surrogate="dice", first_order=True
)  # what it tends to
named = {method.name: method for method in meta_gradients.METHODS}
estimators = {
    "first order": Method("first order", "fomaml", {"surrogate": "dice"}, first_order, "biased", biased=True),
    "reinforce": named["maml reinforce"],
    "ratio": named["maml ratio"],
    "DiCE": named["maml dice"],
    "E-MAML": named["e-maml reinforce"],
}

# %% [markdown]
# Each is computed many times over, from N fresh episodes before each of the two inner steps and after the
# last. (Fewer times for larger N, at equal cost.)

# %%
exact = meta_gradients.exact(INNER_STEPS)
cells = {
    (label, episodes): meta_gradients.make_cell(method, INNER_STEPS, episodes, BUDGET)
    for label, method in estimators.items()
    for episodes in EPISODES
}
with contextlib.redirect_stderr(sys.stdout):
    samples = dict(zip(cells, meta_gradients.run(list(cells.values()), 0), strict=True))

# %% [markdown]
# ## The estimates themselves
#
# In each state there are two actions, and only the difference of their logits matters: the meta-gradient is a
# point in the plane. A small dot is one estimate, the circle their mean, the star the exact meta-gradient.
# The *bias* is the distance from circle to star; the *variance* is the size of the cloud (E-MAML's goes
# beyond the panel).

# %%
fewest = EPISODES[0]
figure, panels = plt.subplots(1, len(estimators), figsize=(13, 3.4), sharex=True, sharey=True)
for index, (label, panel) in enumerate(zip(estimators, panels, strict=True)):
    cloud = samples[label, fewest].reshape(-1, *exact.shape)[:, :, 0]
    panel.plot(*cloud[:800].T, ".", color=f"C{index}", markersize=2, alpha=0.4)
    panel.plot(*cloud.mean(0), "o", color="white", markeredgecolor="black", markersize=8, label="mean")
    panel.plot(*exact[:, 0], "*", color="black", markersize=11, label="exact")
    panel.set(title=label, xlabel="component of state 1")
panels[0].set_ylabel("component of state 2")
panels[0].legend(loc="lower right")
panels[0].set(xlim=exact[0, 0] + [-0.15, 0.15], ylim=exact[1, 0] + [-0.15, 0.15])
figure.suptitle(f"Estimates from N = {fewest} episodes: meta-gradient by the logit of the first action")
plt.show()

# %% [markdown]
# ## Against the number of episodes
#
# A bias that more episodes do not remove is the estimator's own. Filled circles are further from the exact
# meta-gradient than three standard errors of the mean; hollow ones are not: there the curve shows what so
# many repetitions can resolve, and not a bias.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
for index, (label, method) in enumerate(estimators.items()):
    results = [
        meta_gradients.describe(cells[label, n], samples[label, n], exact, method.limit(INNER_STEPS))
        for n in EPISODES
    ]
    color = f"C{index}"
    left.plot(EPISODES, [result.bias for result in results], color=color)
    for result in results:
        face = color if result.from_reference > LIMIT else "white"
        left.plot(result.episodes, result.bias, "o", color=color, markerfacecolor=face)
    right.plot(EPISODES, [result.variance for result in results], "o-", color=color, label=label)
left.set(xscale="log", yscale="log", xlabel="episodes N", ylabel="bias, relative to the exact norm")
right.set(xscale="log", yscale="log", xlabel="episodes N", ylabel="variance, relative to the squared norm")
right.legend()
figure.suptitle(f"Bias and variance of meta-gradients through {INNER_STEPS} inner steps")
plt.show()

# %% [markdown]
# Unbiased is not better by itself. E-MAML gives credit to the actions of every one of the N episodes, so that
# its variance does not fall with N as the others' do: it is paid for the bias. All of it, for one to three
# steps and more estimators: `python -m benchmarks.meta_gradients`.
