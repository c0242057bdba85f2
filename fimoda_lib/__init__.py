"""fimoda_lib: final-model-only data attribution, with further training as the gold standard.

Names are imported when they are first used, so that `import fimoda_lib` and the command line start at once.
"""

from importlib import import_module

_HOME = {
    "Task": "tasks",
    "squared_error": "tasks",
    "cross_entropy": "tasks",
    "DATASETS": "datasets",
    "load_task": "datasets",
    "train_final_model": "final_model",
    "mean_loss": "final_model",
    "further_train": "further_training",
    "METHODS": "methods",
    "attribute": "methods",
    "sensitivity": "comparison",
    "similarity": "comparison",
    "noise_ceiling": "comparison",
    "seed_averaging": "comparison",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"fimoda_lib has no {name!r}; it has {', '.join(_HOME)}.")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
