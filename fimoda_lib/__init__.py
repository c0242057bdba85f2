"""fimoda_lib: final-model-only data attribution, with further training as the gold standard.

Names are imported when they are first used, so that `import fimoda_lib` and the command line start at once.
"""

import sys
from importlib import import_module
from importlib.util import spec_from_loader

_HOME = {
    "Task": "tasks",
    "squared_error": "tasks",
    "cross_entropy": "tasks",
    "DATASETS": "datasets",
    "load_task": "datasets",
    "train_final_model": "training.final_model",
    "mean_loss": "training.final_model",
    "further_train": "training.further_training",
    "METHODS": "methods",
    "attribute": "methods",
    "sensitivity": "comparison",
    "similarity": "comparison",
    "noise_ceiling": "comparison",
    "seed_averaging": "averaging",
    "benchmark": "paper.benchmark",
    "group_scores": "groups",
}
_DOORS = {"huggingface": "datasets.huggingface"}  # modules that have a public name of their own
__all__ = [*_HOME, *_DOORS]

# Where modules used to be: whoever imports one under its old name is told the new one.
_MOVED = {
    **{name: f"training.{name}" for name in ("final_model", "further_training", "plans", "ensembles", "minibatches")},
    **{name: f"derivatives.{name}" for name in ("gradients", "curvature", "spectra", "linearised")},
    **{name: f"derivatives.{name}" for name in ("trajectories", "tangents", "adjoints")},
    **{name: f"storage.{name}" for name in ("store", "folders", "naming", "provenance")},
    **{name: f"datasets.{name}" for name in ("encoders", "models")},
    **{name: f"paper.{name}" for name in ("figures", "beyond", "claims", "report")},
    **{name: f"plots.{name}" for name in ("drawing", "pictures")},
    "profiles": "experiments.profiles",
    "reproduction": "experiments.panel",
    "studies": "experiments.studies",
}


def __getattr__(name: str):
    if name in _MOVED:
        raise AttributeError(_moved(name))
    if name not in __all__:
        raise AttributeError(f"fimoda_lib has no {name!r}; it has {', '.join(__all__)}.")
    home = import_module(f".{_DOORS.get(name) or _HOME[name]}", __name__)
    value = home if name in _DOORS else getattr(home, name)
    globals()[name] = value
    return value


def _moved(name: str) -> str:
    return f"fimoda_lib.{name} is now fimoda_lib.{_MOVED[name]}; import it from there."


class _Moved:
    """The last of Python's finders of modules: whatever it is asked for was not found anywhere else."""

    @staticmethod
    def find_spec(full_name, path=None, target=None):
        package, _, name = full_name.partition(".")
        if package == __name__ and name in _MOVED:
            raise ModuleNotFoundError(_moved(name))  # no name=: "from fimoda_lib import ..." would hide it
        return spec_from_loader(full_name, _Door()) if package == __name__ and name in _DOORS else None


class _Door:
    """Loads what a public name stands for: the module where it lives, once."""

    def create_module(self, spec):
        module = import_module(f".{_DOORS[spec.name.partition('.')[2]]}", __name__)
        self.own = module.__spec__
        return module

    def exec_module(self, module):
        module.__spec__ = self.own  # which Python has just replaced


sys.meta_path.append(_Moved)
