"""The slices of a case: their sides, their outlines, the one that is shown first, and how many fit on a page."""

import base64
import io
import re

import numpy as np
import pytest
from report_runs import needs_figures

from fomo.pages import slices
from fomo.report import browser

SHAPE = (20, 30, 10)


def decoded(text, kind):
    """The pictures of a kind in a page, as arrays."""
    from matplotlib.image import imread

    found = re.findall(rf"data:image/{kind};base64,([^\")]+)", text)
    return [imread(io.BytesIO(base64.b64decode(data)), format=kind) for data in found]


def a_view(radiological=True, masks=(None, None), count=4, channels=2):
    """Of a volume of 1, with a bright corner at the patient's left, front and top in the last channel."""
    image = np.ones((channels, *SHAPE), np.float32)
    image[-1, :5, 20:, 6:] = 5
    names = [f"c<{i}" for i in range(channels)]
    return slices.viewer(image, (0.0,) * channels, masks, (1.0, 1.0, 2.0), names, radiological, 60, count).text


@needs_figures
def test_each_plane_has_the_slices_and_the_channels():
    text = a_view()
    axial, coronal, sagittal = decoded(text, "jpeg")
    assert axial.shape[:2] == (2 * 60, 4 * 40)  # of 20 x 30 mm: 40 x 60 pixels; columns are slices, rows channels
    assert coronal.shape[:2] == (2 * 40, 4 * 40)  # two pixels of a voxel at most
    assert sagittal.shape[:2] == (2 * 40, 4 * 60)
    assert text.count('type="range"') == 3 and text.count('max="3"') == 3
    assert text.count("c&lt;0") == 3 and "c<0" not in text


@needs_figures
@pytest.mark.parametrize("radiological, sides", ((True, "RL"), (False, "LR")))
def test_the_patients_left_is_where_the_letters_say(radiological, sides):
    text = a_view(radiological)
    axial, _, sagittal = decoded(text, "jpeg")
    last = axial[60:, 120:, 0].astype(int)  # the topmost slice of the second channel
    left, right = last[:, :10].mean(), last[:, -10:].mean()
    assert (left > right + 50) == (not radiological) and (right > left + 50) == radiological
    assert last[:20].mean() > last[-20:].mean()  # the front is at the top
    first = sagittal[40:, :60, 0].astype(int)
    assert first[:10, -15:].mean() > 200 > first[:10, :15].mean()  # in front, above
    letters = re.findall(r'<s class="(\w+)">(\w)</s>', text)
    assert letters[:2] == [("left", sides[0]), ("right", sides[1])]
    assert letters[-2:] == [("left", "P"), ("right", "A")]


@needs_figures
def test_outlines_and_the_slice_with_most_of_the_mask():
    reference, predicted = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    reference[4:9, 10:15, 7] = True
    predicted[12:15, 10:15, 7] = True
    text = a_view(masks=(reference, predicted), count=3)
    assert re.search(r"--n:3;--i:2;", text)  # of the slices 1, 5 and 8 the last one gives way to slice 7
    axial = decoded(text, "png")[0]
    tile = axial[:, 2 * axial.shape[1] // 3 :]
    assert not axial[..., 3][:, : 2 * axial.shape[1] // 3].any()
    colours = {tuple(np.round(255 * pixel[:3]).astype(int)) for pixel in tile[tile[..., 3] > 0]}
    assert colours == {(0x56, 0xB4, 0xE9), (0xFF, 0xB0, 0x00)}
    rows, columns = np.nonzero(tile[..., 3])
    width, height = tile.shape[1] / 20, tile.shape[0] / 30
    assert columns.min() == 5 * width and columns.max() + 1 == 16 * width  # x 4 .. 14, flipped
    assert rows.min() == 15 * height and rows.max() + 1 == 20 * height  # y 10 .. 14, upwards
    assert not tile[int(17.5 * height), int(13.5 * width), 3]  # the middle of the reference, which is not filled


@needs_figures
def test_a_flat_image_has_one_plane_and_no_slider():
    image = np.random.default_rng(0).random((1, 16, 16, 1)).astype(np.float32)
    text = slices.viewer(image, (0.0,), (None, None), (1.0, 1.0, 1.0), ["ct"], True, 64, 9).text
    assert len(decoded(text, "jpeg")) == 1 and "range" not in text


def test_many_cases_have_fewer_slices_and_then_only_the_worst_have_some():
    assert browser.plan(1, 1) == (1, 160, 24)
    for cases, channels, shown in ((100, 1, 100), (100, 3, 100), (500, 1, 50), (100, 8, 50)):
        found = browser.plan(cases, channels)
        assert found[0] == shown and 64 <= found[1] <= 160 and 1 <= found[2] <= 24
    assert browser.plan(60, 3, voxels=29)[1:] == (58, 18)  # small volumes have room for more slices
