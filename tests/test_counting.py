"""The counts of the README's section on reliability, and the check that they are not too large."""

import counting


def test_the_readme_states_counts():
    promise = counting.promised(counting.README.read_text())
    assert promise["faults"] > 0 and promise["bad_inputs"] > 0 and promise["lost"] == 0


def test_claiming_more_than_was_tried_is_noticed():
    promise = counting.promised("at least 12 faults and 1,000 bad inputs, tried; lost work: 0 results")
    assert promise == dict(faults=12, bad_inputs=1000, lost=0)
    assert counting.broken_promises(dict(faults=12, bad_inputs=1000, lost=0), promise) == []
    for worse in (dict(faults=11), dict(bad_inputs=999), dict(lost=1)):
        assert len(counting.broken_promises({**promise, **worse}, promise)) == 1
