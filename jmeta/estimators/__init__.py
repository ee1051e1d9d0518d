"""Returns and advantages, surrogate objectives, and baselines."""

from jmeta.estimators.surrogates import SURROGATES, PolicyGradientBatch

__all__ = ["SURROGATES", "PolicyGradientBatch"]
