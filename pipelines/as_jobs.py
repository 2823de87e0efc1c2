"""The commands that also run as jobs of a cluster (`fmoe submit COMMAND …`)."""

from __future__ import annotations

from pipelines import calibrate, compare, data, evaluate, plan, predict, promote, pull, train, tune
from pipelines.entry import Command

COMMANDS: dict[str, Command] = {
    "data": data.app,
    "plan": plan.plan,
    "train": train.train,
    "tune": tune.tune,
    "evaluate": evaluate.evaluate,
    "compare": compare.compare,
    "calibrate": calibrate.calibrate,
    "promote": promote.promote,
    "pull": pull.pull,
    "predict": predict.predict,
}
