"""Training: the host loop, its state, and what it reports."""

from jmeta.training.evaluations import evaluation_record
from jmeta.training.loop import check_iteration, compile_chunk, train, train_from
from jmeta.training.progress import Progress
from jmeta.training.state import TrainState, begin, check_shapes, initial_state, restore, resume

__all__ = [
    "Progress",
    "TrainState",
    "begin",
    "check_iteration",
    "check_shapes",
    "compile_chunk",
    "evaluation_record",
    "initial_state",
    "restore",
    "resume",
    "train",
    "train_from",
]
