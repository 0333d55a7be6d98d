"""All transforms by name, in the order in which those of a stage are drawn and applied."""

from .intensity import bias_field, contrast, dropout, gamma, histogram, linear, noise
from .spatial import affine, elastic, resampling

TRANSFORMS = {
    "resample": resampling.RESAMPLE,
    "mirror": affine.MIRROR,
    "turn": affine.TURN,
    "scale": affine.SCALE,
    "shear": affine.SHEAR,
    "rotate": affine.ROTATE,
    "translate": affine.TRANSLATE,
    "elastic": elastic.ELASTIC,
    "gamma": gamma.GAMMA,
    "histogram": histogram.HISTOGRAM,
    "contrast": contrast.CONTRAST,
    "brightness": contrast.BRIGHTNESS,
    "bias_field": bias_field.BIAS_FIELD,
    "blur": linear.BLUR,
    "low_resolution": linear.LOW_RESOLUTION,
    "ghosting": linear.GHOSTING,
    "gibbs": linear.GIBBS,
    "noise": noise.NOISE,
    "multiplicative_noise": noise.MULTIPLICATIVE_NOISE,
    "rician_noise": noise.RICIAN_NOISE,
    "channel_dropout": dropout.CHANNEL_DROPOUT,
}
