"""Kernels that are forked: the imports are done, nothing else is; they end when they should."""

import asyncio
import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient

from fimoda_lib.run import kernels
from fimoda_lib.run.kernels import Forked, ForkedKernels

ROOT = Path(kernels.__file__).parents[2]


def printed(folder, source, manager=ForkedKernels):
    """What a cell writes in a kernel of its own, and the types of what it displays."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    client = NotebookClient(
        notebook, kernel_manager_class=manager, resources={"metadata": {"path": str(folder)}}, kernel_name="python3"
    )
    outputs = client.execute().cells[0].outputs
    return "".join(o.get("text", "") for o in outputs), [kind for o in outputs for kind in o.get("data", {})]


def test_a_forked_kernel_has_the_imports_and_nothing_of_another_one(tmp_path, monkeypatch):
    for mark in ("first", "second"):
        monkeypatch.setenv("MARK", mark)  # as it is when the kernel starts
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        text, shown = printed(
            tmp_path,
            "import os, sys\n"
            "print([name in sys.modules for name in ('torch._dynamo', 'sklearn', 'fimoda_lib.paper.beyond')])\n"
            "import json, torch\n"
            "print(hasattr(json, 'mark'), os.environ['MARK'], os.getcwd(), torch.get_num_threads(), __name__)\n"
            "json.mark = True\n"
            "import matplotlib.pyplot as plt\n"
            "plt.plot([0, 1]);",
        )
        assert text.splitlines() == ["[True, True, True]", f"False {mark} {tmp_path} 3 __main__"]
        assert "image/png" in shown


async def started(manager, code=None):
    """The client of a kernel, asked to run code."""
    await manager.start_kernel()
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=120)
    message = client.execute(code) if code else None
    return client, message


@pytest.mark.parametrize("ending", ["asked", "now", "while busy"])
def test_a_forked_kernel_ends_when_it_is_shut_down(ending):
    async def run():
        manager = ForkedKernels(kernel_name="python3")
        client, _ = await started(
            manager, "print('busy', flush=True)\nimport time\ntime.sleep(600)" if ending == "while busy" else None
        )
        process = manager.provisioner.process
        assert isinstance(process, Forked) and process.poll() is None and await manager.is_alive()
        if ending == "while busy":
            while (await client.get_iopub_msg(timeout=60))["msg_type"] != "stream":
                pass  # before the code itself runs, an interrupt would meet the kernel's
            await manager.interrupt_kernel()
            reply = await client.get_shell_msg(timeout=60)
            while reply["msg_type"] != "execute_reply":
                reply = await client.get_shell_msg(timeout=60)
            assert reply["content"]["ename"] == "KeyboardInterrupt"
        client.stop_channels()
        await manager.shutdown_kernel(now=ending == "now")
        assert process.wait(60) is not None and not await manager.is_alive()

    asyncio.run(run())


def test_a_forked_kernel_ends_with_the_command_that_started_it(tmp_path):
    script = tmp_path / "dies.py"
    script.write_text(
        "import asyncio, os\n"
        "from fimoda_lib.run import kernels\n"
        "from fimoda_lib.run.kernels import ForkedKernels\n"
        "kernels.IMPORTED = ()\n"
        "async def run():\n"
        "    manager = ForkedKernels(kernel_name='python3')\n"
        "    await manager.start_kernel()\n"
        "    print(manager.provisioner.pid, flush=True)\n"
        "    os._exit(1)\n"
        "if __name__ == '__main__':\n"
        "    asyncio.run(run())\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    said = subprocess.run([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True).stdout
    pid = int(said.split()[-1])
    for _ in range(600):
        if not (stat := Path(f"/proc/{pid}/stat")).exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail(f"the kernel {pid} is still there")


def test_kernels_of_another_python_start_as_usual(monkeypatch):
    taken = []

    async def usual(self, command, **options):
        taken.append(command)

    monkeypatch.setattr(AsyncKernelManager, "_async_launch_kernel", usual)
    for command in (["/usr/bin/python0", "-m", "ipykernel_launcher", "-f", "x"], [sys.executable, "-m", "other", "x"]):
        asyncio.run(ForkedKernels()._async_launch_kernel(command))
        assert taken.pop() == command
    monkeypatch.setattr(kernels.multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    asyncio.run(ForkedKernels()._async_launch_kernel([sys.executable, "-m", "ipykernel_launcher", "-f", "x"]))
    assert len(taken) == 1
