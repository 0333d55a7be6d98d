"""Which sample comes when, and that neither ranks nor workers change it."""

import collections
import dataclasses
import functools
import gc
import os
import pickle
import types

import numpy as np
import pytest
import torch

from fomo import config as config_module
from fomo import kinds, tasks
from fomo.data import cache, loader, sources
from fomo.data.order import by_class, by_label


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
    order = loader.Order(12, seed=0, fold=1, groups=by_class(labels))
    counts = collections.Counter(order[slot] for slot in range(36))
    assert sum(counts[case] for case in range(9)) == 18
    assert [counts[case] for case in range(9)] == [2] * 9
    assert [counts[case] for case in range(9, 12)] == [6] * 3


def shares_seen(flags, slots=6000):
    """(labels + 1,) of many samples the shares that have each label, or none."""
    order = loader.Order(len(flags), seed=0, fold=1, groups=by_label(flags))
    seen = np.array([flags[order[slot]] for slot in range(slots)])
    return np.array([*seen.mean(0), 1 - seen.any(1).mean()])


def test_balanced_order_shows_each_label_and_none_about_equally_often():
    rng = np.random.default_rng(0)
    flags = (rng.random((300, 4)) < [0.6, 0.3, 0.05, 0.02]).astype(int)  # independent: they occur together, too
    assert flags.mean(0).max() > 20 * flags.mean(0).min()
    shares = shares_seen(flags)
    assert shares.max() < 1.1 * shares.min()
    one = np.array([[1]] * 3 + [[0]] * 9)
    assert shares_seen(one) == pytest.approx([0.5, 0.5], abs=0.02), "of one label as of two classes"
    within = np.column_stack([one[:, 0], [1] * 6 + [0] * 6, [1] * 12, [0] * 12])  # the first only with the second
    first, second, every, never, _ = shares_seen(within)
    assert first <= second < 1.1 * first and every == 1 and never == 0 and second == pytest.approx(0.5, abs=0.05)
    order = loader.Order(300, seed=0, fold=1, groups=by_label(flags))
    seen = [order[slot] for slot in range(6000)]
    assert set(seen) == set(range(300)), "every case is seen"
    assert pickle.loads(pickle.dumps(order))[1234] == seen[1234]


@pytest.mark.parametrize("cases, share, seed", [(12, 0.35, 19), (12, 0.2, 8), (6, 0.5, 3), (3, 0.35, 0)])
def test_few_cases_that_have_many_labels_each_are_balanced_as_far_as_can_be(cases, share, seed):
    """A fit in larger steps diverges on these."""
    flags = (np.random.default_rng(seed).random((cases, 18)) < share).astype(int)
    shares, plain = shares_seen(flags, 3000)[:-1], flags.mean(0)
    there = (plain > 0) & (plain < 1)
    assert shares[there].max() < 3.5 * shares[there].min()


def test_balanced_multilabel_training_draws_so(tiny_config):
    flags = [(1, 0)] * 9 + [(0, 1)] * 2 + [(0, 0)] * 9
    cases = [types.SimpleNamespace(target=tuple(map(float, row)), scaling=None) for row in flags]
    labels = {"type": "multilabel", "targets": ["a", "b"]}
    for balanced, wanted in ((True, (1 / 3, 1 / 3)), (False, (9 / 20, 1 / 10))):
        data = {"source": "table", "csv": "cases.csv", "channels": ["t1"]}
        config = kinds.load(tiny_config("classification", task=labels, data=data, train={"balanced": balanced}))
        samples, _ = loader._reading(config, tasks.build(config), cases, fold=1)
        seen = np.array([flags[samples.order[slot]] for slot in range(1000)])
        assert seen.mean(0) == pytest.approx(wanted, abs=0.04)


@pytest.mark.parametrize("world_size, micro_batch", [(1, 8), (1, 2), (2, 4), (4, 1)])
def test_ranks_and_micro_batches_share_out_the_same_slots(world_size, micro_batch):
    plans = [loader.Plan(8, rank, world_size, micro_batch) for rank in range(world_size)]
    slots = [slot for plan in plans for micro in plan.slots(5) for slot in micro]
    assert slots == list(range(40, 48))
    assert all(len(plan.slots(5)) == plan.micro_batches for plan in plans)


@pytest.fixture
def cached(tiny_config):
    def prepare(task, **sections):
        config = kinds.load(tiny_config(task, **sections))
        cases = cache.prepare(
            sources.list_cases(config.data, tasks.wanted(config)), config.data, tasks.wanted(config), workers=0
        )
        return config, cases

    return prepare


def all_samples(config, cases, workers, plans, steps=(0, 3)):
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, workers=workers))
    found = {}
    for plan in plans:
        for batch in loader.batches(config, tasks.build(config), cases, 1, plan, *steps):
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
        samples = loader.Samples(cases, loader.Order(len(cases), 0, 1), config, tasks.wanted(config), 1)
        shares[fraction] = np.mean([bool(samples[slot]["mask"].any()) for slot in range(60)])
    assert shares[1.0] == 1.0 and shares[0.0] < 0.9


def test_patches_are_boxes_of_the_cached_volume_and_equal_with_other_number_types(cached):
    samples = {}
    for dtype in ("float32", "float16"):
        config, cases = cached("segmentation", data={"patch": [32, 16, 16], "cache_dtype": dtype})
        samples[dtype] = loader.Samples(cases, loader.Order(len(cases), 0, 1), config, tasks.wanted(config), 1)
    for slot in range(10):
        one, half = samples["float32"][slot], samples["float16"][slot]
        assert one["image"].dtype == half["image"].dtype == torch.float32 and one["mask"].dtype == torch.uint8
        assert one["image"].is_contiguous() and half["image"].is_contiguous()
        assert torch.equal(one["mask"], half["mask"])
        torch.testing.assert_close(half["image"], one["image"], rtol=2**-11, atol=3e-8)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files as Linux shows them")
def test_open_files_are_bounded_and_stay_behind_in_the_process(cached, monkeypatch):
    config, cases = cached("segmentation")
    monkeypatch.setattr(loader, "_open", functools.lru_cache(maxsize=3)(loader._open.__wrapped__))
    samples = loader.Samples(cases, loader.Order(len(cases), 0, 1), config, tasks.wanted(config), 1)
    assert loader._OPEN_CASES * 2 <= 64 and len(cases) > 3
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    first = [samples[slot]["image"] for slot in range(3 * len(cases))]
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before + 3 * 2
    sent = pickle.dumps(samples)
    assert len(sent) < 50_000, "no volume travels to a spawned worker"
    assert all(
        torch.equal(a, b["image"]) for a, b in zip(first, map(pickle.loads(sent).__getitem__, range(len(first))))
    )


def test_each_class_is_drawn_as_often_however_few_voxels_it_has(cached, monkeypatch):
    config, cases = cached("segmentation", data={"foreground_fraction": 1.0, "patch": [32, 16, 16]})
    rows = [(1, 1, z, 1) for z in range(9)] + [(2, 2, 2, 3)]  # no voxel of class 2
    monkeypatch.setattr(type(cases[0]), "foreground", lambda case: np.array(rows, np.int16))
    drawn = collections.Counter()
    monkeypatch.setattr(loader.patches, "draw_start", lambda *given: drawn.update([tuple(given[-1])]) or (0, 0, 0))
    monkeypatch.setattr(loader, "_open", functools.lru_cache(loader._open.__wrapped__))
    samples = loader.Samples(cases, loader.Order(len(cases), 0, 1), config, tasks.wanted(config), 1)
    for slot in range(400):
        samples[slot]
    assert len(drawn) == 10 and 160 < drawn[2, 2, 2] < 240


def test_too_little_shared_memory_is_said_before_training(cached, tmp_path, monkeypatch):
    config, _ = cached("segmentation", train={"workers": 4})
    plan = loader.Plan(4, 0, 1, 4)
    needed = 9 * 4 * 32**3 * (3 * 4 + 1)
    for free, enough in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(loader.shutil, "disk_usage", lambda folder: collections.namedtuple("Usage", "free")(free))
        if enough:
            loader.check_shared_memory(config, tasks.build(config), plan, tmp_path)
        else:
            with pytest.raises(config_module.UserError, match="--shm-size"):
                loader.check_shared_memory(config, tasks.build(config), plan, tmp_path)
