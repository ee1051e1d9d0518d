"""Policies with a memory: unrolling is stepping, the past matters, the future does not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmeta import policies, rollouts
from jmeta.envs.bandit import bandit
from jmeta.envs.point_mass import point_mass
from jmeta.types import Adapted, Continuous, Discrete, EnvSpec, PolicyInput, PolicyOutput

STEPS = 12
LENGTH = STEPS + 1  # a trial, and the observation after its last step
SIZES = {
    "gru": {"size": 8},
    "lstm": {"size": 8},
    "mann": {"size": 8, "num_slots": 5, "slot_size": 4},
    "snail": {"size": 4, "max_steps": STEPS},
    "transformer": {"size": 8, "max_steps": STEPS},
}
SPECS = {
    "discrete": EnvSpec(obs_size=2, action=Discrete(3), horizon=STEPS),
    "continuous": EnvSpec(obs_size=2, action=Continuous(2), horizon=STEPS),
}


@functools.cache
def inputs(spec):
    """On the host, where a part of an array needs no program."""
    size = spec.action.num if isinstance(spec.action, Discrete) else spec.action.size
    rng = np.random.default_rng(0)
    return PolicyInput(
        obs=rng.normal(size=(LENGTH, spec.obs_size)).astype(np.float32),
        prev_action=rng.normal(size=(LENGTH, size)).astype(np.float32),
        prev_reward=rng.normal(size=LENGTH).astype(np.float32),
        prev_done=np.arange(LENGTH) % 4 == 0,
        first=np.arange(LENGTH) % 4 == 0,
    )


def randomised(policy):
    """Parameters away from their initialisation, whose last layer is almost 0."""
    rng = np.random.default_rng(2)
    return jax.tree.map(
        lambda x: (x + 0.3 * rng.normal(size=x.shape)).astype(x.dtype),
        jax.device_get(policy.init(jax.random.key(1))),
    )


@functools.cache
def built(name, space, separate_critic):
    policy = policies.REGISTRY[name](SPECS[space], separate_critic=separate_critic, **SIZES[name])
    return policy, randomised(policy), jax.jit(policy.unroll), jax.jit(policy.step)


CASES = [
    *((name, "discrete", False) for name in SIZES),
    *((name, "continuous", True) for name in ("gru", "snail")),
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request):
    name, space, separate = request.param
    return built(name, space, separate), inputs(SPECS[space])


def close(actual, expected):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, atol=1e-5), actual, expected)


def test_unroll_equals_scanning_step(case):
    (policy, params, unroll, step), given = case
    carry, outputs = policy.initial_carry(), []
    for t in range(LENGTH):
        carry, output = step(params, carry, jax.tree.map(lambda x, t=t: x[t], given))
        outputs.append(output)
    end, together = unroll(params, policy.initial_carry(), given)
    close(together, jax.tree.map(lambda *x: np.stack(x), *outputs))
    close(end, carry)


def test_unroll_goes_on_from_a_carry(case):
    (policy, params, unroll, _), given = case
    _, together = unroll(params, policy.initial_carry(), given)
    carry, first = unroll(params, policy.initial_carry(), jax.tree.map(lambda x: x[:6], given))
    _, second = unroll(params, carry, jax.tree.map(lambda x: x[6:], given))
    close(jax.tree.map(lambda *x: np.concatenate(x), first, second), together)


@pytest.mark.parametrize("field", ["obs", "prev_action", "prev_reward", "prev_done", "first"])
def test_the_past_matters_and_the_future_does_not(case, field):
    (policy, params, unroll, _), given = case
    changed = getattr(given, field).copy()
    changed[5] = ~changed[5] if changed.dtype == bool else changed[5] + 1
    _, before = unroll(params, policy.initial_carry(), given)
    _, after = unroll(params, policy.initial_carry(), given._replace(**{field: changed}))
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        difference = np.abs(np.asarray(a) - np.asarray(b)).reshape(LENGTH, -1).max(1)
        np.testing.assert_array_equal(difference[:5], 0)
    difference = np.abs(np.asarray(before.value) - np.asarray(after.value))
    assert difference[5] > 1e-5 and difference[-1] > 1e-7


@pytest.mark.parametrize("name", SIZES)
def test_unrolling_a_trial_repeats_it(name):
    """As the policy gradient must: from the inputs that the trial stored, early ends of episodes included."""

    def reward(position, task):
        return position[0] - task

    env = point_mass(horizon=4, reward=reward, terminated=lambda position, task: jnp.abs(position[0]) > task)
    policy = policies.REGISTRY[name](env.spec, **SIZES[name])
    params = randomised(policy)

    @jax.jit
    def run(key):
        start = Adapted(params, policy.initial_carry())
        adapted, rollout, _ = rollouts.trial(env, policy, start, jnp.array(0.02), key, 3)
        _, output = policy.unroll(params, policy.initial_carry(), rollout.inputs)
        return (
            adapted,
            rollout,
            jax.vmap(policy.distribution.log_prob)(output.distribution, rollout.action),
            output,
        )

    for seed in range(20):
        _, rollout, log_prob, output = run(jax.random.key(seed))
        if 0 < rollout.mask.sum() < STEPS:
            break
    taken = np.asarray(rollout.mask) > 0
    assert not taken.all()
    np.testing.assert_allclose(log_prob[taken], rollout.log_prob[taken], atol=1e-4)
    np.testing.assert_allclose(output.value[taken], rollout.value[taken], atol=1e-5)


# -- one step, from the equations ----------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def affine(layer, x):
    return x @ layer.kernel + layer.bias


def gru_step(core, hidden, x):
    reset_x, update_x, candidate_x = np.split(affine(core.inputs, x), 3)
    reset_h, update_h, candidate_h = np.split(hidden @ core.recurrent, 3)
    reset, update = sigmoid(reset_x + reset_h), sigmoid(update_x + update_h)
    candidate = np.tanh(candidate_x + reset * (candidate_h + core.candidate_bias))
    hidden = update * hidden + (1 - update) * candidate
    return hidden, hidden


def lstm_step(core, carry, x):
    entry, forget, output, candidate = np.split(affine(core.inputs, x) + carry.hidden @ core.recurrent, 4)
    cell = sigmoid(forget) * carry.cell + sigmoid(entry) * np.tanh(candidate)
    hidden = sigmoid(output) * np.tanh(cell)
    return type(carry)(hidden, cell), hidden


def mann_step(core, carry, x):
    controller, hidden = lstm_step(core.controller, carry.controller, np.concatenate([x, carry.read]))
    keys, gates = np.tanh(affine(core.keys, hidden)).reshape(2, 4), sigmoid(affine(core.gates, hidden))
    assert gates.min() > 0.1 and gates.max() < 0.9
    least = np.argsort(carry.usage)[:2]  # a head's own slot: the first head's is used least
    memory, write_weights = carry.memory.copy(), np.zeros((2, 5))
    memory[least] = 0  # erased, and then written where the step before read too
    for head in range(2):
        write_weights[head] = gates[head] * carry.read_weights[head]
        write_weights[head, least[head]] += 1 - gates[head]
        memory += np.outer(write_weights[head], keys[head])
    read_weights, read = np.zeros((2, 5)), np.zeros((2, 4))
    for head in range(2):  # of the memory as it is now
        lengths = np.linalg.norm(memory, axis=1) * np.linalg.norm(keys[head])
        weights = np.exp(memory @ keys[head] / lengths)
        read_weights[head] = weights / weights.sum()
        read[head] = read_weights[head] @ memory
    usage = 0.95 * carry.usage + read_weights.sum(0) + write_weights.sum(0)
    carry = type(carry)(controller, memory, read_weights, usage, read.ravel())
    return carry, np.concatenate([hidden, read.ravel()])


def random_carry(policy):
    """Away from zero; what is a share of something is one."""
    leaves, treedef = jax.tree.flatten(policy.initial_carry())
    keys = jax.random.split(jax.random.key(3), len(leaves))
    carry = treedef.unflatten([jax.random.normal(key, x.shape) for key, x in zip(keys, leaves, strict=True)])
    if hasattr(carry, "memory"):
        shares = jax.nn.softmax(carry.read_weights, axis=-1)
        carry = carry._replace(read_weights=shares, usage=jnp.abs(carry.usage))
    return carry


@pytest.mark.parametrize(("name", "equations"), [("gru", gru_step), ("lstm", lstm_step), ("mann", mann_step)])
def test_a_step_follows_the_equations(name, equations):
    policy, params, _, step = built(name, "discrete", False)
    carry, given = random_carry(policy), jax.tree.map(lambda x: x[4], inputs(SPECS["discrete"]))
    actual = step(params, carry, given)
    params, carry, given = jax.tree.map(lambda x: np.asarray(x, np.float64), (params, carry, given))
    x = np.concatenate([given.obs, given.prev_action, [given.prev_reward, given.prev_done, given.first]])
    carry, hidden = equations(params.core, carry, x)
    expected = PolicyOutput(affine(params.policy, hidden), affine(params.critic, hidden)[0])
    close(actual, (carry, expected))


# -- what is particular ---------------------------------------------------------------------------------


def test_with_closed_gates_a_memory_overwrites_the_slots_used_least():
    policy, params, _, step = built("mann", "discrete", False)
    gates = params.core.gates._replace(bias=jnp.full_like(params.core.gates.bias, -100.0))
    params = params._replace(core=params.core._replace(gates=gates))
    given, carry = inputs(SPECS["discrete"]), policy.initial_carry()
    for t in range(LENGTH):
        before = carry
        carry, _ = step(params, carry, jax.tree.map(lambda x, t=t: x[t], given))
        memory = np.array(before.memory)
        least = np.argsort(np.asarray(before.usage), kind="stable")[:2]
        memory[least] = jnp.tanh(params.core.keys(carry.controller.hidden)).reshape(2, 4)
        np.testing.assert_allclose(carry.memory, memory, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(np.asarray(carry.read_weights).sum(1), 1, rtol=1e-5)


def test_units_of_a_gru_forget_at_rates_that_are_spread_over_the_span():
    policy = policies.gru(SPECS["discrete"], size=3, memory_span=100)
    params = policy.init(jax.random.key(0))
    # All but the gates' bias is nothing: the candidate is 0, and a unit keeps the share τ / (1 + τ) a step.
    bias = params.core.inputs.bias
    core = jax.tree.map(jnp.zeros_like, params.core)
    params = params._replace(core=core._replace(inputs=core.inputs._replace(bias=bias)))
    one = jax.tree.map(lambda x: x[0], inputs(SPECS["discrete"]))
    carry, _ = policy.step(params, jnp.ones(3), one)
    np.testing.assert_allclose(carry, [1 / 2, 10 / 11, 100 / 101], rtol=1e-5)


def test_layers_before_the_heads_read_the_memory_and_the_input():
    policy = policies.gru(SPECS["discrete"], size=8, head_layers=(6, 5), separate_critic=True)
    params, given = randomised(policy), inputs(SPECS["discrete"])
    _, output = jax.jit(policy.unroll)(params, policy.initial_carry(), given)
    x = np.concatenate(
        [
            given.obs,
            given.prev_action,
            *(x[:, None] for x in (given.prev_reward, given.prev_done, given.first)),
        ],
        axis=1,
    )
    found = []
    for core, layers, head in (
        (params.core, params.layers, params.policy),
        (params.critic_core, params.critic_layers, params.critic),
    ):
        hidden, memories = np.zeros(8), []
        for row in x:
            hidden, _ = gru_step(core, hidden, row)
            memories.append(hidden)
        y = np.concatenate([memories, x], axis=1)
        assert [layer.kernel.shape for layer in layers] == [(8 + 2 + 3 + 3, 6), (6, 5)]
        for layer in layers:
            y = np.tanh(affine(layer, y))
        found.append(affine(head, y))
    close(output, PolicyOutput(found[0], found[1][:, 0]))
    one = jax.tree.map(lambda x: x[0], given)
    close(jax.jit(policy.step)(params, policy.initial_carry(), one)[1], jax.tree.map(lambda x: x[0], output))


def test_convolutions_reach_back_as_far_as_their_dilations():
    """Exactly so far, where only some of the layers of some of the blocks speak, and attention does not."""
    steps = 20
    policy = policies.snail(EnvSpec(obs_size=1, action=Discrete(1), horizon=steps), size=4, max_steps=steps)
    params = randomised(policy)

    def silent(layer):
        return jax.tree.map(jnp.zeros_like, layer)

    def speaking(blocks, layers):
        core = params.core
        convolutions = tuple(
            tuple(
                layer if b in blocks and i in layers else silent(layer)
                for i, layer in enumerate(core.convolutions[b])
            )
            for b in range(2)
        )
        embed = core.embed._replace(bias=jnp.ones_like(core.embed.bias))  # no unit is off
        attention = core.attention._replace(value=silent(core.attention.value))
        core = core._replace(embed=embed, convolutions=convolutions, attention=attention)
        return params._replace(core=core)

    def values(obs, params):
        nothing = jnp.zeros(steps)
        given = PolicyInput(obs[:, None], nothing[:, None], nothing, nothing > 0, nothing > 0)
        # In two parts: the second reads some of its past from the carry and some from itself.
        carry, first = policy.unroll(params, policy.initial_carry(), jax.tree.map(lambda x: x[:3], given))
        _, second = policy.unroll(params, carry, jax.tree.map(lambda x: x[3:], given))
        return jnp.concatenate([first.value, second.value])

    jacobian = jax.jit(jax.jacobian(values))
    lag = np.subtract.outer(np.arange(steps), np.arange(steps))
    for blocks, layers, reach in (
        ([0], [2], [0, 4]),
        ([0], [0, 1, 2], range(2**3)),
        ([1], [0, 1, 2], range(2**3)),
        ([0, 1], [0, 1, 2], range(2 * (2**3 - 1) + 1)),
    ):
        depends = np.asarray(jacobian(jnp.zeros(steps), speaking(blocks, layers))) != 0
        np.testing.assert_array_equal(depends, np.isin(lag, reach), f"blocks {blocks}, layers {layers}")


def test_the_longest_trial_is_declared():
    spec = EnvSpec(obs_size=2, action=Discrete(3), horizon=4, trial_episodes=3)
    for factory in (policies.snail, policies.transformer):
        assert factory(spec).max_steps == 12
        assert factory(spec, max_steps=7).max_steps == 7
    assert policies.gru(spec).max_steps is None


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("gru", {"size": 0}, "size must be at least 1, got 0"),
        ("gru", {"memory_span": 0}, "memory_span must be at least 1, got 0"),
        ("gru", {"head_layers": (4, 0)}, "head_layers must be at least 1, got 0"),
        ("lstm", {"size": -1}, "size must be at least 1, got -1"),
        ("snail", {"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ("transformer", {"size": 6, "num_heads": 4}, "num_heads must divide size=6, got 4"),
        ("mann", {"num_slots": 2, "num_heads": 3}, "num_heads must be at most num_slots=2, got 3"),
    ],
)
def test_bad_arguments_are_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        policies.REGISTRY[name](bandit(num_arms=2, num_pulls=3).spec, **arguments)
