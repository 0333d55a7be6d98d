"""Every case is prepared once, whole or not at all, and every bad one is named."""

import dataclasses
import glob
import os
import pathlib
import shutil

import nibabel
import numpy as np
import pytest
from conftest import wanted

from fomo import config
from fomo.data import cache, sources
from fomo.space import volume

SEGMENTATION = wanted(type="segmentation")


class Log:
    def __init__(self):
        self.lines = []

    def __call__(self, event, **values):
        self.lines.append((event, values))

    def warn(self, message, **values):
        self.lines.append(("warn", {"message": message, **values}))


@pytest.fixture
def data(tmp_path):
    """Three cases of two channels with a box as mask; class 1 fills 4x4x4 voxels."""
    rng = np.random.default_rng(0)
    for subject in ("a", "b", "c"):
        mask = np.zeros((12, 14, 10), np.uint8)
        mask[4:8, 4:8, 3:7] = 1
        for name in ("flair", "swi"):
            array = rng.integers(50, 200, mask.shape).astype(np.int16)
            array[0], array[:, :2] = 0, 0
            write(tmp_path / "root" / "preprocessed" / subject / "ses_1" / f"{name}.nii.gz", array)
        write(tmp_path / "root" / "labels" / subject / "ses_1" / "seg.nii.gz", mask)
    return config.Data(
        source="fomo2",
        root=str(tmp_path / "root"),
        cache=str(tmp_path / "cache"),
        channels=("flair", "swi"),
        spacing_mm=(2.0, 2.0, 2.0),
    )


AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def write(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def file_of(data, subject, name):
    folder = "labels" if name == "seg" else "preprocessed"
    return pathlib.Path(data.root) / folder / subject / "ses_1" / f"{name}.nii.gz"


def prepare(data, task=SEGMENTATION, log=None, workers=0):
    return cache.prepare(sources.list_cases(data, task), data, task, log, workers)


def test_what_an_entry_holds(data):
    case = prepare(data)[0]
    assert case.id == "a_ses_1" and case.shape == (11, 12, 10), "cropped to the non-zero box"
    image, mask = case.image(), case.mask()
    assert isinstance(image, np.memmap) and image.dtype == np.float32 and image.shape == (2, 11, 12, 10)
    assert isinstance(mask, np.memmap) and mask.dtype == np.uint8 and mask.shape == case.shape
    np.testing.assert_allclose(image.mean(axis=(1, 2, 3)), 0, atol=1e-5)
    np.testing.assert_allclose(case.background, image.min(axis=(1, 2, 3)))
    assert case.class_voxels == (11 * 12 * 10 - 64, 64)
    foreground = case.foreground()
    assert foreground.dtype == np.int16 and foreground.shape == (64, 4)
    assert {tuple(row[:3]) for row in foreground} == {tuple(index) for index in np.argwhere(mask == 1)}
    native = volume.to_native(np.asarray(mask), case.geometry, order=0)
    np.testing.assert_array_equal(native, nibabel.load(case.native_mask.path).get_fdata())


def test_the_second_time_nothing_is_done_and_the_result_is_the_same(data, monkeypatch):
    first = prepare(data)
    monkeypatch.setattr(cache, "_write", lambda *_: pytest.fail("prepared again"))
    assert prepare(data) == first


def test_processes_give_the_same_entries(data, monkeypatch):
    alone = prepare(data)
    contents = [np.array(case.image()) for case in alone]
    monkeypatch.setattr(cache, "_FEW", 1)
    log = Log()
    parallel = prepare(dataclasses.replace(data, cache=data.cache + "2"), log=log, workers=2)
    assert [case.case for case in parallel] == [case.case for case in alone]
    for case, content in zip(parallel, contents):
        np.testing.assert_array_equal(case.image(), content)
    assert log.lines[0] == ("data", {"cases": 3, "cached": 0, "unseen": 0, "cache": data.cache + "2"})
    assert log.lines[1][1]["prepared"] == 3 and log.lines[1][1]["of"] == 3


def test_changed_settings_or_files_make_new_entries(data):
    folders = {case.folder for case in prepare(data)}
    same = {case.folder for case in prepare(dataclasses.replace(data, patch=(32, 32, 32), percentiles=(1.0, 99.0)))}
    assert same == folders, "the patch and unused percentiles do not matter"
    for change in (
        {"spacing_mm": (1.0, 1.0, 1.0)},
        {"crop": False},
        {"normalize": "percentile"},
        {"cache_dtype": "float16"},
    ):
        assert not folders & {case.folder for case in prepare(dataclasses.replace(data, **change))}, change
    path = file_of(data, "b", "swi")
    os.utime(path, ns=(0, 0))
    changed = {case.folder for case in prepare(data)}
    assert len(folders & changed) == 2, "only b is prepared again"


def test_a_link_that_leads_elsewhere_makes_a_new_entry(data, tmp_path):
    file, store = file_of(data, "b", "swi"), [tmp_path / f"{name}.nii.gz" for name in "xy"]
    plain = cache.stamp(file)
    assert plain == [file.stat().st_size, file.stat().st_mtime_ns], "entries of files that are no links stay valid"
    for place in store:
        shutil.copy2(file, place)
    file.unlink()
    entries = []
    for place in store:
        file.unlink(missing_ok=True)
        file.symlink_to(place)
        assert cache.stamp(file)[:2] == plain
        entries.append([case.folder for case in prepare(data)])
    assert [one == two for one, two in zip(*entries)] == [True, False, True]


def test_a_link_in_a_folder_of_files_counts_too(tmp_path):
    series, store = tmp_path / "series", [tmp_path / "x", tmp_path / "y"]
    series.mkdir()
    for place in (*store, series / "1.dcm"):
        place.write_text("a")
        os.utime(place, ns=(5, 5))
    assert cache.stamp(series) == [["1.dcm", 1, 5]]
    stamps = []
    for place in store:
        (series / "1.dcm").unlink()
        (series / "1.dcm").symlink_to(place)
        stamps.append(cache.stamp(series))
    assert stamps == [[["1.dcm", 1, 5, str(place)]] for place in store]
    (tmp_path / "link").symlink_to(series)
    assert cache.stamp(tmp_path / "link") == [*stamps[1], str(series)]


def test_values_next_to_a_class_are_that_class(data):
    spoil(seg=lambda a, m: (a * np.float32(0.99999), m))(data, "b")
    assert prepare(data)[1].class_voxels == prepare(data)[0].class_voxels


def test_float16_moves_values_by_its_rounding_only(data):
    exact = prepare(data)[0].image()
    half = prepare(dataclasses.replace(data, cache_dtype="float16"))[0]
    assert half.image().dtype == np.float16
    np.testing.assert_allclose(half.image().astype(np.float32), exact, rtol=2**-11, atol=3e-8)
    assert (half.image() != exact).any()
    assert half.background == tuple(half.image().min(axis=(1, 2, 3)).tolist()), (
        "padding continues the background exactly"
    )


def test_float16_refuses_what_it_cannot_hold(data):
    write(file_of(data, "b", "swi"), np.arange(12 * 14 * 10, dtype=np.float32).reshape(12, 14, 10) * 40)
    raw = dataclasses.replace(data, normalize="none")
    assert np.isfinite(prepare(raw)[1].image()).all()
    with pytest.raises(
        config.UserError, match=r"case b_ses_1: .*swi\.nii\.gz: got .* up to 67160 .*65504.*float16; set it to float32"
    ):
        prepare(dataclasses.replace(raw, cache_dtype="float16"))


def test_classification(data):
    task = wanted(type="classification")
    data = dataclasses.replace(data, source="fomo1")
    case = prepare(data, task)[0]
    assert (
        sorted(os.listdir(case.folder)) == ["case.json", "image.npy"] and case.class_voxels == () and case.target == 1
    )


def test_a_kill_leaves_nothing_half_done(data, monkeypatch):
    def stop(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(cache.json, "dump", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(data)
    assert os.listdir(data.cache) == []
    monkeypatch.undo()
    assert len(prepare(data)) == 3


def test_a_full_disk_is_one_line(data, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.np, "save", full)
    with pytest.raises(config.UserError, match="case a_ses_1: .*No space left.*2 more failed"):
        prepare(data)


def test_another_process_made_the_entry_meanwhile(data, monkeypatch):
    real = os.rename

    def late(source, target):
        os.makedirs(os.path.join(target, "already"))
        return real(source, target)

    monkeypatch.setattr(cache.os, "rename", late)
    case = sources.list_cases(data, SEGMENTATION)[0]
    settings = cache._settings(data, SEGMENTATION)
    os.makedirs(data.cache)
    assert cache._prepare((case, os.path.join(data.cache, "entry"), settings)) == cache._Outcome(case.id)
    assert os.listdir(data.cache) == ["entry"]


def spoil(**changes):
    """change a voxel array or affine of one file, given as name=function(array, affine)."""

    def apply(data, subject):
        for name, change in changes.items():
            path = file_of(data, subject, name)
            image = nibabel.load(path)
            write(path, *change(np.asarray(image.dataobj), image.affine))

    return apply


def nan(array, affine):
    array = array.astype(np.float32)
    array[5, 5, 5] = np.nan
    return array, affine


@pytest.mark.parametrize(
    "change, words",
    [
        (spoil(swi=lambda a, m: (a[:-1], m)), ["swi.nii.gz has shape (11, 14, 10)", "flair.nii.gz (12, 14, 10)"]),
        (
            spoil(swi=lambda a, m: (a, m + np.diag([0.5, 0, 0, 0]))),
            ["swi.nii.gz lies up to", "flair.nii.gz", "same affine"],
        ),
        (spoil(flair=nan), ["flair.nii.gz", "NaN"]),
        (spoil(swi=lambda a, m: (np.full_like(a, 7), m)), ["swi.nii.gz", "constant volume"]),
        (spoil(swi=lambda a, m: (np.zeros_like(a), m)), ["swi.nii.gz", "constant volume"]),
        (spoil(seg=lambda a, m: (a[:, :-1], m)), ["seg.nii.gz has shape"]),
        (spoil(seg=lambda a, m: (a, np.diag([2.0, 2.0, -2.0, 1.0]))), ["seg.nii.gz lies up to"]),
    ],
)
def test_bad_cases_are_named_and_the_others_are_kept(data, change, words):
    change(data, "b")
    with pytest.raises(config.UserError) as caught:
        prepare(data)
    message = str(caught.value)
    assert message.startswith("case b_ses_1: ") and "\n" not in message
    for word in words:
        assert word in message, message
    assert sorted(name.split("-")[0] for name in os.listdir(data.cache)) == ["a_ses_1", "c_ses_1"]


@pytest.mark.parametrize(
    "change, words",
    [
        (spoil(swi=lambda a, m: (np.stack([a, a], -1), m)), ["swi.nii.gz", "12x14x10x2", "3D"]),
        (lambda data, s: file_of(data, s, "swi").write_bytes(b"broken"), ["swi.nii.gz", "it is no .gz file"]),
        (spoil(seg=lambda a, m: (a * 3, m)), ["seg.nii.gz", "mask values 3", "task.classes=2"]),
        (spoil(seg=lambda a, m: (a - 2.0, m)), ["seg.nii.gz", "mask values -2, -1, wanted"]),
    ],
)
def test_cases_whose_headers_or_masks_are_bad_are_named_before_others_are_prepared(data, change, words):
    change(data, "b")
    with pytest.raises(config.UserError, match="case b_ses_1: ") as caught:
        prepare(data)
    assert all(word in str(caught.value) for word in words) and not glob.glob(f"{data.cache}/*")


def test_axes_that_run_otherwise_are_turned(data):
    """The same heads, with one channel and the mask stored from left to right, and the mask's axes in another order."""
    expected = [(np.array(case.image()), np.array(case.mask()), case.geometry) for case in prepare(data)]
    mirrored = np.diag([-2.0, 2.0, 2.0, 1.0])
    mirrored[0, 3] = 2 * 11
    swapped = mirrored[:, [1, 0, 2, 3]]
    spoil(swi=lambda a, m: (a[::-1], mirrored), seg=lambda a, m: (a[::-1].transpose(1, 0, 2), swapped))(data, "b")
    for case, (image, mask, geometry) in zip(prepare(data), expected):
        np.testing.assert_array_equal(case.image(), image)
        np.testing.assert_array_equal(case.mask(), mask)
        assert case.geometry == geometry


def test_a_window_beside_the_intensities_is_an_error(data):
    with pytest.raises(
        config.UserError, match="case a_ses_1: .*flair.nii.gz: constant volume: got intensities from .*2 more failed"
    ):
        prepare(dataclasses.replace(data, normalize="window", window=(1000.0, 2000.0)))


@pytest.mark.parametrize("name", ["image", "mask", "foreground"])
def test_a_file_of_an_entry_that_is_gone_or_empty_is_one_line(data, name):
    case = prepare(data)[0]
    path = os.path.join(case.folder, f"{name}.npy")
    for spoiled in (lambda: open(path, "wb").close(), lambda: os.remove(path)):
        spoiled()
        with pytest.raises(
            config.UserError, match=f"case a_ses_1: cannot read .*{name}.npy .*delete that folder and run again"
        ):
            getattr(case, name)()


def test_an_entry_is_on_the_disk_before_it_has_its_name(data, monkeypatch):
    done, sync, rename = [], os.fsync, os.rename
    monkeypatch.setattr(
        cache.os,
        "fsync",
        lambda file: done.append(os.path.basename(os.readlink(f"/proc/self/fd/{file}"))) or sync(file),
    )
    monkeypatch.setattr(cache.os, "rename", lambda *paths: done.append("rename") or rename(*paths))
    prepare(data)
    assert [sorted(done[start : start + 5]) for start in (0, 5, 10)] == [
        ["case.json", "foreground.npy", "image.npy", "mask.npy", "rename"]
    ] * 3
    assert done[4::5] == ["rename"] * 3


def test_all_failures_are_listed(data):
    for subject in ("a", "c"):
        spoil(swi=lambda a, m: (a[:-1], m))(data, subject)
    with pytest.raises(config.UserError, match=r"case a_ses_1: .* \(1 more failed: c_ses_1\)"):
        prepare(data)


def test_a_lesion_that_vanishes_is_a_warning(data):
    tiny = np.zeros((12, 14, 10), np.uint8)
    tiny[5, 5, 5] = 1
    write(file_of(data, "a", "seg"), tiny)
    log = Log()
    cases = prepare(dataclasses.replace(data, spacing_mm=(5.0, 5.0, 5.0)), log=log)
    assert cases[0].class_voxels[1] == 0 and cases[0].foreground().shape == (0, 4)
    warning, *others = [values for event, values in log.lines if event == "warn" and "case" in values]
    assert all(other["message"].startswith("the best possible Dice at data.spacing_mm is 0.") for other in others)
    assert warning == {
        "message": "the mask's class 1 is smaller than a voxel of data.spacing_mm and vanished",
        "case": "a_ses_1",
    }


@pytest.mark.parametrize("spacing_mm", [None, (2.0, 2.0, 2.0)])
def test_what_the_crop_takes_from_a_mask_is_counted(data, spacing_mm):
    whole, part = np.zeros((2, 12, 14, 10), np.uint8)
    whole[0, 5:7, 5] = 1  # the head's box begins at x = 1, y = 2
    part[0:3, 0:3, 5] = 1
    write(file_of(data, "a", "seg"), whole)
    write(file_of(data, "b", "seg"), part)
    log = Log()
    prepare(dataclasses.replace(data, spacing_mm=spacing_mm), log=log)
    said = {values["case"]: values["message"] for event, values in log.lines if event == "warn"}
    rest = "foreground voxels are cropped off, where all channels are 0 (data.crop)"
    assert said == {"a_ses_1": f"2 of the mask's 2 {rest}", "b_ses_1": f"7 of the mask's 9 {rest}"}


def test_foreground_is_capped_evenly_and_always_the_same():
    mask = np.zeros((50, 40, 40), np.uint8)
    mask[10:40] = 2
    mask[0, 0, :3] = 1
    voxels = cache.foreground_voxels(mask, 4, limit=600)
    np.testing.assert_array_equal(voxels, cache.foreground_voxels(mask, 4, limit=600))
    assert [(voxels[:, 3] == c).sum() for c in (1, 2, 3)] == [3, 600, 0]
    assert all(mask[tuple(row[:3])] == row[3] for row in voxels)
    assert len({tuple(row) for row in voxels}) == len(voxels)
    per_slab = np.bincount(voxels[voxels[:, 3] == 2][:, 0], minlength=50)[10:40]
    assert per_slab.min() >= 19 and per_slab.max() <= 21


def test_arrays_without_geometry(data, tmp_path):
    folder = pathlib.Path(data.root) / "preprocessed_2"
    folder.mkdir()
    stack = np.random.default_rng(0).normal(size=(3, 9, 9, 9))
    stack[2] = stack[0] > 0.5
    holder = np.empty(3, dtype=object)
    holder[:] = list(stack)
    np.save(folder / "x.npy", holder, allow_pickle=True)
    (case,) = prepare(dataclasses.replace(data, spacing_mm=(1.0, 1.0, 1.0)))
    assert case.shape == (9, 9, 9) and case.geometry.spacing_mm == (1, 1, 1)
    np.testing.assert_array_equal(case.mask(), stack[2])


# ------------------------------------------------------------------------------ copies and damage


def copied(data, names, subjects=("a", "b")):
    """Give one subject the files of another, in other bytes: packed anew, as a float, with another description."""
    for name in names:
        image = nibabel.load(file_of(data, subjects[0], name))
        copy = nibabel.Nifti1Image(np.asarray(image.dataobj).astype(np.float64), image.affine)
        copy.header["descrip"] = b"a copy"
        nibabel.save(copy, file_of(data, subjects[1], name))


@pytest.mark.parametrize("names", [["flair", "swi"], ["swi"]])
def test_one_scan_of_two_subjects_is_refused_whatever_its_bytes_are(data, names):
    copied(data, names)
    with pytest.raises(config.UserError) as caught:
        prepare(data)
    for words in ("case a_ses_1 of subject 'a' and case b_ses_1 of subject 'b'", "of the same voxels", "remove a copy"):
        assert words in str(caught.value)
    assert len([name for name in os.listdir(data.cache) if name[0] in "abc"]) == 3, "all are prepared"
    with pytest.raises(config.UserError, match="of the same voxels"):
        prepare(data)


def test_of_a_pretraining_and_of_masks_it_is_a_warning(data):
    copied(data, ["flair", "swi"])
    log, task = Log(), wanted(type="mae")
    cache.prepare(sources.list_cases(data, task), data, task, log, workers=0)
    [message] = [v for event, v in log.lines if event == "warn"]
    assert message["message"].startswith("images of different subjects") and message["example"] == [
        "a_ses_1",
        "b_ses_1",
    ]


def test_equal_masks_channels_and_sessions_are_warnings(data):
    log = Log()
    prepare(data, log=log)
    said = [values["message"] for event, values in log.lines if event == "warn"]
    assert said == ["masks of different subjects have the same voxels: copies of one mask?"]
    write(file_of(data, "a", "swi"), np.asarray(nibabel.load(file_of(data, "a", "flair")).dataobj) * 2)
    shutil.copytree(pathlib.Path(data.root) / "preprocessed/c/ses_1", pathlib.Path(data.root) / "preprocessed/c/ses_2")
    shutil.copytree(pathlib.Path(data.root) / "labels/c/ses_1", pathlib.Path(data.root) / "labels/c/ses_2")
    log = Log()
    prepare(data, log=log)
    said = {values["message"][:20]: values["example"] for event, values in log.lines if event == "warn"}
    assert said["channels of a case h"] == ["a_ses_1"] and said["images of one subjec"] == ["c_ses_1", "c_ses_2"]


@pytest.mark.parametrize("name", ["image.npy", "mask.npy"])
def test_a_flipped_bit_in_an_entry_is_noticed_when_it_is_first_read(data, name):
    cases = prepare(data)
    path = pathlib.Path(cases[1].folder, name)
    content = bytearray(path.read_bytes())
    content[-77] ^= 16
    path.write_bytes(content)
    read = {"image.npy": "image", "mask.npy": "mask"}[name]
    getattr(cases[0], read)()
    for case in (cases[1], prepare(data)[1]):
        with pytest.raises(config.UserError, match=f"case b_ses_1: .*{name} is not as it was written: delete that"):
            getattr(case, read)()
    shutil.rmtree(cases[1].folder)
    getattr(prepare(data)[1], read)()
    unseen = prepare(dataclasses.replace(data, rescan="never"))[0]
    damaged = pathlib.Path(unseen.folder, name)
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\xff")
    getattr(unseen, read)()  # of many cases none is read whole


def test_a_place_outside_of_the_volume_is_noticed_when_it_is_read(data):
    case = prepare(data)[1]
    path = pathlib.Path(case.folder, "foreground.npy")
    found = case.foreground().copy()
    for wrong in (1 << 14, -1):
        found[0, 1] = wrong
        np.save(path, found)
        with pytest.raises(config.UserError, match="foreground.npy is not as it was written"):
            case.foreground()


def test_the_checksum_tells_values_shapes_and_types_apart():
    array = np.random.default_rng(0).normal(size=(9, 31, 30)).astype(np.float32)
    same = [array, array.copy(), np.asfortranarray(array), array[::-1][::-1]]
    other = [array.reshape(9, 30, 31), array.astype(np.float64), array[:, ::-1], array[::-1], array.view(np.int32)]
    for place in (0, 4000, -1):
        flipped = array.copy()
        flipped.reshape(-1).view(np.uint32)[place] ^= 1
        other.append(flipped)
    assert len({cache.checksum(one) for one in same}) == 1
    assert len({cache.checksum(one) for one in [array, *other]}) == 1 + len(other)


def test_a_killed_process_is_named_and_the_rest_is_prepared(data, monkeypatch):
    real = cache.jobs.run

    def run(function, todo, workers, report):
        for job, done in zip(todo, real(function, todo, 0, report)):
            yield cache.jobs.Killed(job, 123456, -9) if getattr(done, "id", None) == "b_ses_1" else done

    monkeypatch.setattr(cache.jobs, "run", run)
    wanted_words = "case b_ses_1: its process was killed by signal 9, as .*memory is short: lower data.prepare_workers"
    with pytest.raises(config.UserError, match=wanted_words):
        prepare(data)


def test_memory_that_is_short_is_one_line(data, monkeypatch):
    def full(*_, **__):
        raise MemoryError("Unable to allocate 5.2 GiB")

    monkeypatch.setattr(cache.volume, "preprocess", full)
    with pytest.raises(config.UserError, match="flair.nii.gz: out of memory .*5.2 GiB.*: lower data.prepare_workers"):
        prepare(data)


def test_files_that_do_not_say_how_they_lie_are_counted(data):
    for subject in "ab":
        image = nibabel.load(file_of(data, subject, "flair"))
        image.set_sform(None, 0)
        image.set_qform(None, 0)
        for name in ("flair", "swi", "seg"):
            array = np.asarray(nibabel.load(file_of(data, subject, name)).dataobj)
            bare = nibabel.Nifti1Image(array, None, image.header)
            bare.header["sform_code"] = bare.header["qform_code"] = 0
            nibabel.save(bare, file_of(data, subject, name))
    log = Log()
    prepare(data, log=log)
    [said] = [
        values for _, values in log.lines if values.get("message", "").startswith("files do not say how they lie")
    ]
    assert said["files"] == 2 and said["example"].endswith("flair.nii.gz")


def test_where_0_stays_0_the_outside_and_a_missing_channel_are_0_too(data):
    data = dataclasses.replace(data, normalize="zscore_nonzero", optional_channels=("swi",))
    os.remove(os.path.join(data.root, "preprocessed", "b", "ses_1", "swi.nii.gz"))
    for case in prepare(data):
        assert case.background == (0.0, 0.0) and case.image()[0].min() < -1
        assert case.image()[1].any() == (case.subject != "b")
        assert cache.load(case.case, data, SEGMENTATION)[1] == (0.0, 0.0)
