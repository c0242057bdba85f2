"""How much of the paper to run: from the smallest sizes, for tests, to all of it, for a GPU box."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..checks import known


@dataclass(frozen=True)
class Profile:
    """How much of the paper's settings to run.

    Args:
        seeds: optimiser -> data set -> number of seeds; "*" for the data sets not named.
        left_out: at most so many left-out instances.
        final, further: factors on the numbers of epochs.
        embedded: whether data that ships with scikit-learn may stand in; then nothing is downloaded.
        lissa_depth: recursion depth of LiSSA (the paper's is 5000).
        lissa_h_depth: data set -> the same for LiSSA-H, whose steps cost a hundred times more; "*" for all others.
        group_lissa_h_depth: the same where many instances are ranked or groups scored; None for the same.
        n_test: at most so many test instances.
        cg_tolerance: relative residual at which CG stops; None takes the method's own.
        least_products: of LFT with the whole Hessian, along a run that is shorter than the paper's.
        few_steps: studies of images and text, whose training is counted in steps, take so many: tangents cost most.
        study_left_out: at most so many left-out instances in the studies beyond the paper, whose derivatives cost
            several times a run.
        study_seeds: data set -> at most so many seeds in the studies of selection and of ways to leave out; "*" for the
            data sets not named.
        exact_tests, exact_seeds: test instances, and runs, of the exact derivative; without any it is not computed.
        ranked: at most so many training instances are ranked in the study of selection.
        suspected: the same in that of mislabelled data, where methods solve a system for each.
        retrain_seeds: number of seeds of re-training from scratch.
        rounding_seeds: the same of the study of float32 test losses.
        subsets: data set -> random groups of each size that are left out for the linear datamodeling score; "*" for
            the data sets not named.
        group_seeds: at most so many seeds in the studies of groups.
        group_steps: further training of more optimiser steps is studied there over a fifth of its length.
        pool: groups are drawn from at most so many training instances, divided by the number of the model's outputs.
        explained, curves: at most so many test instances in them; and whose removal curves are drawn.
        full_size: whether images and text take the paper's models, or those of `SMALL`.
        curvature: at most so many training instances define the curvature, where a data set does not take them all.
        many, of_many: of more than `many` training instances, `of_many` define the curvature.
        study_many: the same bound in the studies of groups and rankings, which score more; None for `many`.
    """

    name: str
    seeds: dict[str, dict[str, int]]
    left_out: int = 100
    final: float = 1.0
    further: float = 1.0
    embedded: bool = False
    lissa_depth: int = 5000
    lissa_h_depth: dict[str, int] = field(default_factory=lambda: {"*": 5000})
    group_lissa_h_depth: dict[str, int] | None = None
    n_test: int | None = None
    cg_tolerance: float | None = None
    least_products: int = 40
    few_steps: int = 100
    study_left_out: int = 20
    study_seeds: dict[str, int] = field(default_factory=lambda: {"*": 10})
    exact_tests: int = 10
    exact_seeds: int = 2
    ranked: int = 1000
    suspected: int = 1000
    retrain_seeds: int = 1
    rounding_seeds: int = 2
    subsets: dict[str, int] = field(default_factory=lambda: {"*": 100})
    group_seeds: int = 2
    group_steps: int = 2_500
    pool: int = 20_000
    explained: int = 50
    curves: int = 10
    full_size: bool = False
    curvature: int | None = None
    many: int = 1_000_000
    of_many: int = 5_000
    study_many: int | None = None

    def n_subsets(self, dataset: str) -> int:
        return self.subsets.get(dataset, self.subsets["*"])

    def depth_of_lissa_h(self, dataset: str, *, groups: bool = False) -> int:
        depths = (groups and self.group_lissa_h_depth) or self.lissa_h_depth
        return depths.get(dataset, depths["*"])

    def n_study_seeds(self, dataset: str) -> int:
        return self.study_seeds.get(dataset, self.study_seeds["*"])

    def n_seeds(self, optimizer: str, dataset: str) -> int:
        counts = self.seeds.get(optimizer, self.seeds["sgd"])
        return counts.get(dataset, counts["*"])


PROFILES: dict[str, Profile] = {
    p.name: p
    for p in (
        Profile(
            "smoke",
            {"sgd": {"*": 2}, "adam": {"concrete": 3, "energy": 3, "*": 2}},
            left_out=4,
            final=0.02,
            further=0.01,
            embedded=True,
            lissa_depth=10,
            n_test=8,
            cg_tolerance=0.1,
            least_products=8,
            few_steps=2,
            exact_tests=2,
            exact_seeds=1,
            lissa_h_depth={"*": 6},
            curvature=40,
            ranked=24,
            suspected=24,
            subsets={"*": 4},
            pool=240,
            explained=4,
            curves=2,
        ),
        Profile(
            "quick",
            {"sgd": {"digit_images": 3, "sentences": 3, "*": 5}, "adam": {"*": 5}},
            left_out=20,
            further=0.125,
            final=0.5,
            embedded=True,
            lissa_depth=200,
            lissa_h_depth={"*": 100},
            n_test=40,
            cg_tolerance=1e-3,
            study_left_out=4,
            exact_tests=3,
            exact_seeds=1,
            ranked=60,
            suspected=50,
            subsets={"*": 10},
            pool=1_000,
            explained=10,
            curvature=150,
            curves=2,
        ),
        Profile(
            "laptop",
            {
                "sgd": {"concrete": 5, "energy": 5, "*": 2},
                "adam": {"concrete": 3, "energy": 3, "*": 2},
                "adamw": {"*": 2},
            },
            left_out=12,
            lissa_h_depth={"*": 500},  # the stated 5,000 steps take eleven minutes on Energy alone
            study_left_out=3,
            study_seeds={"*": 2},
            exact_tests=0,  # half an hour
            ranked=60,
            suspected=30,
            subsets={"cifar10": 3, "folktables": 5, "*": 8},
            group_steps=1_500,
            explained=20,
            curves=2,
            retrain_seeds=2,
            curvature=500,
            many=10_000,  # Folktables: a product of CG with the curvature of all 30,085 takes half a minute on a core
            of_many=2_500,
        ),
        Profile(
            "overnight",
            {
                "sgd": {"concrete": 100, "energy": 100, "cifar10": 5, "*": 20},
                "adam": {"concrete": 20, "energy": 20, "*": 5},
                "adamw": {"*": 5},
            },
            left_out=50,
            lissa_h_depth={"concrete": 5000, "energy": 5000, "*": 500},  # as published on what is small
            group_lissa_h_depth={"energy": 5000, "*": 500},
            study_left_out=10,
            study_seeds={"concrete": 5, "energy": 5, "*": 2},
            suspected=300,
            retrain_seeds=5,
            rounding_seeds=6,
            subsets={"cifar10": 10, "*": 40},
            group_steps=4_000,  # all of Concrete and Energy
            explained=30,
            curves=4,
            study_many=10_000,
        ),
        Profile(
            "paper",
            {"sgd": {"*": 100}, "adam": {"*": 100}},
            retrain_seeds=10,
            rounding_seeds=100,
            group_seeds=10,
            group_steps=1_000_000,
            pool=1_000_000,
            curves=50,
            full_size=True,
        ),
    )
}


def get_profile(name: str) -> Profile:
    """The profile of this name.

    Raises:
        ValueError: there is none.
    """
    return PROFILES[known(name, PROFILES, "profile")]
