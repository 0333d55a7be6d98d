"""The part `metrics`: metrics of masks, AUROC and bootstrap against the libraries that users have for them."""

import functools
import warnings

import numpy as np
import scipy.ndimage
import torch

from fomo import metrics

from .timing import best_times, peer, say

SHAPE, TOLERANCE_MM = (192, 224, 192), 1.0
LIBRARIES = {  # name: (module, what to install)
    "monai": ("monai.metrics", "monai"),
    "surface_distance": ("surface_distance", "surface-distance"),
    "medpy": ("medpy.metric.binary", "medpy"),
    "sklearn": ("sklearn.metrics", "scikit-learn"),
    "torchmetrics": ("torchmetrics.functional.classification", "torchmetrics"),
}
measured = functools.partial(best_times, enough_s=4)


def add_arguments(command):
    command.add_argument("--turns", type=int, default=5, help="turns of which the best counts (5)")


def run(options):
    libraries = {name: peer(*where) for name, where in LIBRARIES.items()}
    if libraries["monai"] or libraries["torchmetrics"]:
        torch.set_num_threads(1)
        say("versions", torch=torch.__version__)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of the peers
        bench_surfaces(libraries, options.turns)
        rng = np.random.default_rng(0)
        bench_bootstrap(libraries, options.turns, *ranked_cases(rng, 200))
        bench_auroc(libraries, options.turns, *ranked_cases(rng, 2_000_000))


def report(case, times, targets):
    """One line per function; for a peer also how many times faster fomo is, and whether that reaches the target."""
    ours = times["fomo"][0]
    for name, (seconds, _) in times.items():
        line = dict(case=case, who=name, seconds=seconds)
        if name != "fomo":
            line["fomo_is_faster_by"] = seconds / ours
            if name in targets:
                line |= dict(target=float(targets[name]), reached=bool(seconds / ours >= targets[name]))
        say("time", **line)


# ------------------------------------------------------------------------------------------- masks


def paint_ball(mask, center, radius):
    low = [max(int(c - radius), 0) for c in center]
    high = [int(c + radius) + 2 for c in center]
    box = tuple(map(slice, low, high))
    grid = np.ogrid[tuple(slice(a, min(b, size)) for a, b, size in zip(low, high, mask.shape))]
    mask[box] |= sum((axis - c) ** 2 for axis, c in zip(grid, center)) <= radius**2


def mask_cases():
    """{name: (reference, prediction)}: the masks of the timing table."""
    rng = np.random.default_rng(0)
    names = ("small_tumour", "far_false_positive", "scattered_lesions", "organ")
    cases = {name: np.zeros((2, *SHAPE), bool) for name in names}
    for name in ("small_tumour", "far_false_positive"):
        paint_ball(cases[name][0], (100, 110, 90), 8)
        paint_ball(cases[name][1], (101, 111, 90), 7.5)
    cases["far_false_positive"][1][5, 5, 5] = True
    for lesion in range(150):  # 130 true, 20 of them missed, and 20 false
        center, radius = rng.uniform(12, np.array(SHAPE) - 12), rng.uniform(2, 5)
        if lesion < 130:
            paint_ball(cases["scattered_lesions"][0], center, radius)
        if lesion >= 20:
            paint_ball(cases["scattered_lesions"][1], center + rng.normal(0, 0.8, 3), radius * rng.uniform(0.8, 1.2))
    paint_ball(cases["organ"][0], (96, 112, 96), 60)
    paint_ball(cases["organ"][1], (98, 113, 95), 59)
    return cases


def surface_peers(libraries):
    """{name: function(reference, prediction, spacing_mm) -> the five metrics}, as a user of each library gets them."""
    peers = {"monai": monai, "surface_distance": surface_distance, "medpy": medpy}
    found = {name: functools.partial(peers[name], libraries[name]) for name in peers if libraries[name]}
    ours = {"fomo": functools.partial(fomo, "voxels"), "fomo_surfels": functools.partial(fomo, "surfels")}
    return {**ours, "two_transforms": two_transforms, **found}


NAMES = ("dice", "hausdorff", "hd95", "average_surface_distance", "surface_dice")


def fomo(surface, reference, prediction, spacing_mm):
    row = metrics.segmentation_metrics(reference, prediction, spacing_mm, TOLERANCE_MM, surface, lesions=False)
    return {name: row[name] for name in NAMES}


def monai(library, reference, prediction, spacing_mm):
    y, p = torch.from_numpy(reference)[None, None], torch.from_numpy(prediction)[None, None]
    shared = dict(include_background=True, spacing=spacing_mm)
    values = (
        library.compute_dice(p, y),
        library.compute_hausdorff_distance(p, y, **shared),
        library.compute_hausdorff_distance(p, y, percentile=95, **shared),
        library.compute_average_surface_distance(p, y, symmetric=True, **shared),
        library.compute_surface_dice(p, y, class_thresholds=[TOLERANCE_MM], **shared),
    )
    return dict(zip(NAMES, (value.item() for value in values)))


def surface_distance(library, reference, prediction, spacing_mm):
    distances = library.compute_surface_distances(reference, prediction, spacing_mm)
    values = (
        library.compute_dice_coefficient(reference, prediction),
        library.compute_robust_hausdorff(distances, 100),
        library.compute_robust_hausdorff(distances, 95),
        np.mean(library.compute_average_surface_distance(distances)),
        library.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM),
    )
    return dict(zip(NAMES, values))


def medpy(library, reference, prediction, spacing_mm):
    return dict(
        dice=library.dc(prediction, reference),
        hausdorff=library.hd(prediction, reference, spacing_mm),
        hd95=library.hd95(prediction, reference, spacing_mm),
        average_surface_distance=library.assd(prediction, reference, spacing_mm),
    )


def two_transforms(reference, prediction, spacing_mm):
    """Only the exact Euclidean distance transforms of the cropped union box: what the k-d trees replace."""
    box = scipy.ndimage.find_objects((reference | prediction).view(np.uint8))[0]
    for mask in (reference[box], prediction[box]):
        scipy.ndimage.distance_transform_edt(~(mask & ~scipy.ndimage.binary_erosion(mask)), sampling=spacing_mm)


SURFACE_TARGETS = {
    "small_tumour": dict(monai=50, surface_distance=3),
    "scattered_lesions": dict(monai=15, surface_distance=7),
    "organ": dict(monai=5, surface_distance=3),
}


def bench_surfaces(libraries, turns):
    functions, fomo_seconds = surface_peers(libraries), {}
    for case, (reference, prediction) in mask_cases().items():
        calls = {name: lambda f=f: f(reference, prediction, (1.0, 1.0, 1.0)) for name, f in functions.items()}
        times = measured(calls, turns)
        report(case, times, SURFACE_TARGETS.get(case, {}))
        fomo_seconds[case] = times["fomo"][0]
        for name, ours in (("monai", "fomo"), ("surface_distance", "fomo_surfels"), ("medpy", "fomo")):
            if name in times:
                # defined otherwise there
                left_out = {"medpy": "hd95", "surface_distance": "average_surface_distance"}.get(name)
                pairs = {key: (times[ours][1][key], value) for key, value in times[name][1].items() if key != left_out}
                worst = max(abs(a - b) / max(abs(b), 1e-12) for a, b in pairs.values())
                say("values", case=case, who=ours, against=name, metrics=list(pairs), largest_relative_difference=worst)
        say("result", case=case, **times["fomo"][1])
    report_definitions(libraries)
    ratio = fomo_seconds["far_false_positive"] / fomo_seconds["small_tumour"]
    say("far_false_positive", times_small_tumour=ratio, target=1.5, reached=bool(ratio <= 1.5))


def report_definitions(libraries):
    """HD95 of one pair of masks with thick slices: each library defines it in its own way, and fomo has them all."""
    masks, spacing_mm = np.zeros((2, 96, 96, 24), bool), (0.5, 0.5, 3.0)
    paint_ball(masks[0], (40, 40, 12), 9)
    paint_ball(masks[1], (43, 41, 12), 8)
    paint_ball(masks[1], (60, 41, 14), 2.5)
    pairs = (
        ("monai", "max of the directed percentiles of voxels", dict()),
        ("medpy", "percentile of the pooled voxels", dict(combine="pooled")),
        ("surface_distance", "max of the directed percentiles of surfels", dict(surface="surfels")),
    )
    peers = surface_peers(libraries)
    for name, meaning, options in pairs:
        theirs = peers[name](*masks, spacing_mm)["hd95"] if name in peers else "missing"
        say("hd95", meaning=meaning, fomo=metrics.hausdorff(*masks, spacing_mm, 95, **options), **{name: theirs})


# ------------------------------------------------------------------------------------------- ranking


def ranked_cases(rng, n):
    labels = rng.random(n) < 0.4
    return labels, rng.normal(size=n) + labels


def auroc_peers(libraries, labels, scores, run):
    """{name: function without arguments}; run(metric, labels, scores): what is done with each library's AUROC."""
    found = {}
    if libraries["sklearn"]:
        found["sklearn"] = lambda: run(libraries["sklearn"].roc_auc_score, labels, scores)
    if libraries["torchmetrics"]:
        tensors = torch.from_numpy(labels.astype(np.int64)), torch.from_numpy(scores)
        binary_auroc = libraries["torchmetrics"].binary_auroc
        found["torchmetrics"] = lambda: run(lambda y, s: float(binary_auroc(s, y)), *tensors)
    return found


def bench_bootstrap(libraries, turns, labels, scores):
    def loop(metric, labels, scores):
        draws = np.random.default_rng(0).integers(0, 200, (1000, 200))
        values = [metric(labels[draw], scores[draw]) for draw in draws]
        return np.quantile(values, [0.025, 0.975])

    peers = auroc_peers(libraries, labels, scores, loop)
    for method in ("bca", "percentile"):
        ours = functools.partial(metrics.bootstrap_ci, metrics.auroc, labels, scores, 1000, 0, method=method)
        times = measured({"fomo": ours, **peers}, turns)
        report(f"auroc_bootstrap_n200_r1000_{method}", times, dict(sklearn=70, torchmetrics=15))


def bench_auroc(libraries, turns, labels, scores):
    for dtype in (np.float64, np.float32):
        given = labels, scores.astype(dtype)
        peers = auroc_peers(libraries, *given, lambda metric, y, s: metric(y, s))
        times = measured({"fomo": functools.partial(metrics.auroc, *given), **peers}, turns)
        report(f"auroc_n2000000_{dtype.__name__}", times, dict(sklearn=1, torchmetrics=1))
        for name in times.keys() - {"fomo"}:
            say("values", case="auroc_n2000000", against=name, difference=times["fomo"][1] - times[name][1])
