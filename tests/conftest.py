"""One computing thread for each process, a process for each core, and counts of faults and bad inputs over all of them.

A run of all tests prints how many faults and bad inputs were tried, and fails if docs/reliability.md claims more.
"""

import os
import shutil
from functools import partial
from pathlib import Path

import counting
import pytest

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"  # before torch is imported, here and in whatever tests start


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Spreads the tests over the cores, file by file; but for a few tests workers would cost more than they save."""
    option, worker = config.option, hasattr(config, "workerinput")
    few = option.keyword or any("::" in argument or argument.endswith(".py") for argument in config.args)
    undecided = getattr(option, "numprocesses", 0) is None and option.dist == "no"  # no -n, and there is xdist
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if undecided and cores > 1 and not (worker or few or option.usepdb or option.collectonly):
        option.numprocesses, option.dist, option.loadscopereorder = cores, "loadfile", False


# The files that take longest, measured one by one: so that no worker is left with one of them at the end.
LONGEST = """
run/test_run run/test_spread derivatives/test_whole_hessian test_intervals derivatives/test_second_order
methods/test_lft test_recipes experiments/test_paper_profile
""".split()
# Those that take over what test_run has computed come last, when it is over, again the longest first.
LATER = """
paper/test_figures paper/test_beyond paper/test_selection experiments/test_mislabelled experiments/test_rounded
experiments/test_horizons
""".split()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """The longest files first, then those with slow tests, the others, and those that profit from test_run."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    place = {Path(__file__).parent / f"{name}.py": k - len(LONGEST) for k, name in enumerate(LONGEST)}
    place |= {Path(__file__).parent / f"{name}.py": k for k, name in enumerate(LATER, 2)}
    items.sort(key=lambda item: place.get(item.path, 0 if item.path in slow else 1))


def is_whole_run(config, session):
    """Whether every test was asked for, by no argument but options."""
    chosen = config.option.keyword or config.option.markexpr or getattr(config.option, "deselect", None)
    everything = config.args_source is not type(config.args_source).ARGS
    return everything and not chosen and not config.option.collectonly and not session.testsfailed


@pytest.hookimpl(optionalhook=True)  # of xdist
def pytest_testnodedown(node):
    """A worker is done: what it has tried counts here."""
    counting.tried.update(getattr(node, "workeroutput", {}).get("tried", {}))


def pytest_sessionfinish(session, exitstatus):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["tried"] = dict(counting.tried)
        return
    broken = []
    if is_whole_run(session.config, session) and exitstatus == 0:
        broken = counting.broken_promises(counting.tried, counting.promised(counting.README.read_text()))
        if broken:
            session.exitstatus = 1
    session.config.broken_promises = broken


def pytest_terminal_summary(terminalreporter, config):
    terminalreporter.write_line(counting.summary(counting.tried))
    for sentence in getattr(config, "broken_promises", []):
        terminalreporter.write_line(f"docs/reliability.md is wrong: {sentence}.", red=True)


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """A temporary folder that all workers of a run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def copy_results(source, target, *beginnings):
    """Copies results whose names begin so, with their sidecars, from one results folder of smoke size to another."""
    (target / "smoke").mkdir(parents=True, exist_ok=True)
    for beginning in beginnings:
        for file in sorted((source / "smoke").glob(f"{beginning}-*")):
            if file.suffix in (".nc", ".json"):
                shutil.copy2(file, target / "smoke")


@pytest.fixture(scope="session")
def computed(whole_run):
    """`computed(results, *beginnings)` puts what test_run has computed into a results folder, if it is over by then:
    there the store finds it by its specification. What is not there is computed.
    """
    return partial(copy_results, whole_run / "finished")


@pytest.fixture(scope="session")
def trained(whole_run):
    """`trained(results, dataset, optimizer="sgd")` puts the final model and the further training of a data set at smoke
    size into a results folder. Each is trained once in a run: by test_run, if it is over, or else by the worker that
    needs it first, for the store's locks let the others wait.
    """
    from fimoda_lib.experiments.panel import Panel
    from fimoda_lib.run.status import files_of

    def put(results, dataset, optimizer="sgd"):
        shared = whole_run / ("finished" if (whole_run / "finished").exists() else "trained")
        assert Panel(dataset, "smoke", optimizer, results=shared).gold.sizes["seed"] == 2
        (Path(results) / "smoke").mkdir(parents=True, exist_ok=True)
        for kind in ("final model", optimizer):  # and no piece of a study
            for path in files_of(Panel(dataset, "smoke", optimizer, results=shared), kind):
                for file in (path, path.with_suffix(".json")):
                    shutil.copy2(file, Path(results) / "smoke")

    return put


@pytest.fixture(scope="module")
def quick_pictures():
    """Coarse pictures, and letters as drawings: to embed fonts takes longer than all the rest."""
    from fimoda_lib.plots.look import STYLE

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(STYLE, "savefig.dpi", 40)
        patch.setitem(STYLE, "pdf.fonttype", 3)
        yield


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium of the system; selenium is told both paths, so that it downloads nothing."""
    from selenium import webdriver

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs the Debian packages chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield window
    window.quit()
