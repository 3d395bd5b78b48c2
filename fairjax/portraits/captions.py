"""What is written under the portraits: the occupation, and sometimes the background or what the person looks like."""

from __future__ import annotations

import re

FINETUNE_TEMPLATES = (
    "a photo of the face of a {occupation}, a person",
    "a portrait of a {occupation}",
    "a headshot of a {occupation}",
    "a picture of a {occupation} looking at the camera",
    "the face of a {occupation}",
    "a {occupation} at work",
    "a drawing of a {occupation}",
    "one {occupation}, head and shoulders",
)
"""What finetuning asks for."""

UNSEEN_TEMPLATES = (
    "an image of a {occupation}",
    "a profile picture of a {occupation}",
    "a close view of the face of a {occupation}",
    "a person who works as a {occupation}",
    "a friendly {occupation}",
    "a good photo of a {occupation}, a person",
)
"""What finetuning never asks for: finetuned models are measured with these."""

TEMPLATES = (
    *FINETUNE_TEMPLATES,
    *UNSEEN_TEMPLATES,
    "a {occupation}",
    "a photo of a {occupation}",
    "a person, a {occupation}",
    "an illustration of a {occupation}",
    "a simple portrait of a {occupation}, a person",
    "a {occupation} in front of the camera",
    "someone who is a {occupation}",
    "a colourful picture of a {occupation}",
    "the portrait of a {occupation} on the wall",
    "a small picture of the face of a {occupation}",
    "a {occupation} posing for a photo",
    "a photo of one {occupation}",
)
"""All that the pretraining sees."""

WORDS: dict[str, tuple[str, ...]] = {
    "age": ("young", "old"),
    "skin_tone": ("light-skinned", "olive-skinned", "brown-skinned", "dark-skinned"),
    "gender": ("female", "male"),
}
"""What says the classes of an attribute, in the order in which they stand before an occupation."""

NO_OCCUPATION = (
    "a photo of the face of a person",
    "a portrait of a person",
    "a person",
    "a picture of someone",
)
NO_PERSON = ("a photo of an empty room", "an empty place", "a picture without people", "an empty background")


def said(caption: str, attribute: str) -> int:
    """The class of an attribute that a caption says, -1 where it says none."""
    words = caption.split()
    return next((number for number, word in enumerate(WORDS[attribute]) if word in words), -1)


_LIKE_A_VOWEL = re.compile(
    r"(?!uni[^mn]|us[aeu]|ut[aeio]|uro|uku|eu|one\b)[aeiou]|hones|honou|hour|heir", re.IGNORECASE
)
"""How words begin that have "an" before them: an usher and an heir, but a user and a unicyclist."""


def fill(template: str, words: str, placeholder: str = r"\w+") -> str:
    """The template with the words in its placeholder, and "an" for "a" where they begin like a vowel.

    Args:
        placeholder: the name of the one that is filled, the others stay; by default every one.
    """
    template = re.sub(rf"\b([Aa]) (?=\{{{placeholder}\}})", r"\1n " if _LIKE_A_VOWEL.match(words) else r"\1 ", template)
    return re.sub(rf"\{{{placeholder}\}}", lambda _: words, template)
