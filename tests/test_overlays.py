"""Which cases are shown, and that what is stored is the map of the right output, through its centre."""

import numpy as np
import torch

from fomo import kinds, tasks
from fomo.inference import saliency
from fomo.run_folder import FoldFolder
from fomo.runs import maps


def config_of(tmp_path, text, *overrides):
    (tmp_path / "c.yaml").write_text(text)
    return kinds.load(tmp_path / "c.yaml", list(overrides))


class Case:
    """With the interface of a prepared case."""

    native_mask = geometry = None

    def __init__(self, id, array):
        self.id, self._array, self.shape, self.background = id, array, array.shape[1:], (0.0,)

    def image(self):
        return self._array


SLICES = "task: {type: multilabel, targets: [Lung nodule, Cyst]}\nmodel: {name: resnet50, width: 4, attention: cbam}\n"
SLICES += "data: {source: table, csv: t.csv, channels: [ct], patch: [64, 64, 1]}\neval: {saliency: 2}\n"


def test_of_slices_the_maps_of_the_most_probable_labels_are_stored(tmp_path):
    config = config_of(tmp_path, SLICES)
    task = tasks.build(config)
    torch.manual_seed(0)
    network = tasks.build_network(config, task).eval()
    rng = np.random.default_rng(0)
    cases = [Case(f"s{i}", rng.random((1, 64, 64, 1), np.float32)) for i in range(4)]
    names = "id scan target_Lung_nodule target_Cyst probability_Lung_nodule probability_Cyst".split()
    rows = [
        dict(zip(names, (f"s{i}", "AABB"[i], 1, i % 2, p, q)))
        for i, (p, q) in enumerate(((0.9, 0.3), (0.8, 0.95), (0.2, 0.7), (0.3, 0.1)))
    ]
    maps.write(config, task, network, cases, rows, FoldFolder(tmp_path, 1))
    # the more frequent label comes first, with s0 of scan A; of scan B the highest of the other label is s2
    assert sorted(path.name for path in (tmp_path / "saliency").iterdir()) == ["s0.npz", "s2.npz"]
    stored = np.load(tmp_path / "saliency" / "s2.npz")
    assert stored["labels"].tolist() == ["Cyst", "Lung nodule"] and stored["probabilities"].tolist() == [0.7, 0.2]
    assert stored["targets"].tolist() == [0, 1] and stored["axes"].tolist() == [2] and str(stored["scan"]) == "B"
    image = torch.from_numpy(cases[2].image())
    for found, index in zip(stored["grad_cam_2"], (1, 0)):
        np.testing.assert_allclose(found, saliency.grad_cam(network, image, index)[..., 0], atol=1e-3)
    np.testing.assert_allclose(stored["attention_2"], saliency.attention_map(network, image)[..., 0], atol=1e-3)
    np.testing.assert_allclose(stored["image_2"], cases[2].image()[0, :, :, 0], atol=1e-3)


def test_of_volumes_three_planes_through_the_centre_of_the_map(tmp_path, monkeypatch):
    text = (
        "data: {source: fomo1, root: r, channels: [t1], patch: [32, 32, 48]}\nmodel: {width: 2}\neval: {saliency: 1}\n"
    )
    config = config_of(tmp_path, text)
    task = tasks.build(config)
    torch.manual_seed(1)
    network = tasks.build_network(config, task).eval()
    case = Case("a", np.random.default_rng(1).random((1, 40, 30, 48), np.float32))
    rows = [{"id": "a", "target": 1, "probability": 0.7, "decision": 1}]
    heat = torch.zeros(32, 32, 48)
    heat[10:13, 20:25, 7] = 1  # its centre is (11, 22, 7)
    monkeypatch.setattr(saliency, "grad_cam", lambda network, image, index: heat * index)
    maps.write(config, task, network, [case], rows, FoldFolder(tmp_path, 1))
    stored = np.load(tmp_path / "saliency" / "a.npz")
    assert stored["labels"].tolist() == ["class 1"] and "attention_0" not in stored
    assert [stored[f"image_{axis}"].shape for axis in range(3)] == [(32, 48), (32, 48), (32, 32)]
    for axis, at in enumerate((11, 22, 7)):
        np.testing.assert_array_equal(stored[f"grad_cam_{axis}"][0], heat.numpy().take(at, axis))
        patch = np.pad(
            case.image()[0, 4:36], ((0, 0), (1, 1), (0, 0))
        )  # the middle; outside of the case is the background
        np.testing.assert_allclose(stored[f"image_{axis}"], patch.take(at, axis), atol=1e-3)


def test_several_targets_have_an_output_for_each_class(tmp_path):
    text = "task: {targets: [sex, grade]}\ndata: {source: table, csv: t.csv, channels: [t1]}\n"
    task = tasks.build(config_of(tmp_path, text))
    task.state["classes"] = [["F", "M"], ["I", "II", "III"]]
    outputs = task.outputs()
    assert [(output.index, output.column, output.name) for output in outputs] == [
        (0, "probability_sex_F", "sex F"),
        (1, "probability_sex_M", "sex M"),
        (2, "probability_grade_I", "grade I"),
        (3, "probability_grade_II", "grade II"),
        (4, "probability_grade_III", "grade III"),
    ]
    row = {"target_sex": 1, "target_grade": 2}
    assert [output.is_there(row) for output in outputs] == [False, True, False, False, True]
    assert [output.target for output in outputs] == ["target_sex"] * 2 + ["target_grade"] * 3
