"""What a user may get wrong beyond single values, and what a kill may leave: one line, or nothing lost."""

import pytest

from fairjax.config import PromptSection
from fairjax.pipeline import Pipeline
from fairjax.portraits import captions, occupations
from fairjax.prompts import subjects


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.from_pretrained("portraits")


def test_what_is_asked_for_in_training_is_not_held_out_too():
    mine = subjects(PromptSection(subjects=("chef", occupations.HELD_OUT[3])))
    assert mine.trained == ("chef", occupations.HELD_OUT[3])
    assert mine.held_out == tuple(name for name in occupations.HELD_OUT if name != occupations.HELD_OUT[3])
    theirs = subjects(PromptSection(held_out=(occupations.TRAINED[0],)))
    assert theirs.trained == occupations.TRAINED[1:] and theirs.held_out == occupations.TRAINED[:1]
    seen = subjects(PromptSection(templates=captions.UNSEEN_TEMPLATES[:2]))
    assert seen.unseen_templates == captions.UNSEEN_TEMPLATES[2:]


def test_without_a_choice_the_prompts_are_those_of_the_embedded_world():
    assert subjects(PromptSection()) == (
        occupations.TRAINED, occupations.HELD_OUT, captions.FINETUNE_TEMPLATES, captions.UNSEEN_TEMPLATES,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"subjects": ()}, "prompts.subjects is empty: name one or more, none of them of prompts.held_out"),
        ({"held_out": ()}, "prompts.held_out is empty: name one or more, none of them of prompts.subjects"),
        ({"templates": ()}, "prompts.templates is empty: name one or more, none of them of prompts.unseen_templates"),
        ({"subjects": occupations.HELD_OUT}, "prompts.held_out is empty: name one or more, none of them of"),
        ({"subjects": ("a", "b"), "held_out": ("c", "b")}, "prompts.subjects and prompts.held_out both have 'b'"),
        (
            {"templates": ("a {occupation}",), "unseen_templates": ("a {occupation}",)},
            "prompts.templates and prompts.unseen_templates both have 'a {occupation}'",
        ),
        ({"subjects": ("chef", " ")}, "prompts.subjects: ' ' names nobody"),
        ({"held_out": ("",)}, "prompts.held_out: '' names nobody"),
        ({"templates": ("a pilot",)}, "prompts.templates: 'a pilot' has no {occupation} in it"),
        (
            {"unseen_templates": ("a {occupation} {place}",)},
            "prompts.unseen_templates: 'a {occupation} {place}' has braces other than those of {occupation}",
        ),
        ({"templates": ("a {occupation} {",)}, "prompts.templates: 'a {occupation} {' has braces other than"),
        ({"templates": ("a {occupation!r} {occupation}",)}, "has braces other than"),
    ],
)  # fmt: skip
def test_prompts_that_cannot_be_followed_are_refused_in_one_line(fields, message):
    with pytest.raises(ValueError) as refused:
        subjects(PromptSection(**fields))
    assert message in str(refused.value) and "\n" not in str(refused.value)
