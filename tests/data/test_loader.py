"""Which sample comes when, and that neither ranks nor workers change it."""

import collections
import dataclasses

import numpy as np
import pytest
import torch

from fomo import config as config_module
from fomo.data import cache, loader, sources


def test_a_passes_sees_every_case_once():
    order = loader.Order(7, seed=3, fold=1)
    cases = [order[slot] for slot in range(21)]
    for turn in range(3):
        assert sorted(cases[7 * turn : 7 * turn + 7]) == list(range(7))
    assert cases[:7] != cases[7:14], "each pass has its own order"
    assert cases != [loader.Order(7, seed=3, fold=2)[slot] for slot in range(21)], "and so has each fold"
    assert cases == [loader.Order(7, seed=3, fold=1)[slot] for slot in range(21)]


def test_balanced_order_draws_classes_equally_and_cases_within_a_class_equally():
    labels = [0] * 9 + [1] * 3
    order = loader.Order(12, seed=0, fold=1, labels=labels)
    counts = collections.Counter(order[slot] for slot in range(36))
    assert sum(counts[case] for case in range(9)) == 18
    assert [counts[case] for case in range(9)] == [2] * 9
    assert [counts[case] for case in range(9, 12)] == [6] * 3


@pytest.mark.parametrize("world_size, micro_batch", [(1, 8), (1, 2), (2, 4), (4, 1)])
def test_ranks_and_micro_batches_share_out_the_same_slots(world_size, micro_batch):
    plans = [loader.Plan(8, rank, world_size, micro_batch) for rank in range(world_size)]
    slots = [slot for plan in plans for micro in plan.slots(5) for slot in micro]
    assert slots == list(range(40, 48))
    assert all(len(plan.slots(5)) == plan.micro_batches for plan in plans)


@pytest.fixture
def cached(tiny_config):
    def prepare(task, **sections):
        config = config_module.load(tiny_config(task, **sections))
        cases = cache.prepare(sources.list_cases(config.data, config.task), config.data, config.task, workers=0)
        return config, cases

    return prepare


def all_samples(config, cases, workers, plans, steps=(0, 3)):
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, workers=workers))
    found = {}
    for plan in plans:
        for batch in loader.batches(config, cases, 1, plan, *steps):
            for i, slot in enumerate(batch["slot"]):
                found[slot] = {k: v[i] for k, v in batch.items()}
    return found


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_samples_are_the_same_for_any_ranks_workers_and_start(cached, task):
    config, cases = cached(task, augment={"preset": "all"}, data={"patch": [32, 16, 16], "crop_position": "random"})
    one = all_samples(config, cases, 0, [loader.Plan(4, 0, 1, 4)])
    assert sorted(one) == list(range(12))
    for other in (
        all_samples(config, cases, 2, [loader.Plan(4, 0, 1, 4)]),
        all_samples(config, cases, 0, [loader.Plan(4, rank, 2, 1) for rank in range(2)]),
        {**one, **all_samples(config, cases, 0, [loader.Plan(4, 0, 1, 2)], steps=(2, 3))},
    ):
        for slot, sample in one.items():
            assert sample["id"] == other[slot]["id"]
            assert torch.equal(sample["image"], other[slot]["image"])
            name = "mask" if task == "segmentation" else "target"
            assert torch.equal(sample[name], other[slot][name])
    assert not torch.equal(one[0]["image"], one[11]["image"])


def test_foreground_fraction_decides_how_often_a_patch_shows_foreground(cached):
    """Of the cases that have any, all patches show it at 1, and fewer at 0."""
    shares = {}
    for fraction in (0.0, 1.0):
        config, cases = cached(
            "segmentation", data={"patch": [32, 16, 16], "foreground_fraction": fraction, "spacing_mm": [4.0, 4.0, 4.0]}
        )
        cases = [case for case in cases if len(case.foreground())]
        samples = loader.Samples(cases, loader.Order(len(cases), 0, 1), config, 1)
        shares[fraction] = np.mean([bool(samples[slot]["mask"].any()) for slot in range(60)])
    assert shares[1.0] == 1.0 and shares[0.0] < 0.9


def test_too_little_shared_memory_is_said_before_training(cached, tmp_path, monkeypatch):
    config, _ = cached("segmentation", train={"workers": 4})
    plan = loader.Plan(4, 0, 1, 4)
    needed = 9 * 4 * 32**3 * (3 * 4 + 8)
    for free, enough in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(loader.shutil, "disk_usage", lambda folder: collections.namedtuple("Usage", "free")(free))
        if enough:
            loader.check_shared_memory(config, plan, tmp_path)
        else:
            with pytest.raises(config_module.UserError, match="--shm-size"):
                loader.check_shared_memory(config, plan, tmp_path)
