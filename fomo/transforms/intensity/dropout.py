"""Channel dropout: a sample as if its case lacked sequences, so that a network learns to do without them."""

from ..transform import Transform, probability


def draw(generator, keys, grid, hit):
    return {}


def fill_(channel, value):
    channel.fill_(value)


_CHANNEL_DROPOUT = {
    "p": probability(0.1, "probability; at least one channel stays"),
    "channel_p": probability(0.33, "probability of each channel, once applied; a dropped one is as if it were missing"),
}
CHANNEL_DROPOUT = Transform("replacement", draw, fill_, _CHANNEL_DROPOUT)
