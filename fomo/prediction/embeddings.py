"""A vector per scan, from the encoder of a pretrained or fine-tuned network: what tasks 6 and 7 of FOMO26 ask for.

A scan is one image, whatever its sequence. It is prepared as the checkpoint's own scans were: by the config in a
checkpoint of ours, and of a foreign file see `preparation`. It goes through the encoder whole, in one pass, because an
instance norm has other statistics in a window. Nothing is written but the result, and no process is started.
"""

import dataclasses
import os
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from .. import checkpoint, config, inference, kinds, nets
from ..config import Config, Data, UserError, as_user_error, listed, one_line
from ..data import cache, sources, spreadsheet
from ..data.cases import Wanted
from ..nets import image_head
from ..runtime import files
from ..training import memory, optimization
from . import inputs, preparation

FEATURES = {"bottleneck": image_head.bottleneck, "multistage": image_head.multistage}
CHANNEL = "scan"
_WANTED = Wanted("nothing")
_KEYS = ("spacing_mm", "crop", "normalize", "percentiles", "window")  # of data: how a scan is prepared
_RECORD = "embeddings.json"  # what made the vectors of a folder
_DONE = "cases.jsonl"  # [id, key of its file] of each vector


@dataclass(frozen=True)
class Embedder:
    """A network that turns a prepared scan into a vector, and how scans are prepared for it."""

    path: str
    sha256: str
    network: torch.nn.Module
    holds: nets.Network
    features: str
    data: Data  # how its scans are prepared
    device: torch.device
    window: tuple[int, int, int] | None  # None: the whole volume in one pass
    report: checkpoint.LoadReport
    axes: tuple[int, int, int] = (0, 1, 2)  # of a scan (x, y, z), in the order in which the network was trained on them

    def about(self):
        """{name: value} of all that decides what a vector is."""
        data = self.data
        spacing, window = (value and list(value) for value in (data.spacing_mm, self.window))
        limits = {"percentile": data.percentiles, "window": data.window}.get(data.normalize, ())
        prepared = {"spacing_mm": spacing, "crop": data.crop, "normalize": data.normalize, "limits": list(limits)}
        return {"sha256": self.sha256, "features": self.features, "window": window, **prepared}

    def case(self, path, id=None):
        """The Case of one file."""
        return inputs.case_from_channels((CHANNEL,), {CHANNEL: path}, id)

    def embed(self, case):
        """The vector (F,) float32 of a Case of one scan. Raises UserError for a scan that cannot be used."""
        try:
            image, background, _ = cache.load(case, self.data, _WANTED)
        except (ValueError, OSError) as error:
            raise UserError(one_line(error)) from error
        image = image.transpose(0, *(1 + axis for axis in self.axes))
        window = self.window and tuple(self.window[axis] for axis in self.axes)
        patch = window or self.holds.holding(image.shape[1:])
        what = f"scan {case.id} of {'x'.join(map(str, image.shape[1:]))} voxels"
        windows = inference.WindowOptions(patch, device=self.device)
        with memory.explained(lambda: f"{memory.advise_prediction(what, self.device)}, or windows (--window X Y Z)"):
            vector = windows.each(_Reader(self.network, FEATURES[self.features]), image, background).mean(0)
        vector = vector.cpu().numpy()
        if not np.isfinite(vector).all():
            raise UserError(f"{case.files[0].path}: got an embedding with numbers that are not finite")
        return vector


class _Reader(torch.nn.Module):
    """A network as a function to its features; a module, whose parameters' type the windows get."""

    def __init__(self, network, features):
        super().__init__()
        self.network, self.features = network, features

    def forward(self, x):
        return self.features(self.network.maps(x))


class Origin(NamedTuple):
    """What a checkpoint says of its network and of how its scans were prepared."""

    name: str
    width: int | None
    skip_pooling: str
    preparation: preparation.Preparation

    @property
    def prepared(self):
        """{key of the config's section data: value}, as far as it is known."""
        return self.preparation.data

    def random(self, seed):
        """What stands for the checksum of a file where the network's weights are random ones."""
        return f"random {seed}, {self.name}" + (f" of width {self.width}" if self.width else "")

    def options(self):
        """Options of `nets.build`."""
        pooling = {"skip_pooling": self.skip_pooling}
        return {"width": self.width, **(pooling if "skip_pooling" in nets.NETWORKS[self.name].options else {})}


def origin(path, part=None):
    """The Origin of a checkpoint of this project (pretrained or fine-tuned), or of others, see `checkpoint`.

    The network is the one of its encoder that can have an output per case. UserError where there is none of volumes.
    """
    content = checkpoint.read(path)
    if isinstance(content.get("config"), dict) and isinstance(content.get("model"), dict):
        own = kinds.from_dict(content["config"], path)
        name = _with_output(own.model.name)
        if name is None:
            raise UserError(f"{path}: got model.name={own.model.name}, wanted a network of volumes")
        prepared = {key: getattr(own.data, key) for key in _KEYS}
        return Origin(name, own.model.width, own.model.skip_pooling, preparation.Preparation(prepared))
    found = checkpoint.recognise(path, part)
    pooling = "maximum" if found.family == "fomo26" and found.classifies else "average"
    return Origin(found.name, found.width, pooling, preparation.of_foreign(content, found.family, path))


def load_embedder(path, device, features="bottleneck", window=None, part=None, overrides=(), random_seed=None):
    """The Embedder of a checkpoint, see `origin`.

    features: a name of FEATURES. window: (x, y, z) of overlapping windows whose vectors are averaged; None: one pass.
    overrides: texts `data.KEY=VALUE` that prepare scans otherwise. random_seed: instead of the weights, random ones.
    A network of several channels sees the scan in each of them. UserError also where it is unknown how scans are
    prepared.
    """
    given, found = _given(overrides), origin(path, part)
    lacking = [f"data.{name}" for name in _KEYS[:3] if name not in found.prepared and f"data.{name}" not in given]
    if lacking:
        got = found.preparation.doubt or "got a file which does not say how its scans were prepared"
        raise UserError(f"{path}: {got}, wanted {' '.join(f'{key}=...' for key in lacking)} behind the other arguments")
    prepared = dataclasses.replace(Data(), source="volumes", channels=(CHANNEL,), **found.prepared)
    data, holds = config.overridden(Config(data=prepared), overrides).data, nets.NETWORKS[found.name]
    if window is not None and (wanted := holds.patch_problem(found.name, tuple(window))):
        raise UserError(f"--window: got {' '.join(map(str, window))}, wanted {wanted}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(random_seed or 0)
        network = nets.build(found.name, 1, 1, mode="classification", **found.options())
    if random_seed is None:
        report, sha256 = checkpoint.load_weights(network, path, part=part), files.sha256(path)
    else:
        everything = tuple(network.state_dict())
        report, sha256 = checkpoint.LoadReport((), everything, (), (), (), "random", ""), found.random(random_seed)
    optimization.lay_out(network.eval(), device)
    window = None if window is None else tuple(window)
    axes = found.preparation.axes
    return Embedder(path, sha256, network, holds, features, data, device, window, report, axes)


def _given(overrides):
    """The keys of `key=value` texts. Raises UserError for one that does not say how a scan is prepared."""
    keys = [text.partition("=")[0] for text in overrides]
    allowed = [f"data.{name}" for name in _KEYS]
    if wrong := next((key for key in keys if key not in allowed), None):
        raise UserError(f"got {wrong}, wanted one of {', '.join(allowed)}: an embedding reads no other key")
    return set(keys)


def _with_output(name):
    """The network with one output per case that has the encoder of `name`; None where there is none of volumes."""
    network = nets.NETWORKS[name]
    others = [name, *network.siblings("classification", nets.NETWORKS)]
    alike = (other for other in others if nets.NETWORKS[other].head is not None and _width(other) == _width(name))
    return next(alike, None) if network.sees == "volume" else None


def _width(name):
    return nets.NETWORKS[name].arguments.get("width")


def embed_to_file(embedder, path, output, log):
    """Write the vector of the scan `path` to a .npy file, which is replaced where it exists; returns its length."""
    if not output.endswith(".npy"):
        raise UserError(f"--output: got {output}, wanted a .npy file for one scan")
    vector = embedder.embed(embedder.case(path))
    _save(output, vector)
    log("embed", output=output, numbers=len(vector))
    return len(vector)


def cases_of_table(path, column=None):
    """The Cases of a CSV with a line per scan: its id (column id or ptid), and its file (column, image or nifti_path).

    Further columns (subject, classes, groups) are left alone. Relative paths start from the folder of the CSV.
    """
    there = spreadsheet.read_rows(path, {}, "--cases")[0].cells
    columns = (column,) if column else ("image", "nifti_path")
    scans = next((name for name in columns if name in there), None)
    if scans is None:
        got = ", ".join(there)[:500]
        raise UserError(f"{path}: line 1: got the columns {got}, wanted {' or '.join(columns)} with the scans' files")
    id_column = "id" if "id" in there else "ptid"
    cases = inputs.cases_from_table(path, dataclasses.replace(Data(), channels=(scans,), id_column=id_column))
    if not any(os.path.exists(file.path) for case in cases for file in case.files):
        got = f"got {len(cases)} paths of which none exists, as {cases[0].files[0].path}"
        raise UserError(f"{path}: column '{scans}': {got}, wanted the scans' files; is --column the right one?")
    return cases


def cases_of_source(source, root):
    """The Cases of a folder whose every scan is one."""
    data = dataclasses.replace(Data(), source=source, root=root, channels=(CHANNEL,))
    return sources.list_cases(data, _WANTED, labels=False)


def embed_to_folder(embedder, cases, folder, log, overwrite=False):
    """Write ID.npy of each case into a folder; what is there from the same file is kept.

    A scan that fails is logged and the others go on; returns [(id, why)] of those that failed. UserError for a folder
    of other vectors (another checkpoint, other features), and for a file that has changed since, unless `overwrite`.
    """
    with as_user_error(f"cannot write to {folder}", OSError):
        os.makedirs(folder, exist_ok=True)
        done = _begin(embedder, folder, overwrite)
        keys = {case.id: _key(case) for case in cases}
        there = {id for id in done if os.path.exists(_place(folder, id))}
        changed = sorted(id for id in there if id in keys and done[id] != keys[id] and not overwrite)
        if changed:
            got = f"the scans of {listed(changed)} have changed since"
            raise UserError(f"{folder}: {got}: wanted --overwrite, or another folder")
        todo = [case for case in cases if overwrite or case.id not in there]
        log("embed", scans=len(cases), kept=len(cases) - len(todo), device=str(embedder.device), output=folder)
        failures = []
        for count, case in enumerate(todo, 1):
            try:
                vector = embedder.embed(case)
            except UserError as error:
                failures.append((case.id, one_line(error)))
                log.warn("scan failed", scan=case.id, error=failures[-1][1])
                continue
            _save(_place(folder, case.id), vector)
            files.append_line(os.path.join(folder, _DONE), [case.id, keys[case.id]])
            log("embed", id=case.id, numbers=len(vector), done=count, of=len(todo))
    return failures


def refuse_failures(failures, folder):
    """Raise UserError if scans have failed, see `embed_to_folder`."""
    if failures:
        id, message = failures[0]
        others = ", ".join(other for other, _ in failures[1:21])
        rest = f" ({len(failures) - 1} more failed: {others})" if others else ""
        raise UserError(f"scan {id}: {message}{rest}; the others are in {folder}")


def refuse_others(folder, about, remedy):
    """Raise UserError where the vectors of a folder are of other facts than `about`, some of `Embedder.about`."""
    path = os.path.join(folder, _RECORD)
    there = files.read_json(path, *about) if os.path.exists(path) else about
    for name, value in about.items():
        if there[name] != value:
            raise UserError(f"{folder}: got {name}={value}, and its vectors were made with {there[name]}: {remedy}")


def _begin(embedder, folder, overwrite):
    """{id: key} of the vectors in a folder, which from now on is of this embedder."""
    path, about = os.path.join(folder, _RECORD), embedder.about()
    if not overwrite:
        refuse_others(folder, about, "wanted another folder, or --overwrite")
    if overwrite and os.path.exists(os.path.join(folder, _DONE)):
        os.remove(os.path.join(folder, _DONE))
    files.write_json(path, about)
    return dict(files.read_lines(os.path.join(folder, _DONE), _check_line))


def _check_line(line):
    id, key = line
    if not (isinstance(id, str) and isinstance(key, str)):
        raise ValueError("wanted two texts")


def _key(case):
    try:
        return cache.input_key(case.files)
    except OSError as error:  # which is said when it is read
        return f"unreadable: {error.strerror}"


def _place(folder, id):
    return os.path.join(folder, f"{id}.npy")


def _save(path, vector):
    with as_user_error(f"cannot write {path}", OSError):
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with files.replacing(os.path.abspath(path), large=True) as file:
            np.save(file, vector)
