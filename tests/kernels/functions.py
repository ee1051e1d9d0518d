"""Functions of an array [3, 4] that between them have every operation that a program of scalars knows."""

import jax
import jax.numpy as jnp
import numpy as np

INDICES = jnp.array([2, 0, 2])


def matrix():
    """A new array: JAX keeps the type that it gave to one of NumPy's, whatever the precision is later."""
    return np.arange(12.0).reshape(3, 4) / 7


def scanned(x):
    def body(carry, row):
        return carry + jnp.sin(row) * x[0, 0], (carry, row.sum(), jnp.ones(2))

    return jax.lax.scan(body, jnp.zeros(4), x), jax.lax.scan(body, x[1], matrix(), reverse=True)


def looped(x):
    """Of the carry, one entry changes, one is copied from another, one is constant, one only seems to be."""

    def body(_, carry):
        a, b, c, d, e = carry
        return a * 0.9 + x[0] * c, a, c, d, e + 0.5 * d[0, 0]

    return jax.lax.fori_loop(0, 5, body, (x[1], x[2], jnp.array(0.5), x, jnp.zeros(())))


def nested(x):
    def outer(_, y):
        return jax.lax.fori_loop(0, 3, lambda _, z: z * 0.5 + x, y) - 1

    return jax.lax.fori_loop(0, 2, outer, x)


FUNCTIONS = {
    "arithmetic": lambda x: (x + 2 * x.T[1, 1] - x / 3, -x * x[0, 0], x / (2 + x[0, 0] ** 2), x**3, x**-2),
    "folded": lambda x: (
        x + 0 * x,
        jnp.negative(-x),
        x * -1,
        (-x) * (-x[0]),
        x - (-x),
        -x - x[0],
        x / 4,
        0 - x,
        1 * x / 1,
    ),
    "functions": lambda x: (jnp.sin(x), jnp.cos(x), jnp.exp(x), jnp.tanh(x), jnp.log(jnp.abs(x) + 1e-3)),
    "roots": lambda x: (
        jnp.sqrt(jnp.abs(x)),
        jax.lax.rsqrt(jnp.abs(x) + 1),
        jnp.square(x),
        jnp.abs(x) ** 1.5,
    ),
    "powers": lambda x: (x**1.0, x**0.0, x**2.0, x[0] ** x.sum(0).astype(int)),
    "angles": lambda x: (
        jnp.arctan2(x, x[:, ::-1]),
        jnp.arccos(jnp.clip(x, -1, 1)),
        jnp.arcsin(jnp.clip(x, -1, 1)),
        jnp.arctan(x),
    ),
    "rounded": lambda x: (
        jnp.floor(3 * x),
        jnp.ceil(3 * x),
        jnp.sign(x),
        (4 * x).astype(int),
        jnp.fmod(x, 0.3),
    ),
    "compared": lambda x: (x > 0, x >= x[0], x < 0.1, x <= x[1], x == x[0], x != x[2]),
    "logic": lambda x: (
        (x > 0) & (x < 1),
        (x > 0) | (x[0] > 1),
        ~(x > 0),
        (x > 0) ^ (x[0] > 0),
        (x > 0) & True,
    ),
    "choices": lambda x: (
        jnp.where(x > 0.2, jnp.sin(x) * 2, -x),
        jnp.clip(x[0, 0] * matrix(), 0.1, x[1, 1] + 1),
        jax.lax.select_n((x * 2).astype(int) % 3 % 3, x, -x, x * 2),
        jnp.maximum(x, x[0]),
        jnp.minimum(0.3, x),
    ),
    "integers": lambda x: (
        (x > 0).astype(int) % 2 + 3,
        jnp.abs((x * 9).astype(int)),
        -(x * 9).astype(int),
        jnp.sign((x * 9).astype(int)),
        (x * 9).astype(int).astype(x.dtype),
        jnp.maximum((x * 9).astype(int), 2) > 1,
        (jnp.abs(x) * 9).astype("uint32").astype(float),
        ~(x * 9).astype(int),
        (x > 0).astype(x.dtype),
        (x * 9).astype(int).astype(bool),
    ),
    "broadcast": lambda x: x[:, None, 1:] * x[None, :, :3] + x.T[:3, :3],
    "reshape": lambda x: (x.reshape(2, 6), x.ravel()[::2], jnp.tile(x, (2, 1)), x[::-1]),
    "reshape of a transpose": lambda x: jax.lax.reshape(x, (2, 6), dimensions=(1, 0)),
    "stack": lambda x: (jnp.stack([x[0], x[1] * 2], axis=1), jnp.stack([x[0, 0], matrix()[1, 1]])),
    "split": lambda x: jnp.split(x, [1, 3], axis=1),
    "pad": lambda x: (
        jnp.pad(x, ((1, 0), (2, 3)), constant_values=7),
        jax.lax.pad(x, 1.0, ((0, 1, 2), (1, 0, 0))),
    ),
    "concatenate": lambda x: jnp.concatenate([x, matrix(), jnp.stack([x[0], x[1] * 2])], axis=0),
    "product": lambda x: (x @ matrix().T, matrix().T @ x, x @ x.T, x[0] @ x[1], x @ x[0]),
    "batched product": lambda x: jnp.einsum("ij,ikj,il->ikl", x, jnp.stack([x, matrix()], 1), x),
    "product of nothing": lambda x: x[:, :0] @ x[:, :0].T,
    "reductions": lambda x: (x.max(0), x.min(1), x.prod(), (x > 0).any(1), (x > -9).all(), x[:, :0].sum(1)),
    "cumulative": lambda x: (jnp.cumsum(x, 0), jax.lax.cumsum(x, 1, reverse=True)),
    "gather": lambda x: (
        x[INDICES],
        x[:, INDICES],
        x[INDICES, INDICES],
        x[-1, 2:],
        jnp.take(x, jnp.array([0, 9]), 0),
    ),
    "gather outside": lambda x: (
        x.at[jnp.array([0, 7])].get(mode="fill"),
        x.at[jnp.array([7])].get(mode="clip"),
    ),
    "gather of rows": lambda x: jax.vmap(lambda row, i: row[i])(x, INDICES),
    "scatter": lambda x: (
        x.at[INDICES].add(matrix()),
        jnp.asarray(matrix(), x.dtype).at[:, INDICES].add(x[:, :3]),
        x.at[1].set(x[0, 0]),
        x.at[:, 2:].multiply(x[:, :2]),
        x.at[jnp.array([1, 8])].add(1.0),
    ),
    "slices": lambda x: (jax.lax.dynamic_slice(x, (1, 1), (2, 2)), jax.lax.dynamic_slice(x, (9, -1), (2, 2))),
    "known branch": lambda x: jax.lax.cond(True, jnp.sin, jnp.cos, x),
    "scan": scanned,
    "loop": looped,
    "nested loops": nested,
    "loop whose first value is never read": lambda x: jax.lax.fori_loop(
        0, 4, lambda _, c: (c[0] * 0.5, c[0] + 1), (x, jnp.sin(x * 1.37))
    ),
    "loop of an even length": lambda x: jax.lax.fori_loop(0, 4, lambda _, y: jnp.sin(y) + x[0], x),
    "own derivatives": lambda x: (jax.nn.relu(x), jnp.linalg.norm(x, axis=0)),
    "finite": lambda x: jnp.isfinite(x / (x > 0)),
    "constant": lambda x: (jnp.asarray(matrix()), jnp.arange(3), 1.5 * x[0], jax.lax.iota(int, 4)),
}
