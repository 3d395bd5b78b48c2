"""A text-to-image pipeline: Stable Diffusion's networks as pure functions, read from a diffusers folder."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from transformers import CLIPTokenizer

from fairjax import arguments, draws, files, hub, kinds, memory, parallel
from fairjax.adapters import bundle as bundles
from fairjax.adapters import lora
from fairjax.adapters.bundle import Bundle
from fairjax.convert import pipelines
from fairjax.diffusion import chain, solvers
from fairjax.diffusion.guidance import Conditioning, guided
from fairjax.diffusion.schedule import NoiseSchedule
from fairjax.hub import PORTRAITS, find
from fairjax.kinds import OWN
from fairjax.models.clip import CLIPTextConfig, CLIPTextModel
from fairjax.models.configs import typed
from fairjax.models.functional import Network, Params, cast, digest, functional, in_chunks, to_uint8
from fairjax.models.unet import UNet2DConditionModel
from fairjax.models.vae import AutoencoderKL, VAEConfig

_USUAL_GUIDANCE = 7.5
"""Of Stable Diffusion, in diffusers."""

_DTYPES = ("float32", "bfloat16")

_TABLE_STEPS = 50
"""`generate` compiles once for all numbers of steps up to this, and once for each that is larger."""

_COUNTED = 2**31 - 1
"""How many numbers an array of the decoder may have: convolutions of GPUs are made to count them in 32 bits."""

_AT_ONCE = 64
"""How many images a device makes at once at most: more keep it no busier, and their memory is better free."""


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """Networks and what they need around them. The parameters are a value beside, never inside a network.

    Its functions of arrays (`encode`, `decode`, `sample`) take parameters as an argument and may be
    traced; `generate` is for people.
    """

    text_encoder: Network
    unet: Network
    vae: Network
    tokenizer: CLIPTokenizer
    schedule: NoiseSchedule
    scaling_factor: float
    latent_shape: tuple[int, int, int]  # h, w, c
    image_size: tuple[int, int]  # height, width
    params: dict[str, Params]  # "text_encoder", "unet", "vae"; float32
    folder: Path
    guidance_scale: float  # that it is made for
    dtype: jnp.dtype  # what UNet and autoencoder compute in

    @classmethod
    def from_pretrained(
        cls, name: str | Path = PORTRAITS, dtype: DTypeLike = "float32", *, weights: bool = True
    ) -> Pipeline:  # fmt: skip
        """Reads a pipeline.

        Args:
            name: "portraits" (embedded), a folder that diffusers can read, or a hub id.
            dtype: what UNet and autoencoder compute in, "bfloat16" where that is fast. Latents, solver and adapters
                are float32 in any case, and so is the text encoder: it is a thousandth of the work.
            weights: False leaves them where they are, and of a hub id undownloaded: the parameters are shapes then,
                which is enough to trace and to compile.

        Raises:
            FileNotFoundError, ValueError: one line naming the file and what is wrong with it.
        """
        dtype = getattr(dtype, "__name__", str(dtype))  # jnp.bfloat16 is as good as its name
        if dtype not in _DTYPES:
            raise ValueError(f"dtype = {dtype!r} must be {' or '.join(_DTYPES)}")
        kinds.check(find(name, files=hub.KIND))  # before the weights of a kind that is not supported are downloaded
        folder = find(name, weights=weights)
        own = files.read_json(folder / OWN) if (folder / OWN).is_file() else {}
        guidance_scale = typed(float, own.get("guidance_scale", _USUAL_GUIDANCE), "guidance_scale", str(folder / OWN))
        text = CLIPTextConfig.from_dict(files.read_json(folder / "text_encoder" / "config.json"))
        unet = pipelines.unet_config(files.read_json(folder / "unet" / "config.json"))
        vae = VAEConfig.from_dict(files.read_json(folder / "vae" / "config.json"))
        latent_shape = pipelines.latent_shape(folder, text, unet, vae)
        tokenizer = pipelines.read_tokenizer(folder / "tokenizer", text)
        scheduler = files.read_json(folder / "scheduler" / "scheduler_config.json")
        networks = {
            "text_encoder": functional(lambda rngs: CLIPTextModel(text, rngs=rngs)),
            "unet": functional(lambda rngs: UNet2DConditionModel(unet, rngs=rngs, dtype=jnp.dtype(dtype))),
            "vae": functional(lambda rngs: AutoencoderKL(vae, rngs=rngs, dtype=jnp.dtype(dtype))),
        }
        if weights:
            params = pipelines.load(networks, folder)
            if not parallel.has_others():  # else what is placed on a device later would be there twice
                params = jax.tree.map(jnp.asarray, params)
        else:
            params = {name: network.abstract for name, network in networks.items()}
        return cls(
            **networks,
            tokenizer=tokenizer,
            schedule=pipelines.noise_schedule(scheduler),
            scaling_factor=vae.scaling_factor,
            latent_shape=latent_shape,
            image_size=tuple(side * vae.downscale for side in latent_shape[:2]),
            params=params,
            folder=folder,
            guidance_scale=guidance_scale,
            dtype=jnp.dtype(dtype),
        )

    def __repr__(self) -> str:
        return f"Pipeline({str(self.folder)!r}, {self.dtype}, {' x '.join(map(str, self.image_size))} pixels)"

    @property
    def revision(self) -> str | None:
        """The hub's commit that this was read from; None for a folder."""
        return hub.commit(self.folder)

    @functools.cached_property
    def _made(self) -> dict[tuple[Any, ...], Any]:
        """Its programs, and what is known of them."""
        return {}

    @functools.cached_property
    def digest(self) -> str:
        """Tells models apart by their weights, as they were read."""
        return digest(self.params)

    def compact(self, params: dict[str, Params], adapted: Container[str] = ()) -> dict[str, Params]:
        """`params` with UNet and autoencoder in the type that they compute in, to save memory and its traffic.

        Args:
            adapted: kinds of adapters that will be merged into them. The kernels that these change stay as they are:
                the change of an early step is below the resolution of a bfloat16 weight.
        """
        smaller = {name: cast(params[name], self.dtype) for name in ("unet", "vae") if name not in adapted}
        if "unet" in adapted:
            smaller["unet"] = lora.compact(params["unet"], lora.UNET_TARGETS, self.dtype)
        return params | smaller

    def token_ids(self, prompts: Sequence[str], bundle: Bundle | None = None) -> np.ndarray:
        """Token ids [n, length] of prompts, padded to the tokenizer's length, soft tokens of `bundle` put in."""
        tokenizer = self.tokenizer
        prompts = [pipelines.with_vectors(tokenizer, prompt) for prompt in prompts]
        encoded = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="np")
        room = tokenizer.model_max_length - bundles.num_tokens(bundle or {})
        for text, tokens in zip(prompts, encoded.attention_mask.sum(1), strict=True):
            if tokens >= room:
                _warn_where_cut(tokenizer, text, room)
        ids = np.asarray(encoded.input_ids, np.int32)
        return bundles.prefix(ids, bundle or {}, tokenizer.bos_token_id, tokenizer.eos_token_id, self.vocabulary)

    @property
    def vocabulary(self) -> int:
        """How many tokens the text encoder knows, soft tokens not counted."""
        return self.text_encoder.abstract["text_model"]["embeddings"]["token_embedding"]["embedding"].shape[0]

    def encode(self, params: dict[str, Params], bundle: Bundle, ids: jax.Array) -> jax.Array:
        """Token ids [n, length] -> encoder_hidden_states [n, length, channels]."""
        with jax.default_matmul_precision("float32"):  # else TPUs and GPUs round off what early steps change
            merged = bundles.merge_text(params["text_encoder"], bundle)
            return self.text_encoder.apply(merged, ids).last_hidden_state

    def decode(self, params: dict[str, Params], latents: jax.Array) -> jax.Array:
        """Latents [n, h, w, c] -> images [n, H, W, 3] in [-1, 1]."""
        images = self.vae.apply(params["vae"], latents / self.scaling_factor, method="decode")
        return jnp.clip(images.astype(latents.dtype), -1, 1)

    @property
    def _decoded(self) -> int:
        """How many numbers the decoder's largest array has for one image: at its size, before the last block."""
        blocks = self.vae.abstract["decoder"]["up_blocks"]
        return math.prod(self.image_size) * blocks[len(blocks) - 1]["resnets"][0]["conv1"]["kernel"].shape[2]

    def noise(self, image_keys: jax.Array) -> jax.Array:
        """Standard normal latents, one for each key: an image depends on its key and on nothing else.

        In float32 also where the user has jax count in float64, of which other numbers would be drawn.
        """
        return jax.vmap(lambda key: jax.random.normal(key, self.latent_shape, jnp.float32))(image_keys)

    def sample(
        self, params: dict[str, Params], bundle: Bundle, ids: jax.Array, empty: jax.Array, prompts: jax.Array,
        noise: jax.Array, table: solvers.SolverTable, num_steps: int | jax.Array, guidance_scale: float,
        microbatch: int | None = None, **gradient,
    ) -> jax.Array:  # fmt: skip
        """Images of prompts, each prompt encoded once.

        Args:
            ids: token ids [p, length] of the prompts.
            empty: token ids [1, length] of the empty prompt.
            prompts: which of the prompts each image shows, [n].
            noise: where each image starts, [n, h, w, c].
            microbatch: how many images a network sees at a time; None is all of them.
            gradient: what `fairjax.diffusion.chain.sample` takes: gradient, grad_steps, image_keys.

        Returns:
            images [n, H, W, 3] in [-1, 1].
        """
        states = self.encode(params, bundle, jnp.concatenate([empty, ids]))
        unconditional = states[:1]
        if "text_encoder" not in bundle:  # soft tokens are not in the empty prompt: their gradient by it is zero
            unconditional = jax.lax.stop_gradient(unconditional)
        return self.sample_encoded(
            params, bundle, unconditional, states[1:][prompts], noise, table, num_steps, guidance_scale, microbatch,
            **gradient,
        )  # fmt: skip

    def sample_encoded(
        self, params: dict[str, Params], bundle: Bundle, unconditional: jax.Array, encoder_hidden_states: jax.Array,
        noise: jax.Array, table: solvers.SolverTable, num_steps: int | jax.Array, guidance_scale: float,
        microbatch: int | None = None, **gradient,
    ) -> jax.Array:  # fmt: skip
        """Images [n, H, W, 3] in [-1, 1] of prompts that are encoded already; what is not named here is as in `sample`.

        Args:
            params, bundle: of the UNet and the autoencoder; what is there for the text encoder is not used.
            unconditional: the encoded empty prompt, [1, length, channels].
            encoder_hidden_states: each image's prompt, [n, length, channels].
        """
        unconditional = jnp.broadcast_to(unconditional, encoder_hidden_states.shape)
        context = Conditioning(unconditional, encoder_hidden_states)
        merged = bundles.merge_unet(params["unet"], bundle)  # once, not in every call of the network
        # with soft tokens alone nothing is trained of the unconditional half
        predict = guided(self.unet.apply, guidance_scale, apart=bundle.keys() == {"soft_prompt"})
        latents = chain.sample(predict, merged, context, noise, table, num_steps, microbatch=microbatch, **gradient)
        most = min(microbatch or len(latents), max(1, _COUNTED // self._decoded))
        even = -(-len(latents) // -(-len(latents) // most))
        return in_chunks(lambda latents: self.decode(params, latents), even, latents)

    def check_steps(self, count: int, field: str, solver: str = "dpm-solver++") -> None:
        """Raises a one-line ValueError where the model has not as many timesteps to take solver steps at."""
        most = self.schedule.num_train_timesteps
        if not 1 <= count <= most:
            raise ValueError(f"{field} = {count} must be between 1 and {most}, the timesteps of the model")
        try:
            solvers.solver_steps(self.schedule, solver, count)
        except ValueError as error:
            raise ValueError(f"{field} = {count}: {error}") from None

    def generate(
        self, prompts: Sequence[str], num_images: int = 1, *, bundle: Bundle | None = None, seed: int = 0,
        num_steps: int = 25, guidance_scale: float | None = None, solver: str = "dpm-solver++",
        batch_size: int | None = None, first: int = 0, on_batch: Callable[[int], None] = lambda images: None,
    ) -> np.ndarray:  # fmt: skip
        """Images uint8 [prompts, num_images, H, W, 3], made on every device.

        An image depends on the seed, its prompt's place and its own number, not on `batch_size`, on how many
        others are made or on the devices; so the same call with and without adapters starts from the same noise.

        Args:
            bundle: the adapters to use, such as `load_adapter` reads.
            guidance_scale: 1 is none; None is what the model is made for: 7.5, and 1 for the embedded one.
            solver: "dpm-solver++" (2M) or "ddim".
            batch_size: how many are made at once, by all devices together; None is what `images_at_once` says.
            first: the place of the first prompt, where these are a part of a longer list.
            on_batch: told how many images a finished batch had.
        """
        arguments.texts("prompts", prompts)
        arguments.whole("num_images", num_images, 0)
        if not (len(prompts) and num_images):
            raise ValueError("there is no image to make: prompts and num_images must be at least one each")
        rows = np.stack(np.meshgrid(np.arange(len(prompts)), np.arange(num_images), indexing="ij"), -1).reshape(-1, 2)
        images = []
        for made in self.draw(
            prompts, rows, bundle=bundle, seed=seed, num_steps=num_steps, guidance_scale=guidance_scale, solver=solver,
            batch_size=batch_size and min(batch_size, len(rows)), first=first,
        ):  # fmt: skip
            images.append(made)
            on_batch(len(made))
        return np.concatenate(images).reshape(len(prompts), num_images, *images[0].shape[1:])

    def draw(
        self, prompts: Sequence[str], rows: np.ndarray, *, bundle: Bundle | None = None, seed: int = 0,
        num_steps: int = 25, guidance_scale: float | None = None, solver: str = "dpm-solver++",
        batch_size: int | None = None, first: int = 0,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """Images uint8 [some, H, W, 3], a batch at a time: some of those that `generate` makes, as it makes them.

        Args:
            rows: which they are, [n, 2]: which of the prompts, and the number of the image of it.
        """
        bundle = {} if bundle is None else bundle
        bundles.check(bundle)
        arguments.texts("prompts", prompts)
        arguments.whole("seed", seed, 0, 2**32 - 1)
        arguments.whole("num_steps", num_steps, 1)
        self.check_steps(num_steps, "num_steps", solver)
        guidance_scale = self.guidance_scale if guidance_scale is None else guidance_scale
        arguments.scale("guidance_scale", guidance_scale)
        arguments.whole("first", first, 0)
        if batch_size is not None:
            arguments.whole("batch_size", batch_size, 1)
        mesh = parallel.mesh()
        batch_size = batch_size or self.images_at_once(len(rows), num_steps=num_steps, guidance_scale=guidance_scale)
        merged = parallel.replicate(self.compact(bundles.merge(self.params, bundle)), mesh)
        ids, empty = self.token_ids(prompts, bundle), self.token_ids([""])  # no soft tokens in the latter
        states = self._encoded(merged, np.concatenate([empty, ids]), mesh)
        program = generation(self, mesh, guidance_scale)
        table = solver_table(self.schedule, solver, self._table_steps(num_steps))
        always = (states[:1], draws.key(seed), table, np.int32(num_steps))
        unconditional, key, table, num_steps = parallel.replicate(always, mesh)
        networks = {name: merged[name] for name in ("unet", "vae")}
        size = -(-batch_size // mesh.size) * mesh.size
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            count = len(batch)
            batch = parallel.filled(batch, mesh, size)
            own, numbers = parallel.share_out((states[1 + batch[:, 0]], batch + np.array([first, 0])), mesh)
            yield parallel.fetch(program(networks, own, unconditional, numbers, key, table, num_steps))[:count]

    def images_at_once(self, count: int, *, num_steps: int = 25, guidance_scale: float | None = None) -> int:
        """How many of `count` images are best made at once: as many as the memory of the devices takes.

        At most 64 on each, and no more than share the images out evenly over as few batches.

        Raises:
            ValueError: one line, where not even one image fits.
        """
        guidance_scale = self.guidance_scale if guidance_scale is None else guidance_scale
        mesh = parallel.mesh()
        return _fitting(self, mesh, guidance_scale, -(-count // mesh.size), self._table_steps(num_steps)) * mesh.size

    def _table_steps(self, num_steps: int) -> int:
        """How many steps the solver's table is for: one program serves all numbers up to that.

        A model of so few timesteps may not have as many to be told apart, and has a program for each number.
        """
        return max(num_steps, _TABLE_STEPS) if self.schedule.num_train_timesteps > 2 * _TABLE_STEPS else num_steps

    def lowered(self, mesh: jax.sharding.Mesh, each: int, num_steps: int, guidance_scale: float) -> jax.stages.Lowered:
        """The program that makes `each` images on every device, to compile; the mesh may be of devices elsewhere."""
        params = jax.eval_shape(self.compact, self.params)
        params = {name: params[name] for name in ("unet", "vae")}
        length, count = self.tokenizer.model_max_length, each * mesh.size
        states = jax.eval_shape(self.encode, self.params, {}, jax.ShapeDtypeStruct((count, length), jnp.int32))
        empty = jax.ShapeDtypeStruct((1, *states.shape[1:]), states.dtype)
        table = solver_table(self.schedule, "dpm-solver++", self._table_steps(num_steps))  # for its shapes alone
        always = (params, empty, draws.key(0), table, np.int32(num_steps))
        params, empty, key, table, steps = parallel.shapes(always, mesh)
        own = (states, jax.ShapeDtypeStruct((count, 2), jnp.int32))
        own, rows = parallel.shapes(own, mesh, parallel.SPREAD)
        return generation(self, mesh, guidance_scale).lower(params, own, empty, rows, key, table, steps)

    def _encoded(self, merged: dict[str, Params], ids: np.ndarray, mesh: jax.sharding.Mesh) -> np.ndarray:
        """Token ids [n, length] -> encoder_hidden_states [n, length, channels], each once, by every device."""
        filled = parallel.filled(ids, mesh)
        rows = np.split(filled, len(filled) // mesh.size)  # of one size: one compilation serves all
        text, program = {"text_encoder": merged["text_encoder"]}, encoding(self, mesh)
        states = [parallel.fetch(program(text, parallel.share_out(part, mesh))) for part in rows]
        return np.concatenate(states)[: len(ids)]


def _remembered(make: Callable[..., Any]) -> Callable[..., Any]:
    """`make(pipeline, ...)`, which is done once for as long as there is the pipeline, and does not keep it."""

    @functools.wraps(make)
    def remembered(pipeline: Pipeline, *how: Any) -> Any:
        key = (make.__name__, *how)
        if key not in pipeline._made:
            pipeline._made[key] = make(pipeline, *how)
        return pipeline._made[key]

    return remembered


@_remembered
def encoding(pipeline: Pipeline, mesh: jax.sharding.Mesh) -> Callable[..., jax.Array]:
    """The program that encodes prompts for `generate`: (params, token ids [n, length]), of which the ids are spread."""
    replicated, spread = parallel.REPLICATED, parallel.SPREAD
    return parallel.spread(lambda params, ids: pipeline.encode(params, {}, ids), mesh, (replicated, spread), spread)


@_remembered
def generation(pipeline: Pipeline, mesh: jax.sharding.Mesh, guidance_scale: float) -> Callable[..., jax.Array]:
    """The program behind `generate`: adapters are merged already, prompts encoded.

    Of (params of UNet and autoencoder, the encoder_hidden_states of each image's prompt [n, length, channels], those of
    the empty prompt [1, length, channels], places of prompts and images [n, 2], key, solver table, num_steps), of which
    the states and places are spread over the devices, as the images are.
    """

    def images(params, states, unconditional, rows, key, table, num_steps):
        noise = pipeline.noise(image_keys(key, rows))
        made = pipeline.sample_encoded(params, {}, unconditional, states, noise, table, num_steps, guidance_scale)
        return to_uint8(made)

    replicated, spread = parallel.REPLICATED, parallel.SPREAD
    specs = (replicated, spread, replicated, spread, replicated, replicated, replicated)
    return parallel.spread(images, mesh, specs, spread)


@_remembered
def _fitting(pipeline: Pipeline, mesh: jax.sharding.Mesh, guidance_scale: float, own: int, num_steps: int) -> int:
    """How many of its `own` images a device makes at once."""
    even = sorted({-(-own // batches) for batches in range(1, own + 1)})  # what shares them out over some batches
    sizes = [size for size in even if size <= _AT_ONCE]

    def compiled(each: int) -> jax.stages.Compiled:
        return pipeline.lowered(mesh, each, num_steps, guidance_scale).compile()

    return memory.fitting(compiled, sizes, parallel.memory_left(mesh), "making images") or sizes[-1]


@functools.cache
def _warn_where_cut(tokenizer: CLIPTokenizer, prompt: str, room: int) -> None:
    """Says, once, of a prompt that it is longer than there is room for between the tokens of its beginning and end."""
    count = len(tokenizer(prompt, verbose=False).input_ids)
    if count > room:
        told = f"a prompt has {count - 2} tokens, of which {room - 2} are read: {prompt[:60]!r}..."
        print(f"warning: {told}", file=sys.stderr, flush=True)


def image_keys(key: jax.Array, indices: jax.Array) -> jax.Array:
    """A key for each image, `key` folded by the image's indices [n, k] in turn."""

    def fold(row: jax.Array) -> jax.Array:
        folded = key
        for number in range(indices.shape[1]):
            folded = jax.random.fold_in(folded, row[number])
        return folded

    return jax.vmap(fold)(indices)


@functools.lru_cache
def solver_table(schedule: NoiseSchedule, solver: str, max_steps: int) -> solvers.SolverTable:
    """`solvers.table` on the device, made once."""
    with jax.ensure_compile_time_eval():  # else what is first asked for while something is traced is kept as a tracer
        return jax.tree.map(jnp.asarray, solvers.table(schedule, solver, max_steps))
