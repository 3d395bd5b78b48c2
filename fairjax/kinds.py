"""Which kinds of model can be read, by what their files say of themselves; the others are refused by name."""

from __future__ import annotations

from pathlib import Path

from fairjax import files
from fairjax.schema_errors import shown

PIPELINE = "StableDiffusionPipeline"

INDEX = "model_index.json"
FILES = (INDEX, *(f"{network}/config.json" for network in ("unet", "vae", "transformer")))
"""What tells the kind of the model in a folder; an index may be missing."""

OWN = "fairjax.json"
"""In a model's folder: the guidance scale that it is meant to be used with, where that is not Stable Diffusion's."""

_OTHERS = {
    "StableDiffusionXL": "Stable Diffusion XL",
    "text_time": "Stable Diffusion XL",  # whose UNet has the class of Stable Diffusion's
    "StableDiffusion3": "Stable Diffusion 3",
    "SD3": "Stable Diffusion 3",
    "Flux": "FLUX",
    "StableCascade": "Stable Cascade",
    "PixArt": "PixArt",
    "Kandinsky": "Kandinsky",
    "IFPipeline": "DeepFloyd IF",
}
"""The names that people know, by the beginning of what diffusers calls pipelines and networks."""


def check(folder: Path) -> None:
    """Raises a one-line ValueError for the folder of another kind of model."""
    for path in map(folder.joinpath, FILES):
        fields = files.read_json(path) if path.is_file() else {}
        for field in ("_class_name", "addition_embed_type"):
            said = fields.get(field) or ""
            begins = said.startswith if isinstance(said, str) else lambda start: False
            other = next((f" is {name}" for start, name in _OTHERS.items() if begins(start)), "")
            if other or (path.name == INDEX and said not in ("", PIPELINE)):
                supported = f"Stable Diffusion 1.x and 2.x ({PIPELINE}) are supported"
                raise ValueError(f"{path}: {field} = {shown(said)}{other}: {supported}")
