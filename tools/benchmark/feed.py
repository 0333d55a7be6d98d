"""What the benchmarks use of fomo's way from a config to batches, in one place."""

import pathlib

import torch

from fomo import kinds, tasks
from fomo.data import loader, sources
from fomo.runtime.log import Log
from fomo.training.step import make_plan


def config_of(values):
    return kinds.from_dict(values, "the benchmark")


def config_in(folder, text, *overrides):
    """The config of a YAML text, whose paths are below `folder`."""
    path = pathlib.Path(folder, "config.yaml")
    path.write_text(text, encoding="utf-8")
    return kinds.load(str(path), overrides)


def prepared(config):
    """The cases of a config, listed and preprocessed."""
    wanted, log = tasks.wanted(config), Log(active=False)
    return sources.prepare(sources.list_cases(config.data, wanted, log=log), config.data, wanted, log)


def samples(config, cases):
    """Dataset of unaugmented training samples by their slots."""
    return loader.Samples(cases, loader.Order(len(cases), 0, 1), config, tasks.wanted(config), 1)


def batches(config, cases, steps, pin_memory=False):
    """Iterator over this rank's training batches of the first steps."""
    return loader.batches(config, tasks.build(config), cases, 1, make_plan(config), 0, steps, pin_memory)


def phantom_batches(folder, workers, steps, batch_size, *overrides):
    """(config, cases, batches) of a segmentation of phantoms with preset `all`: what training reads, cache to batch."""
    text = """
task: {type: segmentation}
data: {source: phantom, root: phantoms, cache: cache, channels: [dwi_b1000, flair, swi|t2s],
  spacing_mm: [1.5, 1.5, 1.5], phantom_cases: 6, phantom_size: 128, prepare_workers: 0}
"""
    config = config_in(folder, text, f"train.workers={workers}", f"train.batch_size={batch_size}", *overrides)
    cases = prepared(config)
    return config, cases, batches(config, cases, steps, pin_memory=torch.cuda.is_available())
