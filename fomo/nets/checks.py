"""What the networks ask of their arguments and inputs. Each error is a ValueError: what was got and what was wanted."""

WHOLE_CASE = ("classification", "regression")  # modes with one output per case
MODES = ("segmentation", *WHOLE_CASE)
HEADS = ("linear", "mlp", "multistage")
FUSIONS = ("early", "late")


def choice(name, value, options):
    """value: one of the names `options`."""
    if value not in options:
        raise ValueError(f"{name}: got {value!r}, wanted one of {', '.join(options)}")


def counts(**values):
    """Each value is a whole number of at least 1."""
    for name, value in values.items():
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}: got {value!r}, wanted a whole number of at least 1")


def image_head(mode, head, dropout, fusion, channel_dropout):
    """What a 3D network with an `image_head.ImageHead` takes; without one output per case it has no head's options."""
    choice("head", head, HEADS)
    choice("fusion", fusion, FUSIONS)
    for name, value, plain in (("head", head, "linear"), ("dropout", dropout, 0), ("fusion", fusion, "early")):
        if mode not in WHOLE_CASE and value != plain:
            raise ValueError(f"{name}: got {value!r} for mode {mode!r}, wanted {plain!r}: it has no output per case")
    if not 0 <= channel_dropout < 1:
        raise ValueError(f"channel_dropout: got {channel_dropout!r}, wanted at least 0 and less than 1")
    if channel_dropout and head == "multistage":
        wanted = "0: its statistics differ less between cases than a dropped map changes them"
        raise ValueError(f"channel_dropout: got {channel_dropout!r} for head 'multistage', wanted {wanted}")


def fitting(size, stride):
    """The smallest size (X, Y, Z) that holds `size` and that `volumes` takes."""
    fit = [max(1, -(-n // stride)) * stride for n in size]
    if max(fit) == stride:
        fit[size.index(max(size))] = 2 * stride
    return tuple(fit)


def volumes(x, channels, stride):
    """x: (B, channels, X, Y, Z), for a U-Net whose bottleneck has one voxel for each `stride` voxels of an axis.

    The axes are multiples of `stride`, and not all equal to it: the norm of a one-voxel bottleneck is undefined.
    """
    size = tuple(x.shape[2:])
    if x.ndim != 5 or x.shape[1] != channels:
        raise ValueError(f"input: got shape {tuple(x.shape)}, wanted (B, {channels}, X, Y, Z)")
    if any(n % stride or n == 0 for n in size):
        advice = f"pad or crop, for example to {fitting(size, stride)}"
        raise ValueError(f"input: got size {size}, wanted multiples of {stride}: {advice}")
    if size == (stride,) * 3:
        wanted = f"at least one axis of {2 * stride}: pad, for example to {fitting(size, stride)}"
        raise ValueError(f"input: got size {size}, which leaves one voxel at the bottleneck: wanted {wanted}")
