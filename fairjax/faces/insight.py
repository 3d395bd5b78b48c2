"""The paper's own detector: `insightface`'s SCRFD, on the host, for those who have it installed.

The package is MIT-licensed. **Its models, `buffalo_l` among them, are for non-commercial research only**; it fetches
them itself at first use. Nothing else of fairjax needs it: `fairjax.faces.detection` finds faces on the device.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fairjax.faces.located import Face, Faces
from fairjax.models.functional import Params

MODEL = "buffalo_l"

_SIZE = (640, 640)  # of the images that it looks at, as the authors' scripts have it

_NOBODY = Face(np.zeros(4), np.zeros((5, 2)), 0.0)


@dataclasses.dataclass(frozen=True, eq=False)
class InsightDetector:
    """insightface's `FaceAnalysis` as a locator. There are no parameters on the device."""

    analysis: Any

    def locate(self, params: Params, images: jax.Array) -> Faces:
        """As every locator; the images travel to the host and the faces come back."""
        n = len(images)
        shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((n, 4), (n, 5, 2), (n,))]
        images = jax.lax.stop_gradient(images)
        boxes, landmarks, scores = jax.pure_callback(self._on_host, shapes, images, vmap_method="sequential")
        return Faces(boxes, landmarks, scores, scores > 0)

    def _on_host(self, images: jax.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The largest face of each image; zeros where there is none."""
        pixels = np.rint((np.clip(np.nan_to_num(np.asarray(images, np.float32)), -1, 1) + 1) * 127.5).astype(np.uint8)
        found = [next(iter(self.every({}, image)), _NOBODY) for image in pixels]
        return tuple(np.stack(parts).astype(np.float32) for parts in zip(*found, strict=True))

    def every(self, params: Params, picture: np.ndarray) -> list[Face]:
        """The faces of a picture uint8 [h, w, 3], the largest first."""
        height, width = picture.shape[:2]

        def covered(face: Any) -> float:
            left, top, right, bottom = np.clip(face.bbox, 0, (width, height, width, height))
            return (right - left) * (bottom - top)

        found = self.analysis.get(np.ascontiguousarray(picture[..., ::-1]))  # as OpenCV has it: blue first
        inside = sorted((face for face in found if covered(face) > 0), key=covered, reverse=True)
        return [Face(face.bbox, face.kps, float(face.det_score)) for face in inside]


def load(model: str = MODEL) -> tuple[InsightDetector, Params]:
    """The detector of one of insightface's models, which it fetches if it does not have it yet.

    Raises:
        ImportError, ValueError: one line; without the package; where the package cannot load the model.
    """
    try:
        from insightface.app import FaceAnalysis
    except ImportError:
        raise ImportError(
            "insightface is not installed: pip install insightface onnxruntime (its models are for non-commercial "
            "research only), or use the detector blazeface"
        ) from None
    try:
        analysis = FaceAnalysis(name=model, allowed_modules=["detection"])
        analysis.prepare(ctx_id=0, det_size=_SIZE)
    except Exception as error:  # what it raises depends on its version and on the runtime below it
        raise ValueError(f"insightface could not load {model!r}: {error}") from None
    return InsightDetector(analysis), {}
