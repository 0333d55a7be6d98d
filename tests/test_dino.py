"""DINO: the loss against an oracle, the network, centre and teacher, collapse, a whole run, where its weights go."""

import math
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import run_command

from fomo import checkpoint, kinds, losses, nets, schedule, tasks
from fomo import config as config_module
from fomo.data import loader
from fomo.nets.dino import Dino as Network
from fomo.training import optimization
from fomo.training.step import train_step

CPU = torch.device("cpu")
TASK = {
    "type": "dino",
    "targets": ["gender"],
    "global_size": [32, 32, 32],
    "local_size": [32, 16, 16],
    "local_views": 2,
    "out_dim": 24,
    "head_width": 16,
    "teacher_warmup_epochs": 1,
    "teacher_momentum": 0.9,
}


def oracle(student, teacher, centre, student_temperature, teacher_temperature):
    """The published formula in float64: views (V, B, K), (G, B, K) -> loss (B,) and the centre after momentum 0.9."""

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    student, teacher = (np.asarray(x, np.float64) for x in (student, teacher))
    p = softmax(student / student_temperature)
    q = softmax((teacher - centre) / teacher_temperature)
    pairs = [-(q[g] * np.log(p[v])).sum(-1) for g in range(len(q)) for v in range(len(p)) if v != g]
    return np.mean(pairs, axis=0), 0.9 * centre + 0.1 * teacher.mean((0, 1))


def make_network(out_dim=24, width=2, name="unet_b"):
    torch.manual_seed(0)
    return Network(nets.build(name, 2, 1, mode="classification", width=width), out_dim, hidden=16, bottleneck=8)


def make_views(samples=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2 * samples, 2, *size, generator=generator) for size in ((32, 16, 16), (32, 32, 16))]


@pytest.fixture
def write(tiny_config):
    """Function that writes a DINO config of a few seconds; keyword arguments are sections."""

    def write(**sections):
        chosen = {
            "task": TASK,
            "data": {"phantom_layout": "table", "patch": [32, 32, 32]},
            "optim": {"lr": 1e-4, "clip_norm": 3.0, "weight_decay": 0.04, "weight_decay_end": 0.4},
            "augment": {"preset": "basic"},
            "cv": {"val_fraction": 0.5},
        }
        merged = {name: {**chosen.get(name, {}), **sections.get(name, {})} for name in {*chosen, *sections}}
        return tiny_config("regression", **merged)

    return write


# --------------------------------------------------------------------------------------------- loss


def test_the_loss_is_the_published_one_over_several_steps_centre_included():
    rng, network = np.random.default_rng(0), make_network()
    centre = np.zeros(24)
    for step in range(8):
        student, teacher = rng.normal(size=(5, 3, 24)) * 0.4, rng.normal(size=(2, 3, 24)) * 0.4 + np.linspace(-1, 1, 24)
        temperature = 0.04 + 0.004 * step
        wanted, after = oracle(student, teacher, centre, 0.1, temperature)
        student, teacher = (torch.tensor(x, dtype=torch.float32) for x in (student, teacher))
        found = losses.dino(student, teacher, network.centre, teacher_temperature=temperature)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        network.move_centre(teacher.mean((0, 1)), 0.9)
        np.testing.assert_allclose(network.centre, after, atol=1e-6)
        centre = after


def test_two_views_that_agree_cost_the_entropy_of_the_teacher():
    teacher = torch.tensor([[[0.04 * math.log(3), 0.0]]]).expand(2, 1, 2)  # 3/4 and 1/4 at the teacher's temperature
    student = torch.tensor([[[0.1 * math.log(3), 0.0]]]).expand(2, 1, 2)
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    torch.testing.assert_close(losses.dino(student, teacher, torch.zeros(2)), torch.tensor([entropy]))
    # a centre that takes the teacher's preference away leaves an even target
    even = losses.dino(student, teacher, torch.tensor([0.04 * math.log(3), 0.0]))
    torch.testing.assert_close(even, torch.tensor([-0.5 * math.log(0.75 * 0.25)]))


def test_the_loss_is_float32_under_autocast_and_only_the_student_has_a_gradient():
    student, teacher = (
        torch.randn(4, 2, 8).bfloat16().requires_grad_(),
        torch.randn(2, 2, 8).bfloat16().requires_grad_(),
    )
    outside = losses.dino(student, teacher, torch.zeros(8))
    with torch.autocast("cpu", torch.bfloat16):
        inside = losses.dino(list(student), list(teacher), torch.zeros(8))
    assert inside.dtype == torch.float32 and torch.equal(inside, outside)
    inside.sum().backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None


@pytest.mark.parametrize(
    "shapes",
    [((4, 2, 8), (2, 3, 8), 8), ((4, 2, 8), (2, 2, 8), 7), ((1, 2, 8), (1, 2, 8), 8), ((1, 2, 8), (2, 2, 8), 8)],
)
def test_views_that_do_not_fit_are_refused(shapes):
    student, teacher, out_dim = shapes
    with pytest.raises(ValueError, match="student, teacher"):
        losses.dino(torch.zeros(student), torch.zeros(teacher), torch.zeros(out_dim))


# ------------------------------------------------------------------------------------------- network


@pytest.mark.parametrize("name", ["unet_b", "suprem_unet3d"])
def test_the_network(name):
    network, views = make_network(name=name), make_views()
    student, teacher, features, centre = network(views)
    assert student.shape == (12, 24) and teacher.shape == (6, 24) and centre.shape == (24,)
    assert student.requires_grad and not teacher.requires_grad and not features.requires_grad
    torch.testing.assert_close(features, network.trunk(views[0]).detach())
    torch.testing.assert_close(teacher, student[:6].detach())  # the teacher starts as the student
    assert (student.abs() <= 1 + 1e-6).all(), "cosines"
    torch.manual_seed(0)
    whole = nets.build(name, 2, 1, mode="classification", width=2)
    torch.testing.assert_close(network.trunk(views[0]), whole.features(views[0]))
    assert not any("fc" in key for key in network.state_dict())
    for key, _ in network.named_parameters():
        assert sum(key.startswith(stage) for stage in network.stages) == 1, key
    student.sum().backward()
    assert all((p.grad is None) == key.startswith("teacher.") for key, p in network.named_parameters())
    kept = {key.partition(".")[0] for key in network.state_dict()}
    assert kept == {"student", "teacher", "centre", "feature_mean", "feature_std"}


def test_features_are_standardised_by_running_statistics():
    network, views = make_network(), make_views()[:1]
    features = network(views)[2]
    network.move_statistics(features.double().mean(0), features.double().square().mean(0), 0.0)
    scaled = (features - features.mean(0)) / features.std(0, correction=0).clamp(min=1e-3)
    torch.testing.assert_close(network(views)[1], network.teacher["head"](scaled), rtol=1e-3, atol=1e-4)
    before = network.feature_mean.clone()
    network.move_statistics(before + 1, (before + 1).square(), 0.75)  # no variance: as little as is allowed
    torch.testing.assert_close(network.feature_mean, before + 0.25)
    assert (network.feature_std > 1e-4).all()


def test_the_teacher_is_the_moving_average_of_the_student():
    network = make_network()
    before = {key: value.clone() for key, value in network.teacher.state_dict().items()}
    with torch.no_grad():
        for parameter in network.student.parameters():
            parameter.add_(1.0)
    network.follow(0.75)
    for key, value in network.teacher.state_dict().items():
        torch.testing.assert_close(value, before[key] + 0.25)
    network.follow(0.0)
    assert all(torch.equal(a, b) for a, b in zip(network.student.parameters(), network.teacher.parameters()))


def test_directions_have_length_one():
    network = make_network()
    before = network(make_views())[0]
    with torch.no_grad():
        network.student["head"].last.weight.mul_(5.0)
    torch.testing.assert_close(network(make_views())[0], before)


def test_a_network_without_a_linear_head_is_refused():
    with pytest.raises(ValueError, match="no linear layer"):
        Network(nets.build("unet_b", 1, 2, width=2), 8)


# ---------------------------------------------------------------------------------------------- task


def load(path, *overrides):
    return kinds.load(path, overrides)


def batch_of(config, slots, channels=2):
    image = torch.stack(
        [torch.randn(channels, *config.data.patch, generator=torch.Generator().manual_seed(s)) for s in slots]
    )
    collate = loader.Collate(config, tasks.build(config), 1)
    outside = (0.0,) * channels
    return collate([{"image": one, "id": f"case{s}", "slot": s, "outside": outside} for one, s in zip(image, slots)])


def train_once(config, micro_batches, steps=3):
    """A network after some steps on the slots of each, and its task."""
    task = tasks.build(config)
    task.fit([None] * 8, [])
    torch.manual_seed(0)
    network = tasks.build_network(config, task)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)  # AdamW would scale the noise of small gradients up
    autocast, scaler = optimization.precision("off", CPU)
    for step in range(steps):
        batches = [task.prepare(batch_of(config, [4 * step + slot for slot in part])) for part in micro_batches]
        train_step(network, task, batches, optimizer, scaler, autocast, 3.0)
        task.after_step(network, step + 1, 10)
    return network, task


def test_centre_and_teacher_move_once_a_step_whatever_the_micro_batches(write):
    config = load(write())
    whole, watched = train_once(config, [[0, 1, 2, 3]], steps=1)
    parts, _ = train_once(config, [[0], [1], [2], [3]], steps=1)
    for key, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[key], value, rtol=1e-3, atol=1e-5)
    assert whole.centre.abs().max() > 1e-3 and not torch.equal(whole.feature_mean, torch.zeros(32))
    found = watched.watch()
    assert 0 < found["teacher_entropy"] <= math.log(24) and 0 < found["teacher_std"] < 1


def test_the_centre_is_the_average_of_the_teachers_outputs(write):
    config = load(write())
    network, _ = train_once(config, [[0, 1, 2, 3]], steps=0)
    outputs = network(tasks.build(config).prepare(batch_of(config, [0, 1, 2, 3]))["image"])[1]
    after, _ = train_once(config, [[0, 1, 2, 3]], steps=1)
    torch.testing.assert_close(after.centre, 0.1 * outputs.mean(0), rtol=1e-5, atol=1e-7)


def test_schedules(write):
    config = load(write(task={"teacher_temperature": [0.04, 0.08], "teacher_warmup_epochs": 2}))
    task = tasks.build(config)
    task.fit([None] * 8, [])  # 3 steps an epoch, by the config
    assert [round(task._teacher_temperature(step), 6) for step in (0, 3, 6, 60)] == [0.04, 0.06, 0.08, 0.08]
    decay = [optimization.current_weight_decay(config.optim, step, 10) for step in (0, 5, 10)]
    np.testing.assert_allclose(decay, [0.04, 0.22, 0.4])
    momentum = [schedule.half_cosine(step, 0.996, 1.0, 100) for step in (0, 50, 100)]
    np.testing.assert_allclose(momentum, [0.996, 0.998, 1.0])


def test_the_last_layer_waits(write):
    task, network = tasks.build(load(write(task={"freeze_last_layer_epochs": 2}))), make_network()
    for epoch, frozen in ((0, True), (1, True), (2, False)):
        optimization.freeze(network, task.frozen(network, epoch))
        trained = {key for key, p in network.named_parameters() if p.requires_grad}
        assert ("student.head.last.weight" in trained) != frozen
        assert "student.head.mlp.0.weight" in trained and not any(key.startswith("teacher.") for key in trained)


@pytest.mark.parametrize(
    "targets, labels, counts",
    [
        (["gender"], [0, 0, 1, 1], None),
        (["gender"], [0, 0, 0, 1], "3, 1"),
        (["gender"], [1, None, None, 1], "0, 2"),
        (["gender"], [None, None, None, None], "0, 0"),
        ([], [None, None, None, None], None),
    ],
)
def test_a_probe_that_will_not_be_is_said(write, targets, labels, counts):
    val = [SimpleNamespace(subject=f"s{i}", target=label) for i, label in enumerate(labels)]
    messages = tasks.build(load(write(task={"targets": targets}))).fit(val, val)
    assert [f"among the 4 validation cases: {counts}; " in message for message in messages] == (
        [True] if counts else []
    )


def test_collapse_is_warned_of(write):
    task = tasks.build(load(write()))

    def warnings(entropy, std):
        return " ".join(task.warnings({"val_teacher_entropy": entropy, "val_teacher_std": std}))

    assert not warnings(0.5 * math.log(24), 0.3)
    assert "even over all outputs" in warnings(0.995 * math.log(24), 0.3)
    assert "single outputs" in warnings(0.005 * math.log(24), 0.3)
    assert "all cases alike" in warnings(0.5 * math.log(24), 0.001)


def test_std_is_zero_for_equal_answers_and_one_for_unrelated_ones():
    from fomo.tasks.dino import _std

    answers = torch.nn.functional.normalize(torch.randn(1, 64).expand(10, 64), dim=-1)
    assert float(_std(answers.mean(0))) == pytest.approx(0, abs=1e-3)
    assert float(_std(torch.eye(64).mean(0))) == pytest.approx(math.sqrt(1 - 1 / 64))


def test_the_last_epoch_is_kept_or_that_with_the_best_probe(write):
    task, nan = tasks.build(load(write())), math.nan
    assert task.is_best({"val_loss": 2.0}, [{"val_loss": 1.0}])
    assert task.is_best({"val_probe_auroc": nan}, [{"val_probe_auroc": nan}])
    assert task.is_best({"val_probe_auroc": 0.7}, [{"val_probe_auroc": nan}, {"val_probe_auroc": 0.7}])
    assert not task.is_best({"val_probe_auroc": 0.6}, [{"val_probe_auroc": 0.7}])
    assert not task.is_best({"val_probe_auroc": nan}, [{"val_probe_auroc": 0.7}])


@pytest.mark.parametrize(
    "override, said",
    [
        ("task.local_size=[24,24,24]", "task.local_size: got [24,24,24], wanted multiples of 16"),
        ("task.global_size=[16,16,16]", "task.global_size: got [16,16,16], wanted at least one axis of 32"),
        ("task.local_scale=[0.4,0.1]", "task.local_scale: got [0.4,0.1], wanted the lower one first"),
        ("train.patience=3", "train.patience: got 3, wanted none for task.type=dino"),
        ("train.ema=0.9", "train.ema: got 0.9, wanted 0 for task.type=dino"),
        (
            "finetune.strategy=gradual finetune.unfreeze_epoch=1",
            "finetune.strategy: got gradual, wanted full for task.type=dino",
        ),
        ("cv.final=ensemble", "cv.final"),
        ("task.targets=[gender,cohort]", "task.targets: got [gender,cohort], wanted at most one column, for the probe"),
        ("task.loss=focal", "task.loss: got focal, wanted one of auto for task.type=dino"),
    ],
)
def test_combinations_that_cannot_work(write, override, said):
    with pytest.raises(config_module.UserError, match=re.escape(said)):
        load(write(), *override.split())


# --------------------------------------------------------------------------------------- whole runs


def finished(done):
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_a_run_on_one_rank_and_on_two_and_continued(write, tmp_path):
    path = write(train={"save_every_s": 0, "log_every": 1})
    one = finished(run_command("train.py", path, f"output={tmp_path}/one"))
    two = finished(
        run_command("train.py", path, f"output={tmp_path}/two", "train.workers=1", "train.micro_batch=1", ranks=2)
    )
    folder = tmp_path / "one" / "run" / "fold_1"
    values = [
        np.array(
            [
                [float(v) for v in line]
                for line in re.findall(r" train .* loss=(\S+) .*teacher_entropy=(\S+) teacher_std=(\S+)", text)
            ]
        )
        for text in (one, two)
    ]
    assert values[0].shape == (6, 3)
    np.testing.assert_allclose(values[0][:3], values[1][:3], rtol=1e-3, atol=1e-4)  # two updates of centre and teacher
    np.testing.assert_allclose(*values, rtol=2e-2)  # AdamW's first steps of the last layer scale rounding up
    states = [torch.load(tmp_path / name / "run" / "fold_1" / "last.pt", weights_only=True) for name in ("one", "two")]
    for key in ("centre", "teacher.head.last.weight", "teacher.backbone.encoder.encoder_conv4.conv2.conv.weight"):
        torch.testing.assert_close(states[0]["model"][key], states[1]["model"][key], rtol=1e-2, atol=1e-3)
    assert re.search(r" freeze fold=1 epoch=1 frozen=teacher\.,student\.head\.last\. ", one)
    assert re.search(r" freeze fold=1 epoch=2 frozen=teacher\. ", one)
    decays = {group["weight_decay"] for group in states[0]["optimizer"]["param_groups"]}
    assert decays == {0.0, schedule.half_cosine(5, 0.04, 0.4, 6)}

    # rows, scores and pictures of the final evaluation
    results = (folder / "results.csv").read_text()
    assert all(name in results for name in ("dino_loss", "teacher_entropy", "teacher_std", "probe_auroc", "knn_auroc"))
    header = (folder / "predictions.csv").read_text().splitlines()[0]
    assert header.startswith("id,subject,fold,loss,target,probe_0,probe_1,knn_0,knn_1")
    stored = np.load(folder / "neighbours.npz")
    count = len((folder / "predictions.csv").read_text().splitlines()) - 1
    assert stored["ids"].shape == (min(8, count), 4) and stored["neighbours"].shape == (min(8, count), 3, 32, 32)
    assert all(len(set(row)) == 4 for row in stored["ids"].tolist()) and (np.diff(stored["similarity"]) <= 0).all()

    # continued from a step before the last it ends the same
    shutil.copytree(tmp_path / "one", tmp_path / "again")
    again = tmp_path / "again" / "run" / "fold_1"
    (again / "last.previous.pt").replace(again / "last.pt")
    (again / "results.csv").unlink()
    assert re.search(
        r" resume fold=1 epoch=2 step=5\b", finished(run_command("train.py", path, f"output={tmp_path}/again"))
    )
    state = torch.load(again / "last.pt", weights_only=True)
    assert all(torch.equal(value, states[0]["model"][key]) for key, value in state["model"].items())


# ------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("name, encoder, decoder", [("unet_b", 40, 26), ("suprem_unet3d", 40, 26)])
def test_the_teachers_weights_load_into_every_task(tmp_path, name, encoder, decoder):
    network = make_network(name=name)
    with torch.no_grad():
        for parameter in network.teacher.parameters():
            parameter.add_(1.0)
    state = network.state_dict()
    checkpoint.save(str(tmp_path / "best.pt"), {"model": state})
    tensors = {
        key.removeprefix("teacher.backbone."): value
        for key, value in state.items()
        if key.startswith("teacher.backbone.")
    }
    assert checkpoint.downstream(state).keys() == tensors.keys() == network.trunk.state_dict().keys()
    for mode in ("classification", "regression", "segmentation"):
        model = nets.build(name, 2, 3, mode=mode, width=2)
        report = checkpoint.load_weights(model, str(tmp_path / "best.pt"))
        assert set(report.loaded) == set(tensors)
        assert all(torch.equal(model.state_dict()[key], value) for key, value in tensors.items())
        assert len(report.loaded) + len(report.new) == len(model.state_dict()) and not report.adapted
        if mode == "segmentation":
            assert set(report.new) == {key for key in model.state_dict() if not key.startswith(model.encoder_prefixes)}
        else:
            assert len(report.new) == 2
        assert len(report.ignored) == len(state) - len(tensors)
    four = nets.build(name, 4, 1, mode="regression", width=2)
    assert len(checkpoint.load_weights(four, str(tmp_path / "best.pt")).adapted) == 1


def test_a_decoder_is_new_only_where_the_file_has_none_of_it(tmp_path):
    network = make_network()
    state = {f"teacher.backbone.{key}": value for key, value in network.trunk.state_dict().items()}
    state["teacher.backbone.decoder.upsample1.weight"] = torch.zeros(32, 16, 2, 2, 2)
    checkpoint.save(str(tmp_path / "w.pt"), {"model": state})
    with pytest.raises(config_module.UserError, match="missing: decoder"):
        checkpoint.load_weights(nets.build("unet_b", 2, 2, width=2), str(tmp_path / "w.pt"))
    (key,) = [key for key in state if key.endswith("encoder_conv4.conv2.norm.bias")]
    del state[key], state["teacher.backbone.decoder.upsample1.weight"]
    checkpoint.save(str(tmp_path / "w.pt"), {"model": state})
    with pytest.raises(config_module.UserError, match="1 missing: encoder.encoder_conv4.conv2.norm.bias"):
        checkpoint.load_weights(nets.build("unet_b", 2, 2, width=2), str(tmp_path / "w.pt"))


def test_pretrained_weights_start_student_and_teacher(write, tmp_path):
    torch.manual_seed(5)
    pretrained = nets.build("unet_b_lw_dec", 2, 1, width=2)
    torch.save(
        {"state_dict": {f"model.{key}": value for key, value in pretrained.state_dict().items()}}, tmp_path / "w.pt"
    )
    network = make_network()
    report = tasks.build(load(write())).load(
        network, lambda part: checkpoint.load_weights(part, str(tmp_path / "w.pt"))
    )
    assert len(report.loaded) == 40 and not report.new
    for key, value in pretrained.encoder.state_dict().items():
        for who in ("student", "teacher"):
            assert torch.equal(network.state_dict()[f"{who}.backbone.encoder.{key}"], value)
