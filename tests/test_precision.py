"""bfloat16 where it is fast: what it may cost."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import jaxprs_in_params
from small_world import fields

from fairjax import parallel
from fairjax.adapters import bundle as bundles
from fairjax.adapters import lora
from fairjax.config import Experiment
from fairjax.models import layers
from fairjax.pipeline import Pipeline, image_keys, solver_table
from fairjax.schema import load
from fairjax.training.finetuning import Finetuning
from fairjax.training.step import Step

CONFIG = Path(__file__).parent.parent / "configs" / "portraits" / "gender.yaml"

PROMPTS = ["a portrait of a pilot", "a drawing of a nurse"]


@pytest.fixture(scope="module")
def made():
    """By type, images of the embedded model and the gradient of a function of them by a LoRA of both networks."""
    return {dtype: make(Pipeline.from_pretrained("portraits", dtype)) for dtype in ("float32", "bfloat16")}


def make(pipeline):
    bundle = bundles.init(("text_encoder", "unet"), pipeline.params, 4, 0, jax.random.key(0))
    bundle = jax.tree.map(lambda leaf: leaf + 0.01, bundle)  # so that both factors have a gradient
    noise = pipeline.noise(image_keys(jax.random.key(1), jnp.arange(2)[:, None]))
    ids, empty = pipeline.token_ids(PROMPTS), pipeline.token_ids([""])
    params = pipeline.compact(pipeline.params, bundle)
    table, prompts = solver_table(pipeline.schedule, "dpm-solver++", 2), jnp.array([0, 1])
    towards = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32).repeat(8, 1).repeat(8, 2)

    @jax.jit
    def images_and_gradient(params, bundle):
        def function(bundle):
            images = pipeline.sample(params, bundle, ids, empty, prompts, noise, table, 2, 2.0)
            return jnp.sum(images * towards), images

        gradient, images = jax.grad(function, has_aux=True)(bundle)
        return images, gradient

    return pipeline, params, *jax.device_get(images_and_gradient(params, bundle))


def test_adapters_and_images_are_float32_and_what_is_frozen_is_compact(made):
    _, params, images, gradient = made["bfloat16"]
    assert images.dtype == np.float32 and {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {np.dtype("float32")}
    types = {name: {str(leaf.dtype) for leaf in jax.tree.leaves(tree)} for name, tree in params.items()}
    assert types == {"text_encoder": {"float32"}, "unet": {"float32", "bfloat16"}, "vae": {"bfloat16"}}


def test_a_unet_is_compact_but_for_what_an_adapter_changes_and_computes_the_same(small_world):
    """Bit for bit: the rest is rounded where it is used, or before."""
    pipeline = Pipeline.from_pretrained(small_world, "bfloat16")
    whole, compact = pipeline.params["unet"], pipeline.compact(pipeline.params, ("unet",))["unet"]
    rows = [leaf for leaf in jax.tree.leaves(whole) if leaf.ndim == 1]
    adapted = lora.select(whole, lora.UNET_TARGETS)
    alone = {path for path, kernel in lora.kernels(compact).items() if kernel.dtype == np.float32}
    assert alone == adapted.keys() and 0 < len(alone) < len(lora.kernels(whole))
    assert sum(leaf.dtype == np.float32 for leaf in jax.tree.leaves(compact)) == len(rows) + len(alone)

    bundle = jax.tree.map(lambda leaf: leaf + 0.01, bundles.init(("unet",), pipeline.params, 4, 0, jax.random.key(0)))
    x, words = jnp.ones((2, *pipeline.latent_shape)), jnp.ones((2, 3, adapted_width(adapted)))

    @jax.jit
    def value_and_gradient(params):
        def value(bundle):
            return jnp.sum(pipeline.unet.apply(bundles.merge_unet(params, bundle), x, jnp.ones(2), words) ** 2)

        return jax.value_and_grad(value)(bundle)

    jax.tree.map(np.testing.assert_array_equal, value_and_gradient(compact), value_and_gradient(whole))


def adapted_width(adapted):
    """Of encoder_hidden_states."""
    return next(kernel.shape[0] for path, kernel in adapted.items() if path.endswith("attn2.to_k"))


def test_the_gradient_points_where_float32s_does(made):
    """The aim of the policy is a cosine of 0.99; each kind of adapter apart."""
    (_, _, exact_images, exact), (_, _, images, gradient) = made["float32"], made["bfloat16"]
    assert 0 < np.abs(images - exact_images).mean() < 0.02  # of 2, the range of pixels
    for kind in exact:
        a, b = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree[kind])]) for tree in (exact, gradient))
        assert a @ b / np.linalg.norm(a) / np.linalg.norm(b) >= 0.99, kind


def test_what_computes_in_float32_asks_accelerators_for_it(small_world, monkeypatch):
    """Which round what they multiply in float32 to fewer bits unless they are asked not to: the change of a first step
    would be lost in the text encoder, and faces judged otherwise than on a CPU.
    """
    monkeypatch.setattr(layers, "device", lambda: ("gpu", "", 9.0))  # CPUs have gradients of convolutions of their own
    config = load(Experiment, None, fields(small_world) | {"training.precision": "bfloat16"})
    case = Finetuning(config, parallel.mesh(1))
    pipeline, judges = case.pipeline, case.judges
    bundle = bundles.init(("text_encoder",), pipeline.params, 4, 0, jax.random.key(0))
    ids, images = pipeline.token_ids(PROMPTS), jnp.zeros((2, *pipeline.image_size, 3))
    faces = jax.eval_shape(judges.verdict, judges.params, images).faces
    asked = {
        "encode": (lambda bundle: pipeline.encode(pipeline.params, bundle, ids), bundle),
        "verdict": (lambda images: judges.verdict(judges.params, images).logits, images),
        "identity": (
            lambda images: judges.identity(judges.params, images, jax.tree.map(jnp.zeros_like, faces)),
            images,
        ),
    }
    for name, (function, at) in asked.items():
        gradient = jax.grad(lambda at, of=function: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(of(at))))
        found = list(products(jax.make_jaxpr(gradient)(at).jaxpr))
        assert len(found) > 5 and set(found) == {(lax.Precision.HIGHEST,) * 2}, (name, set(found))


def products(jaxpr):
    """The precision of each product of matrices and each convolution, wherever it is."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation.params["precision"]
        for inner in jaxprs_in_params(equation.params):
            yield from products(inner)


@pytest.mark.slow
def test_a_whole_steps_gradient_points_where_float32s_does(monkeypatch):
    """With the judges and all losses, of the shipped configuration on fewer images.

    The seed is one at which no two people are as sure to be of their class, so that rounding gives them each other's
    target: gradients to other targets point elsewhere, and neither is wrong.
    """
    labels, own_targets = [], Step._own_targets

    def heard(*arguments):
        found = own_targets(*arguments)
        jax.debug.callback(lambda gender: labels.append(gender.tolist()), found[0])
        return found

    monkeypatch.setattr(Step, "_own_targets", heard)

    def first(precision):
        fields = {
            "seed": 1, "training.precision": precision,
            "training.prompts_per_step": 1, "training.images_per_prompt": 8,
            "training.num_steps": (4, 4), "training.grad_steps": None, "adapter.kinds": ("text_encoder", "unet"),
        }  # fmt: skip
        finetuning = Finetuning(load(Experiment, CONFIG, fields), parallel.mesh(1))
        start = finetuning.initial()
        state, scalars, _ = finetuning.compiled()(start, finetuning._frozen, finetuning.batch(0, start.bundle)[0])
        has_moments = lambda leaf: hasattr(leaf, "mu")  # noqa: E731
        (moments,) = (leaf for leaf in jax.tree.leaves(state.optimizer, is_leaf=has_moments) if has_moments(leaf))
        flat = {kind: np.concatenate([*map(np.ravel, jax.tree.leaves(tree))]) for kind, tree in moments.mu.items()}
        return flat, scalars

    (exact, exactly), (compact, roughly) = first("float32"), first("bfloat16")
    jax.effects_barrier()
    assert labels[0] == labels[1] and {0, 1} <= set(labels[0])
    assert float(roughly["loss"]) == pytest.approx(float(exactly["loss"]), rel=0.05)
    for kind, gradient in exact.items():
        other = compact[kind]
        assert gradient @ other / np.linalg.norm(gradient) / np.linalg.norm(other) >= 0.99, kind
