"""Groups of instances left out together: the plain loop without them, and what single instances give."""

import numpy as np
import pytest
import torch
import xarray as xr
from plain import train
from problems import tiny
from small_files import refusal

from fimoda_lib.comparison import instance_similarity, noise_ceiling, sensitivity, similarity
from fimoda_lib.groups import as_matrix, group_names, group_scores, membership, resolve_left_out
from fimoda_lib.training.further_training import further_train
from fimoda_lib.training.minibatches import FULL_RUN, epoch_batches

RUN = dict(learning_rate=0.05, batch_size=5, epochs=2, progress=False)
RULES = {"sgd": {}, "adam": dict(weight_decay=0.01), "adamw": dict(weight_decay=0.1, max_grad_norm=1.0)}
GROUPS = [[3, 8, 21], [5], [8, 0, 1, 2, 4, 9], list(range(0, 22, 2))]  # they overlap; under "drop" their steps differ


def run(task, params, left_out, **changes):
    return further_train(task, params, left_out=left_out, **{"optimizer": "sgd", "seeds": [3], **RUN, **changes})


def plain_run(task, params, group, **settings):
    settings = {k: v for k, v in {**RUN, **settings, "seed": 3}.items() if k != "progress"}
    return torch.stack(list(train(task, params, removed=group, every=5, **settings))).numpy()


@pytest.mark.parametrize("removal", ["drop", "mask", "subtract"])
@pytest.mark.parametrize("optimizer", RULES)
def test_a_group_equals_the_plain_loop_without_its_members(optimizer, removal):
    task, params = tiny("regression" if optimizer == "sgd" else "classification")
    settings = dict(optimizer=optimizer, removal=removal, **RULES[optimizer])
    gold = run(task, params, GROUPS, replicas=3, **settings)
    full = plain_run(task, params, None, **settings)
    for k, group in enumerate(GROUPS):
        expected = plain_run(task, params, group, **settings) - full
        np.testing.assert_allclose(gold.delta[0, k], expected.astype(np.float32), rtol=1e-6, atol=1e-10)
    for wrong in (group[:-1], [*group, 7]):  # the yardstick tells groups that differ in one member
        assert abs(gold.delta[0, k] - (plain_run(task, params, wrong, **settings) - full)).max() > 1e-6


@pytest.mark.parametrize("removal", ["mask", "subtract"])
def test_a_fraction_of_a_group_can_be_removed(removal):
    task, params = tiny()
    gold = run(task, params, GROUPS[:1], removal=removal, fraction=0.3)
    settings = dict(optimizer="sgd", removal=removal, fraction=0.3)
    full, without = (plain_run(task, params, group, **settings) for group in (None, GROUPS[0]))
    np.testing.assert_allclose(gold.delta[0, 0], without - full, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("removal", ["drop", "mask", "subtract"])
def test_groups_of_one_are_single_instances_bit_for_bit(removal, dtype):
    task, params = tiny("classification", dtype=dtype)
    settings = dict(optimizer="adamw", removal=removal, replicas=4, **RULES["adamw"])
    singles = run(task, params, [7, 2, 11, 0, 9], **settings)
    groups = run(task, params, [[7], [2], [11], [0], [9]], **settings)
    for name in ("full_loss", "delta"):
        np.testing.assert_array_equal(groups[name], singles[name])


@pytest.mark.parametrize("removal", ["drop", "mask", "subtract"])
def test_order_of_groups_and_of_members_and_chunks_change_nothing(removal):
    task, params = tiny()
    gold = run(task, params, GROUPS, removal=removal, replicas=2)
    other = run(task, params, [{*reversed(GROUPS[k])} for k in (3, 1, 0, 2)], removal=removal, replicas=50)
    np.testing.assert_allclose(other.delta, gold.delta[:, [3, 1, 0, 2]], rtol=2e-7, atol=1e-12)
    np.testing.assert_allclose(other.full_loss, gold.full_loss, rtol=1e-12)


def test_batches_of_groups_by_hand():
    order = torch.tensor([3, 0, 4, 1, 2])
    removed = torch.tensor([[FULL_RUN] * 2, [0, 1], [2, FULL_RUN]])

    def batches(removed, removal):
        found = epoch_batches(order, 2, removed, removal=removal)
        return [b and (b[0].expand(len(removed), -1).tolist(), b[1].tolist()) for b in found]

    half = 0.5
    assert batches(removed, "mask") == [
        ([[3, 0]] * 3, [[half, half], [half, 0], [half, half]]),
        ([[4, 1]] * 3, [[half, half], [half, 0], [half, half]]),
        ([[2]] * 3, [[1], [1], [0]]),
    ]
    (rows, weights), *_ = batches(removed, "subtract")
    assert rows == [[3, 0, 0, 0], [3, 0, 0, 1], [3, 0, 2, 0]]
    assert weights == [[half, half, 0, 0], [half, half, -0.2, -0.2], [half, half, -0.2, 0]]


def test_results_know_their_groups_also_from_a_file(tmp_path):
    task, params = tiny()
    large = list(range(3, 20))
    stored = dict(removal="mask", seeds=[1, 2], store=tmp_path)
    gold = run(task, params, [*GROUPS[:2], large], **stored)
    xr.testing.assert_identical(gold, run(task, params, [*GROUPS[:2], large], **stored))
    assert gold.left_out.values.tolist() == [0, 1, 2] and gold.delta.dims == ("seed", "left_out", "step", "test")
    assert gold.group.values[:2].tolist() == ["3 8 21", "5"] and gold.group.values[2].startswith("17 instances, ")
    members = [gold.train.values[row].tolist() for row in gold.member.values]
    assert members == [*GROUPS[:2], large] and gold.member.dtype == bool
    for path in tmp_path.glob("*.json"):
        assert path.stat().st_size < 3000  # groups may hold half of the data: they are not listed in sidecars
    single = run(task, params, [0, 1], removal="mask", store=tmp_path)
    assert {*gold.coords} - {*single.coords} == {"group", "member", "train"}
    assert len([*tmp_path.glob("*.nc")]) == 3
    other = run(task, params, [[3, 8, 20], [5], large], removal="mask", seeds=[1], store=tmp_path)
    assert len([*tmp_path.glob("*.nc")]) == 4 and not np.array_equal(other.delta[0, 0], gold.delta[0, 0])


def test_what_compares_single_instances_compares_groups():
    task, params = tiny()
    gold = run(task, params, GROUPS, removal="mask", seeds=range(3))
    measured = sensitivity(gold)
    assert measured.group.values.tolist() == gold.group.values.tolist()
    assert np.isfinite(noise_ceiling(gold)).all()
    g = torch.Generator().manual_seed(0)
    scores = xr.DataArray(
        torch.randn(5, 23, generator=g).numpy(), dims=("test", "train"), coords={"test": range(5), "train": range(23)}
    )
    summed = group_scores(scores, gold)
    by_hand = np.array([[sum(float(row[i]) for i in group) for group in GROUPS] for row in scores.values])
    np.testing.assert_allclose(summed, by_hand, rtol=1e-6)
    xr.testing.assert_identical(summed, group_scores(scores, GROUPS))
    xr.testing.assert_identical(summed[:, ::-1].sortby("train"), group_scores(scores[:, ::-1], GROUPS))
    b = measured.transpose("step", "test", "left_out").values
    expected = (by_hand * b).sum(-1) / np.linalg.norm(by_hand, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(instance_similarity(summed, measured), expected, rtol=1e-6)
    np.testing.assert_allclose(similarity(summed[:, [2, 0, 3, 1]], measured)["mean"], expected.mean(1), rtol=1e-6)
    single = sensitivity(run(task, params, [0, 1, 2, 3], removal="mask"))
    for scored, sensitive in ((scores, measured), (summed, single)):  # numbers of groups are none of instances
        assert "single instances" in refusal(similarity, scored, sensitive, error=ValueError)
    assert "other groups" in refusal(similarity, group_scores(scores, GROUPS[::-1]), measured, error=ValueError)


@pytest.mark.parametrize(
    ("groups", "fragments"),
    [
        ([[3], []], ["group 1", "without instances", "at least one"]),
        ([[3, 8], [5, 6, 5]], ["group 1", "instance 5", "more than once"]),
        ([[3, 8], [5], [8, 3]], ["group 2", "same instances as group 0"]),
        ([list(range(23))], ["group 0", "all 23 instances"]),
        ([[3, 8], 5], ["5", "beside groups", "[5]"]),
        ([[3, 23]], ["group 0", "instance 23 does not exist", "0 to 22"]),
        ([[3, 1.5]], ["group 0", "1.5", "whole"]),
        ([[3, True]], ["group 0", "True", "whole"]),
        ([["3"]], ["group 0", "'3'"]),
        ([[[3]]], ["group 0", "[3]"]),
        (["38"], ["'38'"]),
        (np.array([[3, 8]]), ["array([[3, 8]])", "flat list", "groups"]),
    ],
    ids=str,
)
def test_groups_that_cannot_be(groups, fragments):
    message = refusal(further_train, *tiny(), left_out=groups, optimizer="sgd", seeds=[0], **RUN, error=ValueError)
    assert message.startswith("left_out") and all(fragment in message for fragment in fragments), message


def test_groups_may_be_anything_that_lists_numbers():
    expected = ((3, 8, 21), (0, 5))
    for groups in (
        [np.array([3, 8, 21]), torch.tensor([5, 0])],
        ({21, 3, 8}, range(0, 6, 5)),
        iter([xr.DataArray([8, 3, 21]), iter([0, 5])]),
        list(torch.tensor([[0, 5], [1, 2]]))[:1] + [[3, 8, 21]],
    ):
        assert sorted(resolve_left_out(groups, 23), key=len)[::-1] == [*expected]
    assert resolve_left_out([4, 2], 23) == (4, 2) and resolve_left_out([], 23) == ()
    assert as_matrix(expected).tolist() == [[3, 8, 21], [0, 5, FULL_RUN]]
    assert [row.nonzero().flatten().tolist() for row in membership(as_matrix(expected), 23)] == [[3, 8, 21], [0, 5]]
    long, other = group_names([(*range(9),), (*range(8), 9)])
    assert long != other and group_names([(9, *range(8))]) == [other]


@pytest.mark.parametrize(
    ("scores", "groups", "fragments"),
    [
        (None, [[3]], ["scores: got None"]),
        ("few", [[3, 22]], ["none for training instance 22", "train=None"]),
        ("few", [3], ["groups", "lists"]),
        ("few", [[3], []], ["group 1"]),
        ("summed", [[0]], ["single instances"]),
        ("twice", [[0]], ["more than once"]),
        ("few", xr.Dataset(), ["without groups"]),
    ],
)
def test_sums_that_cannot_be(scores, groups, fragments):
    few = xr.DataArray(np.ones((2, 10)), dims=("test", "train"), coords={"test": [0, 1], "train": range(10)})
    given = {"few": few, "twice": few.isel(train=[0, 0, 1]), "summed": group_scores(few, [[1, 2]]), None: None}[scores]
    message = refusal(group_scores, given, groups, error=ValueError)
    assert all(fragment in message for fragment in fragments), message


def test_some_of_the_groups_left_out():
    task, params = tiny()
    gold = run(task, params, GROUPS, removal="mask", seeds=[0])
    scores = xr.DataArray(np.arange(115.0).reshape(5, 23), [("test", range(5)), ("train", range(23))])
    whole = instance_similarity(group_scores(scores, gold), sensitivity(gold.isel(left_out=[2, 1, 3])))
    for chosen in ([2, 1, 3], [1, 2, 3]):
        some = gold.isel(left_out=chosen)
        found = instance_similarity(group_scores(scores, some), sensitivity(some))
        np.testing.assert_allclose(found, whole)
    lacking = refusal(similarity, group_scores(scores, gold.isel(left_out=[1, 2])), sensitivity(gold), error=ValueError)
    assert "2 of the groups left out have none (group 0, say); take group_scores(scores, gold)" in lacking
