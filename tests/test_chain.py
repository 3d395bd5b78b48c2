"""The sampling chain and its gradients: against diffusers, the authors' method in PyTorch, and autodiff."""

from functools import lru_cache, partial
from typing import NamedTuple

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, PartitionSpec

from fairjax.convert.rules import from_torch, to_torch
from fairjax.diffusion import solvers
from fairjax.diffusion.chain import sample
from fairjax.diffusion.guidance import Conditioning, guided
from fairjax.diffusion.schedule import NoiseSchedule
from fairjax.models.functional import functional
from fairjax.models.unet import UNet2DConditionModel, UNetConfig
from fairjax.models.vae import AutoencoderKL, VAEConfig

FIELDS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULE = NoiseSchedule.from_dict(FIELDS)
TABLE = solvers.table(SCHEDULE, "dpm-solver++", 7)
SCALE = 7.5
TINY = {
    "sample_size": 8,
    "block_out_channels": (16,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": 12,
}


def both_worlds(fields):
    """The same random network in both worlds: PyTorch module, fairjax network, its parameters."""
    torch.manual_seed(0)
    module = diffusers.UNet2DConditionModel(**fields).eval()
    config = UNetConfig.from_dict(dict(module.config))
    network = functional(lambda rngs: UNet2DConditionModel(config, rngs=rngs))
    params = from_torch(network.abstract, {name: tensor.numpy() for name, tensor in module.state_dict().items()})
    return module, network, jax.tree.map(jnp.asarray, params)


@pytest.fixture(scope="module")
def unet():
    return both_worlds(TINY)


def draw(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def nchw(x):
    return torch.tensor(np.array(x)).permute(0, 3, 1, 2)


def close(actual, expected, relative):
    """Asserts that two trees differ by less than `relative` times the largest entry of each leaf."""

    def check(a, e):
        np.testing.assert_allclose(a, e, rtol=0, atol=relative * max(np.abs(e).max(), 1e-12))

    jax.tree.map(check, actual, expected)


@pytest.fixture(scope="module")
def adjusted_gradient(unet):
    """(params, context, noise, cotangent, table, number of steps) -> gradients, latents: one compiled program."""
    _, network, _ = unet

    @jax.jit
    def gradient(params, context, noise, cotangent, table, num_steps):
        def loss(params, context):
            x = sample(guided(network.apply, SCALE), params, context, noise, table, num_steps, microbatch=3)
            return (x * cotangent).sum(), x

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(params, context)

    return gradient


def influence(prediction_type, scheduler):
    """A at the scheduler's timesteps: the authors' for noise; for velocities, their derivation (see `solvers`)."""
    alpha, abar = scheduler.alphas[scheduler.timesteps], scheduler.alphas_cumprod[scheduler.timesteps]
    if prediction_type == "epsilon":
        return (1 - alpha) / ((1 - abar).sqrt() * abar.sqrt())
    return (1 - alpha) * (abar / alpha) / (1 - abar).sqrt()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_adjusted_gradient_equals_the_authors_method_in_pytorch(unet, adjusted_gradient, prediction_type):
    """Image input detached, and a hook on each guided prediction that scales its gradient by 1 / A."""
    module, _, params = unet
    num_steps, fields = 5, FIELDS | {"prediction_type": prediction_type}
    noise, target, uncond, cond = draw(1, *[(2, 8, 8, 4)] * 2, *[(2, 5, 12)] * 2)

    scheduler = diffusers.DPMSolverMultistepScheduler(**fields)
    scheduler.set_timesteps(num_steps)
    scales = 1 / influence(prediction_type, scheduler)
    scales = scales / scales.log().mean().exp()
    both = torch.tensor(np.concatenate([uncond, cond]), requires_grad=True)
    x = nchw(noise)
    module.zero_grad()
    for timestep, scale in zip(scheduler.timesteps, scales, strict=True):
        u, c = module(torch.cat([x.detach()] * 2), timestep, both).sample.chunk(2)
        prediction = u + SCALE * (c - u)
        prediction.register_hook(partial(torch.mul, scale))
        x = scheduler.step(prediction, timestep, x).prev_sample
    (x * nchw(target)).sum().backward()
    expected_params = {name: p.grad.numpy() for name, p in module.named_parameters()}

    table = solvers.table(NoiseSchedule.from_dict(fields), "dpm-solver++", 7)
    context = Conditioning(uncond, cond)
    (g_params, g_context), latents = adjusted_gradient(params, context, noise, target, table, num_steps)
    close(nchw(latents), x.detach().numpy(), 1e-5)
    close(np.concatenate(g_context), both.grad.numpy(), 1e-4)
    g_params = to_torch(g_params)
    largest = max(np.abs(g).max() for g in expected_params.values())
    for (
        name,
        expected,
    ) in expected_params.items():  # a few, such as a bias before a norm, are all rounding error
        scale = max(np.abs(expected).max(), 1e-3 * largest)
        np.testing.assert_allclose(g_params[name], expected, rtol=0, atol=1e-4 * scale, err_msg=name)


class Whole(NamedTuple):
    """A denoiser, what it predicts, and its decoder."""

    unet: dict
    prediction_type: str
    vae: dict


CHAINS = {
    "like SD 1": Whole(TINY, "epsilon", {"block_out_channels": (8, 8)}),
    "like SD 2, with odd channels": Whole(
        {
            "sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": (12, 20), "norm_num_groups": 4,
            "down_block_types": ("CrossAttnDownBlock2D",) * 2, "up_block_types": ("CrossAttnUpBlock2D",) * 2,
            "layers_per_block": 1, "attention_head_dim": (2, 5), "cross_attention_dim": 12,
            "use_linear_projection": True,
        },
        "v_prediction",
        {"block_out_channels": (12, 20), "latent_channels": 3},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHAINS)
def test_guided_chain_and_decoder_equal_diffusers_in_25_steps(kind):
    """On pixels in [-1, 1], at most 1e-3 apart."""
    fields, schedule = CHAINS[kind], FIELDS | {"prediction_type": CHAINS[kind].prediction_type}
    module, network, params = both_worlds(fields.unet)
    torch.manual_seed(1)
    decoder = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        **fields.vae,
    ).eval()
    config = VAEConfig.from_dict(dict(decoder.config))
    vae = functional(lambda rngs: AutoencoderKL(config, rngs=rngs))
    vae_params = from_torch(vae.abstract, {name: tensor.numpy() for name, tensor in decoder.state_dict().items()})
    noise, uncond, cond = draw(2, (2, 8, 8, config.latent_channels), *[(2, 5, 12)] * 2)

    scheduler = diffusers.DPMSolverMultistepScheduler(**schedule)
    scheduler.set_timesteps(25)
    x, both = nchw(noise), torch.tensor(np.concatenate([uncond, cond]))
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            u, c = module(torch.cat([x] * 2), timestep, both).sample.chunk(2)
            x = scheduler.step(u + SCALE * (c - u), timestep, x).prev_sample
        expected = decoder.decode(x / config.scaling_factor).sample.clamp(-1, 1)

    table = solvers.table(NoiseSchedule.from_dict(schedule), "dpm-solver++", 25)

    @jax.jit
    def images(params, vae_params, context):
        latents = sample(guided(network.apply, SCALE), params, context, noise, table, 25)
        return jnp.clip(vae.apply(vae_params, latents / config.scaling_factor, method="decode"), -1, 1)

    ours = images(params, vae_params, Conditioning(uncond, cond))
    assert expected.std() > 0.05 and (expected.abs() < 1).float().mean() > 0.5
    np.testing.assert_allclose(nchw(ours), expected.numpy(), atol=1e-3)


def toy(params, x, timesteps, context):
    """A small network that depends on everything it is given."""
    time = timesteps[:, None, None, None] / 1000
    return jnp.tanh(x @ params["inner"] + context["shift"][:, None, None, :] + time) @ params["outer"]


@pytest.fixture(scope="module")
def world():
    inner, outer, shift, noise, target = draw(3, (4, 4), (4, 4), (4, 4), (4, 2, 2, 4), (4, 2, 2, 4))
    return {"inner": 0.3 * inner, "outer": 0.3 * outer}, {"shift": shift}, noise, target


def loss(params, context, noise, target, num_steps, table=TABLE, **options):
    return (sample(toy, params, context, noise, table, num_steps, **options) * target).sum()


def unrolled_loss(params, context, noise, target, num_steps, first_differentiated=0, seen=lambda x: x):
    """The same chain as a Python loop, for plain autodiff, constant up to the given step.

    `seen` is what the network sees of the latents.
    """
    x, previous = noise, jnp.zeros_like(noise)
    for i in range(num_steps):
        if i == first_differentiated:
            x, previous = jax.lax.stop_gradient((x, previous))
        step = solvers.Steps(*(rows[num_steps - 1, i] for rows in TABLE.steps))
        data = solvers.data_prediction(step, x, toy(params, seen(x), jnp.full(len(x), step.timestep), context))
        x, previous = solvers.advance(step, x, data, previous), data
    return (x * target).sum()


def test_the_unscaled_gradient_is_autodiff_where_the_network_does_not_look_back(world):
    expected = jax.jit(jax.grad(partial(unrolled_loss, num_steps=6, seen=jax.lax.stop_gradient), (0, 1)))
    actual = jax.jit(jax.grad(partial(loss, gradient="unscaled"), (0, 1)))
    close(actual(*world, 6), expected(*world), 1e-5)


@pytest.mark.parametrize("mode, steps", [("exact", 6), ("truncated:1", 1), ("truncated:3", 3), ("truncated:20", 6)])
def test_exact_and_truncated_gradients_equal_autodiff_through_the_unrolled_chain(world, mode, steps):
    expected = jax.jit(jax.grad(partial(unrolled_loss, num_steps=6, first_differentiated=6 - steps), (0, 1)))
    actual = jax.jit(jax.grad(partial(loss, gradient=mode), (0, 1)))
    close(actual(*world, 6), expected(*world), 1e-5)


def test_the_exact_gradient_of_a_guided_unet_equals_autodiff(unet):
    """Through a real network and guidance, in parameters and prompt embeddings."""
    _, network, params = unet
    denoise = guided(network.apply, SCALE)
    noise, target, uncond, cond = draw(7, *[(2, 8, 8, 4)] * 2, *[(2, 5, 12)] * 2)

    def unrolled(params, context):
        x, previous = noise, jnp.zeros_like(noise)
        for i in range(3):
            step = solvers.Steps(*(rows[2, i] for rows in TABLE.steps))
            data = solvers.data_prediction(step, x, denoise(params, x, jnp.full(len(x), step.timestep), context))
            x, previous = solvers.advance(step, x, data, previous), data
        return (x * target).sum()

    def chained(params, context):
        return (sample(denoise, params, context, noise, TABLE, 3, gradient="exact") * target).sum()

    expected, actual = (
        jax.jit(jax.grad(function, (0, 1)))(params, Conditioning(uncond, cond)) for function in (unrolled, chained)
    )
    close(actual[1], expected[1], 1e-4)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[0]))
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=1e-4 * largest), actual[0], expected[0])


@pytest.mark.parametrize("mode", ["adjusted", "uniform", "unscaled"])
def test_gradient_does_not_depend_on_the_microbatch(world, mode):
    def gradient(microbatch, num_steps):
        return jax.jit(jax.grad(partial(loss, gradient=mode, microbatch=microbatch), (0, 1)))(*world, num_steps)

    for num_steps in (1, 5):
        expected = gradient(1, num_steps)
        for microbatch in (None, 3, 4, 50):  # 50 is more than there are pairs
            close(gradient(microbatch, num_steps), expected, 1e-5)


def test_a_user_who_counts_in_float64_has_the_same_steps_chosen():
    how, (noise, context) = {"grad_steps": 1, "image_keys": KEYS}, draw(0, (len(KEYS), 2, 2, 1), (len(KEYS), 1))

    def gradient():
        def loss(weight):
            return (sample(lambda w, x, t, c: w * x * t[0], weight, context, noise, TABLE, 7, **how) ** 2).sum()

        return jax.grad(loss)(jnp.float32(1e-3))

    usual = gradient()
    with jax.enable_x64(True):
        np.testing.assert_allclose(gradient(), usual, rtol=1e-5)


@pytest.mark.parametrize("num_steps, grad_steps", [(7, 3), (6, 2), (3, 5)])
def test_the_estimate_from_few_steps_has_no_bias(world, num_steps, grad_steps, monkeypatch):
    """The choice changes with u at multiples of 1 / S only: a mean over S values of u is the expectation."""
    params, context, noise, target = jax.tree.map(jnp.asarray, world)
    repeat = partial(jnp.repeat, repeats=num_steps, axis=0)
    context, noise, target = {"shift": repeat(context["shift"][:1])}, repeat(noise[:1]), repeat(target[:1])
    monkeypatch.setattr(jax.random, "uniform", lambda key, *_: (key + 0.5) / num_steps)
    full = jax.grad(loss, (0, 1))(params, context, noise, target, num_steps)
    estimate = jax.grad(partial(loss, grad_steps=grad_steps, image_keys=jnp.arange(num_steps)), (0, 1))(
        params, context, noise, target, num_steps
    )
    close(estimate[0], full[0], 1e-5)
    per_image = estimate[1]["shift"]
    close(per_image.mean(axis=0), full[1]["shift"][0], 1e-5)
    assert np.ptp(per_image, axis=0).max() > 0.01 * np.abs(per_image).max()


def test_one_compilation_serves_every_number_of_steps(world):
    table, traces = solvers.table(SCHEDULE, "dpm-solver++", 25), []

    @jax.jit
    def gradient(num_steps):
        traces.append(num_steps)
        return jax.grad(partial(loss, table=table))(*world, num_steps)

    ten, twenty_five = gradient(10), gradient(25)
    assert len(traces) == 1
    assert np.abs(ten["inner"] - twenty_five["inner"]).max() > 0


@pytest.fixture(scope="module")
def compiled(unet):
    """(most steps, what is differentiated) -> the compiled gradient of a chain, each compiled once."""
    _, network, params = unet
    noise, context = draw(4, (2, 8, 8, 4), (2, 5, 12))

    @lru_cache
    def compile(max_steps, argnums):
        def gradient(params, context, table, num_steps):
            def loss(params, context):
                return sample(network.apply, params, context, noise, table, num_steps).sum()

            return jax.grad(loss, argnums)(params, context)

        table = solvers.table(SCHEDULE, "ddim", max_steps)
        return jax.jit(gradient).lower(params, context, table, 5).compile()

    return compile


def test_memory_grows_with_the_steps_by_the_saved_latents_only(compiled):
    ten, fifty = (compiled(steps, (0, 1)).memory_analysis().temp_size_in_bytes for steps in (10, 50))
    latents, rows = 2 * 8 * 8 * 4 * 4, 40 * 4 * 8  # a row of the table: timesteps, five coefficients, two weightings
    assert fifty - ten <= 40 * latents + 2 * rows


def test_leaves_that_are_not_differentiated_cost_no_gradient(compiled):
    """The context's gradient alone must not pay for gradients of the weights."""
    context, both = (compiled(10, argnums).cost_analysis()["flops"] for argnums in (1, (0, 1)))
    assert context < 0.85 * both


KEYS = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(jnp.arange(4))
MODES = [
    {},
    {"microbatch": 3},
    {"grad_steps": 2, "image_keys": KEYS},
    {"gradient": "exact"},
    {"gradient": "truncated:2"},
]


@pytest.mark.parametrize("options", MODES, ids=lambda options: "-".join(options) or "adjusted")
@pytest.mark.parametrize("parameters", ["varying", "replicated", "unchecked"])
def test_the_same_gradient_on_1_and_4_devices(world, options, parameters):
    """Replicated parameters get a gradient already reduced; otherwise the reduction is the caller's."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:4])
    keys = options.get("image_keys", KEYS)
    options = {name: value for name, value in options.items() if name != "image_keys"}

    def gradient(params, context, noise, target, num_steps, keys):
        keys = keys if "grad_steps" in options else None
        return jax.grad(loss, (0, 1))(params, context, noise, target, num_steps, image_keys=keys, **options)

    def share(params, *rest):
        if parameters == "varying":
            params = jax.lax.pcast(params, "data", to="varying")
        g_params, g_context = gradient(params, *rest)
        return g_params if parameters == "replicated" else jax.lax.psum(g_params, "data"), g_context

    split, whole = PartitionSpec("data"), PartitionSpec()
    spread = jax.shard_map(
        share,
        mesh=mesh,
        in_specs=(whole, split, split, split, whole, split),
        out_specs=(whole, split),
        check_vma=parameters != "unchecked",
    )
    close(jax.jit(spread)(*world, 5, keys), jax.jit(gradient)(*world, 5, keys), 1e-5)


def test_no_guidance_skips_the_unconditional_half(world):
    params, context, noise, _ = world
    batches = []

    def network(params, x, timesteps, context):
        batches.append(len(context["shift"]))
        copies = batches[-1] // len(x)
        return toy(params, jnp.tile(x, (copies, 1, 1, 1)), jnp.tile(timesteps, copies), context)

    other = {"shift": jnp.zeros((4, 4))}
    both, timesteps = Conditioning(other, context), jnp.full(4, 500)
    conditional, unconditional = (toy(params, noise, timesteps, c) for c in (context, other))
    close(guided(network, 1.0)(params, noise, timesteps, both), conditional, 1e-6)
    expected = unconditional + 3 * (conditional - unconditional)
    close(guided(network, 3.0)(params, noise, timesteps, both), expected, 1e-6)
    assert batches == [4, 8]
    close(guided(network, 3.0, apart=True)(params, noise, timesteps, both), expected, 1e-6)
    assert batches == [4, 8, 4, 4]


@pytest.mark.parametrize(
    "num_steps, options, message",
    [
        (8, {}, "num_steps = 8"),
        (3, {"gradient": "adjust"}, "'adjust'.*adjusted"),
        (3, {"gradient": "truncated:0"}, "truncated:0"),
        (3, {"grad_steps": 2}, "image_keys"),
        (3, {"grad_steps": 2, "image_keys": KEYS, "gradient": "exact"}, "grad_steps = 2"),
        (3, {"microbatch": 0}, "microbatch = 0"),
    ],
)
def test_wrong_requests_are_refused_by_name(world, num_steps, options, message):
    with pytest.raises(ValueError, match=message):
        loss(*world, num_steps, **options)
