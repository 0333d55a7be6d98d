"""DINO on slices: views of an area, slices without labels, three networks, and the way into several labels."""

import csv

import numpy as np
import pytest
import torch
import yaml

from fomo import checkpoint, kinds, nets, tasks, transforms
from fomo.config import UserError
from fomo.data import loader, sources
from fomo.run_folder import RunFolder
from fomo.runs import crossval
from fomo.training import fold

SLICE_NETWORKS = [name for name, network in nets.NETWORKS.items() if network.sees == "slice"]
SMALL = 64  # pixels, the smallest image of these networks


@pytest.fixture
def slices(tmp_path):
    """Function that writes slices of 8 patients and a config; keyword arguments are sections."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "slices"
    folder.mkdir()
    with open(tmp_path / "all.csv", "w", newline="") as table, open(tmp_path / "labels.csv", "w", newline="") as labels:
        lines, named = csv.writer(table), csv.writer(labels)
        lines.writerow(["slice_id", "volume_name", "file_path", "split"])
        named.writerow(["VolumeName", "big", "small"])
        for patient in range(16):
            name = f"train_{patient}_a_1"
            named.writerow([f"{name}.nii.gz", patient % 2, patient // 2 % 2])
            for index in range(2):
                image = rng.random((96, 96)).astype(np.float16) / 4
                image[20:60, 20:60] += np.float16(0.5 * (patient % 2))
                np.save(folder / f"{name}_{index}.npy", image)
                lines.writerow([f"{name}_{index}", f"{name}.nii.gz", f"slices/{name}_{index}.npy", "train"])

    def write(**sections):
        content = {
            "name": "dino",
            "output": str(tmp_path / "runs"),
            "task": {
                "type": "dino", "global_size": [SMALL, SMALL, 1], "local_size": [SMALL, SMALL, 1], "local_views": 1,
                "out_dim": 16, "head_width": 8, "teacher_warmup_epochs": 0,
            },
            "data": {
                "source": "slices", "csv": str(tmp_path / "all.csv"), "channels": ["ct"], "normalize": "imagenet",
                "patch": [96, 96, 1],
            },
            "model": {"name": "resnet50", "width": 2},
            "optim": {"lr": 1e-3},
            "train": {"epochs": 1, "steps_per_epoch": 2, "batch_size": 4, "workers": 0, "amp": "off"},
            "augment": {"preset": "slices"},
            "cv": {"val_fraction": 0.25},
            "eval": {"bootstrap": 0},
        }  # fmt: skip
        for name, section in sections.items():
            content[name] = {**content.get(name, {}), **section} if isinstance(section, dict) else section
        path = tmp_path / f"{content['name']}.yaml"
        path.write_text(yaml.safe_dump(content))
        return kinds.load(path)

    return write


LABELS = {"type": "multilabel", "targets": ["big", "small"]}
OF_DINO = ("global_size", "local_size", "local_views", "out_dim", "head_width", "teacher_warmup_epochs")


def labelled(slices, tmp_path, **sections):
    """The config of a training from labels."""
    from fomo.config import Task

    plain = {name: list(value) if isinstance(value := getattr(Task(), name), tuple) else value for name in OF_DINO}
    data = {"labels_csv": str(tmp_path / "labels.csv")}
    return slices(name="labels", task={**plain, **LABELS}, data=data, cv={"folds": 2}, **sections)


@pytest.mark.parametrize("name", ("resnet50", "efficientnet_b0"))
def test_a_pretraining_on_slices_is_where_several_labels_start(name, slices, tmp_path):
    model = {"name": name, "width": 8, "attention": "cbam", "multiscale": True}
    crossval.run(slices(model=model), one_split=True)
    best = RunFolder(tmp_path / "runs" / "dino").fold(1).best
    content = checkpoint.load(best)
    teacher = {n: t for n, t in content["model"].items() if n.startswith("teacher.backbone.")}
    config = labelled(slices, tmp_path, model=model, weights={"path": best})
    task = tasks.build(config)
    network = fold.build_network(config, task, 1)
    report = fold.start_from(config, task, network)
    head = nets.NETWORKS[name].head
    assert (report.family, report.part) == ("dino", "teacher.backbone.")
    assert set(report.new) == {f"{head}.weight", f"{head}.bias"}, "attention and fusion are pretrained, too"
    for own, tensor in network.state_dict().items():
        if not own.startswith(f"{head}."):
            torch.testing.assert_close(tensor, teacher[f"teacher.backbone.{own}"])
    crossval.run(config, one_split=True)
    log = (tmp_path / "runs" / "labels" / "log.txt").read_text()
    assert "new=2" in log and "family=dino" in log and "part=teacher.backbone." in log


@pytest.mark.parametrize("name", SLICE_NETWORKS)
def test_every_slice_network_learns_and_its_teacher_follows(name, slices):
    config = slices(model={"name": name, "width": 4})
    task = tasks.build(config)
    cases = prepared(config)
    task.fit(cases, cases)
    network = tasks.build_network(config, task).train()
    batch = loader.read_batch(config, task, cases, 1, [0, 1, 2, 3])
    optimizer = torch.optim.SGD(network.student.parameters(), lr=0.1)
    before = {n: p.clone() for n, p in network.named_parameters()}
    task.loss(network(task.prepare(batch)["image"]), batch).mean().backward()
    optimizer.step()
    task.after_step(network, 1, 2)
    changed = {n for n, p in network.named_parameters() if not torch.equal(p, before[n])}
    stem = nets.NETWORKS[name].build(1, 1, "classification").stem
    assert {f"student.backbone.{stem}", f"teacher.backbone.{stem}"} <= changed


def prepared(config):
    wanted = tasks.wanted(config)
    return sources.prepare(sources.list_cases(config.data, wanted), config.data, wanted)


def test_slices_need_no_labels_and_a_batch_has_none(slices):
    config = slices()
    cases = prepared(config)
    assert len(cases) == 32 and all(case.target is None for case in cases)
    batch = loader.read_batch(config, tasks.build(config), cases, 1, [0, 1, 2])
    assert "target" not in batch
    assert batch["image"].shape == (6, 1, SMALL, SMALL, 1) and batch["local"].shape == (3, 1, SMALL, SMALL, 1)


def test_the_views_of_a_repeated_slice_are_scaled_like_it(slices):
    """Of three channels that are one slice: each view is augmented once, then repeated and scaled by ImageNet's."""
    config = slices(data={"channels": ["red", "green", "blue"]}, augment={"preset": "none"})
    batch = loader.read_batch(config, tasks.build(config), prepared(config), 1, [0])
    for name in ("image", "local"):
        red, green, blue = batch[name][0]
        torch.testing.assert_close(red * 0.229 + 0.485, green * 0.224 + 0.456)
        torch.testing.assert_close(red * 0.229 + 0.485, blue * 0.225 + 0.406)
        assert 0 <= float(blue.min() * 0.225 + 0.406) and float(red.max() * 0.229 + 0.485) <= 1
    task = tasks.build(config)
    task.fit(prepared(config), prepared(config))
    seen = {}
    task._by_view = lambda outputs, samples: seen.update(outputs) or (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        windows = type("Windows", (), {"device": torch.device("cpu"), "autocast": torch.no_grad()})
        task.predict(lambda views: {"views": views}, prepared(config)[0], windows)
    red, green, _ = seen["views"][0][0]
    torch.testing.assert_close(red * 0.229 + 0.485, green * 0.224 + 0.456)


def test_the_share_of_a_view_is_that_of_the_area():
    """A quarter of the area is half of each side; of a volume it is more."""
    sizes = {"global_size": (64, 64, 1), "local_size": (64, 64, 1), "local_views": 0}
    share = {"global_scale": (0.25, 0.25), "local_scale": (0.25, 0.25)}
    views = transforms.build_views("none", (96, 96, 1), **sizes, **share)
    box = views.draw([np.random.default_rng(0)], 1, 1)[0][0]["box"]
    assert [size for _, size in box] == [48, 48, 1]
    views = transforms.build_views("none", (96, 96, 2), **{**sizes, "global_size": (64, 64, 2)}, **share)
    box = views.draw([np.random.default_rng(0)], 1, 1)[0][0]["box"]
    assert [size for _, size in box] == [60, 60, 1]


@pytest.mark.parametrize("model", ("resnet50", "unet_b"))
def test_a_masked_autoencoder_of_slices_is_refused_and_says_what_to_use(slices, model):
    with pytest.raises(UserError, match="task.type: got mae, wanted dino for slices"):
        slices(task={"type": "mae"}, model={"name": model})


def test_labels_are_still_wanted_where_they_are_learned(slices, tmp_path):
    with pytest.raises(UserError, match=r"task.targets: got \(?\[?\]?\)?.*wanted at least one column"):
        slices(task={"type": "multilabel", "targets": []})
    (tmp_path / "labels.csv").write_text("VolumeName,big,small\ntrain_0_a_1.nii.gz,0,1\n")
    with pytest.raises(UserError, match="no labels for 15 volumes"):
        config = labelled(slices, tmp_path)
        sources.list_cases(config.data, tasks.wanted(config))
