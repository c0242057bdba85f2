"""Groups: sets of training instances that are left out together, and what scores of single instances say of them.

`further_train(left_out=[[3, 8, 21], [5]])` leaves out groups, `left_out=[3, 8, 21]` single instances. In results, a
group is known by its number in that list; what it holds stays with the results (`coordinates`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from . import checks
from .tasks import resolve_rows

NOBODY = -1  # fills the places of groups smaller than the largest
SHORT = 8  # members that a group's name lists

Groups = tuple[tuple[int, ...], ...]  # each group's members, ascending


def is_grouped(left_out: Sequence[Any]) -> bool:
    """Whether these are groups, and not single instances."""
    return len(left_out) > 0 and not np.isscalar(left_out[0])


def numbered(groups: Groups) -> dict[str, Any]:
    """Coordinates of scores of groups: `train` counts them, `group[train]` names them."""
    return {"train": np.arange(len(groups)), "group": ("train", np.array(group_names(groups), dtype=object))}


def resolve_left_out(left_out: Iterable[Any], n: int, what: str = "left_out") -> tuple[int, ...] | Groups:
    """Checks a list of instance numbers, or of groups of them, and returns it as tuples.

    A group is a set: the order of its members does not matter, and groups may overlap.

    Raises:
        ValueError: a number is not whole, out of range, or given twice; a group is empty, given twice, or holds all n
            instances; groups and numbers are mixed.
    """
    expected = "a flat list of whole instance numbers, or a list of groups such as [[3, 8, 21], [5]]"
    if getattr(left_out, "ndim", 1) > 1:
        raise ValueError(f"{what}: got {checks.shown(left_out)}, expected {expected}; list(...) of it makes groups.")
    found = checks.elements(what, left_out, expected)
    grouped = [isinstance(one, Iterable) and not isinstance(one, str | bytes | dict) for one in found]
    if not any(grouped):
        return tuple(resolve_rows(found, n, what).tolist())
    if not all(grouped):
        raise ValueError(
            f"{what}: got {checks.shown(found[grouped.index(False)])} beside groups, expected {expected}; a group of "
            "one instance is [5]."
        )
    groups: dict[tuple[int, ...], int] = {}
    for k, members in enumerate(found):
        group = tuple(sorted(resolve_rows(members, n, f"{what}, group {k}").tolist()))
        if not group:
            raise ValueError(f"{what}: got group {k} without instances, expected at least one in each.")
        if len(group) == n:
            raise ValueError(f"{what}: got group {k} with all {n} instances, expected at least one to be left over.")
        if group in groups:
            raise ValueError(f"{what}: got group {k} with the same instances as group {groups[group]}; list it once.")
        groups[group] = k
    return tuple(groups)


def as_matrix(left_out: Sequence[Any]) -> Tensor:
    """Single instances [M] as a tensor; groups [M, g], where those smaller than the largest end in `NOBODY`."""
    if not is_grouped(left_out):
        return torch.tensor(left_out, dtype=torch.long)
    found = torch.full((len(left_out), max(map(len, left_out))), NOBODY)
    for row, group in zip(found, left_out, strict=True):
        row[: len(group)] = torch.tensor(group)
    return found


def membership(matrix: Tensor, n: int) -> Tensor:
    """Which of n instances each row of `as_matrix` holds, [M, n], True or False."""
    matrix = matrix.reshape(len(matrix), -1)
    found = torch.zeros(len(matrix), n + 1, dtype=torch.bool, device=matrix.device)  # one column more for NOBODY
    return found.scatter_(1, matrix.where(matrix != NOBODY, n), True)[:, :n]


def group_names(groups: Groups) -> list[str]:
    """A name for each group, the same only for the same instances: "3 8 21", or "300 instances, 5f2b7a90c1d4"."""

    def name(group: tuple[int, ...]) -> str:
        text = " ".join(map(str, group))
        digest = hashlib.sha256(text.encode()).hexdigest()[:12]
        return text if len(group) <= SHORT else f"{len(group)} instances, {digest}"

    return [name(tuple(sorted(group))) for group in groups]


def coordinates(left_out: Sequence[Any], n: int) -> dict[str, Any]:
    """Coordinates of results over what was left out of n training instances.

    For single instances `left_out` holds their numbers. For groups it counts them; `group[left_out]` is a name for
    each, which goes wherever the numbers go, and `member[left_out, train]` says which instances it holds.
    """
    if not is_grouped(left_out):
        return {"left_out": np.array(left_out, dtype=int)}
    member = xr.Variable(("left_out", "train"), membership(as_matrix(left_out), n).numpy(), encoding={"zlib": True})
    return {
        "left_out": np.arange(len(left_out)),
        "group": ("left_out", np.array(group_names(left_out), dtype=object)),
        "train": np.arange(n),
        "member": member,
    }


def group_scores(scores: xr.DataArray, groups: Iterable[Iterable[int]] | xr.Dataset) -> xr.DataArray:
    """Scores of groups as the sums of those of their members: what a method that is linear in weights predicts.

    Args:
        scores: [..., test, train], of single instances: what `attribute` returns.
        groups: lists of training instances, or a result of `further_train` that left out groups.

    Returns:
        [..., test, train], where `train` counts the groups (those of a result have its numbers), and `group[train]`
        names them, as `similarity` wants it.

    Raises:
        ValueError: a member has no score, or groups that cannot be.
    """
    if not isinstance(scores, xr.DataArray) or "train" not in scores.indexes or "group" in scores.coords:
        raise ValueError(f"scores: got {checks.shown(scores)}, expected scores [test, train] of single instances.")
    numbers = None
    if isinstance(groups, xr.Dataset):
        if "member" not in groups:
            raise ValueError("groups: got a result without groups, expected that of further_train(left_out=[[3, 8]]).")
        numbers = groups["left_out"].values  # of a part of the groups, too
        groups = [groups.train.values[row].tolist() for row in groups.member.values]
    known = scores.indexes["train"]
    if not known.is_unique:
        raise ValueError("scores: some training instances appear more than once; expected each of them once.")
    found = resolve_left_out(groups, checks.LARGEST, "groups")
    if not is_grouped(found):
        raise ValueError(f"groups: got {checks.shown(found)}, expected lists of training instances.")
    places = {group: known.get_indexer(list(group)) for group in found}
    for group, place in places.items():
        if (place < 0).any():
            missing = group[int((place < 0).argmax())]
            raise ValueError(f"scores: none for training instance {missing}; compute them with train=None, for all.")
    last = scores.transpose(..., "train")
    values = last.values.astype(float)
    summed = np.stack([values[..., place].sum(-1) for place in places.values()], -1)
    kept = {name: c for name, c in last.coords.items() if "train" not in c.dims}
    named = numbered(found) if numbers is None else numbered(found) | {"train": numbers}
    return xr.DataArray(summed, dims=last.dims, coords={**kept, **named}, name=scores.name, attrs=scores.attrs)
