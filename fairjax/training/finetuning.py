"""A finetuning from its configuration to its adapter: build, run, resume, export."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fairjax import draws, memory, parallel, tables
from fairjax.adapters import bundle as bundles
from fairjax.adapters import soft_prompt
from fairjax.adapters.bundle import Bundle
from fairjax.checkpoints import Checkpoints, Unsaved
from fairjax.config import Experiment
from fairjax.diffusion.solvers import WEIGHTINGS
from fairjax.faces import reading
from fairjax.faces.judges import Judges
from fairjax.fairness import attributes as fairness
from fairjax.fairness import transport
from fairjax.models.functional import Params, to_uint8
from fairjax.pipeline import Pipeline, solver_table
from fairjax.program import UserError
from fairjax.prompts import NO_SUBJECT, Prompt, Subjects, subjects
from fairjax.training import step as steps
from fairjax.training.diagnosis import CAUSES, diagnosis
from fairjax.training.interruption import Interrupted
from fairjax.training.state import State, initial


class StepReport(NamedTuple):
    """What a callback is told after each step."""

    step: int  # 1 is the first
    steps: int
    scalars: dict[str, float]
    prompts: list[Prompt]
    images: Callable[[], np.ndarray]  # uint8 [p, n, H, W, 3], fetched when called: on all hosts, or on none


OnStep = Callable[[StepReport], None]


class Look(Protocol):
    """What looks at a model on the way."""

    best: int | None  # the step of the best so far

    def due(self, step: int) -> bool: ...

    def __call__(self, step: int, bundle: Bundle) -> None: ...


class Finetuning:
    """One experiment, ready to run; building it reads and checks everything that can be wrong.

    Args:
        weights: False leaves the large networks' weights unread, and of hub ids undownloaded: enough to know the
            batches and the program of a step, not to run one.

    Raises:
        ValueError, OSError: one line, for models that are not there or do not fit the configuration.
    """

    def __init__(self, config: Experiment, mesh: jax.sharding.Mesh | None = None, *, weights: bool = True):
        self.config = config
        self.mesh = mesh or parallel.mesh()
        precision = config.training.precision
        self.pipeline = Pipeline.from_pretrained(config.model, precision, weights=weights)
        self.judges: Judges = reading.judges(config.judges, precision, weights=weights)
        self.attributes = self.judges.judge.attributes
        self.subjects: Subjects = subjects(config.prompts)
        self.target = tables.target(config.target, self.attributes, self.subjects.known)
        self._distributions = self._by_subject()
        self._check()
        training = config.training
        self._table = solver_table(self.pipeline.schedule, training.solver, training.num_steps[1])
        self._key = draws.key(config.seed)
        self._compile = functools.cache(lambda microbatch: self._lower(self._step_at(microbatch)).compile())
        self.microbatch = training.microbatch or self._fitting()
        self._step = self._step_at(self.microbatch)

    def _check(self) -> None:
        """What a configuration alone cannot know: attributes, sizes of images and prompts, the number of devices."""
        self.judges.check(self.pipeline.image_size)
        for name in ("factor1", "factor2"):
            factors = getattr(self.config.loss, name)
            if factors != type(self.config.loss).model_fields[name].default:  # which are for whom they name, if anybody
                fairness.check_names(factors, self.attributes, f"loss.{name}")
        if "soft_prompt" in self.config.adapter.kinds:
            try:
                soft_prompt.check_count(self.config.adapter.num_tokens, self.pipeline.tokenizer.model_max_length)
            except ValueError as error:
                raise ValueError(f"adapter.num_tokens: {error}") from None
        cells = next(len(shares) for shares in self._distributions.values())
        if cells > transport.MAX_CLASSES:
            raise ValueError(
                f"target.attributes = {list(self.target.attributes)} have {cells} joint classes; at most "
                f"{transport.MAX_CLASSES} can be aligned: fewer attributes, or a classifier of fewer classes"
            )
        training, devices = self.config.training, self.mesh.size
        validation = self.config.validation
        self.pipeline.check_steps(training.num_steps[1], "training.num_steps", training.solver)
        if validation.every is not None:
            self.pipeline.check_steps(validation.num_steps, "validation.num_steps", training.solver)
        prompts, images = training.prompts_per_step, training.images_per_prompt
        if prompts * images % devices:
            apart = devices // math.gcd(prompts, devices)
            fit = sorted({max(images // apart, 1) * apart, (images // apart + 1) * apart})
            raise ValueError(
                f"training.prompts_per_step x images_per_prompt = {prompts} x {images} must be a multiple of the "
                f"{devices} devices: images_per_prompt = {' or '.join(map(str, fit))} would fit"
            )

    @functools.cached_property
    def _frozen(self) -> steps.Frozen:
        """On every device."""
        frozen = steps.Frozen(self._held(self.pipeline.params), self.judges.params, self._table)
        return parallel.replicate(frozen, self.mesh)

    def place(self) -> steps.Frozen:
        """Places the frozen parameters on the devices now, so that `parallel.memory_left` counts them from here on."""
        return jax.block_until_ready(self._frozen)

    def _held(self, params: dict[str, Params]) -> dict[str, Params]:
        """The pipeline's parameters, as the step holds them."""
        return self.pipeline.compact(params, self.config.adapter.kinds)

    def _by_subject(self) -> dict[str, np.ndarray]:
        names = self.subjects.trained
        rows = fairness.per_prompt(names, self.target, self.attributes)
        return dict(zip(names, rows, strict=True)) | {NO_SUBJECT: np.zeros_like(rows[0])}

    def initial(self) -> State:
        """The state before the first step: adapters that change nothing."""
        return parallel.replicate(self._initial_state(self.pipeline.params), self.mesh)

    def initial_shapes(self) -> State:
        """Shapes of the state."""
        return jax.eval_shape(self._initial_state, self.pipeline.params)

    def _initial_state(self, params: dict[str, Params]) -> State:
        adapter = self.config.adapter
        key = jax.random.fold_in(self._key, 1)
        bundle = bundles.init(adapter.kinds, params, adapter.rank, adapter.num_tokens, key)
        return initial(bundle, self.config.training)

    def batch(self, number: int, bundle: Bundle) -> tuple[steps.Batch, list[Prompt]]:
        """What step `number` (from 0) is asked for: a pure function of the configuration and the number."""
        batch, prompts = self._asked(number, bundle)
        return parallel.replicate(batch, self.mesh), prompts

    def _asked(self, number: int, bundle: Bundle) -> tuple[steps.Batch, list[Prompt]]:
        training = self.config.training
        prompts = self.prompts(number)
        texts = [prompt.text for prompt in prompts]
        low, high = training.num_steps
        num_steps = np.random.default_rng([self.config.seed, 2, number]).integers(low, high + 1)
        ids, plain = self.pipeline.token_ids(texts, bundle), self.pipeline.token_ids(["", *texts])
        key = jax.random.fold_in(jax.random.fold_in(self._key, 2), number)
        distributions = np.stack([self._distributions[prompt.subject] for prompt in prompts])
        fields = (ids, plain[1:], plain[:1], distributions, np.int32(num_steps), key)
        return steps.Batch(*map(jnp.asarray, fields)), prompts

    def _step_at(self, microbatch: int | None) -> steps.Step:
        config, names = self.config, self.target.attributes
        weights = fairness.cost_weights(config.target.cost_weights, names, self.attributes)
        training = config.training.model_copy(update={"microbatch": microbatch})
        return steps.Step(self.pipeline, self.judges, names, weights, training, config.loss)

    def _fitting(self) -> int | None:
        """How many images the networks may see at a time on these devices; None is all of them."""
        training = self.config.training
        if training.gradient not in WEIGHTINGS:  # a sweep through the chain takes all of them
            return None
        images = training.prompts_per_step * training.images_per_prompt // self.mesh.size
        sizes = [size for size in range(1, images + 1) if images % size == 0]
        left = parallel.memory_left(self.mesh)
        limit = None if left is None else left + self._there()
        return memory.fitting(self._compile, sizes, limit, "a step")

    def _there(self) -> int:
        """Bytes of frozen parameters that a device holds already in the step's type, which needs no second copy."""
        if parallel.has_others():  # each host places its copy by way of its own memory
            return 0
        have = (self.pipeline.params, self.judges.params)
        holds = (jax.eval_shape(self._held, self.pipeline.params), self.judges.params)
        pairs = zip(jax.tree.leaves(have), jax.tree.leaves(holds), strict=True)
        return sum(leaf.nbytes for leaf, held in pairs if isinstance(leaf, jax.Array) and leaf.dtype == held.dtype)

    def lowered(self) -> jax.stages.Lowered:
        """The program of a step, to compile; the mesh may be of devices elsewhere."""
        return self._lower(self._step)

    def compiled(self) -> jax.stages.Compiled:
        """The same compiled, once: what is asked for its memory is what runs.

        Of (state, frozen, batch), as `steps.program` has them; each on every device of the mesh.
        """
        return self._compile(self.microbatch)

    def _lower(self, step: steps.Step) -> jax.stages.Lowered:
        state = self.initial_shapes()
        held = jax.eval_shape(self._held, self.pipeline.params)
        frozen = steps.Frozen(held, self.judges.params, self._table)
        batch, _ = self._asked(0, state.bundle)
        return steps.program(step, self.mesh).lower(*parallel.shapes((state, frozen, batch), self.mesh))

    def prompts(self, number: int) -> list[Prompt]:
        """Those of step `number`, from 0."""
        return self.subjects.training(self.config.seed, number, self.config.training.prompts_per_step)

    def steps_taken(self, checkpoints: Checkpoints) -> int:
        """How many steps the newest checkpoint has, 0 without one.

        Raises:
            ValueError: one line, where it is of another model or adapter, or has more steps than are asked for.
        """
        start, steps_in_all = checkpoints.latest() or 0, self.config.training.steps
        if start > steps_in_all:
            raise ValueError(f"training.steps = {steps_in_all}, but the run has {start} steps already")
        if start:
            checkpoints.check(start, self.initial_shapes())
        return start

    def run(
        self, checkpoints: Checkpoints | None = None, on_step: OnStep = lambda progress: None,
        ending: Callable[[], bool] = lambda: False, look: Look | None = None,
    ) -> State:  # fmt: skip
        """All steps that are left, from the newest checkpoint where there is one.

        The numbers are those of an uninterrupted run: every step draws from the seed and its own number alone.

        Args:
            on_step: told of each step, while the next one runs.
            ending: asked before each step whether to end here, with a checkpoint; on every host alike.
            look: looks at the adapter where that is due, with the checkpoint that it is of.

        Raises:
            UserError: one line, where `training.max_skipped` steps in a row had no finite loss or gradient: which
                part of which image of which prompt, with the state before them in the last checkpoint; or where the
                disk does not take a checkpoint and what was done would be lost. While there is an older checkpoint,
                and steps are left, that is a warning.
        """
        state, steps_in_all = self.initial(), self.config.training.steps
        start = self.steps_taken(checkpoints) if checkpoints else 0
        if checkpoints and start:
            state = checkpoints.restore(start, state)
        nothing: Callable[[], None] = lambda: None  # noqa: E731
        pending, number = nothing, start

        def save(leaving: bool = False) -> None:
            nonlocal pending
            pending()  # before its checkpoint: a step too many in a log can be dropped, one too few is lost
            pending = nothing
            if checkpoints:
                _save(checkpoints, number, state, new=number != start, leaving=leaving)

        unsound = 0  # steps in a row

        def watched(progress: StepReport) -> None:
            nonlocal unsound
            on_step(progress)
            sound = all(math.isfinite(progress.scalars[name]) for name in ("loss", "gradient_norm"))
            unsound = 0 if sound else unsound + 1

        def look_if_due() -> None:
            if look and look.due(number):
                save()
                try:
                    look(number, state.ema)
                except Interrupted:  # it is taken again by who goes on
                    save(leaving=True)
                    raise
            if look and checkpoints:
                checkpoints.best = look.best

        while number < steps_in_all and not ending():
            look_if_due()
            batch, prompts = self.batch(number, state.bundle)
            state, scalars, images = self.compiled()(state, self._frozen, batch)
            pending()  # tells of the step before while this one runs
            number += 1
            pending = self._telling(watched, number, scalars, prompts, images)
            if unsound + 1 >= self.config.training.max_skipped:
                pending()
                pending = nothing
                if unsound >= self.config.training.max_skipped:
                    save(leaving=True)
                    raise UserError(self._diagnosis(state, batch, number, prompts))
            if checkpoints and number % self.config.training.save_every == 0:
                save()
        if number == steps_in_all:
            look_if_due()
        save(leaving=True)
        return state

    def _diagnosis(self, state: State, batch: steps.Batch, number: int, prompts: list[Prompt]) -> str:
        """What of a step is not finite, in one line; its program is compiled when it is needed."""
        found = parallel.fetch(diagnosis(self._step, self.mesh)(state, self._frozen, batch))
        count = self.config.training.max_skipped
        start = f"training.max_skipped: {count} steps in a row were not finite, the last of them step {number}"
        for name, column in zip(CAUSES, found.T, strict=True):
            bad = np.flatnonzero(column)
            if len(bad):
                prompt, image = divmod(int(bad[0]), self.config.training.images_per_prompt)
                others = f" and of {len(bad) - 1} more of {len(column)} images" if len(bad) > 1 else ""
                return f"{start}: {name} of image {image} of {prompts[prompt].text!r}{others}"
        return f"{start}: its gradient, and nothing before it"

    def _telling(self, on_step: OnStep, number: int, scalars: dict, prompts: list[Prompt], images: jax.Array):
        def pictures() -> np.ndarray:
            return parallel.fetch(to_uint8(images)).reshape(len(prompts), -1, *images.shape[1:])

        def tell() -> None:
            values = {name: float(value) for name, value in jax.device_get(scalars).items()}
            on_step(StepReport(number, self.config.training.steps, values, prompts, pictures))

        return tell


def _save(checkpoints: Checkpoints, step: int, state: State, *, new: bool, leaving: bool) -> None:
    """Finishes the checkpoint that is under way, and begins that of `step`, if it is `new` and not there yet.

    Args:
        leaving: whether this is the last one, which is waited for.

    Raises:
        UserError: one line, where the disk does not take it and steps would be lost; else that is a warning.
    """
    try:
        checkpoints.finish()
    except Unsaved as error:
        _warn_unsaved(checkpoints, error)
    last = checkpoints.latest()
    if not new or step == last:
        return
    try:
        checkpoints.save(step, state)
        if leaving or last is None:  # else it is written while the next steps are taken
            checkpoints.finish()
    except Unsaved as error:
        if leaving and last is not None:
            raise UserError(f"{error}; the last is checkpoint {last}: make room, and --resume") from None
        _warn_unsaved(checkpoints, error)


def _warn_unsaved(checkpoints: Checkpoints, error: Unsaved) -> None:
    last = checkpoints.latest()
    if last is None:
        raise UserError(f"{error}; there is none before it, and all would be lost") from None
    if parallel.is_first():
        print(f"warning: {error}; the last is checkpoint {last}", file=sys.stderr, flush=True)
