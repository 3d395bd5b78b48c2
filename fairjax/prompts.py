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
    """Reads the prompts section; raises ValueError naming a template without a place for the subject."""
    chosen = Subjects(
        section.subjects or occupations.TRAINED,
        section.held_out or occupations.HELD_OUT,
        section.templates or captions.FINETUNE_TEMPLATES,
        section.unseen_templates or captions.UNSEEN_TEMPLATES,
    )
    for name, templates in (("templates", chosen.templates), ("unseen_templates", chosen.unseen_templates)):
        for template in templates:
            if "{occupation}" not in template:
                raise ValueError(f"prompts.{name}: {template!r} has no {{occupation}} in it")
    return chosen
