"""ProMP: proximal meta-policy search (Rothfuss, Lee, Clavera, Asfour and Abbeel, 2019, arXiv 1810.06784)."""

from __future__ import annotations

from typing import Any

import jax

from jmeta import parallel
from jmeta.algorithms.gradient import outer
from jmeta.checks import not_negative
from jmeta.hyperparameters import hyperparameters_of
from jmeta.inner import policy_gradient as pg
from jmeta.types import Array, MetaAlgorithm, Params, Policy, PyTree, TaskFamily


@hyperparameters_of(outer.assemble, without=("inner", "surrogate"))
def promp(
    family: TaskFamily,
    policy: Policy,
    *,
    kl_penalty: float = 5e-4,
    outer_surrogate: str = "ppo-clip",
    outer_epochs: int = 5,
    **others: Any,
) -> MetaAlgorithm:
    """Several clipped updates on one batch, held near every policy that sampled it (eqs. 11 to 13).

    Inner steps ascend the likelihood ratio, whose second derivative at the sampling policy is the paper's
    low-variance curvature (eq. 10). The penalty is the divergence from the old to the new policy, averaged
    over the steps of the batches: the paper's before each inner step, here of the adapted policy too. The
    ratio is clipped at 0.2, in the paper's experiments at 0.3.

    Args:
      kl_penalty: weight of the divergence.

    Raises:
      ValueError: an argument is out of its range.
    """
    not_negative(kl_penalty=kl_penalty)
    parts = outer.assemble(
        family, policy, outer_surrogate=outer_surrogate, outer_epochs=outer_epochs, **others
    )

    def distributions(path: Params, pre: PyTree) -> PyTree:
        """Of the policy before each inner step, on the episodes that it sampled [K, N, T, ...]."""
        return jax.vmap(lambda params, batch: pg.unroll(policy, params, batch.inputs).distribution)(path, pre)

    def prepare(params: Params, batch: outer.Batch) -> PyTree:
        def old(params: Params, pre: PyTree) -> PyTree:
            return distributions(parts.inner.path(params, pre)[1], pre)

        return parallel.map_tasks(old, params, batch.collected.pre, block=parts.block)

    def loss(adapted: Params, path: Params, data: outer.Collected, old: PyTree) -> Array:
        def divergence(old: PyTree, new: PyTree, mask: Array) -> Array:
            """Divided by all steps, taken or not, as surrogates are: its weight knows no horizon."""
            return pg.mean_kl(policy, old, new, mask) * mask.mean()

        new = distributions(path, data.pre)
        kl = jax.vmap(divergence)(old, new, data.pre.mask).sum()
        output = pg.unroll(policy, adapted, data.post.inputs)
        kl += divergence(data.distribution, output.distribution, data.post.mask)
        return parts.learner.loss(adapted, data.post) + kl_penalty * kl / (data.pre.mask.shape[0] + 1)

    return outer.algorithm(parts, loss=loss, prepare=prepare)
