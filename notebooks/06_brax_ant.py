# %% [markdown]
# # Brax: an ant before and after adaptation
#
# The ant has eight joints and is asked to walk forward or backward, but is not told which: it has to find out
# from the rewards of a few episodes (Finn et al., 2017, section 5.3). Physics, policy and meta-gradient are
# one compiled program.

# %%
import base64
import functools
import os
import pathlib
import tempfile
import types

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.animation import FuncAnimation

import jmeta
from jmeta.presets import preset
from jmeta.runs.config import build

SMALL = os.environ.get("JMETA_NOTEBOOK_SIZE") == "small"  # to see that it runs, not what it learns
ITERATIONS, TASKS, FRESH_TASKS, FRAMES = (1, 2, 2, 2) if SMALL else (100, 20, 100, 50)
STEPS = 3  # of adaptation

jmeta.runtime.configure(num_tasks=TASKS)  # as many cores as share the tasks evenly
plt.style.use("jmeta.reporting.plain")

# %% [markdown]
# ## Meta-training
#
# This takes minutes, which is little for an ant: published runs take many times as many steps. Expect it to
# learn which way to go, not to run.

# %%
family, policy, maml = build(preset("maml", "ant-direction"))
history = []
state = jmeta.train(
    maml, family, iterations=ITERATIONS, num_tasks=TASKS, log_every=1, callback=history.append
)

# %%
params = jax.device_get(state.params)
with jax.set_mesh(jmeta.parallel.task_mesh()):  # tasks are shared by all cores
    result = jmeta.evaluate(maml, family, params, jax.random.key(1), num_tasks=FRESH_TASKS, num_steps=STEPS)

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.8))
for metric, label in (("return_before", "before adaptation"), ("return_after", "after one step")):
    left.plot([p.iteration for p in history], [p.metrics[metric] for p in history], label=label)
left.set(xlabel="meta-iteration", ylabel="return (mean over training tasks)", title="Meta-training")
left.legend()
right.fill_between(result.steps, result.return_low, result.return_high, alpha=0.25)
right.plot(result.steps, result.return_mean, "o-")
right.set(xlabel="adaptation steps (10 episodes each)", ylabel="return", xticks=result.steps)
right.set_title(f"{FRESH_TASKS} fresh tasks: mean and 95 % interval")
plt.show()

# %% [markdown]
# Intervals are over tasks and episodes, of one training run; other seeds give other ants.
#
# ## Ten episodes each, from above
#
# An environment's state is Brax's own. The physics is deterministic: an episode's actions, played again from
# the same start, give the pose of every part of the body.

# %%
DIRECTIONS = {"forward": jnp.array([1.0, 0.0]), "backward": jnp.array([-1.0, 0.0])}


@jax.jit
@functools.partial(jax.vmap, in_axes=(None, None, 0))
def play(agent, task, key):
    """An episode's rewards, mask and poses [steps, 9] of the torso, then of hip and ankle of each leg."""
    _, rollout = jmeta.rollouts.episode(family.env, policy, agent, task, key)
    start, _ = family.env.reset(jax.random.split(key)[0], task)

    def step(state, action):
        state, _ = family.env.step(key, state, action, task)
        return state, state.x

    return rollout.reward, rollout.mask > 0, jax.lax.scan(step, start, rollout.action)[1]


@jax.jit
def adapt(task):
    return maml.adapt(params, task, jax.random.key(2), STEPS)[0]


meta_learned = jmeta.types.Adapted(params, policy.initial_carry())
episodes = {}
for name, direction in DIRECTIONS.items():
    for stage, agent in (("before", meta_learned), ("after", adapt(direction))):
        keys = jax.random.split(jax.random.key(3), 10)
        episodes[name, stage] = jax.device_get(play(agent, direction, keys))

# %%
figure, panels = plt.subplots(1, 2, figsize=(11, 3.6), sharex=True, sharey=True)
for panel, name in zip(panels, DIRECTIONS, strict=True):
    for stage, color in (("before", "0.65"), ("after", "C0" if name == "forward" else "C1")):
        _, masks, poses = episodes[name, stage]
        paths = [pos[mask, 0, :2] for pos, mask in zip(poses.pos, masks, strict=True)]
        for path in paths:
            panel.plot(*path.T, color=color, linewidth=1.2)
        panel.plot(*np.transpose([path[-1] for path in paths]), "o", color=color, label=f"{stage} adaptation")
    panel.set(title=f"asked to walk {name}", xlabel="x (m)", aspect="equal")
    panel.axvline(0, color="0.4", linestyle="--", linewidth=1)
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)
panels[0].set_ylabel("y (m)")
figure.suptitle(f"Paths of the torso in {family.env.spec.horizon} steps; a dot is where an episode ends")
plt.show()

# %% [markdown]
# ## Replay
#
# The first of those episodes, from above, in real time. A foot is 0.4 m from its ankle along both axes of its
# own frame, which the pose's quaternion turns. The pictures are inside the notebook: no script, no network.

# %%
FEET = 0.4 * np.array([[1, 1, 0], [-1, 1, 0], [-1, -1, 0], [1, -1, 0]])
STEP_SECONDS = 0.05


def legs(poses):
    """Torso, hip, ankle and foot [steps, 4 legs, 4 points, 3] of an episode."""
    torso, hips, ankles = poses.pos[:, :1], poses.pos[:, 1::2], poses.pos[:, 2::2]
    real, vector = poses.rot[:, 2::2, :1], poses.rot[:, 2::2, 1:]
    feet = ankles + FEET + 2 * np.cross(vector, np.cross(vector, FEET) + real * FEET)
    return np.stack(np.broadcast_arrays(torso, hips, ankles, feet), axis=2)


def inline(figure, draw, frames, frames_per_second):
    """An animation as a picture that a notebook shows."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "replay.gif")
        FuncAnimation(figure, draw, frames).save(path, writer="pillow", fps=frames_per_second, dpi=70)
        picture = base64.b64encode(path.read_bytes()).decode()
    plt.close(figure)
    return types.SimpleNamespace(_repr_html_=lambda: f'<img src="data:image/gif;base64,{picture}">')


# %%
figure, panels = plt.subplots(2, 2, figsize=(10, 6.4), sharex=True, sharey=True)
drawn = []
for panel, ((name, stage), (rewards, masks, poses)) in zip(panels.flat, episodes.items(), strict=True):
    body = legs(jax.tree.map(lambda leaf: leaf[0], poses))[masks[0]]
    lines = [panel.plot([], [], "o-", color=f"C{leg}", linewidth=3, markersize=4)[0] for leg in range(4)]
    (path,) = panel.plot([], [], color="0.5", linewidth=1)
    drawn.append((body, lines, path))
    panel.axvline(0, color="0.7", linestyle="--", linewidth=1)
    panel.set_title(f"asked {name}, {stage} adaptation: return {rewards[0].sum():.1f}")
    panel.set(aspect="equal", xlim=(-3, 3), ylim=(-1.6, 1.6))
for panel in panels[1]:
    panel.set_xlabel("x (m)")
for panel in panels[:, 0]:
    panel.set_ylabel("y (m)")


def draw(frame):
    for body, lines, path in drawn:
        now = min(frame, len(body) - 1)  # an ant that fell stays where it was
        for line, leg in zip(lines, body[now], strict=True):
            line.set_data(*leg.T[:2])
        path.set_data(*body[: now + 1, 0, 0].T[:2])


frames = range(0, family.env.spec.horizon, 2)[:FRAMES]
inline(figure, draw, frames, frames_per_second=1 / (2 * STEP_SECONDS))
