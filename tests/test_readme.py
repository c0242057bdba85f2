"""What the README promises: its code runs, its files exist, its figure table names every figure and notebook."""

import re
from pathlib import Path

import fimoda_lib
from fimoda_lib import run

ROOT = Path(fimoda_lib.__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_the_ten_lines_run(capsys, monkeypatch):
    code = re.search(r"```python\n(.*?)```", TEXT, re.S).group(1)
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 10
    # The same lines with fewer epochs of final training, to be quick.
    exec(compile(code.replace("epochs=200", "epochs=20"), "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "<xarray.DataArray 'mean' (step: 5)" in printed and "nan" not in printed


def test_links_lead_somewhere():
    targets = re.findall(r"\]\((?!http)([^)#]+)\)", TEXT)
    assert len(targets) > 5
    assert not [t for t in targets if not (ROOT / t).exists()]


def test_every_figure_notebook_and_profile_is_mentioned():
    for name in [*run.FIGURES, *run.PROFILES, *(p.name for p in (ROOT / "notebooks").glob("*.ipynb"))]:
        if name != "smoke":
            assert name in TEXT, name
