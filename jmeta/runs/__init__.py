"""A training run on disk: its configuration, its folder, its checkpoints and its environment."""

from jmeta.runs.config import RunConfig, Training, build, resolve
from jmeta.runs.folder import RunFolder

__all__ = ["RunConfig", "RunFolder", "Training", "build", "resolve"]
