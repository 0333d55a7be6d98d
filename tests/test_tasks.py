"""What each task fits, scores and counts, on rows and cases made by hand."""

import math
import pathlib
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fomo import config as config_module
from fomo import kinds, losses, tasks
from fomo.config import UserError
from fomo.data import cache, sources
from fomo.data.cases import Case, Volume
from fomo.inference import WindowOptions
from fomo.prediction.members import answer, infer, load_members
from fomo.run_folder import FoldFolder
from fomo.runs import crossval
from fomo.runs import splits as splits_module
from fomo.runtime import files
from fomo.space import nifti, volume
from fomo.tasks import Answer, Results, categories, segmentation
from fomo.tasks.results import finished


def build(tiny_config, task, /, **sections):
    return tasks.build(kinds.load(tiny_config(task, **sections)))


def labelled(*targets):
    return [SimpleNamespace(target=float(target)) for target in targets]


def answers(rows):
    return [Answer(row) for row in rows]


def masks(*voxels):
    """Cases by the voxels of each class in their masks."""
    return [SimpleNamespace(class_voxels=tuple(counts)) for counts in voxels]


def test_class_weights_are_inverse_frequencies_with_mean_one_over_the_cases(tiny_config):
    task = build(tiny_config, "classification", task={"class_weights": "inverse_frequency"})
    assert task.fit(labelled(0, 0, 0, 1), labelled(0, 1)) == ()
    assert task.state["class_weights"] == pytest.approx([4 / 2 / 3, 4 / 2 / 1])
    weights = np.array(task.state["class_weights"])[[0, 0, 0, 1]]
    assert weights.mean() == pytest.approx(1)
    logits, batch = torch.zeros(2, 2), {"target": torch.tensor([0.0, 1.0])}
    assert task.loss(logits, batch).tolist() == pytest.approx([math.log(2) * 2 / 3, math.log(2) * 2])


@pytest.mark.parametrize("part, train, val", [("training", (1, 1, 1), (0, 1)), ("validation", (0, 1), (0, 0, 0))])
def test_a_part_with_one_class_only_is_refused_before_it_is_trained_on(tiny_config, part, train, val):
    task = build(tiny_config, "classification", task={"class_weights": "inverse_frequency"})
    with pytest.raises(
        config_module.UserError, match=f"{part} cases: got 3 of class [01] only, wanted both classes: lower cv.folds"
    ):
        task.fit(labelled(*train), labelled(*val))


@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
def test_the_loss_of_a_validation_case_is_that_of_training(tiny_config, monkeypatch, loss):
    task = build(tiny_config, "classification", task={"loss": loss})
    task.state["class_weights"] = [0.5, 2.0]
    monkeypatch.setattr(task, "infer", lambda *_: torch.tensor([0.3, -0.9]).softmax(0)[1].item())
    for target in (0, 1):
        case = SimpleNamespace(id="a", subject="a", target=float(target), labels=(), image=lambda: None, background=())
        wanted = task.loss(torch.tensor([[0.3, -0.9]]), {"target": torch.tensor([target])}).item()
        assert task.predict(None, case, None).row["loss"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal"])
def test_smoothed_labels_are_for_training_only(tiny_config, loss):
    logits, targets = torch.tensor([[3.0, -3.0]]), torch.tensor([0])
    plain = build(tiny_config, "classification", task={"loss": loss})
    smoothed = build(tiny_config, "classification", task={"loss": loss, "label_smoothing": 0.2})
    one, other = (plain.loss(logits, {"target": torch.tensor([k])}).item() for k in (0, 1))
    batch = {"target": targets}
    assert smoothed.loss(logits, batch).item() == pytest.approx(0.9 * one + 0.1 * other)
    assert smoothed._loss(logits, targets).item() == pytest.approx(one)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_losses_of_segmentation_follow_their_keys(tiny_config, activation):
    def loss(**section):
        task = build(tiny_config, "segmentation", task={"activation": activation, **section})
        return task.loss(*given).tolist()

    logits, mask = torch.randn(2, 2 - (activation == "sigmoid"), 4, 4, 4), torch.randint(2, (2, 4, 4, 4))
    given = logits, {"mask": mask}
    weights = {"alpha": 0.6, "beta": 0.4}
    for section, wanted in (
        ({"loss": "tversky"}, losses.tversky(logits, mask, activation=activation)),
        (
            {"loss": "tversky", **{f"tversky_{name}": value for name, value in weights.items()}},
            losses.tversky(logits, mask, **weights, activation=activation),
        ),
        ({"loss": "dice_focal"}, losses.dice_focal(logits, mask, activation=activation)),
        ({"loss": "dice_focal", "focal_gamma": 1.0}, losses.dice_focal(logits, mask, gamma=1.0, activation=activation)),
    ):
        assert loss(**section) == pytest.approx(wanted.tolist())


def test_classes_of_another_table_are_known_by_their_names(tiny_config, monkeypatch):
    """A table that has patients only numbers their class 0."""
    task = build(tiny_config, "classification")
    task.inspect(
        [
            SimpleNamespace(target=float(number), labels=(text,))
            for number, text in enumerate(("healthy", "ill at ease"))
        ]
    )
    assert task.state["classes"] == ["healthy", "ill_at_ease"]
    monkeypatch.setattr(task, "infer", lambda *_: 0.75)

    def row(text):
        return task.predict(
            None,
            SimpleNamespace(id="a", subject="a", target=0.0, labels=(text,), image=lambda: None, background=()),
            None,
        ).row

    assert row("ill at ease")["target"] == 1 and row("healthy")["target"] == 0
    with pytest.raises(
        config_module.UserError, match="case a: target class: got the class 'dead', wanted one of healthy, ill_at_ease"
    ):
        row("dead")


def test_decisions_use_the_threshold_that_was_fitted_on_validation(tiny_config):
    task = build(tiny_config, "classification")
    val = [{"target": y, "probability": p} for y, p in ((0, 0.1), (0, 0.2), (1, 0.3), (1, 0.4))]
    task.calibrate(lambda: Results(val))
    assert task.state["threshold"] == pytest.approx(0.25)
    results = task.finish(
        answers({"id": i, "subject": i, "target": y, "probability": p} for i, y, p in (("a", 1, 0.26), ("b", 0, 0.24)))
    )
    assert [row["decision"] for row in results.rows] == [1, 0] and task.score(results)["accuracy"] == 1
    half = build(tiny_config, "classification", eval={"threshold": "half"})
    half.calibrate(lambda: pytest.fail("nothing is to be fitted"))
    assert half.state["threshold"] == 0.5


def test_one_class_is_undefined_and_not_one_half(tiny_config):
    task = build(tiny_config, "classification")
    rows = ({"id": i, "subject": i, "target": 1, "probability": p} for i, p in (("a", 0.2), ("b", 0.9)))
    scores = task.score(task.finish(answers(rows)))
    assert math.isnan(scores["auroc"]) and scores["recall"] == 0.5 and math.isnan(scores["specificity"])


def test_regression_learns_standardised_targets_and_answers_in_years(tiny_config):
    task = build(tiny_config, "regression", task={"loss": "mse"})
    assert task.fit(labelled(30, 50, 70), labelled(40)) == ()
    assert task.state["mean"] == 50 and task.state["scale"] == pytest.approx(math.sqrt(800 / 3))
    outputs, batch = torch.tensor([[0.0]]), {"target": torch.tensor([50 + task.state["scale"]])}
    assert task.loss(outputs, batch).item() == pytest.approx(1)
    row = {"id": "a", "subject": "a", "target": 60.0, "prediction": 55.0, "training_mean": 50.0}
    scores = task.score(Results([row, {**row, "target": 40.0, "prediction": 45.0}]))
    assert scores["mae"] == 5 and scores["mae_of_the_mean"] == 10 and "corrected_mae" not in scores


def test_the_bias_correction_comes_from_validation_and_is_shown_beside_the_raw_values(tiny_config):
    task = build(tiny_config, "regression")
    val = [{"target": t, "prediction": 50 + 0.5 * (t - 50)} for t in np.linspace(30, 70, 21)]
    assert task.calibrate(lambda: Results(val)) == ()
    rows = [
        {"id": "a", "subject": "a", "target": t, "prediction": 50 + 0.5 * (t - 50), "training_mean": 50.0}
        for t in (20.0, 80.0)
    ]
    scores = task.score(task.finish(answers(rows)))
    assert scores["mae"] == 15 and scores["bias_slope"] == pytest.approx(-0.5)
    assert scores["corrected_mae"] == pytest.approx(0, abs=1e-9)
    task.state["bias_correction"] = [float("nan"), float("nan")]
    scores = task.score(task.finish(answers(rows)))
    assert scores["mae"] == 15 and math.isnan(scores["corrected_mae"])


def test_equal_targets_are_said_and_have_no_scale(tiny_config):
    task = build(tiny_config, "regression")
    [message] = task.fit(labelled(0.1, 0.1, 0.1), labelled(1))
    assert message.startswith("all 3 training targets are 0.1:") and task.state["scale"] == 1
    assert np.std([0.1] * 3) > 0, "rounding would have scaled the targets by a tiny number"


@pytest.mark.parametrize(
    "targets, slope, said",
    [
        (np.full(22, 50.0), 0.0, "their targets are all equal"),
        (np.arange(19.0), 0.5, "19 cases, wanted 20 or more"),
        (np.arange(22.0), 1.0, "no slope is sure enough"),
        (np.arange(22.0), 0.5, None),
    ],
)
def test_a_bias_correction_that_is_off_is_said(tiny_config, targets, slope, said):
    rows = [{"target": t, "prediction": 30.1 + slope * t} for t in targets]
    task = build(tiny_config, "regression")
    messages = task.calibrate(lambda: Results(rows))
    assert [said in message for message in messages] == ([True] if said else [])
    assert (task.state["bias_correction"] == [1.0, 0.0]) == (said is not None)


def test_missed_and_undefined_cases_are_counted_beside_the_mean(tiny_config):
    task = build(tiny_config, "segmentation")
    common = {"subject": "s", "loss": 0.0, "reference_voxels": 5}
    rows = [
        {"id": "a", **common, "predicted_voxels": 5, "dice": 0.8, "hd95": 2.0},
        {"id": "b", **common, "predicted_voxels": 0, "dice": 0.0, "hd95": math.inf},
        {"id": "c", **common, "predicted_voxels": 0, "dice": math.nan, "hd95": math.nan},
    ]
    scores = task.score(Results(rows))
    assert scores["dice"] == pytest.approx(0.4) and scores["dice_undefined"] == 1
    assert scores["hd95"] == 2 and scores["hd95_infinite"] == 1 and scores["hd95_undefined"] == 1
    assert scores["empty_predictions"] == 2


def test_more_classes_have_their_own_columns_and_a_mean_over_the_defined():
    row = segmentation._with_mean({1: {"dice": 0.5}, 2: {"dice": 1.0}, 3: {"dice": math.nan}})
    assert row["dice"] == 0.75 and row["dice_1"] == 0.5 and row["dice_2"] == 1.0 and math.isnan(row["dice_3"])


def test_one_class_in_all_cases_is_refused_before_anything_is_prepared(tiny_config):
    task = build(tiny_config, "classification")
    with pytest.raises(UserError, match="target: got the class 1 in all 2 labelled cases, wanted two classes"):
        task.inspect([Case(name, name, (), None, 1.0, None) for name in "ab"])


def test_classes_are_named_as_in_the_table():
    recorded = {"a": {"target": 1.0, "labels": ["CN"]}, "b": {"target": 0.0, "labels": ["AD"]}, "c": {"target": None}}
    assert categories.class_names(recorded) == ["AD", "CN"]
    assert categories.class_names({"a": {"target": 1.0}}) == ["0", "1"]


@pytest.mark.parametrize(
    "empties, split", [(3, {"with foreground": 15}), (5, {"with foreground": 10, "without foreground": 5})]
)
def test_too_few_empty_masks_are_no_reason_to_refuse(tiny_config, empties, split):
    config = kinds.load(tiny_config("segmentation", cv={"folds": 5, "stratify": True}))
    count = sum(split.values())
    cases = [Case(f"c{i:02}", f"s{i:02}", (), None, float(i >= empties), None) for i in range(count)]
    task = tasks.build(config)
    assert Counter(name for name, _ in task.strata(cases)) == split
    splits = splits_module.make_splits(config, task, cases)
    assert sorted(name for one in splits for name in one["test"]) == [case.id for case in cases]
    if empties == 5:
        assert all(any(name < "c05" for name in one["test"]) for one in splits)


def test_voxel_class_weights_ignore_which_case_a_voxel_is_in(tiny_config):
    task = build(tiny_config, "segmentation", task={"class_weights": "inverse_frequency"})
    assert task.fit(masks([8, 0], [4, 4]), masks([4, 4])) == []
    assert task.state["class_weights"] == pytest.approx([0.5, 1.5])  # 12 and 4 voxels


def test_a_class_without_voxels_is_said_and_leaves_the_others_their_weights(tiny_config):
    task = build(tiny_config, "segmentation", task={"class_weights": "inverse_frequency", "classes": 3})
    messages = task.fit(masks([8, 0, 0], [4, 4, 0]), masks([4, 0, 4]))
    assert messages == [
        "masks: no training case of class 2: not learned, and of weight 1 in the loss",
        "masks: no validation case of class 1: not seen when the epoch is chosen",
    ]
    assert task.state["class_weights"] == pytest.approx([0.5, 1.5, 1.0])


@pytest.mark.parametrize("part, train, val", [("training", [[8, 0]], [[4, 4]]), ("validation", [[4, 4]], [[8, 0]])])
def test_a_part_without_foreground_is_refused_before_it_is_trained_on(tiny_config, part, train, val):
    with pytest.raises(config_module.UserError, match=f"{part} cases: got 1 without a voxel of the foreground"):
        build(tiny_config, "segmentation").fit(masks(*train), masks(*val))


# -------------------------------------------------------------------------------------------- sigmoid or softmax


def segmentation_case(shape, mask):
    whole, axes = tuple((0, size) for size in shape), ((0, 1), (1, 1), (2, 1))
    geometry = volume.Geometry(shape, tuple(map(tuple, np.eye(4))), axes, whole, (1.0,) * 3, (1.0,) * 3, shape)
    image = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    known = dict(id="a", subject="a", shape=shape, background=(0.0,), geometry=geometry)
    return SimpleNamespace(**known, native_mask=mask, image=lambda: image, mask=lambda: mask)


@pytest.mark.parametrize("loss", ["auto", "cross_entropy"])
def test_one_sigmoid_output_is_two_softmax_outputs(tiny_config, monkeypatch, tmp_path, loss):
    shape = (16, 16, 8)
    mask = np.random.default_rng(1).integers(2, size=shape).astype(np.uint8)
    case, windows = (
        segmentation_case(shape, mask),
        WindowOptions((16, 16, 16), overlap=0.0, device=torch.device("cpu")),
    )
    monkeypatch.setattr(segmentation, "read_volume", lambda source, like: (source, np.eye(4)))
    networks = {"sigmoid": lambda x: x, "softmax": lambda x: torch.cat([-x / 2, x / 2], 1)}
    found, native = {}, {}
    for name, network in networks.items():
        task = build(tiny_config, "segmentation", task={"activation": name, "loss": loss})
        assert task.out_channels == (1 if name == "sigmoid" else 2)
        places = None, FoldFolder(tmp_path, 1)
        found[name] = [finished(task.predict(network, case, windows, fold)).row for fold in places]
        parts = (task.infer(network, case.image(), case.background, windows) for _ in range(2))
        native[name] = task.answer([task, task], task.gather(parts), case.geometry)
    for one, two in zip(*found.values()):
        assert one.keys() == two.keys() and 0 < one["dice"] < 1
        for key in one.keys() - {"id", "subject"}:
            assert one[key] == pytest.approx(two[key], rel=1e-5, nan_ok=True)
    (row, volumes), (other_row, other) = native.values()
    assert (
        row == other_row
        and np.array_equal(volumes["mask"], other["mask"])
        and row["predicted_voxels"] == found["sigmoid"][1]["predicted_voxels"]
    )
    np.testing.assert_allclose(volumes["probabilities"], other["probabilities"], atol=1e-6)


@pytest.mark.parametrize("patch", [(8, 8, 8), (16, 6, 8)])
def test_a_gpu_gives_the_probabilities_of_a_network_in_parts_and_they_are_the_same(tiny_config, patch):
    task, weights = build(tiny_config, "segmentation"), torch.randn(2, 1, 1, 1)
    windows, image = WindowOptions(patch, device=torch.device("cpu")), torch.randn(1, 14, 20, 9)
    asked = []

    def blend_planes(network, *given):
        asked.append(given[-1])
        return windows.blend_planes(network, *given)

    on_gpu = SimpleNamespace(patch=patch, device=torch.device("cuda"), blend_planes=blend_planes)
    for count in (1, 3):
        parts = [task.infer(lambda x: x * weights, image, (0.0,), windows) for _ in range(count)]
        [mean] = task.gather(iter(parts))
        [same] = task.gather(iter([part._replace(windows=on_gpu) for part in parts]))
        assert np.array_equal(mean, same) and mean.sum(0) == pytest.approx(1, abs=1e-5)
    assert asked == [0, 0, 1, 1], "the second axis is the longest"


def test_a_mask_that_is_stored_with_other_axes_is_scored_where_it_lies(tiny_config, tmp_path):
    shape = (16, 16, 16)
    mask = np.zeros(shape, np.uint8)
    mask[2:6, 1:4, 3:7] = 1
    case, windows = (
        segmentation_case(shape, mask),
        WindowOptions((16, 16, 16), overlap=0.0, device=torch.device("cpu")),
    )
    task, rows = build(tiny_config, "segmentation"), []
    perfect = 9 * torch.from_numpy(mask).float()[None, None]
    flipped = np.diag([-1.0, 1.0, 1.0, 1.0])
    flipped[0, 3] = shape[0] - 1
    for name, array, affine in (("same", mask, np.eye(4)), ("flipped", mask[::-1], flipped)):
        nifti.write_nifti(tmp_path / f"{name}.nii.gz", array, affine)
        case.native_mask = Volume(str(tmp_path / f"{name}.nii.gz"))
        rows.append(
            finished(
                task.predict(lambda x: torch.cat([1 - perfect, perfect], 1), case, windows, FoldFolder(tmp_path, 1))
            ).row
        )
        written, own = nifti.read_nifti(str(tmp_path / "masks" / "a.nii.gz"))
        assert np.array_equal(own, np.eye(4)) and np.array_equal(written, mask)
    assert rows[0] == rows[1] and rows[0]["dice"] == 1


def test_sigmoid_classes_are_independent_and_the_most_probable_above_one_half_wins(tiny_config):
    task = build(tiny_config, "segmentation", task={"activation": "sigmoid", "classes": 3})
    probabilities = np.array([[0.4, 0.6, 0.7, 0.5], [0.45, 0.3, 0.9, 0.2]], np.float32).reshape(2, 4, 1, 1)
    case = segmentation_case((4, 1, 1), None)
    row, volumes = task.answer([task], [probabilities], case.geometry)
    assert volumes["mask"].ravel().tolist() == [0, 1, 2, 0] and row == {"predicted_voxels": 2}
    native = np.stack(list(volumes["probabilities"]))
    np.testing.assert_allclose(native[0].ravel(), [0.55, 0.4, 0.1, 0.5], atol=1e-6)
    assert task.out_channels == 2 and native.shape == (3, 4, 1, 1)


def test_sigmoid_with_generalized_dice_trains_and_predicts_what_it_reported(tiny_config):
    config = kinds.load(
        tiny_config(
            "segmentation",
            task={"activation": "sigmoid", "loss": "generalized_dice"},
            model={"deep_supervision": True},
            train={"epochs": 1, "steps_per_epoch": 12},
            optim={"lr": 3e-2},
            cv={"folds_to_run": [1]},
        )
    )
    crossval.run(config)
    folder = pathlib.Path(config.output) / config.name / "fold_1"
    rows = files.read_csv(folder / "predictions.csv")
    members = load_members([str(folder / "best.pt")], torch.device("cpu"))
    listed = {case.id: case for case in sources.list_cases(config.data, tasks.wanted(config))}
    row = max(rows, key=lambda row: float(row["predicted_voxels"]))
    image, background, geometry = cache.load(listed[row["id"]], config.data, tasks.wanted(config))
    answered, volumes = answer(members, infer(members, listed[row["id"]], image, background), geometry)
    stored, _ = nifti.read_nifti(folder / "masks" / f"{row['id']}.nii.gz")
    assert answered["predicted_voxels"] == int(float(row["predicted_voxels"])) > 0
    assert np.array_equal(volumes["mask"], stored) and len(volumes["probabilities"]) == 2


@pytest.mark.parametrize(
    "task, sections, key",
    [
        ("classification", {"activation": "sigmoid"}, "task.activation"),
        ("segmentation", {"activation": "sigmoid", "class_weights": "inverse_frequency"}, "task.class_weights"),
        ("segmentation", {"loss": "generalized_dice", "class_weights": "inverse_frequency"}, "task.class_weights"),
        ("segmentation", {"loss": "tversky", "class_weights": "inverse_frequency"}, "task.class_weights"),
        ("segmentation", {"label_smoothing": 0.1}, "task.label_smoothing"),
        ("segmentation", {"loss": "tversky", "tversky_beta": 0.0}, "task.tversky_beta"),
        ("regression", {"loss": "generalized_dice"}, "task.loss"),
    ],
)
def test_settings_of_segmentation_that_cannot_be_together_are_refused(tiny_config, task, sections, key):
    with pytest.raises(config_module.UserError, match=key):
        kinds.load(tiny_config(task, task={"type": task, **sections}))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_probabilities_do_not_depend_on_how_many_planes_are_given(tiny_config, activation):
    """To the bit: a fold's test cases are given whole, and prediction as windows go on."""
    task = build(tiny_config, "segmentation", task={"activation": activation, "loss": "dice_ce", "classes": 4})
    logits = torch.randn(4 - (activation == "sigmoid"), 13, 33, 91)
    whole = task._probabilities(logits.clone())
    parts = [task._probabilities(planes.clone()) for planes in logits.split(5, dim=1)]
    assert np.array_equal(np.concatenate(parts, axis=1), whole)
    plain = logits.sigmoid() if activation == "sigmoid" else logits.softmax(0)
    np.testing.assert_allclose(whole, plain, atol=1e-6)
