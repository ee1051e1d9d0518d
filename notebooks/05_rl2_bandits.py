# %% [markdown]
# # RL² on bandits: a learned strategy beside the classical ones
#
# Five arms pay 1 with unknown probabilities, each uniform in [0, 1]; there are ten pulls. Every pull both
# earns and informs: explore, or exploit? Strategies for this have been derived for ninety years. **RL²**
# (Duan et al., 2016) derives none: a recurrent policy sees its last arm and reward, and is trained by PPO on
# many bandits for the total reward of all ten pulls. Its weights stay fixed on a new bandit; what adapts is
# its memory.

# %%
import os

import jax
import matplotlib.pyplot as plt
import numpy as np

import jmeta
from benchmarks import common
from benchmarks.classical import bandits
from jmeta import statistics
from jmeta.presets import preset
from jmeta.runs.config import build

SMALL = os.environ.get("JMETA_NOTEBOOK_SIZE") == "small"  # to see that it runs, not what it learns
ITERATIONS, TASKS, TUNING_TASKS = (2, 64, 64) if SMALL else (600, 10_240, 1024)

jmeta.runtime.configure(num_tasks=256)  # as many cores as share 256 tasks, a minibatch, evenly
plt.style.use("jmeta.reporting.plain")

# %% [markdown]
# ## The classical strategies
#
# They choose by the wins and losses of each arm so far. **Thompson sampling** draws a probability for each
# arm from its posterior and pulls the largest; **UCB1** adds a bonus for uncertainty, whose width is tuned on
# bandits of its own; the **Gittins** index is optimal for discounted bandits without end. All strategies play
# the same fresh bandits.

# %%
config = preset("rl2", "bandit")
family, policy, rl2 = build(config)
num_pulls = family.env.spec.horizon
tasks, keys = common.fresh_tasks(family, TASKS, jax.random.key(1))
tuning = common.fresh_tasks(family, TUNING_TASKS, jax.random.key(2))

rewards = {}  # name -> [tasks, pulls]
known = bandits.strategies(num_pulls)
for label, name in (("random", "random"), ("Thompson", "thompson"), ("UCB1", "ucb1"), ("Gittins", "gittins")):
    strategy, parameter = known[name], 0.0
    with jax.set_mesh(jmeta.parallel.task_mesh()):  # bandits are shared by all cores
        if strategy.candidates:
            tried = [
                bandits.rewards(strategy, family, value, *tuning).mean() for value in strategy.candidates
            ]
            parameter = strategy.candidates[np.argmax(tried)]
            print(f"{label}: {strategy.meaning} {parameter:g}")
        rewards[label] = np.asarray(bandits.rewards(strategy, family, parameter, tasks, keys))

# %% [markdown]
# ## Training RL²
#
# A GRU on a thousand bandits a meta-iteration. The dashed lines are the classical strategies.

# %%
history = []
training = {"iterations": ITERATIONS, "num_tasks": config.training.num_tasks, "log_every": 10}
state = jmeta.train(rl2, family, **training, callback=history.append)

# %%
trained = [progress.metrics["return_trial"] for progress in history]
plt.plot([progress.iteration for progress in history], trained, color="black", label="RL² (training)")
for index, (name, reward) in enumerate(rewards.items()):
    plt.axhline(reward.sum(1).mean(), color=f"C{index}", linestyle="--", label=name)
plt.xlabel("meta-iteration")
plt.ylabel(f"total reward of {num_pulls} pulls")
plt.title("Training of RL²")
plt.legend(loc=(0.65, 0.5))  # between the lines
plt.show()

# %% [markdown]
# ## On fresh bandits
#
# *Regret* is what pulling the best arm from the start would have earned on average, less what was earned.

# %%
play = common.trial_player(family, policy, 1, TASKS, lambda task, steps, returns: steps.reward)
rewards["RL²"] = play(state.params, jax.random.key(1))
best = np.asarray(tasks).max(1, keepdims=True)
pulls = np.arange(1, num_pulls + 1)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2))
for index, (name, reward) in enumerate(rewards.items()):
    color = "black" if name == "RL²" else f"C{index}"
    mean, low, high, _ = statistics.over_tasks(best * pulls - reward.cumsum(1))
    left.fill_between(pulls, low, high, color=color, alpha=0.25, linewidth=0)
    left.plot(pulls, mean, color=color, marker="o", markersize=3, label=name)
    mean, low, high, _ = statistics.over_tasks(reward.sum(1))
    right.errorbar(mean, name, xerr=[[mean - low], [high - mean]], fmt="o", color=color, capsize=3)
left.set(xlabel="pull", ylabel="cumulative regret", xticks=pulls)
left.legend()
right.set(xlabel=f"total reward of {num_pulls} pulls")
figure.suptitle(f"{TASKS:,} fresh bandits of {family.env.spec.action.num} arms: mean and 95 % interval")
plt.show()

# %% [markdown]
# The intervals are over bandits, of one training run; other seeds give other figures. Mind the horizon: RL²
# was trained for exactly ten pulls, and can learn when exploring no longer pays. Thompson sampling and the
# Gittins index do not know how many pulls are left. Nobody reaches what knowing the best arm would earn:

# %%
print(f"knows the best arm: {num_pulls * best.mean():.2f}")
for name, reward in rewards.items():
    mean, low, high, _ = statistics.over_tasks(reward.sum(1))
    print(f"{name:>18}: {mean:.2f} [{low:.2f}, {high:.2f}]")
