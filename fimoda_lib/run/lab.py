"""`run_all.sh lab`: JupyterLab on the notebooks, with the Python that holds what they need."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from ..storage.folders import in_project

NOTEBOOKS = in_project("notebooks")
NEVER = "jupyterlab.handlers.announcements.NeverCheckForUpdate"


def open_lab(arguments: Sequence[str]) -> int:
    """Becomes JupyterLab, and so returns only if it cannot.

    Args:
        arguments: a notebook, by number, name or path, if the first one is no option; all others are for JupyterLab.
    """
    name, options = (arguments[0], arguments[1:]) if arguments and arguments[0][:1] != "-" else ("", arguments)
    stem = os.path.basename(name).removesuffix(".ipynb")
    found = sorted(path.name for path in NOTEBOOKS.glob("*.ipynb"))
    chosen = [notebook for notebook in found if stem in (notebook.removesuffix(".ipynb"), notebook.partition("_")[0])]
    if name and not chosen:
        known = ", ".join(notebook.removesuffix(".ipynb") for notebook in found)
        print(f"run_all.sh: lab: there is no notebook {name!r}; take one of {known}, or none.", file=sys.stderr)
        return 2
    path = "/".join(["notebooks", *chosen])
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={NOTEBOOKS.parent}"]
    command += [f"--LabApp.default_url=/lab/tree/{path}", "--LabApp.news_url=None"]
    command += [f"--LabApp.check_for_updates_class={NEVER}"]
    if os.geteuid() == 0:  # as in a container; it would not start otherwise
        command += ["--allow-root"]
    sys.stdout.flush()
    os.execv(sys.executable, [*command, *options])
