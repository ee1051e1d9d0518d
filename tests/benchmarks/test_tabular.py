"""How many episodes one table needs for what another reaches."""

import numpy as np

from benchmarks import tabular


def test_episodes_needed_are_the_median_of_the_seeds_and_their_range():
    episodes = np.arange(tabular.EPISODES)
    other = np.full((3, 2, tabular.EPISODES), 5.0)
    # One seed reaches it at once, one when ten episodes from number 30 on are past, one never.
    returns = np.stack([np.full(tabular.EPISODES, 5.0), np.where(episodes < 30, 0.0, 5.0), np.zeros(100)])
    found = tabular.needs(np.repeat(returns[:, None], 2, axis=1), other)
    assert found == (40.0, 10.0, np.inf)
