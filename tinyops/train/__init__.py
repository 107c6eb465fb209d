"""Training and evaluation of models that it is given."""

from tinyops.train.batches import Order, make_loader
from tinyops.train.classification import accuracy
from tinyops.train.detection import detect_tiles, evaluate
from tinyops.train.log import Display, Log
from tinyops.train.loop import fit, train_one_epoch
from tinyops.train.optim import Average, Schedule, make_optimizer
from tinyops.train.processes import process_group
from tinyops.train.training import StateError, Training

__all__ = [
    "Average",
    "Display",
    "Log",
    "Order",
    "Schedule",
    "StateError",
    "Training",
    "accuracy",
    "detect_tiles",
    "evaluate",
    "fit",
    "make_loader",
    "make_optimizer",
    "process_group",
    "train_one_epoch",
]
