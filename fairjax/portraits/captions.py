"""What is written under the portraits: the occupation and sometimes the background, never gender, tone or age."""

from __future__ import annotations

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

NO_OCCUPATION = (
    "a photo of the face of a person",
    "a portrait of a person",
    "a person",
    "a picture of someone",
)
NO_PERSON = ("a photo of an empty room", "an empty place", "a picture without people", "an empty background")


def fill(template: str, occupation: str) -> str:
    """The template with the occupation in it, and "an" before a vowel."""
    article = "an" if occupation[0] in "aeiou" else "a"
    return template.replace("a {occupation}", f"{article} {{occupation}}").format(occupation=occupation)
