"""The counts of the README's section on reliability, and the check that they are not too large."""

import counting

PROMISE = """at least 12 faults and 1,000 bad inputs; 100 layers and 20 random
architectures, 3 kinds of noise, 50 refused models; lost work: 0 results"""
COUNTS = dict(faults=12, bad_inputs=1000, layers=100, architectures=20, noise=3, refused=50, lost=0)


def test_the_readme_states_counts():
    promise = counting.promised(counting.README.read_text())
    assert {*promise} == {*COUNTS} and promise.pop("lost") == 0
    assert all(number > 0 for number in promise.values())


def test_claiming_more_than_was_tried_is_noticed():
    promise = counting.promised(PROMISE)
    assert promise == counting.promised(counting.summary(COUNTS)) == COUNTS
    assert counting.broken_promises(COUNTS, promise) == []
    for name, number in COUNTS.items():
        worse = {name: number + (1 if name == "lost" else -1)}
        assert len(counting.broken_promises({**COUNTS, **worse}, promise)) == 1
