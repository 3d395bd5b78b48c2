"""What is asked for: prompts to train on and to measure with, of the embedded world, of our lists or of the user's."""

from __future__ import annotations

import json
import math
import random
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fairjax import tables
from fairjax.config import PromptSection, SourceSection
from fairjax.portraits import captions, occupations
from fairjax.program import legible

LISTS = {path.stem: path for path in sorted((Path(__file__).parent / "data" / "prompts").glob("*.json"))}
"""The lists that come with fairjax, by name."""

NOBODY_TRAINED = (
    "a photo of a waterfall in a forest",
    "a wooden chair in an empty room",
    "a field of lavender under a cloudy sky",
    "a plate of pasta on a white tablecloth",
    "a lighthouse on a rocky coast",
    "an open book and a pair of glasses",
    "a watercolor of a fishing boat",
    "a dog running along a river",
    "a snowy street with parked cars",
    "a blue vase in front of a window",
    "an old barn, wide shot",
    "a close-up of a pocket watch",
)
"""What asks for nobody, to train with, where that is wished; none of these measures."""

NOBODY = (
    "a photo of a mountain lake at sunrise",
    "a bowl of fruit on a wooden table",
    "an old stone bridge over a river",
    "a red bicycle leaning against a brick wall",
    "a photo of an empty classroom",
    "a cup of coffee, seen from above",
    "a city skyline at night",
    "a sleeping cat on a sofa",
    "an oil painting of sunflowers in a vase",
    "a steam train crossing a field",
    "a bookshelf full of old books",
    "a sandy beach with palm trees",
)
"""What asks for nobody: pictures of these are to stay as they are."""

_SPLITS = ("train", "validation", "test")

_UNSEEN = "what is measured as unseen cannot be trained on"

_MOST_NAMED = 5
"""How many names an error lists."""


class Prompt(NamedTuple):
    text: str
    subject: str
    held_out: bool


NO_SUBJECT = ""
"""The subject of prompts that ask for nobody."""


class Rows(NamedTuple):
    """Subjects, and the templates that each of them may be put into."""

    subjects: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None  # how often each subject is drawn; None is all the same

    def without(self, others: Iterable[str]) -> Rows | None:
        """Those who are not among the others, in whatever letters; None where nobody is left."""
        taken = set(_shared(others, self.subjects))
        kept = [place for place, subject in enumerate(self.subjects) if subject not in taken]
        weights = self.weights and tuple(self.weights[place] for place in kept)
        return Rows(tuple(self.subjects[place] for place in kept), self.templates, weights) if kept else None

    def turn(self, number: int, key: Sequence[int]) -> str:
        """Whose turn it is: in rounds of as many turns as there are subjects, each in an order of its own.

        Where all weigh the same, a round has every subject once; else each as often as its weight says, rounded up or
        down by chance (systematic sampling).
        """
        count = len(self.subjects)
        whole, place = divmod(number, count)
        rng = np.random.default_rng([*key, whole])
        weights = np.ones(count) if self.weights is None else np.asarray(self.weights)
        ends = np.cumsum(weights) * (count / weights.sum())  # each subject's part of the round
        return self.subjects[np.searchsorted(ends[:-1], rng.permutation(count)[place] + rng.random(), side="right")]


class Source(NamedTuple):
    """Where prompts come from: what is trained on, what only measures, and how often it is drawn from."""

    trained: Rows
    held_out: Rows
    weight: float = 1.0
    validation: Rows | None = None  # what a run may be looked at with, where that is neither of these


class Subjects(NamedTuple):
    """All who are asked for, and as `known` whoever else is in the sources' lists."""

    sources: tuple[Source, ...]
    known: frozenset[str]
    nobody: tuple[str, ...] = ()  # training prompts that ask for nobody
    nobody_share: float = 0.0  # how often it is one of those

    @property
    def trained(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for source in self.sources for name in source.trained.subjects))

    @property
    def held_out(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for source in self.sources for name in source.held_out.subjects))

    def training(self, seed: int, step: int, count: int) -> list[Prompt]:
        """The prompts of a step: of sources drawn by weight, each the subject whose turn it is, in a drawn template."""
        first, last = step * count, (step + 1) * count
        weights = np.array([source.weight for source in self.sources])
        drawn = np.random.default_rng([seed, 3]).choice(len(self.sources), last, p=weights / weights.sum())
        rows = [self.sources[number].trained for number in drawn[first:]]
        template = np.random.default_rng([seed, 1, step]).integers(0, [len(row.templates) for row in rows])
        prompts = []
        for place, row, chosen in zip(range(first, last), rows, template, strict=True):
            turn, number = np.count_nonzero(drawn[:place] == drawn[place]), int(drawn[place])
            key = [seed, number + 3 if number else 0]  # 1, 2 and 3 are templates, solver steps and sources
            prompts.append(_prompt(row.turn(turn, key), row.templates[chosen], False))
        rng = np.random.default_rng([seed, 1, step, 1])
        for place in np.flatnonzero(rng.random(count) < self.nobody_share):  # whose turn it was is passed over
            prompts[place] = Prompt(self.nobody[rng.integers(len(self.nobody))], NO_SUBJECT, False)
        return prompts

    def measuring(self, count: int) -> list[Prompt]:
        """`count` trained and `count` held-out subjects, shared out among the sources by weight.

        They are spread evenly over each list, and unseen templates (the trained ones, where there are none) come in
        turn.
        """
        unseen = [source.held_out.templates or source.trained.templates for source in self.sources]
        prompts = []
        for held_out in (False, True):
            names = [(source.held_out if held_out else source.trained).subjects for source in self.sources]
            prompts += self._spread(count, list(map(Rows, names, unseen)), held_out)
        return prompts

    def validating(self, count: int) -> list[Prompt]:
        """`count` subjects to look at a run with while it goes on: in the same way, none of them held out.

        Of the sources' validation splits, or where they have none of those that are trained on, in their templates.
        """
        return self._spread(count, [source.validation or source.trained for source in self.sources], False)

    def _spread(self, count: int, lists: list[Rows], held_out: bool) -> list[Prompt]:
        """As many of the sources' lists as their weights say, spread evenly over each, with their templates in turn."""
        weights = [source.weight * bool(row.subjects) for source, row in zip(self.sources, lists, strict=True)]
        numbers = np.diff(np.rint(np.cumsum([0, *weights]) * (count / (sum(weights) or 1))).astype(int))
        prompts = []
        for (names, templates, _), number in zip(lists, numbers, strict=True):
            places = np.unique(np.linspace(0, len(names) - 1, min(number, len(names))).round().astype(int))
            for turn, place in enumerate(places):
                prompts.append(_prompt(names[place], templates[turn % len(templates)], held_out))
        return prompts


def _prompt(subject: str, template: str, held_out: bool) -> Prompt:
    return Prompt(captions.fill(template, subject), subject, held_out)


def nobody(section: PromptSection) -> list[Prompt]:
    """The prompts that ask for nobody, to measure with."""
    embedded = NOBODY if section.sources else captions.NO_PERSON[1::2]
    return [Prompt(text, NO_SUBJECT, False) for text in (embedded if section.nobody is None else section.nobody)]


def subjects(section: PromptSection) -> Subjects:
    """Reads the prompts section; raises ValueError, one line, where it cannot be followed."""
    found = _mixed(section) if section.sources else _of_the_world(section)
    kept, measured = section.nobody_trained, [prompt.text for prompt in nobody(section)]
    if kept is None:  # of ours, those that the user does not measure with
        embedded = NOBODY_TRAINED if section.sources else captions.NO_PERSON[::2]
        kept = [text for text in embedded if not _shared([text], measured)]
    elif both := _shared(kept, measured):
        raise ValueError(f"prompts.nobody_trained and prompts.nobody both have {_named(both)}: {_UNSEEN}")
    if section.nobody_share and not kept:
        none = "prompts.nobody_trained has no prompt for it: name one, or make the share 0"
        raise ValueError(f"prompts.nobody_share = {section.nobody_share}: {none}")
    return found._replace(nobody=tuple(kept), nobody_share=section.nobody_share)


def check_unseen(measured: Subjects, section: PromptSection, whose: str) -> None:
    """Raises a one-line ValueError where what is measured as held out is what a run of this section was trained on.

    Where that can no longer be read it is a warning.
    """
    try:
        trained = subjects(section).trained
    except ValueError as error:
        told = f"whether {whose} was trained on what is measured as held out cannot be said: its {error}"
        print(f"warning: {legible(told)}", file=sys.stderr, flush=True)
        return
    if shared := _shared(trained, measured.held_out):
        raise ValueError(f"{whose} was trained on {_named(shared)}, which the prompts hold out: {_UNSEEN}")


def _mixed(section: PromptSection) -> Subjects:
    sources, known, held = [], [], section.held_out_split
    for source in section.sources:
        splits = _shipped(source) if source.name in LISTS else _brought(source)
        for split in ("train", held):  # a source without any split but train has nobody to hold out
            if split not in splits and (split == "train" or len(splits) > 1):
                has = ", ".join(splits) or "others"
                raise ValueError(f"prompts.sources: {source.name!r} has no {split} split, only {has}")
        apart = splits.get("validation") if held != "validation" else None
        sources.append(Source(splits["train"], splits.get(held, Rows()), source.weight, apart))
        known += [name for rows in splits.values() for name in rows.subjects]
    found = Subjects(tuple(sources), frozenset(known))
    if shared := _shared(found.trained, found.held_out):
        raise ValueError(f"prompts.sources: both train and {held} have {_named(shared)}: {_UNSEEN}")
    # who is held out of one source may be in another's list to look at a run by, and would have a part in the choice
    return found._replace(
        sources=tuple(s._replace(validation=s.validation and s.validation.without(found.held_out)) for s in sources)
    )


def _shipped(source: SourceSection) -> dict[str, Rows]:
    """The splits of a list of ours, with every placeholder but the subjects' own filled in every way."""
    if source.column or source.weight_column:
        raise ValueError(f"prompts.sources: {source.name!r} comes with fairjax, and its columns cannot be chosen")
    content = json.loads(LISTS[source.name].read_text(encoding="utf-8"))
    others = _shipped(SourceSection(name=content["subjects_of"])) if "subjects_of" in content else {}
    splits = {}
    for split in _SPLITS:
        words, templates = dict(content[split]), content["templates"]
        names = others[split].subjects if others else words.pop("subjects")
        for placeholder, fillings in words.items():
            templates = [
                captions.fill(template, filling, placeholder) for template in templates for filling in fillings
            ]
        random.Random(0).shuffle(templates)  # in turn, they differ in everything
        splits[split] = Rows(tuple(names), _templates(source) or tuple(templates))
    return splits


def _brought(source: SourceSection) -> dict[str, Rows]:
    """The splits of a file, of a folder of files or of a dataset of the hub."""
    try:
        splits = tables.read(source.name)
    except ValueError as error:
        hint = "" if Path(source.name).exists() else f"; fairjax has {', '.join(LISTS)}"
        raise ValueError(f"prompts.sources: {error}{hint}") from None
    templates = _templates(source) or ("{prompt}",)
    rows = {}
    for split in (split for split in _SPLITS if split in splits):
        table, where = splits[split], f"prompts.sources: {source.name!r}, {split}"
        free = [name for name in table.column_names if name != source.weight_column]
        column = source.column or (free[0] if len(free) == 1 else None)
        for field, name in (("column", column), ("weight_column", source.weight_column or column)):
            if name not in table.column_names:
                wrong = f"has no column {name!r}" if name else "has several columns"
                raise ValueError(f"{where} {wrong}: `{field}` should be one of {', '.join(table.column_names)}")
        weights = _weights(where, table[source.weight_column]) if source.weight_column else None
        rows[split] = Rows(_names(where, table[column]), templates, weights)
    return rows


def _names(where: str, values: Iterable[Any]) -> tuple[str, ...]:
    names = []
    for number, value in enumerate(values, 1):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f"{where} row {number}: {value!r} should be text")
        names.append(value.strip("\ufeff \t"))  # some editors begin a text file with a mark of its encoding
    return tuple(names)


def _weights(where: str, values: Iterable[Any]) -> tuple[float, ...]:
    weights = []
    for number, value in enumerate(values, 1):
        try:
            weight = float(value)
        except (TypeError, ValueError):
            weight = math.nan
        if not 0 < weight < math.inf:
            raise ValueError(f"{where} row {number}: weight {value!r} should be a number above 0")
        weights.append(weight)
    return tuple(weights)


def _templates(source: SourceSection) -> tuple[str, ...]:
    """The templates that the configuration gives a source, if any."""
    for template in source.templates or ():
        rest = re.sub(r"\{\w+\}", "", template)
        if len(set(re.findall(r"\{\w+\}", template))) != 1 or set("{}") & set(rest):
            raise ValueError(f"prompts.sources: {template!r} should have one placeholder, such as {{subject}}, in it")
    return source.templates or ()


def _of_the_world(section: PromptSection) -> Subjects:
    trained, held_out = _apart(section, ("subjects", "held_out"), (occupations.TRAINED, occupations.HELD_OUT))
    seen, unseen = _apart(
        section, ("templates", "unseen_templates"), (captions.FINETUNE_TEMPLATES, captions.UNSEEN_TEMPLATES)
    )
    for name, names in (("subjects", trained), ("held_out", held_out)):
        for subject in names:
            if not subject.strip():
                raise ValueError(f"prompts.{name}: {subject!r} names nobody")
    for name, templates in (("templates", seen), ("unseen_templates", unseen)):
        for template in templates:
            if "{occupation}" not in template:
                raise ValueError(f"prompts.{name}: {template!r} has no {{occupation}} in it")
            if set("{}") & set(template.replace("{occupation}", "")):
                raise ValueError(f"prompts.{name}: {template!r} has braces other than those of {{occupation}}")
    return Subjects((Source(Rows(trained, seen), Rows(held_out, unseen)),), frozenset((*trained, *held_out)))


def _apart(
    section: PromptSection, fields: tuple[str, str], embedded: tuple[tuple[str, ...], tuple[str, ...]]
) -> list[tuple[str, ...]]:
    """Two lists that share nothing, so that measuring shows what training has not seen.

    Where one is null, it is the embedded world's, less what the other names.
    """
    given = [getattr(section, field) for field in fields]
    if None not in given and (shared := _shared(*given)):
        raise ValueError(f"prompts.{fields[0]} and prompts.{fields[1]} both have {_named(shared)}: {_UNSEEN}")
    lists = []
    for own, other, default in zip(given, reversed(given), embedded, strict=True):
        taken = _shared(other or (), default)
        lists.append(tuple(name for name in default if name not in taken) if own is None else own)
    for field, other, names in zip(fields, reversed(fields), lists, strict=True):
        if not names:
            raise ValueError(f"prompts.{field} is empty: name one or more, none of them of prompts.{other}")
    return lists


def _shared(some: Iterable[str], others: Iterable[str]) -> list[str]:
    """What both have, in whatever letters, as the others write it."""
    folded = {name.casefold() for name in some}
    return [name for name in others if name.casefold() in folded]


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(map(repr, names[:_MOST_NAMED])) + more
