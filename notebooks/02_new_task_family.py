# %% [markdown]
# # A new task family in ten lines: the broken compass
#
# A boat starts at the origin and should reach a buoy that never moves. But its compass is broken: whatever
# heading it chooses is turned by an angle that it does not know. One fixed policy must grope its way: the
# heading that is right for one angle is wrong for the opposite one, and only where it has drifted tells it
# which it has. A policy that adapts can find the angle once, and then go straight.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax

import jmeta
from jmeta.envs.point_mass import point_mass
from jmeta.types import TaskFamily

SMALL = os.environ.get("JMETA_NOTEBOOK_SIZE") == "small"  # to see that it runs, not what it learns
ITERATIONS, TASKS, FRESH_TASKS = (2, 2, 2) if SMALL else (60, 20, 100)

jmeta.runtime.configure(num_tasks=TASKS)  # as many cores as share the tasks evenly
plt.style.use("jmeta.reporting.plain")

# %% [markdown]
# ## The family
#
# A task is a pytree of arrays, here the angle, and an argument of the environment's `step`: so tasks are
# vmapped and none compiles anew. An environment is a bundle of pure functions, and another one is made by
# replacing one of them: this one is jmeta's point in the plane with its action turned.

# %%
BUOY = jnp.array([0.5, 0.0])


def broken_compass():
    plane = point_mass(horizon=40, reward=lambda position, angle: -jnp.linalg.norm(position - BUOY))

    def step(key, position, action, angle):
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        return plane.step(key, position, jnp.array([[cos, -sin], [sin, cos]]) @ action, angle)

    def sample(key):
        return jax.random.uniform(key, maxval=2 * jnp.pi)

    return TaskFamily("broken-compass", plane._replace(step=step), sample, sample_heldout=sample)


# %% [markdown]
# ## Training
#
# Every algorithm takes any family. `pretrain` is the reference: one policy trained on all tasks at once, with
# as many episodes as MAML, which then adapts by the same steps.

# %%
family = broken_compass()
policy = jmeta.policies.mlp(family.env.spec, hidden=(64, 64))
inner = {"inner_learning_rate": 0.1, "gae_lambda": 0.95, "normalize_advantages": False}
outer = {"optimizer": optax.adam(3e-3), "outer_surrogate": "ppo-clip", "outer_epochs": 15}
algorithms = {
    "MAML": jmeta.algorithms.maml(family, policy, **inner, **outer),
    "pretrain": jmeta.algorithms.pretrain(family, policy, **inner, **outer),
}

# %%
params, results = {}, {}
for name, algorithm in algorithms.items():
    state = jmeta.train(algorithm, family, iterations=ITERATIONS, num_tasks=TASKS)
    params[name] = jax.device_get(state.params)
    key = jax.random.key(1)  # the same fresh tasks for both
    with jax.set_mesh(jmeta.parallel.task_mesh()):  # shared by all cores
        results[name] = jmeta.evaluate(
            algorithm, family, params[name], key, num_tasks=FRESH_TASKS, num_steps=3
        )

# %%
for name, result in results.items():
    intervals = zip(result.return_mean, result.return_low, result.return_high, strict=True)
    print(f"{name:10}", *(f"{mean:6.1f} [{low:.1f}, {high:.1f}]" for mean, low, high in intervals))
    plt.fill_between(result.steps, result.return_low, result.return_high, alpha=0.25)
    plt.plot(result.steps, result.return_mean, marker="o", label=name)
plt.xticks(result.steps)
plt.xlabel("adaptation steps (10 episodes each)")
plt.ylabel("return")
plt.title(f"Broken compass: {FRESH_TASKS} fresh tasks, mean and 95 % interval")
plt.legend()
plt.show()

# %% [markdown]
# `pretrain` has to do well at once. MAML is free to do badly before adaptation, if what it sees there shows
# it the angle. The intervals are over tasks, of one training run each; other seeds give other curves.
#
# ## What it looks like
#
# Sixteen compasses, a colour for each angle. Before adaptation the policy does not know which it has, and its
# paths fan out; after one step they should lead to the buoy, whatever the angle.


# %%
@jax.jit
@jax.vmap
def before_and_after(angle, key):
    """Positions [steps, 2] of an episode before adaptation and of one after a step."""
    key_adapt, key_act = jax.random.split(key)
    adapted, info = algorithms["MAML"].adapt(params["MAML"], angle, key_adapt, 1)
    _, after = jmeta.rollouts.episode(family.env, policy, adapted, angle, key_act)
    return info.data.inputs.obs[0, 0], after.inputs.obs


angles = jnp.linspace(0, 2 * jnp.pi, 16, endpoint=False)
played = before_and_after(angles, jax.random.split(jax.random.key(2), 16))

# %%
colors = plt.cm.ScalarMappable(plt.Normalize(0, 360), "hsv")
titles = ("before adaptation", "after one step (another scale)")
figure, panels = plt.subplots(1, 2, figsize=(10, 4.4))
for panel, paths, title in zip(panels, played, titles, strict=True):
    for angle, path in zip(jnp.degrees(angles), paths, strict=True):
        panel.plot(*path.T, color=colors.to_rgba(angle), linewidth=1.2)
    panel.plot(*BUOY, "*", color="black", markersize=13, label="buoy")
    panel.set(title=title, xlabel="x", ylabel="y", aspect="equal", adjustable="datalim")
panels[0].legend()
figure.colorbar(colors, ax=panels, label="angle of the compass (degrees)", ticks=range(0, 361, 90))
plt.show()

# %% [markdown]
# To keep such a family, put the function into a file of `jmeta/tasks/` and a line into `tasks.REGISTRY`: the
# command line, presets and tests then know it (`ARCHITECTURE.md`, "To add").
