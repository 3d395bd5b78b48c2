"""What is asked for: the prompts of training and of measuring, of the embedded world or of the user's own."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fairjax.config import PromptSection
from fairjax.portraits import captions, occupations


class Prompt(NamedTuple):
    text: str
    subject: str
    held_out: bool


class Subjects(NamedTuple):
    """Subjects and templates, those of training and those held out of it."""

    trained: tuple[str, ...]
    held_out: tuple[str, ...]
    templates: tuple[str, ...]
    unseen_templates: tuple[str, ...]

    def training(self, seed: int, step: int, count: int) -> list[Prompt]:
        """The prompts of a step: every subject once before any comes again, each in a drawn template."""
        places = np.arange(step * count, (step + 1) * count)
        rounds, turns = np.divmod(places, len(self.trained))
        chosen = [
            np.random.default_rng([seed, 0, r]).permutation(len(self.trained))[t]
            for r, t in zip(rounds, turns, strict=True)
        ]
        template = np.random.default_rng([seed, 1, step]).integers(0, len(self.templates), count)
        return [self._prompt(self.trained[s], self.templates[t], False) for s, t in zip(chosen, template, strict=True)]

    def measuring(self, count: int) -> list[Prompt]:
        """`count` trained and `count` held-out subjects (spread evenly over each list), in unseen templates in turn."""
        prompts = []
        for names, held_out in ((self.trained, False), (self.held_out, True)):
            places = np.unique(np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int))
            for number, place in enumerate(places):
                template = self.unseen_templates[number % len(self.unseen_templates)]
                prompts.append(self._prompt(names[place], template, held_out))
        return prompts

    @staticmethod
    def _prompt(subject: str, template: str, held_out: bool) -> Prompt:
        return Prompt(captions.fill(template, subject), subject, held_out)


def subjects(section: PromptSection) -> Subjects:
    """Reads the prompts section; raises ValueError, one line, where it cannot be followed."""
    chosen = Subjects(
        *_apart(section, ("subjects", "held_out"), (occupations.TRAINED, occupations.HELD_OUT)),
        *_apart(section, ("templates", "unseen_templates"), (captions.FINETUNE_TEMPLATES, captions.UNSEEN_TEMPLATES)),
    )
    for name, names in (("subjects", chosen.trained), ("held_out", chosen.held_out)):
        for subject in names:
            if not subject.strip():
                raise ValueError(f"prompts.{name}: {subject!r} names nobody")
    for name, templates in (("templates", chosen.templates), ("unseen_templates", chosen.unseen_templates)):
        for template in templates:
            if "{occupation}" not in template:
                raise ValueError(f"prompts.{name}: {template!r} has no {{occupation}} in it")
            if set("{}") & set(template.replace("{occupation}", "")):
                raise ValueError(f"prompts.{name}: {template!r} has braces other than those of {{occupation}}")
    return chosen


def _apart(
    section: PromptSection, fields: tuple[str, str], embedded: tuple[tuple[str, ...], tuple[str, ...]]
) -> list[tuple[str, ...]]:
    """Two lists that share nothing, so that measuring shows what training has not seen.

    Where one is null, it is the embedded world's, less what the other names.
    """
    given = [getattr(section, field) for field in fields]
    if None not in given and (shared := [name for name in given[0] if name in given[1]]):
        raise ValueError(
            f"prompts.{fields[0]} and prompts.{fields[1]} both have {', '.join(map(repr, shared))}: "
            "what is measured as unseen cannot be trained on"
        )
    lists = []
    for own, other, default in zip(given, reversed(given), embedded, strict=True):
        lists.append(tuple(name for name in default if name not in (other or ())) if own is None else own)
    for field, other, names in zip(fields, reversed(fields), lists, strict=True):
        if not names:
            raise ValueError(f"prompts.{field} is empty: name one or more, none of them of prompts.{other}")
    return lists
