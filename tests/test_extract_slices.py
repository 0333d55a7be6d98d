"""tools/extract_slices.py and fomo.data.extract: geometry by hand, what is chosen, units, and bad volumes."""

import csv
import os
import shutil

import nibabel
import numpy as np
import pytest
from conftest import run_command

from fomo import config
from fomo.data import ct, extract, slice_files
from fomo.runtime.log import Log
from fomo.space import nifti

SMALL = ct.Settings(slices=4, size=32)


def chest(shape=(40, 40, 20), spacing=(8.0, 8.0, 10.0), marker=None):
    """(HU, affine) in RAS order: an elliptic body with two lungs on slices 4 to 15, air around it."""
    x, y, z = np.indices(shape)
    centre = (np.array(shape) - 1) / 2
    reach = np.array([130.0, 90.0]) / spacing[:2]
    radius = np.hypot((x - centre[0]) / reach[0], (y - centre[1]) / reach[1])
    array = np.full(shape, -1000.0, np.float32)
    array[(radius < 1) & (z >= 2) & (z < 18)] = 40
    for side in (-1, 1):
        lung = np.hypot(
            (x - centre[0] - side * 0.45 * reach[0]) / (0.35 * reach[0]), (y - centre[1]) / (0.6 * reach[1])
        )
        array[(lung < 1) & (z >= 4) & (z < 16)] = -800
    if marker:
        array[marker] = 400
    return array, np.diag([*spacing, 1.0])


def save(path, array, affine):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_pixel_keeps_its_side_in_every_orientation():
    """A marker at the patient's right front is at high x and high y, however the scanner stored it."""
    array, affine = chest(marker=np.s_[30:32, 24:26, 9:11])
    reference = ct.take_slices(array, affine, ct.Settings(strategy="uniform", slices=100, size=40))
    at = next(pixels for index, _, pixels in reference if index == 9)
    assert np.argwhere(at == 1).min(0).tolist() == [30, 24] and np.argwhere(at == 1).max(0).tolist() == [31, 25]
    for code in ("LPS", "ASR", "SPL"):
        turn = nibabel.orientations.ornt_transform(
            nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(code)
        )
        turned = nibabel.orientations.apply_orientation(array, turn)
        other = affine @ nibabel.orientations.inv_ornt_aff(turn, array.shape)
        found = ct.take_slices(turned, other, ct.Settings(strategy="uniform", slices=100, size=40))
        assert [index for index, _, _ in found] == [index for index, _, _ in reference]
        assert all(np.array_equal(one, two) for (_, _, one), (_, _, two) in zip(found, reference))


def test_millimetres_are_kept_not_stretched():
    """40 x 20 pixels of 8 x 16 mm, and of 8 x 8 mm: both become an isotropic square, the latter padded with air."""
    settings = ct.Settings(strategy="best_slice", size=40, window=(-1000.0, 0.0))
    array, affine = chest()
    [(_, _, full)] = ct.take_slices(array, affine, settings)
    wide, other = chest((40, 20, 20), (8.0, 16.0, 10.0))
    [(_, _, square)] = ct.take_slices(wide, other, settings)

    def inside(pixels):
        return np.ptp(np.argwhere(pixels > 0.5), axis=0)

    assert np.abs(inside(square) - inside(full)).max() <= 2
    [(_, _, padded)] = ct.take_slices(array[:, 8:32], affine, settings)
    assert padded.shape == (40, 40) and not padded[:, :8].any() and not padded[:, 32:].any()
    np.testing.assert_allclose(padded[:, 8:32].astype(float), full[:, 8:32].astype(float), atol=2e-3)


def test_window_types_and_averaging():
    array, affine = chest()
    [(_, _, half)] = ct.take_slices(array, affine, ct.Settings(strategy="best_slice", size=40))
    assert half.dtype == np.float16 and sorted(np.unique(half)) == [0, np.float16(200 / 1400), np.float16(1040 / 1400)]
    [(_, _, byte)] = ct.take_slices(array, affine, ct.Settings(strategy="best_slice", size=40, dtype="uint8"))
    assert byte.dtype == np.uint8 and sorted(np.unique(byte)) == [0, round(255 / 7), round(255 * 1040 / 1400)]
    checkered = array.copy()
    checkered[::2] = 400  # thinner than a pixel of the result: averaged, neither lost nor doubled
    [(_, _, small)] = ct.take_slices(checkered, affine, ct.Settings(strategy="best_slice", size=20))
    assert small.shape == (20, 20) and np.abs(small[:, 0].astype(float) - 0.5).max() < 0.13


def test_slices_without_body_are_not_taken_and_strategies_choose_as_they_say():
    array, affine = chest()
    array[5:35, 1, :] = 100  # a couch that goes on where the body has ended
    chosen = {}
    for strategy in ct.STRATEGIES:
        taken = ct.take_slices(array, affine, ct.Settings(strategy=strategy, slices=8, size=32))
        chosen[strategy] = [index for index, _, _ in taken]
        assert all(2 <= index < 18 for index in chosen[strategy])
        assert [position for _, position, _ in taken] == pytest.approx([(index - 2) / 15 for index in chosen[strategy]])
    assert chosen["uniform"] == [2, 4, 6, 8, 10, 12, 14, 16] or np.ptp(np.diff(chosen["uniform"])) == 0
    middle = {name: sum(6 <= index < 14 for index in chosen[name]) for name in ("uniform", "multi_slice")}
    assert middle["multi_slice"] > middle["uniform"] and len(chosen["multi_slice"]) == 8
    assert len(chosen["best_slice"]) == 1 and 4 <= chosen["best_slice"][0] < 16
    levels = chosen["anatomical"]
    assert len(levels) == 6 and levels[0] in (5, 4) and levels[-1] in (13, 14) and levels == sorted(levels)
    with pytest.raises(ValueError, match="no lungs"):
        ct.take_slices(np.where(array == -800, 40, array), affine, ct.Settings(strategy="anatomical"))
    with pytest.raises(ValueError, match="no body"):
        ct.take_slices(np.full((8, 8, 8), -1000.0), affine, ct.Settings(units="hu"))


def test_neighbours_are_the_slices_below_and_above():
    array, affine = chest()
    plain = {
        index: pixels
        for index, _, pixels in ct.take_slices(array, affine, ct.Settings(strategy="uniform", slices=99, size=32))
    }
    for distance_mm, step in ((None, 1), (21.0, 2)):
        settings = ct.Settings(strategy="uniform", slices=99, size=32, neighbours=1, neighbour_mm=distance_mm)
        for index, _, pixels in ct.take_slices(array, affine, settings):
            assert pixels.shape == (3, 32, 32)
            for place, z in zip(pixels, (index - step, index, index + step)):
                if z in plain:
                    assert np.array_equal(place, plain[z])


def test_units_are_detected_and_corrected():
    array, _ = chest()
    assert ct.in_hounsfield(array) is not None
    for offset, name, word in ((1024, "stored", "intercept"), (-1024, "twice", "twice")):
        with pytest.raises(ValueError, match=word):
            ct.in_hounsfield(array + offset)
        np.testing.assert_allclose(ct.in_hounsfield(array + offset, name), array)
        with pytest.raises(ValueError):
            ct.in_hounsfield(array, name)
    padded = array.copy()
    padded[:8] = -2048  # what scanners write outside the round field of view
    assert ct.in_hounsfield(padded) is not None
    with pytest.raises(ValueError, match="neither air"):
        ct.in_hounsfield((array + 1000) / 1400)
    assert ct.in_hounsfield(array / 7, "hu") is not None


def test_a_command_extracts_resumes_and_reports_bad_volumes(tmp_path):
    array, affine = chest()
    for name in ("train_1_a_1", "train_1_b_1", "valid_2_a_1"):  # two of a patient's may be the same
        save(tmp_path / "ct" / name[:7] / f"{name}.nii.gz", array + name.startswith("valid"), affine)
    save(tmp_path / "ct" / "train_3_a_1.nii.gz", array + 1024, affine)
    (tmp_path / "ct" / "train_4_a_1.nii.gz").write_bytes(b"no NIfTI")
    labels = tmp_path / "labels.csv"
    labels.write_text("VolumeName,Emphysema\ntrain_1_a_1.nii.gz,1\ntrain_1_b_1.nii.gz,0\nvalid_2_a_1.nii.gz,1\n")
    arguments = [tmp_path / "ct", tmp_path / "out", "--labels", labels, "--slices", "4", "--size", "32"]
    done = run_command("tools/extract_slices.py", *arguments)
    assert done.returncode == 1
    assert "2 of 5 volumes failed, the others are done: train_3_a_1.nii.gz, train_4_a_1.nii.gz" in done.stderr
    assert "Traceback" not in done.stderr and "intercept" in done.stdout and "cannot read it as NIfTI" in done.stdout
    train, valid = (rows_of(tmp_path / "out" / "splits" / f"{part}_slices.csv") for part in ("train", "valid"))
    assert len(train) == 8 and len(valid) == 4
    assert list(train[0]) == [
        "slice_id", "volume_name", "slice_index", "relative_position", "file_path", "split", "patient", "Emphysema",
    ]  # fmt: skip
    assert {row["patient"] for row in train} == {"train_1"} and [row["Emphysema"] for row in train] == list("11110000")
    for row in train + valid:
        pixels = np.load(tmp_path / "out" / "splits" / row["file_path"])
        assert pixels.shape == (32, 32) and pixels.dtype == np.float16 and np.ptp(pixels) > 0.5
    assert not any(name.startswith(".") for name in os.listdir(tmp_path / "out" / "slices"))
    assert slice_files.read_settings(tmp_path / "out") == SMALL and slice_files.read_settings(tmp_path) is None

    # again: nothing that is done is done again; what has been corrected is
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "slices").rglob("*.npy")}
    arguments += ["--workers", "0"]
    save(tmp_path / "ct" / "train_3_a_1.nii.gz", array + 2, affine)
    (tmp_path / "ct" / "train_4_a_1.nii.gz").unlink()
    done = run_command("tools/extract_slices.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert "extracted=1 of=1" in done.stdout and "volumes without a line in the label table" in done.stdout
    assert times == {path: path.stat().st_mtime_ns for path in times}
    everything = rows_of(tmp_path / "out" / "splits" / "all_slices.csv")
    assert len(everything) == 16 and [row["Emphysema"] for row in everything if row["patient"] == "train_3"] == [""] * 4
    done = run_command("tools/extract_slices.py", *arguments, "--dtype", "uint8")
    assert done.returncode == 2 and "dtype=float16" in done.stderr and len(done.stderr.splitlines()) == 1


def test_splits_and_patients_from_names_or_columns(tmp_path):
    array, affine = chest()
    for place, name in enumerate(("x", "y", "z")):
        save(tmp_path / "ct" / f"{name}.nii", array + place, affine)
    labels = tmp_path / "labels.csv"
    labels.write_text("VolumeName,part,who\nx,train,p\ny.nii.gz,valid,q\nz.nii,valid,q\n")

    def run(**options):
        extract.extract(tmp_path / "ct", tmp_path / "out", SMALL, Log(active=False), workers=0, **options)
        return {
            row["volume_name"]: (row["split"], row["patient"])
            for row in rows_of(tmp_path / "out/splits/all_slices.csv")
        }

    given = dict(labels=labels, split="part", patients="who")
    assert run(**given) == {"x.nii": ("train", "p"), "y.nii": ("valid", "q"), "z.nii": ("valid", "q")}
    assert run(split="valid", patients="volumes")["x.nii"] == ("valid", "x")
    with pytest.raises(config.UserError, match="neither train nor valid by its name"):
        run()
    with pytest.raises(config.UserError, match="its patient is not known"):
        run(split="train")
    with pytest.raises(config.UserError, match="column whom"):
        run(**{**given, "patients": "whom"})
    labels.write_text("VolumeName,split,patient\nx,train,p\ny,valid,q\nz,valid,q\n")
    assert run(labels=labels, split="split", patients="patient")["y.nii"] == ("valid", "q")
    for name in extract.COLUMNS:
        labels.write_text(f"VolumeName,{name}\nx,train\ny,train\nz,train\n")
        with pytest.raises(config.UserError, match=f"column '{name}', which the slices' tables have of their own"):
            run(labels=labels, split="valid", patients="volumes")
    labels.write_text("VolumeName,part,who\nx,train,p\ny,valid,p\nz,train,p\n")
    with pytest.raises(config.UserError, match=r"patient p is in both splits: x \(train\), y \(valid\)"):
        run(**given)
    save(tmp_path / "ct" / "deeper" / "x.nii.gz", array, affine)
    with pytest.raises(config.UserError, match="two volumes are called x"):
        run(**given)


def test_one_volume_of_two_patients_is_refused(tmp_path):
    array, affine = chest()
    save(tmp_path / "ct" / "train_1_a_1.nii.gz", array, affine)
    save(tmp_path / "ct" / "valid_2_a_1.nii", array.astype(np.float64), affine)

    def run(**options):
        extract.extract(tmp_path / "ct", tmp_path / "out", SMALL, Log(active=False), workers=0, **options)

    wanted = "two volumes have the same voxels: got .*train_1_a_1.nii.gz of patient train_1 and .*valid_2_a_1.nii of"
    for _ in range(2):
        with pytest.raises(config.UserError, match=wanted):
            run()
    save(tmp_path / "ct" / "valid_2_a_1.nii", array + 1, affine)
    run()


def test_a_volume_whose_process_is_killed_is_named(tmp_path, monkeypatch):
    array, affine = chest()
    for place, name in enumerate(("train_1_a_1", "train_2_a_1")):
        save(tmp_path / "ct" / f"{name}.nii", array + place, affine)
    real = extract.jobs.run

    def run(function, todo, workers, report):
        for job, done in zip(todo, real(function, todo, 0, report)):
            yield extract.jobs.Killed(job, 123456, -9) if done.key == "train_2_a_1" else done

    monkeypatch.setattr(extract.jobs, "run", run)
    wanted = (
        "1 of 2 volumes failed, the others are done: train_2_a_1.nii: its process was killed by signal 9, .*--workers"
    )
    with pytest.raises(extract.ExtractionFailed, match=wanted):
        extract.extract(tmp_path / "ct", tmp_path / "out", SMALL, Log(active=False), workers=0)
    assert len(rows_of(tmp_path / "out" / "splits" / "train_slices.csv")) == 4


def test_what_is_gone_changed_or_damaged_is_not_taken_for_done(tmp_path, monkeypatch):
    array, affine = chest()
    for name in ("train_1_a_1", "valid_2_a_1"):
        (tmp_path / "ct" / name).mkdir(parents=True)
        (tmp_path / "ct" / name / "1.dcm").write_bytes(b"as it was")
    read = []
    monkeypatch.setattr(
        extract.cases,
        "read_volume",
        lambda source: read.append(os.path.basename(source.path)) or (array + ("valid" in read[-1]), affine),
    )

    def run():
        read.clear()
        extract.extract(tmp_path / "ct", tmp_path / "out", SMALL, Log(active=False), workers=0)
        return sorted(read)

    splits, record = tmp_path / "out" / "splits", tmp_path / "out" / "slices" / "valid_2_a_1" / "slices.json"
    assert run() == ["train_1_a_1", "valid_2_a_1"] and run() == []
    folder = tmp_path / "ct" / "train_1_a_1"
    times = folder.stat()
    (folder / "1.dcm").write_bytes(b"as it is!")
    os.utime(folder / "1.dcm", ns=(0, 1))
    os.utime(folder, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert run() == ["train_1_a_1"], "a file in a folder of DICOM files has changed"
    for text in ("", "{", "[]", '{"source": 1}', record.read_text()[:-9]):
        record.write_text(text)
        assert run() == ["valid_2_a_1"], text
    shutil.rmtree(tmp_path / "ct" / "valid_2_a_1")
    assert (splits / "valid_slices.csv").exists() and run() == []
    assert not (splits / "valid_slices.csv").exists() and rows_of(splits / "all_slices.csv") == rows_of(
        splits / "train_slices.csv"
    )
    (tmp_path / "out" / "extract.json").write_text("{")
    with pytest.raises(config.UserError, match="cannot read .*extract.json"):
        run()


def test_what_cannot_be_done_is_one_line(tmp_path):
    save(tmp_path / "ct" / "train_1_a_1.nii", *chest())
    (tmp_path / "file").write_text("")
    for output, workers, words in (("file/out", 0, "cannot write to .*file/out"), ("out", -1, "workers: got -1")):
        with pytest.raises(config.UserError, match=words):
            extract.extract(tmp_path / "ct", tmp_path / output, SMALL, Log(active=False), workers=workers)


def test_dicom_folders_are_volumes_too(shared_data, tmp_path):
    pytest.importorskip("pydicom")
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / "train_1_a_1").symlink_to(shared_data / "dicom" / "ct_3slice")
    extract.extract(tmp_path / "ct", tmp_path / "out", SMALL, Log(active=False), workers=0)
    rows = rows_of(tmp_path / "out" / "splits" / "train_slices.csv")
    assert {row["volume_name"] for row in rows} == {"train_1_a_1"} and len(rows) == 3


def test_a_real_ct(shared_data, tmp_path):
    """The real one is an abdomen: its lungs are small, its body fills most slices."""
    paths = sorted((shared_data / "ct_abdomen_3mm").rglob("*.nii*"))
    if not paths:
        pytest.skip("no CT there")
    for path in paths:
        array, affine = nifti.read_nifti(path)
        if array.min() > -900:
            continue  # a mask
        taken = ct.take_slices(array, affine, ct.Settings(slices=6, size=64))
        assert len(taken) == 6 and all(0.2 < pixels.mean() < 0.8 for _, _, pixels in taken)
        return
    pytest.skip("no CT there")
