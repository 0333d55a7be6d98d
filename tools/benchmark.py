"""Measure the parts of fomo against the libraries they replace, in one run, on one thread (inference: on the GPU where there is one).

  python tools/benchmark.py metrics       masks, AUROC and bootstrap against MONAI, surface-distance, MedPy,
                                          torchmetrics and scikit-learn
  python tools/benchmark.py data          reading and augmenting against yucca, MONAI, TorchIO and batchgeneratorsv2, the
                                          loader, and how long a training step waits for it
  python tools/benchmark.py gpu           a training step against the naive one and against the chip's own rates
  python tools/benchmark.py inference     sliding windows against MONAI's, and the challenge's time per case
  python tools/benchmark.py manifest      how long a run of 60,000 volumes takes to start, and its memory per rank
  python tools/benchmark.py mae           a masked autoencoder's step against the plain pass of its network
  python tools/benchmark.py slices        the loader of CT slices against PIL and torchvision
  python tools/benchmark.py folds         four folds on two ranks against one, whole commands

Libraries that are not installed are named and left out. Each line is `event key=value ...`. The libraries take turns,
so that all see the same machine; a time is the best of several turns.
"""

import argparse
import datetime
import importlib
import os
import pathlib
import platform
import sys
import time
import warnings

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # read when numpy is imported
    os.environ[variable] = "1"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np  # noqa: E402
import scipy.ndimage  # noqa: E402
from benchmark_data import add_arguments as data_arguments  # noqa: E402
from benchmark_data import bench_data
from benchmark_folds import add_arguments as folds_arguments  # noqa: E402
from benchmark_folds import bench_folds
from benchmark_gpu import add_arguments as gpu_arguments  # noqa: E402
from benchmark_gpu import bench_gpu
from benchmark_inference import add_arguments as inference_arguments  # noqa: E402
from benchmark_inference import bench_inference
from benchmark_mae import add_arguments as mae_arguments  # noqa: E402
from benchmark_mae import bench_mae
from benchmark_manifest import add_arguments as manifest_arguments  # noqa: E402
from benchmark_manifest import bench_manifest
from benchmark_slices import add_arguments as slices_arguments  # noqa: E402
from benchmark_slices import bench_slices

from fomo.runtime.log import format_value  # noqa: E402


def say(event, **values):
    print(event, *(f"{name}={format_value(value)}" for name, value in values.items()), flush=True)


def say_machine():
    model = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = named[0] if named else model
    say("machine", date=datetime.date.today(), cpu=model, cores=os.cpu_count(), threads=1)
    say("versions", python=platform.python_version(), numpy=np.__version__, scipy=scipy.__version__)


def peer(module, install):
    """The imported library, or None and a line that says how to install it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = importlib.import_module(module)
    except ImportError:
        say("peer", name=module, missing=True, install=f"pip install {install}")
        return None
    root = importlib.import_module(module.split(".")[0])
    say("peer", name=module, version=getattr(root, "__version__", "unknown"))
    return found


def best_times(functions, turns):
    """{name: (best seconds, result)} of functions without arguments, run in rotation."""
    found = {}
    for turn in range(turns):
        for name, function in functions.items():
            if turn and found[name][0] > 4:
                continue  # slow enough to be measured by one turn
            start = time.perf_counter()
            result = function()
            seconds = time.perf_counter() - start
            found[name] = min(seconds, found.get(name, (np.inf,))[0]), result
    return found


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


# ----------------------------------------------------------------------------------------- metrics

SHAPE, TOLERANCE_MM = (192, 224, 192), 1.0


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
    """{name: function(reference, prediction, spacing_mm) -> the five metrics}, as each library's user would get
    them.
    """
    from fomo import metrics

    names = ("dice", "hausdorff", "hd95", "average_surface_distance", "surface_dice")

    def fomo(surface):
        def run(reference, prediction, spacing_mm):
            row = metrics.segmentation_metrics(reference, prediction, spacing_mm, TOLERANCE_MM, surface, lesions=False)
            return {name: row[name] for name in names}

        return run

    def monai(reference, prediction, spacing_mm):
        import torch

        library = libraries["monai"]
        y, p = torch.from_numpy(reference)[None, None], torch.from_numpy(prediction)[None, None]
        shared = dict(include_background=True, spacing=spacing_mm)
        values = (
            library.compute_dice(p, y),
            library.compute_hausdorff_distance(p, y, **shared),
            library.compute_hausdorff_distance(p, y, percentile=95, **shared),
            library.compute_average_surface_distance(p, y, symmetric=True, **shared),
            library.compute_surface_dice(p, y, class_thresholds=[TOLERANCE_MM], **shared),
        )
        return dict(zip(names, (value.item() for value in values)))

    def surface_distance(reference, prediction, spacing_mm):
        library = libraries["surface_distance"]
        distances = library.compute_surface_distances(reference, prediction, spacing_mm)
        values = (
            library.compute_dice_coefficient(reference, prediction),
            library.compute_robust_hausdorff(distances, 100),
            library.compute_robust_hausdorff(distances, 95),
            np.mean(library.compute_average_surface_distance(distances)),
            library.compute_surface_dice_at_tolerance(distances, TOLERANCE_MM),
        )
        return dict(zip(names, values))

    def medpy(reference, prediction, spacing_mm):
        library = libraries["medpy"]
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

    peers = {"monai": monai, "surface_distance": surface_distance, "medpy": medpy}
    found = {"fomo": fomo("voxels"), "fomo_surfels": fomo("surfels"), "two_transforms": two_transforms}
    return found | {name: function for name, function in peers.items() if libraries[name]}


SURFACE_TARGETS = {
    "small_tumour": dict(monai=50, surface_distance=3),
    "scattered_lesions": dict(monai=15, surface_distance=7),
    "organ": dict(monai=5, surface_distance=3),
}


def benchmark_surfaces(libraries, turns):
    functions, fomo_seconds = surface_peers(libraries), {}
    for case, (reference, prediction) in mask_cases().items():
        calls = {name: lambda f=f: f(reference, prediction, (1.0, 1.0, 1.0)) for name, f in functions.items()}
        times = best_times(calls, turns)
        report(case, times, SURFACE_TARGETS.get(case, {}))
        fomo_seconds[case] = times["fomo"][0]
        for name, ours in (("monai", "fomo"), ("surface_distance", "fomo_surfels"), ("medpy", "fomo")):
            if name in times:
                # Defined otherwise, but for these:
                left_out = {"medpy": "hd95", "surface_distance": "average_surface_distance"}.get(name)
                pairs = {key: (times[ours][1][key], value) for key, value in times[name][1].items() if key != left_out}
                worst = max(abs(a - b) / max(abs(b), 1e-12) for a, b in pairs.values())
                say("values", case=case, who=ours, against=name, metrics=list(pairs), largest_relative_difference=worst)
        say("result", case=case, **times["fomo"][1])
    report_definitions(libraries)
    ratio = fomo_seconds["far_false_positive"] / fomo_seconds["small_tumour"]
    say("far_false_positive", times_small_tumour=ratio, target=1.5, reached=bool(ratio <= 1.5))


def report_definitions(libraries):
    """HD95 of one pair of masks with thick slices: each library means another thing by it, and fomo has them all."""
    from fomo import metrics

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


def benchmark_auroc(libraries, turns):
    from fomo import metrics

    rng = np.random.default_rng(0)
    torch = importlib.import_module("torch") if libraries["torchmetrics"] else None

    def data(n):
        labels = rng.random(n) < 0.4
        return labels, rng.normal(size=n) + labels

    labels, scores = data(200)

    def loop(metric, labels, scores):
        draws = np.random.default_rng(0).integers(0, 200, (1000, 200))
        values = [metric(labels[draw], scores[draw]) for draw in draws]
        return np.quantile(values, [0.025, 0.975])

    def peers(labels, scores, run):
        found = {}
        if libraries["sklearn"]:
            found["sklearn"] = lambda: run(libraries["sklearn"].roc_auc_score, labels, scores)
        if libraries["torchmetrics"]:
            tensors = torch.from_numpy(labels.astype(np.int64)), torch.from_numpy(scores)
            binary_auroc = libraries["torchmetrics"].binary_auroc
            found["torchmetrics"] = lambda: run(lambda y, s: float(binary_auroc(s, y)), *tensors)
        return found

    for method in ("bca", "percentile"):
        ours = {"fomo": lambda: metrics.bootstrap_ci(metrics.auroc, labels, scores, 1000, 0, method=method)}
        times = best_times(ours | peers(labels, scores, loop), turns)
        report(f"auroc_bootstrap_n200_r1000_{method}", times, dict(sklearn=70, torchmetrics=15))
    labels, scores = data(2_000_000)
    for dtype in (np.float64, np.float32):
        s = scores.astype(dtype)
        times = best_times(
            {"fomo": lambda: metrics.auroc(labels, s)} | peers(labels, s, lambda metric, y, s: metric(y, s)), turns
        )
        report(f"auroc_n2000000_{dtype.__name__}", times, dict(sklearn=1, torchmetrics=1))
        for name in times.keys() - {"fomo"}:
            say("values", case="auroc_n2000000", against=name, difference=times["fomo"][1] - times[name][1])


def metrics_arguments(command):
    command.add_argument("--turns", type=int, default=5, help="turns of which the best counts (5)")


def bench_metrics(options, say, peer):
    libraries = {
        "monai": peer("monai.metrics", "monai"),
        "surface_distance": peer("surface_distance", "surface-distance"),
        "medpy": peer("medpy.metric.binary", "medpy"),
        "sklearn": peer("sklearn.metrics", "scikit-learn"),
        "torchmetrics": peer("torchmetrics.functional.classification", "torchmetrics"),
    }
    if libraries["monai"] or libraries["torchmetrics"]:
        torch = importlib.import_module("torch")
        torch.set_num_threads(1)
        say("versions", torch=torch.__version__)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of the peers
        benchmark_surfaces(libraries, options.turns)
        benchmark_auroc(libraries, options.turns)


# command: its arguments, and what it runs with (options, say, peer)
COMMANDS = {
    "metrics": (metrics_arguments, bench_metrics),
    "data": (data_arguments, bench_data),
    "gpu": (gpu_arguments, bench_gpu),
    "inference": (inference_arguments, bench_inference),
    "manifest": (manifest_arguments, bench_manifest),
    "mae": (mae_arguments, bench_mae),
    "slices": (slices_arguments, bench_slices),
    "folds": (folds_arguments, bench_folds),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (add_arguments, _) in COMMANDS.items():
        add_arguments(commands.add_parser(name))
    options = parser.parse_args()
    say_machine()
    _, run = COMMANDS[options.command]
    run(options, say, peer)


if __name__ == "__main__":
    main()
