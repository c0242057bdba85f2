"""What LFT was meant to reach: by hand on a few numbers."""

import pandas as pd
import pytest

from fimoda_lib.paper import aims


def curve(dataset, method, means, high=float("nan")):
    return pd.DataFrame({"dataset": dataset, "method": method, "epoch": [1, 2, 40], "mean": means, "high": high})


def test_epochs_below_an_aim_the_ceiling_and_a_published_method(tmp_path, monkeypatch):
    monkeypatch.setattr(aims, "AIMS", {"fig02plus": {"concrete": 0.85}, "fig04plus": {"energy": 0.75}})
    sgd = [
        curve("concrete", "lft", [0.9, 0.84, 0.8], 0.99),
        curve("concrete", "ceiling", [0.9, 0.8, 0.8], [0.96, 0.86, 0.82]),
        curve("concrete", "cg", [0.95, 0.1, 0.2]),
        curve("concrete", "timed", [1.0, 1.0, 1.0]),  # a yardstick, and not published
        curve("energy", "lft", [0.0, 0.0, 0.0]),
    ]
    adam = [curve("energy", "lft", [0.75, 0.8, 0.9]), curve("energy", "ceiling", [1.0, 1.0, 1.0], 1.0)]
    for name, parts in (("fig02plus", sgd), ("fig04plus", adam)):
        pd.concat(parts).to_csv(tmp_path / f"{name}.csv", index=False)
    lines = aims.aims(tmp_path).splitlines()
    assert lines[2] == "| Concrete | .85 | .80 | 2 of 3: 2 to 40 | 1 of 3: 1 | 1 of 3: 1 |"
    assert lines[3] == "| Energy, Adam | .75 | .75 | none | 3 of 3: 1 to 40 | none |"


@pytest.mark.parametrize(("below", "says"), [([False] * 3, "none"), ([True, False, True], "2 of 3: 0.25 to 16")])
def test_missed_epochs(below, says):
    assert aims.missed(pd.Series(below, index=[0.25, 1, 16])) == says
