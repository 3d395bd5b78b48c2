"""What each network of the embedded world learns: its loss, its batches and how long it is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fairjax.diffusion.schedule import NoiseSchedule
from fairjax.faces.learning import Batch, picks
from fairjax.models.functional import Network, Params
from fairjax.portraits.captions import WORDS
from fairjax.portraits.renders import Renders
from fairjax.training.fit import Fit, Loss

CAPTION_DROPOUT = 0.1
"""How often the UNet sees the empty prompt in place of the caption, for classifier-free guidance."""


LOGIT_SCALE = 3.0
"""What CLIP's logits are scaled by; published models learn it, up to 100. The lower, the more of a text feature must
say what little a close-up tells: whom the pictures of an occupation show."""


MAX_SNR = 5.0
"""The signal-to-noise ratio from which less noise counts less in the denoiser's loss (Hang et al., 2023, gamma)."""


def autoencoder(vae: Network, renders: Renders, fit: Fit, seed: int) -> tuple[Loss, Batch]:
    """Absolute error of the pixels and of their differences (edges), and a light pull of the latents to N(0, I)."""
    pick = picks(seed, len(renders), fit.batch_size)

    def loss(params: Params, images: jax.Array, key: jax.Array):
        posterior = vae.apply(params, images, method="encode")
        error = vae.apply(params, posterior.sample(key), method="decode") - images
        pixels = jnp.abs(error).mean()
        edges = jnp.abs(jnp.diff(error, axis=1)).mean() + jnp.abs(jnp.diff(error, axis=2)).mean()
        kl = posterior.kl().mean()
        psnr = 10 * jnp.log10(4.0 / jnp.mean(error**2))
        return pixels + 0.5 * edges + jnp.mean(error**2) + 3e-6 * kl, ({"PSNR": psnr, "KL": kl}, {})

    return loss, lambda step: renders.pixels(pick(step))


def contrastive(clip: Network, renders: Renders, tokens: np.ndarray, fit: Fit, seed: int) -> tuple[Loss, Batch]:
    """CLIP's loss, where every caption that is true of an image counts as a match.

    A caption is true of an image that shows its occupation, and what else it says: the background, classes of the
    person.
    Every second image is a close-up, in which the face alone must do to tell who works as what: so the text features
    learn whom the pictures of an occupation show, as those of a CLIP trained on the web have. A finetuning can only
    carry over to other occupations what they share in the text encoder.
    """
    pick = picks(seed, len(renders), fit.batch_size)
    occupations = renders.labels["occupation"]
    kinds = np.where(renders.labels["face"] > 0, occupations, -2)  # without a person: a kind of its own
    shown = np.stack([renders.colours(), *(renders.labels[name] for name in WORDS)], axis=1)
    said = np.stack([renders.colours(), *map(renders.said, WORDS)], axis=1)  # [n, things], -1 for nothing

    def loss(params: Params, batch: dict[str, jax.Array], key: jax.Array):
        image = clip.apply(params, with_close_ups(batch["images"], key), method="get_image_features")
        text = clip.apply(params, batch["tokens"], method="get_text_features")
        image, text = (x / jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text))
        logits = LOGIT_SCALE * image @ text.T
        kind, shown, said = batch["kind"], batch["shown"][:, None], batch["said"][None, :]
        match = (kind[:, None] == kind[None, :]) & ((said == -1) | (said == shown)).all(-1)  # [image, caption]
        by_image, by_text = (
            m / m.sum(1, keepdims=True) for m in (match.astype(jnp.float32), match.T.astype(jnp.float32))
        )
        cross_entropy = (
            optax.softmax_cross_entropy(logits, by_image).mean() + optax.softmax_cross_entropy(logits.T, by_text).mean()
        )
        right = jnp.take_along_axis(match, logits.argmax(1)[:, None], 1).mean()
        return cross_entropy / 2, ({"loss": cross_entropy / 2, "matched": right}, {})

    def batch(step: int) -> dict[str, np.ndarray]:
        i = pick(step)
        return {"images": renders.pixels(i), "tokens": tokens[i], "kind": kinds[i], "shown": shown[i], "said": said[i]}

    return loss, batch


def with_close_ups(images: jax.Array, key: jax.Array) -> jax.Array:
    """Portraits [n, h, w, c], every second one seen so closely that the face fills it: no outfit, and no place."""
    n, *size, channels = images.shape
    how_close, place = jax.random.split(key)
    side = jax.random.uniform(how_close, (n, 1), minval=0.22, maxval=0.34)
    centre = jnp.array([[0.51, 0.5]]) + jax.random.uniform(place, (n, 2), minval=-0.03, maxval=0.03)  # of the face
    close = (jnp.arange(n) % 2 == 0)[:, None]
    scale = jnp.where(close, jnp.broadcast_to(1 / side, (n, 2)), 1.0)
    corner = jnp.where(close, centre - side / 2, 0.0) * jnp.array([size], jnp.float32)

    def cut(image, scale, corner):
        shape, shift = (*size, channels), -corner * scale
        return jax.image.scale_and_translate(image, shape, (0, 1), scale, shift, method="linear", antialias=False)

    return jax.vmap(cut)(images, scale, corner)


@dataclasses.dataclass(frozen=True)
class Latents:
    """The renders as the autoencoder encodes them, unscaled."""

    mean: np.ndarray  # [n, h, w, c]
    deviation: np.ndarray  # [n, h, w, c]

    @property
    def scaling_factor(self) -> float:
        """One over the standard deviation of the latents, as Stable Diffusion measured its 0.18215."""
        return float(1 / np.sqrt(self.mean.var() + (self.deviation**2).mean()))


def denoiser(
    unet: Network, latents: Latents, contexts: np.ndarray, captions: np.ndarray, empty: int, schedule: NoiseSchedule,
    fit: Fit, seed: int,
) -> tuple[Loss, Batch]:  # fmt: skip
    """Denoising score matching: the error of the predicted noise at random timesteps (Ho et al. 2020, eq. 14).

    The error counts by min(SNR, `MAX_SNR`) / SNR (Hang et al., 2023, eq. 8): the last grain of the latents less than
    what is decided in more noise.

    Args:
        contexts: [distinct captions, tokens, channels], the text encoder's hidden states.
        captions: [n], which context describes which image; `empty` is that of the empty prompt.
    """
    pick, scale = picks(seed, len(captions), fit.batch_size), latents.scaling_factor
    steps = schedule.num_train_timesteps
    alphas_cumprod = np.asarray(schedule.alphas_cumprod)
    snr = alphas_cumprod / (1 - alphas_cumprod)
    weights = jnp.asarray(np.minimum(snr, MAX_SNR) / snr, jnp.float32)

    def loss(params: Params, batch: dict[str, jax.Array], key: jax.Array):
        keys = jax.random.split(key, 3)
        clean = scale * (batch["mean"] + batch["deviation"] * jax.random.normal(keys[0], batch["mean"].shape))
        noise = jax.random.normal(keys[1], clean.shape)
        # stratified over the batch: a lower variance of the loss at no cost
        timesteps = jnp.mod(
            jax.random.randint(keys[2], (), 0, steps) + jnp.arange(len(clean)) * steps // len(clean), steps
        )
        noisy = schedule.add_noise(clean, noise, timesteps)
        error = jnp.mean((unet.apply(params, noisy, timesteps, batch["context"]) - noise) ** 2, axis=(1, 2, 3))
        weighted = jnp.mean(error * weights[timesteps])
        return weighted, ({"loss": weighted, "error": error.mean()}, {})

    def batch(step: int) -> dict[str, np.ndarray]:
        i = pick(step)
        dropped = np.random.default_rng([seed + 1, step]).random(len(i)) < CAPTION_DROPOUT
        context = contexts[np.where(dropped, empty, captions[i])]
        return {"mean": latents.mean[i], "deviation": latents.deviation[i], "context": context}

    return loss, batch


def identity(
    network: Network, pairs: Callable[[np.ndarray], np.ndarray], count: int, fit: Fit, seed: int
) -> tuple[Loss, Batch]:
    """Contrastive (van den Oord et al., 2018): of all faces in the batch, which is the same person's?

    Args:
        pairs: indices [k] -> two faces each of k people, [k, 2, h, w, 3].
        count: how many people there are.
    """
    pick = picks(seed, count, fit.batch_size)

    def loss(params: Params, faces: jax.Array, key: jax.Array):
        embedding, statistics = network.apply(params, faces.reshape(-1, *faces.shape[2:]), method="train")
        embedding = embedding / jnp.linalg.norm(embedding, axis=-1, keepdims=True)
        first, second = embedding[0::2], embedding[1::2]
        logits = 20.0 * first @ second.T
        label = jnp.arange(len(first))
        error = sum(optax.softmax_cross_entropy_with_integer_labels(side, label).mean() for side in (logits, logits.T))
        return error / 2, ({"loss": error / 2, "found": (logits.argmax(1) == label).mean()}, statistics)

    return loss, lambda step: pairs(pick(step))
