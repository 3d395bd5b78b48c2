"""Attributes of people and the distributions wished for them, as data.

A target is a distribution over the joint cells of one or more attributes, in row-major order: for gender
(female, male) and age (young, old) the cells are (female, young), (female, old), (male, young), (male, old).
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Attribute:
    """A property that a classifier reads off a face.

    Attributes:
        name: what targets and reports call it.
        classes: the names of its classes, in the order of the classifier's outputs.
    """

    name: str
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.classes) < 2:
            raise ValueError(f"attribute {self.name!r}: classes {self.classes} should be at least two")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"attribute {self.name!r}: classes {self.classes} should all differ")


@dataclasses.dataclass(frozen=True)
class Target:
    """A wished distribution.

    Attributes:
        attributes: names of the attributes that it speaks of.
        distribution: probabilities of their joint cells, row-major, flat or nested one level per attribute.
        own: the distributions of single subjects, over the same cells, by subject.
    """

    attributes: tuple[str, ...]
    distribution: tuple[Any, ...]
    own: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)


def select(names: Sequence[str], attributes: Sequence[Attribute]) -> tuple[Attribute, ...]:
    """The attributes of these names, in this order."""
    known = {attribute.name: attribute for attribute in attributes}
    if not names:
        raise ValueError(f"target.attributes is empty: name one or more of {', '.join(known)}")
    if len(set(names)) < len(names):
        raise ValueError(f"target.attributes = {list(names)}: each attribute should be named once")
    check_names(names, attributes, "target.attributes")
    return tuple(known[name] for name in names)


def check_names(names: Iterable[str], attributes: Sequence[Attribute], field: str) -> None:
    """Raises a one-line ValueError where a field of the configuration names an attribute that there is not."""
    known = [attribute.name for attribute in attributes]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"{field}: no attribute {name!r}; {hint}")


def distribution(target: Target, attributes: Sequence[Attribute], field: str = "target.distribution") -> np.ndarray:
    """The target's distribution [K] float32 over its joint cells, checked against the known attributes.

    `field` is where in the configuration it stands, for errors.
    """
    sizes = tuple(len(attribute.classes) for attribute in select(target.attributes, attributes))
    expected = f"{math.prod(sizes)} probabilities, {' x '.join(map(str, sizes))} of {' x '.join(target.attributes)}"
    try:
        cells = np.asarray(target.distribution, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{field} = {target.distribution}: should be {expected}") from None
    if cells.shape not in (sizes, (math.prod(sizes),)):
        given = " x ".join(map(str, cells.shape))
        raise ValueError(f"{field} has {given} cells: should be {expected}")
    cells = cells.reshape(-1)
    # A NaN fails every comparison, so these ask for what is right.
    if not (cells >= 0).all():
        raise ValueError(f"{field} has {cells[~(cells >= 0)][0]}: probabilities should be 0 or more")
    if not abs(cells.sum() - 1) <= 1e-6:
        raise ValueError(f"{field} sums to {cells.sum():.6g}: it should sum to 1")
    return cells.astype(np.float32)


def per_prompt(subjects: Sequence[str], target: Target, attributes: Sequence[Attribute]) -> np.ndarray:
    """Distributions [P, K] of the prompts of these subjects: their own where they have one, else the target's."""
    rows = {
        subject: distribution(Target(target.attributes, tuple(shares)), attributes, f"target.prompts.{subject}")
        for subject, shares in target.own.items()
    }
    others = distribution(target, attributes)
    return np.stack([rows.get(subject, others) for subject in subjects])


def cell_names(attributes: Sequence[Attribute]) -> tuple[str, ...]:
    """What the joint cells are called, row-major: "female young", "female old", ..."""
    return tuple(map(" ".join, itertools.product(*(attribute.classes for attribute in attributes))))


def uniform(attributes: Sequence[Attribute]) -> Target:
    """The target that gives every joint cell the same probability."""
    num_cells = math.prod(len(attribute.classes) for attribute in attributes)
    return Target(tuple(attribute.name for attribute in attributes), (1 / num_cells,) * num_cells)


def joint_target(
    names: tuple[str, ...],
    joint: tuple[float, ...] | None,
    marginals: Mapping[str, tuple[float, ...]],
    attributes: Sequence[Attribute],
) -> Target:
    """The target over the named attributes: `joint` where it is given, else independent `marginals`.

    An attribute that `marginals` leaves out is uniform. ValueError, one line, where there is no such target.
    """
    chosen = select(names, attributes)
    if joint is not None:
        distribution(Target(names, joint), attributes)
        return Target(names, joint)
    for name in marginals:
        if name not in names:
            raise ValueError(f"target.marginals: {name!r} is not among target.attributes {list(names)}")
    cells = np.ones(1)
    for attribute in chosen:
        shares = marginals.get(attribute.name, (1 / len(attribute.classes),) * len(attribute.classes))
        alone = distribution(Target((attribute.name,), shares), attributes, f"target.marginals.{attribute.name}")
        cells = (cells[:, None] * alone.astype(np.float64)[None, :]).reshape(-1)
    return Target(names, tuple((cells / cells.sum()).tolist()))


def cost_weights(
    given: Mapping[str, Sequence[Sequence[float]]], names: Sequence[str], attributes: Sequence[Attribute]
) -> tuple[np.ndarray | None, ...]:
    """What `targets.joint_cost` takes of each attribute in `names`: [k, k] as given, None where nothing is."""
    for name in given:
        if name not in names:
            raise ValueError(f"target.cost_weights: {name!r} is not among target.attributes {list(names)}")
    weights = []
    for attribute in select(names, attributes):
        rows, size = given.get(attribute.name), len(attribute.classes)
        if rows is not None and ([len(row) for row in rows] != [size] * size or min(map(min, rows)) < 0):
            raise ValueError(
                f"target.cost_weights: {attribute.name} = {[list(row) for row in rows]} should be {size} rows "
                f"of {size} weights that are 0 or more"
            )
        weights.append(None if rows is None else np.asarray(rows, np.float32))
    return tuple(weights)


def marginals(joint: jax.Array, sizes: Sequence[int]) -> tuple[jax.Array, ...]:
    """Sums `joint` [..., K] over all but each attribute in turn: arrays [..., k_a]. `sizes` are the k_a."""
    lead = joint.ndim - 1
    cells = joint.reshape(*joint.shape[:-1], *sizes)
    axes = range(lead, cells.ndim)
    return tuple(cells.sum(axis=tuple(axis for axis in axes if axis != kept)) for kept in axes)


def joint_cells(probs: Sequence[jax.Array]) -> jax.Array:
    """Products [N, K] of the probabilities `probs` [N, k_a]: joint cells as if independent, row-major."""
    cells = probs[0]
    for p in probs[1:]:
        cells = (cells[:, :, None] * p[:, None, :]).reshape(p.shape[0], -1)
    return cells
