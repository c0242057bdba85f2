"""Kernels for notebooks, each forked off a process that has imported already what nearly every notebook imports.

A kernel that starts from nothing spends five seconds of a core on importing PyTorch, pandas, scikit-learn and
Matplotlib, another one or two on what these import at their first use, and a run has dozens of kernels. Forked ones
begin with the imports done and nothing else: no notebook sees what another one did. So do workers of `spread`.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

from jupyter_client import AsyncKernelManager

IMPORTED = (  # beforehand; one that fails is left to the notebooks
    "ipykernel.ipkernel",
    "ipykernel.kernelapp",
    "torch._dynamo",  # which torch.func imports with the first gradient: two seconds
    "torch._decomp.decompositions_for_jvp",  # and the first Jacobian
    "sklearn.datasets",
    "transformers.models.bert.modeling_bert",
    "dask.array",  # xarray looks for these two when it writes a file
    "distributed",
    "h5netcdf",
    "fimoda_lib.paper.beyond",
    "fimoda_lib.paper.selection",
)
LAUNCHER = ["-m", "ipykernel_launcher"]


def warm_up() -> bool:
    """Has the process started that kernels are forked off, with this process's environment; False where the system
    does not fork."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return False
    from multiprocessing import forkserver

    forkserver.set_forkserver_preload([*IMPORTED])
    forkserver.ensure_running()
    return True


class ForkedKernels(AsyncKernelManager):
    """Starts a kernel of this Python as a fork, and any other as usual."""

    async def _async_launch_kernel(self, kernel_cmd: list[str], **options: Any) -> None:
        """Where `AsyncKernelManager` starts the process; its provisioner looks after it."""
        python, *arguments = kernel_cmd
        own = os.path.realpath(python) == os.path.realpath(sys.executable) and arguments[:2] == LAUNCHER
        if not own or not warm_up():
            await super()._async_launch_kernel(kernel_cmd, **options)
            return
        kernel = (arguments[2:], dict(options["env"]), options.get("cwd") or os.getcwd())
        process = multiprocessing.get_context("forkserver").Process(target=become_kernel, args=kernel, daemon=True)
        process.start()
        provisioner: Any = self.provisioner
        provisioner.process, provisioner.pid = Forked(process), process.pid
        provisioner.cwd = options.get("cwd")
        self._reconcile_connection_info(provisioner.connection_info)


class Forked:
    """A forked process with those parts of `subprocess.Popen` that jupyter_client uses."""

    stdin = stdout = stderr = None

    def __init__(self, process: BaseProcess) -> None:
        self.process, self.pid = process, process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        self.process.join(timeout)
        return self.process.exitcode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def become_kernel(arguments: Sequence[str], environment: Mapping[str, str], folder: str) -> None:
    """In the forked process: what `python -m ipykernel_launcher` does, with the imports done."""
    import matplotlib
    import torch
    from ipykernel.kernelapp import IPKernelApp

    os.setsid()  # an interrupt of the terminal is for the command, which ends its kernels
    threading.Thread(target=end_with_the_command, daemon=True).start()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    # What the libraries took from the environment when they were imported, or leave to the first use.
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    inline = "module://matplotlib_inline.backend_inline"
    matplotlib.rcParams["backend"] = os.environ.setdefault("MPLBACKEND", inline)
    sys.argv = ["ipykernel_launcher", *arguments]
    IPKernelApp.launch_instance(argv=[*arguments])


def end_with_the_command() -> None:
    """Ends this process when the one that asked for it is gone, however that happened."""
    multiprocessing.parent_process().join()
    os._exit(1)
