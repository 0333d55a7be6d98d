"""All networks by name. A line says a file of this folder and a class in it, or the `Network` that a file declares.

Nothing here imports torch: a network's file is read when it is first built.
"""

from .checks import MODES, WHOLE_CASE
from .network import Network

_NORMS = dict(instance_norms=True)
_VOLUME = dict(sees="volume", one_voxel=False)
_UNET = dict(source=("unet", "UNet"), **_VOLUME, stride=16, mixes_batch=False, recomputes=True, **_NORMS)
_IMAGE_HEAD = dict(modes=MODES, head="decoder.fc", best_head="multistage")
_U_OPTIONS = ("deep_supervision", "channel_dropout")
_HEAD_OPTIONS = ("head", "dropout", "fusion")
_WHOLE = dict(**_IMAGE_HEAD, options=(*_U_OPTIONS, *_HEAD_OPTIONS))
_LIGHT = dict(modes=("segmentation",), head=None, options=_U_OPTIONS, lacks="the light decoder has no head")
_RESENC = dict(source=("resenc", "ResEncUNet"), **_VOLUME, stride=32, mixes_batch=False, recomputes=True, **_NORMS)
_RESIDUAL = dict(**_IMAGE_HEAD, options=(*_U_OPTIONS, "skips", "skip_pooling", *_HEAD_OPTIONS))
_READOUT = ("dropout", "attention", "multiscale", "pooling")
_IMAGES = dict(sees="slice", stride=32, modes=WHOLE_CASE, one_voxel=False, mixes_batch=False, options=_READOUT)

NETWORKS = {
    "unet_b": Network(**_UNET, **_WHOLE, arguments={"width": 32}),
    "unet_xl": Network(**_UNET, **_WHOLE, arguments={"width": 64}),
    "unet_b_lw_dec": Network(**_UNET, **_LIGHT, arguments={"width": 32, "light_decoder": True}),
    "unet_xl_lw_dec": Network(**_UNET, **_LIGHT, arguments={"width": 64, "light_decoder": True}),
    "resenc_unet_s": Network(**_RESENC, **_RESIDUAL, arguments={"width": 32, "blocks": (2,) * 6}),
    "resenc_unet_b": Network(**_RESENC, **_RESIDUAL, arguments={"width": 32}),
    "resenc_unet_l": Network(**_RESENC, **_RESIDUAL, arguments={"width": 64, "deepest": 9.6875}),
    "suprem_unet3d": Network(
        ("suprem", "SuPreM"), **_VOLUME, stride=8, modes=MODES, head="fc", mixes_batch=True, even_width=True
    ),
    "resnet50": Network(("resnet", "ResNet"), head="fc", **_IMAGES, arguments={"blocks": (3, 4, 6, 3)}),
    "resnet101": Network(("resnet", "ResNet"), head="fc", **_IMAGES, arguments={"blocks": (3, 4, 23, 3)}),
    "efficientnet_b0": Network(("efficientnet", "EfficientNet"), head="classifier.1", **_IMAGES),
}
