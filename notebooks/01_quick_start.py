# %% [markdown]
# # Quick start: an adaptation curve
#
# A *task family* is a distribution over tasks. A *meta-learner* trains on many of them, so that it adapts to
# a new one from a little experience. Here the task is to walk to a goal in the plane that the agent is not
# shown: it has to infer from rewards where to go. **MAML** meta-learns initial parameters of a policy, from
# which one step of policy gradient is meant to suffice; the reference is the same steps **from scratch**.

# %%
import os

import jax
import matplotlib.pyplot as plt

import jmeta
from jmeta.presets import preset
from jmeta.runs.config import build

SMALL = os.environ.get("JMETA_NOTEBOOK_SIZE") == "small"  # to see that it runs, not what it learns
ITERATIONS, TASKS, FRESH_TASKS = (2, 2, 2) if SMALL else (60, 20, 100)

jmeta.runtime.configure(num_tasks=TASKS)  # as many cores as share the tasks evenly
plt.style.use("jmeta.reporting.plain")

# %% [markdown]
# A preset is a complete configuration; `build` makes its three parts. They are small bundles of pure
# functions.

# %%
config = preset("maml", "point-goal")
family, policy, maml = build(config)
for name, value in config.algorithm.items():
    print(f"{name:22}{value}")

# %% [markdown]
# ## Meta-training
#
# A meta-iteration samples some tasks. On each it collects episodes, takes one inner step, collects episodes
# of the adapted policy, and differentiates *their* objective through the inner step. That makes the return
# **after** adaptation rise; the return before it need not.

# %%
history = []
state = jmeta.train(
    maml, family, iterations=ITERATIONS, num_tasks=TASKS, log_every=1, callback=history.append
)

# %%
iterations = [progress.iteration for progress in history]
for metric, label in (("return_before", "before adaptation"), ("return_after", "after one step")):
    plt.plot(iterations, [progress.metrics[metric] for progress in history], label=label)
plt.xlabel("meta-iteration")
plt.ylabel("return (mean over training tasks)")
plt.title("Meta-training of MAML on point-goal")
plt.legend()
plt.show()

# %% [markdown]
# ## Adaptation to fresh tasks
#
# `evaluate` adapts to tasks that training did not draw, and measures the return after every step. Intervals
# are 95 % bootstrap intervals of the mean over tasks. They are of *one* training run: with another seed the
# curves differ by more than that. Episodes that are measured are not those that adaptation learns from.

# %%
_, _, scratch = build(preset("scratch", "point-goal"))
results = {}
with jax.set_mesh(jmeta.parallel.task_mesh()):  # tasks are shared by all cores
    for name, algorithm in (("MAML", maml), ("from scratch", scratch)):
        results[name] = jmeta.evaluate(
            algorithm,
            family,
            state.params,
            jmeta.evaluation.evaluation_key(0),
            num_tasks=FRESH_TASKS,
            num_steps=5,
        )

# %%
for name, result in results.items():
    plt.fill_between(result.steps, result.return_low, result.return_high, alpha=0.25)
    plt.plot(result.steps, result.return_mean, marker="o", label=name)
plt.axhline(results["MAML"].optimal_mean, color="0.4", linestyle="--", label="knows the goal")
plt.xlabel("adaptation steps (10 episodes each)")
plt.ylabel("return")
plt.title(f"Return on {FRESH_TASKS} fresh tasks, mean and 95 % interval")
plt.legend()
plt.show()

# %% [markdown]
# MAML was trained for exactly *one* step. Further steps take it where it was never asked to do well: they may
# help, or overshoot the goal. (`num_inner_steps=3` trains for three.)
#
# ## What adaptation does
#
# The grey episodes are those that it learned from: it sets out in all directions and so sees where the reward
# is. The coloured ones are of the adapted policy.


# %%
params = jax.device_get(state.params)


@jax.jit
def before_and_after(task, key):
    """Positions [episodes, steps, 2] of the episodes adapted on, and of five after one step."""
    key_adapt, key_act = jax.random.split(key)
    adapted, info = maml.adapt(params, task, key_adapt, 1)
    after = jmeta.rollouts.batch(family.env, policy, adapted, task, key_act, 5)
    return info.data.inputs.obs[0], after.inputs.obs


figure, panels = plt.subplots(1, 4, figsize=(12, 3.4), sharex=True, sharey=True)
for seed, panel in enumerate(panels):
    goal = family.sample(jax.random.key(seed))
    for paths, color in zip(before_and_after(goal, jax.random.key(10 + seed)), ("0.75", "C0"), strict=True):
        panel.plot(*paths.transpose(2, 1, 0), color=color, linewidth=1)
    panel.plot(*goal, "*", color="C3", markersize=14, zorder=3)
    panel.set(aspect="equal", xlabel="x", xlim=(-1.2, 1.2), ylim=(-1.2, 1.2))
panels[0].set_ylabel("y")
figure.suptitle(
    "Four tasks: episodes before adaptation (grey) and after one step (blue); the star is the goal"
)
plt.show()
