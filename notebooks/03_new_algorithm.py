# %% [markdown]
# # A new algorithm in one cell: Meta-Curvature
#
# MAML learns where adaptation starts; its inner step goes down the plain gradient. **Meta-Curvature** (Park
# and Oliva, 2019) learns, beside the initial parameters, matrices that multiply the gradient: the gradient G
# of a layer's weights becomes A G B. So adaptation may go far in some directions and not at all in others,
# and directions may help each other. Meta-SGD is the special case of a step size for every parameter.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jmeta
from jmeta import statistics
from jmeta.algorithms.gradient import outer
from jmeta.policies.extended import ExtendedParams, extended
from jmeta.presets import preset
from jmeta.runs.config import build

SMALL = os.environ.get("JMETA_NOTEBOOK_SIZE") == "small"  # to see that it runs, not what it learns
ITERATIONS, TASKS, FRESH_TASKS, SEEDS = (2, 2, 2, 1) if SMALL else (40, 20, 100, 3)

jmeta.runtime.configure(num_tasks=TASKS)  # as many cores as share the tasks evenly
plt.style.use("jmeta.reporting.plain")

# %% [markdown]
# ## The algorithm
#
# jmeta's gradient-based methods share one outer loop, `outer.algorithm`, and say what they change of MAML.
# Here that is one thing, the inner optimiser: an optax transformation that reads the matrices from the
# meta-parameters. `extended` puts them there, beside the policy's own. The outer gradient goes through the
# inner step into all of them; nothing more is needed.


# %%
def meta_curvature(family, policy, *, inner_learning_rate, **others):
    """MAML whose inner gradient is multiplied by a learned matrix along every axis."""

    def identities(params):
        return jax.tree.map(lambda leaf: [jnp.eye(size) for size in leaf.shape], params)

    def curved(gradient, matrices):
        for axis, matrix in enumerate(matrices):
            gradient = jnp.moveaxis(jnp.tensordot(matrix, gradient, (1, axis)), 0, axis)
        return -inner_learning_rate * gradient

    def update(gradients, state, params):
        step = jax.tree.map(curved, gradients.policy, params.extra)
        return ExtendedParams(step, jax.tree.map(jnp.zeros_like, params.extra)), state  # the matrices stay

    parts = outer.assemble(
        family,
        extended(policy, identities),
        inner_optimizer=lambda rate: optax.GradientTransformation(lambda params: (), update),
        inner_learning_rate=inner_learning_rate,
        **others,
    )
    return outer.algorithm(parts)


# %% [markdown]
# It is a `MetaAlgorithm`: `init`, `update`, `adapt`. Training, evaluation and checkpoints know no more of any
# algorithm. As long as the matrices are identities it must be MAML, which makes a good first test:

# %%
config = preset("maml", "point-goal")
family, policy, maml = build(config)
arguments = {
    name: value for name, value in config.algorithm.items() if name not in ("name", "inner_optimizer")
}
arguments["optimizer"] = optax.adam(config.algorithm["optimizer"]["learning_rate"])
algorithms = {"MAML": maml, "Meta-Curvature": meta_curvature(family, policy, **arguments)}

task = family.sample(jax.random.key(0))
first, second = (
    jax.jit(algorithm.adapt)(algorithm.init(jax.random.key(1)).params, task, jax.random.key(2))[0].params
    for algorithm in algorithms.values()
)
np.testing.assert_allclose(*(jax.flatten_util.ravel_pytree(x)[0] for x in (first, second.policy)), rtol=1e-4)
print("the first step is MAML's")

# %% [markdown]
# ## Comparison
#
# Both with MAML's settings, which were tuned for MAML, on the same tasks, with several seeds.

# %%
histories, returns = {}, {}
for name, algorithm in algorithms.items():
    for seed in range(SEEDS):
        history = []
        state = jmeta.train(
            algorithm,
            family,
            iterations=ITERATIONS,
            num_tasks=TASKS,
            seed=seed,
            log_every=1,
            callback=history.append,
        )
        histories.setdefault(name, []).append([progress.metrics["return_after"] for progress in history])
        key = jmeta.evaluation.evaluation_key(seed)  # tasks that training does not draw
        with jax.set_mesh(jmeta.parallel.task_mesh()):  # tasks are shared by all cores
            result = jmeta.evaluate(algorithm, family, state.params, key, num_tasks=FRESH_TASKS)
        returns.setdefault(name, []).append(result.return_mean)

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
for index, name in enumerate(algorithms):
    left.plot(range(1, ITERATIONS + 1), np.transpose(histories[name]), color=f"C{index}", alpha=0.8)
    mean, low, high, _ = statistics.over_seeds(np.stack(returns[name]))
    right.fill_between(range(len(mean)), low, high, color=f"C{index}", alpha=0.25, linewidth=0)
    right.plot(mean, marker="o", color=f"C{index}", label=name)
left.set(xlabel="meta-iteration", ylabel="return after adaptation", title="Training, a line a seed")
right.set(xlabel="adaptation steps", ylabel="return", xticks=range(len(mean)))
right.set_title(f"{SEEDS} seeds x {FRESH_TASKS} fresh tasks, mean and t interval")
right.legend()
plt.show()

# %% [markdown]
# The intervals are Student's t over the seeds. With fewer than five seeds nobody can say whether they cover
# 95 %. Training is for one step: look at the return after one, and take the further ones as a measure of how
# robust the step is.
#
# To have it in the library, put the factory into a file of `jmeta/algorithms/gradient/` under
# `@hyperparameters_of(outer.assemble, without=("inner_optimizer",))`, and a line into the registry: flags,
# configuration and the contract test follow from its signature.
