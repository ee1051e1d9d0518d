"""Environments: pure functions of a key, a state, an action and a task."""

from jmeta.envs.point_mass import point_mass
from jmeta.envs.tabular_mdp import tabular_mdp
from jmeta.envs.wrappers import clip_actions, discretize_actions, hold_reset, trials

__all__ = ["clip_actions", "discretize_actions", "hold_reset", "point_mass", "tabular_mdp", "trials"]
