"""fomo.transforms.spatial: the map, the resampling and their exact cases."""

import numpy as np
import pytest
import scipy.ndimage
import torch

from fomo.transforms import build
from fomo.transforms.registry import TRANSFORMS
from fomo.transforms.spatial import affine, elastic, resampling, sampling

CPU = torch.device("cpu")


def plan_of(matrix=((1, 0, 0), (0, 1, 0), (0, 0, 1)), offset=(0, 0, 0), elastic=None):
    return dict(matrix=np.asarray(matrix, float), offset=np.asarray(offset, float), elastic=elastic)


def smooth(shape, seed=0):
    noise = np.random.default_rng(seed).standard_normal(shape)
    image = scipy.ndimage.gaussian_filter(noise, 2)
    return (image / image.std()).astype(np.float32)


def resample(plan, volume, mask=None, **keys):
    augment = build("none", volume.shape, {"resample": keys})
    batch = {"image": torch.as_tensor(volume)[None, None]}
    if mask is not None:
        batch["mask"] = torch.as_tensor(mask)[None]
    result = augment.apply(batch, [{"spatial": plan}])
    return result["image"][0, 0].numpy(), result["mask"][0].numpy() if mask is not None else None


@pytest.mark.parametrize("shape", [(9, 9, 9), (9, 12, 7), (9, 8, 1)])
@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@pytest.mark.parametrize("border", ["min", "zero", "edge", "reflect"])
def test_identity_map_gives_the_input_back(shape, interpolation, border):
    image, mask = smooth(shape), np.random.default_rng(0).integers(0, 5, shape)
    positions = sampling.inside(resampling.positions(plan_of(), shape, CPU), shape, border)
    padded = sampling.pad(torch.as_tensor(image)[None], border, float(image.min()) if border == "min" else 0)
    result = {"linear": sampling.sample_linear, "cubic": sampling.sample_cubic}[interpolation](padded, positions)[0]
    assert np.abs(result.numpy() - image).max() < 1e-4
    for labels in ("nearest", "linear"):
        assert np.array_equal(resampling.resample_label(torch.as_tensor(mask), positions, border, labels).numpy(), mask)


@pytest.mark.parametrize("axis, dims", [(0, (1, 2)), (1, (2, 0)), (2, (0, 1))])
def test_rotation_by_90_degrees_is_rot90_on_a_cube(axis, dims):
    image, mask = smooth((9, 9, 9)), np.random.default_rng(0).integers(0, 5, (9, 9, 9))
    inverse = np.linalg.inv(affine.rotation(axis, 90.0))
    expected, expected_mask = np.rot90(image, 1, dims), np.rot90(mask, 1, dims)
    turned, turned_mask = resample(plan_of(inverse), image, mask)
    assert np.array_equal(turned, expected) and np.array_equal(turned_mask, expected_mask)
    # The same through the interpolation: a hair of elastic deformation forbids the exact path.
    still = np.zeros((3, 4, 4, 4))
    turned, turned_mask = resample(plan_of(inverse, elastic=still), image, mask)
    assert np.abs(turned - expected).max() < 1e-4 and np.array_equal(turned_mask, expected_mask)


def test_rotation_by_90_degrees_of_unequal_axes_keeps_the_shape():
    image = smooth((9, 7, 5))
    turned, _ = resample(plan_of(np.linalg.inv(affine.rotation(2, 90.0))), image)
    # the middle 7 × 7 columns of the turned content are those of rot90
    assert turned.shape == image.shape
    assert np.abs(turned[1:8] - np.rot90(image[1:8], 1, (0, 1))).max() < 1e-4


@pytest.mark.parametrize("shape", [(20, 20, 20), (24, 10, 16), (16, 12, 1)])
@pytest.mark.parametrize(
    "interpolation, order, border, mode",
    [
        ("linear", 1, "edge", "nearest"),
        ("linear", 1, "reflect", "mirror"),
        ("linear", 1, "zero", "grid-constant"),
        ("cubic", 3, "reflect", "mirror"),  # the one extension that scipy's prefilter and ours share
    ],
)
def test_resampling_agrees_with_scipy(shape, border, mode, interpolation, order):
    if shape[2] == 1:
        matrix = affine.rotation(2, 20) @ np.diag([1.1, 0.9, 1])
    else:
        matrix = affine.rotation(0, 20) @ affine.rotation(1, -15) @ affine.rotation(2, 30) @ np.diag([1.1, 0.9, 1.2])
    offset = np.array([1.5, -2.25, 0.0])
    image = smooth(shape)
    result, _ = resample(plan_of(matrix, offset), image, border=border, image=interpolation)
    centre = (np.array(shape) - 1) / 2
    if shape[2] == 1:
        expected = scipy.ndimage.affine_transform(
            image[..., 0], matrix[:2, :2], (centre + offset - matrix @ centre)[:2], order=order, mode=mode
        )[..., None]
    else:
        expected = scipy.ndimage.affine_transform(
            image, matrix, centre + offset - matrix @ centre, order=order, mode=mode
        )
    assert np.abs(result - expected).max() < 2e-3


def test_cubic_is_closer_to_the_truth_than_linear():
    grid = np.stack(np.meshgrid(*[np.arange(24.0)] * 3, indexing="ij"))

    def wave(shift):
        return np.sin((grid - shift) * 1.2).prod(0).astype(np.float32)

    shifted = plan_of(offset=(0.5, 0.5, 0.5))
    inner = (slice(4, -4),) * 3
    errors = {}
    for interpolation in ("linear", "cubic"):
        result, _ = resample(shifted, wave(0), image=interpolation, border="reflect")
        errors[interpolation] = np.abs(result - wave(-0.5))[inner].max()
    assert errors["cubic"] < 0.05 < 0.2 < errors["linear"]


def test_fast_resampling_is_torchs_own():
    volume = torch.randn(3, 14, 11, 17, generator=torch.Generator().manual_seed(0))
    where = torch.rand(3, 8, 9, 10, generator=torch.Generator().manual_seed(1)) * torch.tensor([13, 10, 16]).view(
        3, 1, 1, 1
    )
    scaled = torch.stack([where[2] / 16, where[1] / 10, where[0] / 13], -1) * 2 - 1
    expected = torch.nn.functional.grid_sample(volume[None], scaled[None], align_corners=True)[0]
    assert (sampling.sample_linear(volume, where) - expected).abs().max() < 1e-3


def test_border_rules_on_a_shift_by_hand():
    image = np.arange(1.0, 6).reshape(5, 1, 1).repeat(5, 1).repeat(5, 2).astype(np.float32)
    mask = image.astype(np.int64)
    expected = {"min": [3, 4, 5, 1, 1], "zero": [3, 4, 5, 0, 0], "edge": [3, 4, 5, 5, 5], "reflect": [3, 4, 5, 4, 3]}
    for border, column in expected.items():
        shifted, labels = resample(plan_of(offset=(2, 0, 0)), image, mask, border=border)
        assert shifted[:, 2, 2] == pytest.approx(column, abs=1e-4)
        assert labels[:, 2, 2].tolist() == ([3, 4, 5, 0, 0] if border in ("min", "zero") else column)


def test_signs_of_shift_and_scale():
    augment = build("none", (21, 21, 21), {"translate": {"p": 1.0, "fraction": (0.2, 0.2)}})
    image = torch.zeros(1, 1, 21, 21, 21)
    image[0, 0, 10, 10, 10] = 1
    moved = augment({"image": image}, np.random.default_rng(0))["image"][0, 0]
    assert np.unravel_index(int(moved.argmax()), moved.shape) == (14, 14, 14)  # 0.2 of 21 voxels is 4.2
    ball = torch.from_numpy((np.indices((21, 21, 21)) - 10) ** 2).sum(0)[None, None] < 25
    for factor, grows in ((1.2, True), (0.8, False)):
        augment = build("none", (21, 21, 21), {"scale": {"p": 1.0, "factor": (factor, factor)}})
        volume = augment({"image": ball.float()}, np.random.default_rng(0))["image"].sum()
        assert volume == pytest.approx(float(ball.sum()) * factor**3, rel=0.1)
        assert (volume > ball.sum()) == grows


def test_rotation_is_one_of_space_when_voxels_are_anisotropic():
    unit, shape = np.array([1, 1, 4]), (33, 33, 9)
    augment = build("none", shape, {"resample": {"spacing_mm": (0.8, 0.8, 3.2)}, "rotate": {"p": 1.0, "axis_p": 1.0}})
    plan = augment.draw(np.random.default_rng(0), 1, 1)[0]["spatial"]
    in_space = unit[:, None] * plan["matrix"] / unit
    assert in_space @ in_space.T == pytest.approx(np.eye(3), abs=1e-9)
    assert (
        abs(np.linalg.det(plan["matrix"]) - 1) < 1e-9
        and np.abs(plan["matrix"] @ plan["matrix"].T - np.eye(3)).max() > 0.1
    )


def test_angles_are_reduced_where_a_patch_is_flat():
    # 40 × 40 × 10: full angle about z, half of it about x and y.
    parameters = {"rotate": {"p": 1.0, "axis_p": 0.4, "degrees": (30.0, 30.0)}}
    plans = build("none", (40, 40, 10), parameters).draw(np.random.default_rng(0), 60, 1)
    turned = [np.linalg.inv(plan["spatial"]["matrix"]) for plan in plans if plan]
    for axis, degrees in ((0, 15), (1, 15), (2, 30)):
        assert any(np.allclose(matrix, affine.rotation(axis, degrees)) for matrix in turned)


def test_a_bar_turned_into_the_thick_axis():
    # 17 voxels of 1 mm along x, turned by 90° about y on a grid of 1 × 1 × 4 mm: the voxels at z = -8, -4 … 8 mm.
    unit, shape = np.array([1, 1, 4]), (33, 33, 9)
    image = np.zeros(shape, np.float32)
    image[8:25, 14:19, 4] = 1
    turned, _ = resample(plan_of(np.linalg.inv(affine.rotation(1, 90.0)) * unit / unit[:, None]), image)
    assert np.flatnonzero((turned > 0.5).any((0, 1))).tolist() == [2, 3, 4, 5, 6]
    assert (turned > 0.5).any((1, 2)).sum() <= 5  # 4 mm thick before: at most five planes of 1 mm now


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flips_commute_with_the_label_and_are_exact(axis):
    axes = tuple(a == axis for a in range(3))
    augment = build("none", (5, 6, 7), {"mirror": {"p": 1.0, "axes": axes}})
    image, mask = torch.randn(1, 2, 5, 6, 7), torch.randint(0, 9, (1, 5, 6, 7))
    result = augment({"image": image, "mask": mask}, np.random.default_rng(0))
    assert torch.equal(result["image"], image.flip(axis + 2)) and torch.equal(result["mask"], mask.flip(axis + 1))


def test_quarter_turns_are_permutations_of_the_voxels():
    augment = build("none", (6, 6, 8), {"turn": {"p": 1.0}})
    image = torch.randn(1, 1, 6, 6, 8)
    seen = set()
    for seed in range(30):
        result = augment({"image": image, "mask": (image[:, 0] > 0).long()}, np.random.default_rng(seed))
        assert torch.equal(result["image"].flatten().sort()[0], image.flatten().sort()[0])
        assert torch.equal(result["mask"], (result["image"][:, 0] > 0).long())
        seen.add(result["image"].numpy().tobytes())
    assert len(seen) == 5  # about z 90, 180, 270; about x and y (unequal axes) 180


@pytest.mark.parametrize("shape", [(24, 24, 24), (40, 16, 24), (32, 24, 1)])
@pytest.mark.parametrize("displacement", [0.5, 3.0])
def test_elastic_fields_have_the_stated_magnitude(shape, displacement):
    coefficients = elastic.draw_nodes(np.random.default_rng(0), shape, 10.0, displacement)
    plan = plan_of(elastic=coefficients)
    field = resampling.positions(plan, shape, CPU).double().numpy() - np.indices(shape)
    assert np.sqrt((field**2).sum(0).mean()) == pytest.approx(displacement, rel=1e-4)
    assert shape[2] > 1 or not field[2].any()


def test_elastic_deformation_of_the_preset_does_not_fold():
    shape = (48, 48, 48)
    for seed in range(20):
        rng = np.random.default_rng(seed)
        coefficients = elastic.draw_nodes(rng, shape, 24.0, 3.0)
        where = resampling.positions(plan_of(elastic=coefficients), shape, CPU).numpy()
        jacobian = np.stack([np.stack(np.gradient(where[i])) for i in range(3)])
        assert np.linalg.det(np.moveaxis(jacobian, (0, 1), (-2, -1))).min() > 0


def test_elastic_of_anisotropic_voxels_moves_as_far_in_space_on_every_axis():
    coefficients = elastic.draw_nodes(np.random.default_rng(0), (32, 32, 32), 8.0, 4.0, unit=(1, 1, 4))
    spread = coefficients.std((1, 2, 3))
    assert spread[2] * 4 == pytest.approx(spread[0], rel=0.3)


@pytest.mark.parametrize("labels", ["nearest", "linear"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.bool])
def test_labels_keep_their_set_of_values_and_their_type(labels, dtype):
    mask = torch.tensor([0, 1, 7, 9])[
        torch.randint(0, 4, (1, 12, 12, 12), generator=torch.Generator().manual_seed(0))
    ].to(dtype)
    augment = build("none", (12, 12, 12), {"rotate": {"p": 1.0}, "elastic": {"p": 1.0}, "resample": {"label": labels}})
    result = augment({"image": mask[:, None].float(), "mask": mask}, np.random.default_rng(1))["mask"]
    assert result.dtype == dtype and set(result.unique().tolist()) <= set(mask.unique().tolist())


def test_label_follows_the_image():
    mask = torch.zeros(1, 32, 32, 32, dtype=torch.long)
    mask[0, 8:20, 10:24, 12:22] = 1
    augment = build(
        "none", (32, 32, 32), {"rotate": {"p": 1.0, "axis_p": 1.0}, "scale": {"p": 1.0}, "elastic": {"p": 1.0}}
    )
    for labels in ("nearest", "linear"):
        augment.parameters["resample"]["label"] = labels
        result = augment({"image": mask[:, None].float(), "mask": mask}, np.random.default_rng(5))
        inside, label = result["image"][0, 0] > 0.5, result["mask"][0] > 0
        overlap = 2 * (inside & label).sum() / (inside.sum() + label.sum())
        assert overlap > (0.999 if labels == "linear" else 0.95)


@pytest.mark.parametrize("border", TRANSFORMS["resample"].keys["border"].limits)
@pytest.mark.parametrize("shape", [(24, 18, 1), (9, 9, 1)])
def test_the_short_way_for_slices_gives_what_the_long_way_gives(border, shape, monkeypatch):
    parameters = {name: {"p": 1.0} for name in ("rotate", "scale", "translate")} | {"resample": {"border": border}}
    augment = build("none", shape, parameters)
    image = torch.from_numpy(np.stack([smooth(shape, seed) for seed in range(6)])).reshape(3, 2, *shape) + 5
    plans = augment.draw(np.random.default_rng(1), 3, 2)
    short = augment.apply({"image": image}, plans)["image"]
    monkeypatch.setattr(resampling, "is_affine_slice", lambda *given: False)
    long = augment.apply({"image": image}, plans)["image"]
    assert (short - long).abs().max() < 1e-4 and (short - image).abs().mean() > 0.1


@pytest.mark.parametrize("name, keys", [
    ("rotate", {"axis_p": 1.0}), ("scale", {"per_axis": True}), ("translate", {}), ("turn", {}),
    ("mirror", {"axes": (True, True, True)}),
])  # fmt: skip
def test_a_slice_moves_in_its_plane_only_and_as_in_a_volume_of_equal_slices(name, keys):
    """The plan that was drawn for a slice, applied to five copies of it on top of each other."""
    image = smooth((20, 20, 1))
    slice_only = build("none", (20, 20, 1), {name: {"p": 1.0, **keys}})
    [plan] = slice_only.draw(np.random.default_rng(3), 1, 1)
    turned = slice_only.apply({"image": torch.from_numpy(image)[None, None]}, [plan])["image"][0, 0, :, :, 0]
    where = dict(plan["spatial"], matrix=plan["spatial"]["matrix"].copy())
    where["matrix"][2, 2] = 1  # the scale of an axis of one voxel has no effect
    assert where["offset"][2] == 0 and not where["matrix"][2, :2].any() and not where["matrix"][:2, 2].any()
    volume = torch.from_numpy(image.repeat(5, axis=2))[None, None]
    copies = build("none", (20, 20, 5)).apply({"image": volume}, [{"spatial": where}])["image"][0, 0]
    assert (copies[:, :, 2] - turned).abs().max() < 1e-4 and (
        turned - torch.from_numpy(image[:, :, 0])
    ).abs().max() > 0.1


def test_shear_leans_one_axis_of_the_plane_and_keeps_areas():
    """A line along y of a slice leans by the drawn angle; in the middle nothing moves."""
    augment = build("none", (33, 33, 1), {"shear": {"p": 1.0, "degrees": (20.0, 20.0)}})
    image = torch.zeros(1, 1, 33, 33, 1)
    image[0, 0, 16] = 1
    sheared = augment({"image": image}, [np.random.default_rng(0)])["image"][0, 0, :, :, 0]
    along = (sheared * torch.arange(33.0)[:, None]).sum(0) / sheared.sum(0)
    assert along[16] == pytest.approx(16, abs=1e-3)
    slope = float(along[26] - along[6]) / 20
    assert abs(slope) == pytest.approx(np.tan(np.deg2rad(20)), abs=0.02)
    assert np.linalg.det(augment.draw([np.random.default_rng(0)], 1, 1)[0]["spatial"]["matrix"]) == pytest.approx(1)


def test_the_presets_of_slices_differ_in_what_they_move():
    drawn = {}
    for preset in ("slices", "slices_shifted"):
        plans = build(preset, (64, 64, 1)).draw([np.random.default_rng(i) for i in range(200)], 200, 1)
        moved = [plan["spatial"] for plan in plans if "spatial" in plan]
        turned = [np.abs(one["matrix"][:2, :2]) for one in moved]
        drawn[preset] = (
            max(np.abs(one["offset"]).max() for one in moved),
            max(abs(abs(np.linalg.det(one["matrix"])) - 1) for one in moved),
            len(turned),
        )
    assert 0 < drawn["slices"][0] < drawn["slices_shifted"][0] and drawn["slices"][2] == 200, "all, by less"
    assert drawn["slices"][1] > 0.05 and drawn["slices_shifted"][1] < 1e-6, "size and shear"
