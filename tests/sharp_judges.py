"""Judges with random weights that tell photographs apart, in PyTorch.

What networks make of images with weights as they are initialised hardly depends on the images: then one loss drowns the
others, and rounding decides who is to become what.
"""

import torch
import transformers

from benchmarks.torch_networks import TorchMobileNetV3, clip_pixels, dino_pixels, sfnet20


@torch.no_grad()
def write(folder, models, images, crops, chips):
    """Writes a classifier.pt, clip, dinov2 and face.pth for a step on `images`, with their faces cut out and aligned.

    Args:
        models: the folder of those that are sharpened.
        images: [n, 3, h, h] in [-1, 1].
        crops: [m, 3, 224, 224], what the classifier sees of them.
        chips: [m, 3, 112, 112], what the face embedding sees of them.
    """
    torch.manual_seed(14)  # one by which the step of `test_step_torch.py` takes every branch
    torch.save(_classifier(crops).state_dict(), folder / "classifier.pt")

    clip = _redrawn(transformers.CLIPVisionModelWithProjection.from_pretrained(models / "clip"))
    embeddings = clip.vision_model(clip_pixels(images, clip.config.image_size)).pooler_output
    clip.vision_model.post_layernorm.bias -= embeddings.mean(0)
    clip.save_pretrained(folder / "clip")

    dino = _redrawn(transformers.Dinov2Model.from_pretrained(models / "dinov2"))
    dino.layernorm.bias -= dino(dino_pixels(images)).pooler_output.mean(0)
    dino.save_pretrained(folder / "dinov2")

    face = sfnet20(models / "face.pth")
    face.fc.bias -= face(chips).mean(0)
    torch.save(face.state_dict(), folder / "face.pth")


def _redrawn(network):
    """With weights under which signals neither grow nor fade: a transformer's are initialised far smaller."""
    for layer in network.modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            layer.weight.copy_(torch.randn_like(layer.weight) * layer.weight[0].numel() ** -0.5)
    return network.eval()


def _classifier(crops, spread=1.5):
    """Logits of every class are 0 in the mean over the crops, and apart by `spread` (their standard deviation).

    Batch norms that have seen the faces keep their differences through the depth. Few channels come near the bends of
    their activations, where a rounding error that brings one over the edge changes the gradient: with the usual scale
    and bias, 1 and 0, PyTorch's own gradient in float32 is 2e-3 away from that in float64, and with these 1e-5.
    """
    network = TorchMobileNetV3(8).train()
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.momentum = 1.0
            part.weight.fill_(0.5)
            part.bias.fill_(1.5)
    network(crops)
    logits, last = network.eval()(crops), network.classifier[3]
    scale = spread / logits.std(0)
    last.weight *= scale[:, None]
    last.bias.copy_((last.bias - logits.mean(0)) * scale)
    return network
