"""The networks that predict together: found, restored from their checkpoints, checked, and asked about a case."""

import os
from dataclasses import dataclass

import torch

from .. import checkpoint, inference, tasks
from ..config import Config, UserError
from ..data import sources
from ..run_folder import FinalFolder, RunFolder
from ..runtime import dist, files
from ..tasks.task import Task
from ..training import evaluate, memory, optimization, views
from ..training.restore import restore


@dataclass(frozen=True)
class Member:
    """One checkpoint, ready to predict. Those of an ensemble have the same task, and mean the same by their outputs."""

    path: str
    sha256: str
    config: Config
    task: Task
    network: torch.nn.Module
    amp: str  # bf16, fp16 or off: the precision in which the network runs
    subjects: frozenset  # that it was trained on, or chosen by
    windows: inference.WindowOptions

    @property
    def sees_slices(self):
        """Whether it sees slices, and not volumes that lie in space."""
        return not sources.of(self.config.data).geometry


def choose_device(name=None):
    """The torch device `name` (cpu, cuda, cuda:1), or the first GPU, else the CPU."""
    try:
        device = torch.device(name) if name else dist.device()
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise UserError(f"device: got {name}, which cannot be used: {str(error).splitlines()[0]}") from error
    return device


def find_checkpoints(path, folds=()):
    """The checkpoint files that `path` stands for, in order.

    A file stands for itself, a run folder for best.pt of its finished folds or of `folds` (numbers from 1). Any other
    folder (a fold, final/) stands for its best.pt, or else for all *.pt files.
    """
    if not os.path.exists(path):
        raise UserError(f"{path}: no such file or folder, wanted a checkpoint or a run folder")
    there = {fold.number: fold for fold in RunFolder(path).folds()}
    if folds and not there:
        raise UserError(f"--folds: got {', '.join(map(str, folds))}, and {path} is no run folder to choose from")
    if os.path.isfile(path):
        return [path]
    if there:
        done = [number for number, fold in there.items() if fold.is_finished]
        missing = sorted(set(folds) - set(done))
        if missing or not done:
            lacking = ", ".join(map(str, missing or there))
            raise UserError(f"{path}: fold {lacking} is not finished, wanted one of {done}: run cv.py again")
        return [there[number].best for number in folds or done]
    found = FinalFolder(path).checkpoints()
    if found is None:
        raise UserError(f"{path}: not finished, wanted a final model: run cv.py again")
    if not found:
        raise UserError(f"{path}: no checkpoint in it, wanted fold_K/best.pt or *.pt")
    return found


def find_checkpoint(path):
    """The one checkpoint file that `path` stands for, see `find_checkpoints`; UserError for several."""
    file, *others = find_checkpoints(path)
    if others:
        raise UserError(f"{path}: got {1 + len(others)} checkpoints, wanted one: name a file")
    return file


def load_members(paths, device, mirror_axes=None):
    """The members of an ensemble from checkpoint files; mirror_axes: instead of those of the checkpoints.

    Nothing of the training machine matters: the config is only asked about the task, the scans and the network.
    """
    if mirror_axes is not None and len(set(mirror_axes)) < len(mirror_axes):
        raise UserError(f"--mirror: got {' '.join(map(str, mirror_axes))}, wanted each axis once")
    members = [_load_member(path, device, mirror_axes) for path in paths]
    first, by_content = members[0], {}
    for member in members:
        same = by_content.setdefault(member.sha256, member)
        if same is not member:
            said = f"the same checkpoint as {same.path}, wanted each once: it would count twice"
            raise UserError(f"{member.path}: {said}")
    for member in members[1:]:
        own = _shared(member)
        for name, value in _shared(first).items():
            if own.get(name) != value:
                said = f"got {name}={own.get(name)}, and {first.path} has {value}: they cannot predict together"
                raise UserError(f"{member.path}: {said}")
    return members


def _shared(member):
    """{key: value} that must be equal in all members. Images of slices may differ: each network makes its own."""
    config, task = member.config, member.task
    seen = {"task.type": config.task.type, "data.source": "slices" if member.sees_slices else "volumes"}
    if member.sees_slices:
        return {**seen, **task.meaning(), **sources.of(config.data).meaning(config.data)}
    return {**seen, **tasks.meaning(config, task)}


def _load_member(path, device, mirror_axes):
    content = checkpoint.load(path)
    config, task, network = restore(content, path, needs=("subjects",))
    if task.pretrains:
        wanted = "a network that was fine-tuned from it (weights.path)"
        raise UserError(f"{path}: task.type={config.task.type} predicts nothing, wanted {wanted}")
    task.weight = content.get("weight", 1.0)
    optimization.lay_out(network.eval(), device)
    if mirror_axes is None:
        network = views.of_checkpoint(config, network, content, path)
    else:
        network = views.applied(network, {"axes": mirror_axes, "gammas": ()})
    amp = optimization.amp_of(config.train.amp, device)
    amp = "off" if amp == "fp16" and device.type == "cpu" else amp  # which the CPU does not have
    subjects, windows = frozenset(content["subjects"]), evaluate.windows_of(config, device, amp)
    return Member(path, files.sha256(path), config, task, network, amp, subjects, windows)


def describe(members):
    """{name: value} for the log: how many networks there are, how they run, and their weights if these differ."""
    weights = [round(member.task.weight, 3) for member in members]
    weighted = {"weights": weights} if len(set(weights)) > 1 else {}
    how = {"device": str(members[0].windows.device), "amp": sorted({member.amp for member in members})}
    return {"networks": len(members), **how, **weighted}


def infer(members, case, image, background):
    """What the members say about a preprocessed case, as their task gathers it; memory.OutOfMemory if it does not fit.

    image: (C, X, Y, Z), a numpy array. background: a value per channel.
    """
    device = members[0].windows.device
    what = f"case {case.id} of {'x'.join(map(str, image.shape[1:]))} voxels"
    with memory.explained(lambda: memory.advise_prediction(what, device)):
        on_device = torch.from_numpy(image).to(device)  # once for all of them
        said = (member.task.infer(member.network, on_device, background, member.windows) for member in members)
        return members[0].task.gather(said)


def answer(members, parts, geometry):
    """(row, {name: volume in native space}) from what `infer` has given."""
    return members[0].task.answer([member.task for member in members], parts, geometry)
