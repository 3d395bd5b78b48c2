"""What is compared with in PyTorch: networks that no installed package has, and how faces are cut out there."""

import numpy as np
import torch
from torch.nn import functional as F
from transformers import image_utils

from fairjax.faces.geometry import TEMPLATE


def randomised(module):
    torch.manual_seed(0)
    for p in module.parameters():
        p.data = torch.randn_like(p) * 0.1 if p.ndim > 1 else 0.5 + 0.3 * torch.randn_like(p)
    return module.eval()


def tensors(module):
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def nchw(x):
    return torch.tensor(x).permute(0, 3, 1, 2)


def nhwc(x):
    return x.permute(0, 2, 3, 1).numpy()


def relative(ours, theirs):
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


class TorchMobileNetV3(torch.nn.Module):
    """The reference: MobileNetV3-Large in PyTorch, from table 1 of Howard et al. (2019), with torchvision's names.

    torchvision's own wheels do not load beside a CPU build of PyTorch. Compared once with version 0.28.0, the operators
    that it lacked declared by hand: the same names, and the same outputs to the last bit, in inference and training.
    """

    TABLE = (  # kernel, expanded, out, squeeze and excite, nonlinearity, stride
        *((3, 16, 16, False, "RE", 1), (3, 64, 24, False, "RE", 2), (3, 72, 24, False, "RE", 1)),
        *((5, 72, 40, True, "RE", 2), (5, 120, 40, True, "RE", 1), (5, 120, 40, True, "RE", 1)),
        *((3, 240, 80, False, "HS", 2), (3, 200, 80, False, "HS", 1), (3, 184, 80, False, "HS", 1)),
        *((3, 184, 80, False, "HS", 1), (3, 480, 112, True, "HS", 1), (3, 672, 112, True, "HS", 1)),
        *((5, 672, 160, True, "HS", 2), (5, 960, 160, True, "HS", 1), (5, 960, 160, True, "HS", 1)),
    )

    class Squeeze(torch.nn.Module):
        def __init__(self, channels, squeezed):
            super().__init__()
            self.fc1, self.fc2 = torch.nn.Conv2d(channels, squeezed, 1), torch.nn.Conv2d(squeezed, channels, 1)

        def forward(self, x):
            pooled = torch.nn.functional.adaptive_avg_pool2d(x, 1)
            return x * torch.nn.functional.hardsigmoid(self.fc2(torch.relu(self.fc1(pooled))))

    class Block(torch.nn.Module):
        def __init__(self, layers, adds):
            super().__init__()
            self.block, self.adds = torch.nn.Sequential(*layers), adds

        def forward(self, x):
            return x + self.block(x) if self.adds else self.block(x)

    @staticmethod
    def quarter(channels):
        """In multiples of eight, and at most a tenth less."""
        nearest = max(8, int(channels / 4 + 4) // 8 * 8)
        return nearest + 8 if nearest < 0.9 * channels / 4 else nearest

    @staticmethod
    def convolution(inputs, outputs, kernel, stride=1, groups=1, activation=None):
        layers = [
            torch.nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
            torch.nn.BatchNorm2d(outputs, eps=0.001, momentum=0.01),
        ]
        return torch.nn.Sequential(*layers, *([activation()] if activation else []))

    def __init__(self, num_classes, table=TABLE, last=1280, stem=16):
        super().__init__()
        kinds = {"RE": torch.nn.ReLU, "HS": torch.nn.Hardswish}
        features, inputs = [self.convolution(3, stem, 3, 2, activation=torch.nn.Hardswish)], stem
        for kernel, expanded, outputs, squeeze, kind, stride in table:
            layers = []
            if expanded != inputs:
                layers.append(self.convolution(inputs, expanded, 1, activation=kinds[kind]))
            layers.append(self.convolution(expanded, expanded, kernel, stride, expanded, kinds[kind]))
            if squeeze:
                layers.append(self.Squeeze(expanded, self.quarter(expanded)))
            layers.append(self.convolution(expanded, outputs, 1))
            features.append(self.Block(layers, stride == 1 and inputs == outputs))
            inputs = outputs
        features.append(self.convolution(inputs, 6 * inputs, 1, activation=torch.nn.Hardswish))
        self.features = torch.nn.Sequential(*features)
        self.classifier = torch.nn.Sequential(
            torch.nn.Linear(6 * inputs, last), torch.nn.Hardswish(), torch.nn.Dropout(0.0),
            torch.nn.Linear(last, num_classes),
        )  # fmt: skip

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class TorchSFNet(torch.nn.Module):
    """The reference: layers of figure 5 of Liu et al. (2017), with ReLUs and under OpenSphere's names."""

    class Down(torch.nn.Module):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.conv = torch.nn.Conv2d(inputs, outputs, 3, 2, 1)

        def forward(self, x):
            return torch.relu(self.conv(x))

    class Residual(torch.nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.conv1, self.conv2 = (torch.nn.Conv2d(channels, channels, 3, 1, 1) for _ in range(2))

        def forward(self, x):
            return x + torch.relu(self.conv2(torch.relu(self.conv1(x))))

    def __init__(self, layers, channels, outputs, size):
        super().__init__()
        ends = list(zip([3, *channels], channels, layers, strict=False))
        for i, (before, after, blocks) in enumerate(ends, start=1):
            stage = [self.Down(before, after), *(self.Residual(after) for _ in range(blocks))]
            setattr(self, f"layer{i}", torch.nn.Sequential(*stage))
        self.fc = torch.nn.Linear(channels[-1] * (size // 16) ** 2, outputs)

    def forward(self, x):
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        return self.fc(x.flatten(1))


def torch_crop(image, box, size):
    """Image [1, 3, h, w] tensor."""
    left, top, right, bottom = box
    height, width = image.shape[2:]
    pad = max(0, -left, -top, right - width, bottom - height)
    padded = F.pad(image, (pad,) * 4, value=-1.0)
    part = padded[:, :, top + pad : bottom + pad, left + pad : right + pad]
    return F.interpolate(part, (size, size), mode="bilinear", antialias=True)


def umeyama(points, template):
    """Umeyama (1991), equations 40 to 42, in float64."""
    from_mean, to_mean = points.mean(0), template.mean(0)
    p, q = points - from_mean, template - to_mean
    u, d, vt = np.linalg.svd(q.T @ p / len(p))
    signs = np.array([1, np.sign(np.linalg.det(u @ vt))])
    turn = (d * signs).sum() / np.square(p).sum(1).mean() * u @ np.diag(signs) @ vt
    return np.concatenate([turn, (to_mean - turn @ from_mean)[:, None]], axis=1)


def torch_align(images, landmarks, size):
    """By `grid_sample`; images [n, 3, h, w]."""
    matrices = np.stack([np.concatenate([umeyama(p, TEMPLATE), [[0, 0, 1]]]) for p in landmarks.astype(np.float64)])
    y, x = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    points = np.linalg.inv(matrices)[:, None, None] @ np.stack([x, y, np.ones_like(x)], -1)[None, ..., None]
    height, width = images.shape[2:]
    grid = 2 * points[..., :2, 0] / (width - 1, height - 1) - 1
    return (
        F.grid_sample(images + 1, torch.tensor(grid, dtype=torch.float32, device=images.device), align_corners=True) - 1
    )


def face_crops(images, faces, margin=0.5):
    """What the classifier sees of the images with a face: squares larger by the margin, [1, 3, 224, 224] each."""
    squares = face_squares(faces, margin)
    return [torch_crop(images[i : i + 1], squares[i], 224) for i in np.flatnonzero(faces.has_face)]


def face_squares(faces, margin):
    """Those squares [n, 4], in whole pixels."""
    low, high = faces.boxes[:, :2], faces.boxes[:, 2:]
    half = (high - low).max(1, keepdims=True) * (1 + margin) / 2
    return np.round(np.concatenate([(low + high) / 2 - half, (low + high) / 2 + half], 1)).astype(int)


def clip_pixels(images, size):
    """Images [n, 3, h, h] in [-1, 1], resized and normalised for CLIP."""
    return _pixels(images, size, image_utils.OPENAI_CLIP_MEAN, image_utils.OPENAI_CLIP_STD)


def dino_pixels(images):
    """The same for DINOv2."""
    return _pixels(images, 224, image_utils.IMAGENET_DEFAULT_MEAN, image_utils.IMAGENET_DEFAULT_STD)


def _pixels(images, size, mean, std):
    resized = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (mean, std))
    return ((resized + 1) / 2 - mean) / std


def sfnet20(path):
    """Reads one of 112 x 112 faces."""
    network = TorchSFNet((1, 2, 4, 1), (64, 128, 256, 512), 512, 112)
    network.load_state_dict(torch.load(path))
    return network
