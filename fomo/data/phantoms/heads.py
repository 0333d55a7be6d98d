"""Synthetic heads in the three Task layouts, to try everything on data with a known answer.

A head is an ellipsoid with cortex, sulci, white matter and ventricles. It is drawn in world mm and sampled on a scan
grid of varying orientation, tilt and voxel size. Each scan has its own gain, bias field and noise, so that no absolute
intensity means anything. A network can learn:

    1  infarct: bright on DWI and dark on ADC at the same place. Every scan has two lesions, so that one channel alone
       tells nothing: an infarct and an old cavity (dark on DWI, bright on ADC), or T2 shine-through (bright on both)
       and an old bleeding (dark on both).
    2  meningioma: a mass at the dura. Lesions inside the brain with the same intensities, and cysts at the dura, do not
       belong to it. One subject in sixteen has none.
    3  age: ventricles, sulci and the rim of fluid widen and the cortex thins with age; head size means nothing.

A fourth data set is a table (table.csv) of heads with everything at once; the mean intensity tells none of it:

    cohort  a lesion that is bright, one that is as dark as fluid, or one of both
    gender  long (f) or tall (m) ventricles, of equal volume
    age     as above, 45 to 80 years
    mask    1 ventricles, 2 lesions
"""

import os

import numpy as np

from ...runtime import files

VERSION = 1  # raise it when the images change
_COHORTS = ("both", "bright", "dark")
_FIELD_MM = (160.0, 192.0, 152.0)  # right-left, posterior-anterior, inferior-superior
_CODES = ("RAS", "LPS", "LAS", "PIR", "RSA")

# relative intensities of cerebrospinal fluid, grey matter, white matter
_CONTRAST = {
    "dwi_b1000": (0.25, 0.85, 0.70),
    "flair": (0.20, 0.90, 0.75),
    "adc": (1.60, 0.90, 0.80),
    "swi": (0.80, 0.65, 0.55),
    "t2s": (1.00, 0.70, 0.55),
    "t1": (0.25, 0.65, 0.95),
    "t2": (1.00, 0.65, 0.50),
}
_LESIONS = {
    "infarct": {"dwi_b1000": 2.20, "flair": 1.35, "adc": 0.20, "swi": 0.60, "t2s": 0.65},
    "old_cavity": {"dwi_b1000": 0.35, "flair": 0.50, "adc": 2.00, "swi": 0.30, "t2s": 0.35},
    "shine_through": {"dwi_b1000": 2.20, "flair": 1.35, "adc": 2.00, "swi": 0.60, "t2s": 0.65},
    "old_bleeding": {"dwi_b1000": 0.35, "flair": 0.50, "adc": 0.20, "swi": 0.30, "t2s": 0.35},
    "mass": {"dwi_b1000": 1.20, "flair": 1.40, "swi": 0.40, "t2s": 0.45},
    "bright": {"t1": 1.60, "t2": 1.80},
    "dark": {"t1": 0.15, "t2": 0.20},
    "cyst": {"dwi_b1000": 0.25, "flair": 0.25, "swi": 0.85, "t2s": 1.00},
}


def make(root, task, cases, size, seed=0):
    """Write the data set of `task` (1, 2, 3 or "table") to the new folder `root`.

    cases: number of scans; one subject in ten has two. size: voxels along the longest axis (192 mm). The same
    arguments give the same files. The folder appears whole or not at all; FileExistsError where `root` has content.
    """
    if task not in (1, 2, 3, "table"):
        raise ValueError(f"task: got {task!r}, wanted 1, 2, 3 or table")
    rows = []
    with files.new_folder(root) as folder:
        for scan in range(cases):
            pair, place = divmod(scan, 11)  # scans 9 and 10 of eleven are one subject's
            subject, session = 10 * pair + min(place, 9), 2 if place == 10 else 1
            if task == "table":
                rows.append(_write_row(folder, subject, session, size, seed))
            else:
                _write_case(folder, task, subject, session, size, seed)
        if rows:
            files.write_csv(os.path.join(folder, "table.csv"), rows)


def _write_case(folder, task, number, session, size, seed):
    """Anatomy and lesions belong to the subject, the rest to the session."""
    own = np.random.default_rng([seed, task, number])
    age = own.uniform(20, 85) if task == 3 else own.uniform(40, 65)
    head = _Head(own, (age - 20) / 65)
    lesions, label = [], age + 0.5 * (session - 1)
    if task == 1:
        label = (number + number // 10) % 2  # subjects are exchangeable: as good as random, and balanced
        names = ("infarct", "old_cavity") if label else ("shine_through", "old_bleeding")
        lesions = _placed(own, head, [(name, own.uniform(17, 24), own.uniform(0.85, 1.1)) for name in names])
    elif task == 2:
        lesions = _placed(own, head, _masses(own, number % 16 != 5))
    scan = _Scan(np.random.default_rng([seed, task, number, session]), size, head, lesions)
    venous = "swi" if number % 3 else "t2s"
    channels = {1: ("dwi_b1000", "flair", "adc", venous), 2: ("dwi_b1000", "flair", venous), 3: ("t1", "t2")}[task]
    place = os.path.join(f"sub_{number + 1:03d}", f"ses_{session}")
    for channel in channels:
        scan.write(os.path.join(folder, "preprocessed", place, f"{channel}.nii.gz"), scan.image(channel))
    labels = os.path.join(folder, "labels", place)
    if task == 2 or (task == 1 and number % 5 < 2):
        wanted = "mass" if task == 2 else "infarct"
        tumour = sum((share for name, share, _ in scan.shares if name == wanted), np.zeros(scan.shape))
        scan.write(os.path.join(labels, "seg.nii.gz"), tumour > 0.5)
    if task == 3 or (task == 1 and number % 5 > 0):
        os.makedirs(labels, exist_ok=True)
        files.write_text(os.path.join(labels, "label.txt"), f"{label:g}\n")


def _masses(rng, positive):
    """(name, radius, scale) of what a scan of task 2 shows."""
    wanted = [("mass", rng.uniform(18, 26), rng.uniform(0.9, 1.1))] if positive else []
    wanted += [("decoy", rng.uniform(9, 14), rng.uniform(0.9, 1.1)) for _ in range(rng.integers(3))]
    return wanted + ([("cyst", rng.uniform(10, 15), 1.0)] if rng.random() < 0.5 else [])


def _write_row(folder, number, session, size, seed):
    """One scan of the table; returns its line."""
    own = np.random.default_rng([seed, 4, number])
    cohort, gender = _COHORTS[number % 3], "fm"[number // 3 % 2]  # six subjects in a row have each combination once
    age = own.uniform(45, 80)
    head = _Head(own, (age - 20) / 65, tall=gender == "m")
    names = ("bright", "dark") if cohort == "both" else (cohort,)
    radius = own.uniform(20, 26) / len(names) ** (1 / 3)  # the same volume in all
    lesions = _placed(own, head, [(name, radius, own.uniform(0.8, 1.1)) for name in names])
    scan = _Scan(np.random.default_rng([seed, 4, number, session]), size, head, lesions)
    subject = f"sub_{number + 1:03d}"
    row = {"id": f"{subject}_ses_{session}", "PatientID": subject}
    for channel in ("t1", "t2"):
        row[channel] = f"images/{row['id']}_{channel}.nii.gz"
        scan.write(os.path.join(folder, row[channel]), scan.image(channel))
    row["mask"] = f"masks/{row['id']}.nii.gz"
    lesion = np.max([share for _, share, _ in scan.shares], axis=0) > 0.5
    scan.write(os.path.join(folder, row["mask"]), np.where(lesion, 2, scan.ventricles > 0.5))
    aged = f"{age + 0.5 * (session - 1):.2f}"
    return {**row, "cohort": cohort, "gender": gender, "age": aged, "fold": 1 + number // 6 % 5}


def write(path, array, affine, code):
    """Write `array` with its `affine`, which are RAS, in the axis order that `code` ("LPS", ...) names."""
    from nibabel import orientations

    from ...space import nifti

    ornt = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), orientations.axcodes2ornt(code))
    affine = affine @ orientations.inv_ornt_aff(ornt, array.shape)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    nifti.write_nifti(path, np.ascontiguousarray(orientations.apply_orientation(array, ornt)), affine)


def _rotation(degrees):
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(degrees)):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = matrix @ turn
    return matrix


def _rise(distance, soft):
    """0 to 1 over about 4 * soft around distance 0."""
    return 1 / (1 + np.exp(-np.clip(distance / soft, -30, 30)))


def _ellipsoid(points, centre, axes):
    """Distance in mm inside the surface of an ellipsoid, along the ray from its centre; nearly exact at the surface."""
    offset = points - np.reshape(centre, (3, 1, 1, 1))
    rho = np.sqrt(sum((offset[k] / axes[k]) ** 2 for k in range(3))) + 1e-6
    return (1 - rho) * np.minimum(np.sqrt((offset**2).sum(0)) / rho, max(axes))


def _ball(points, centre, radius, soft):
    return _rise(_ellipsoid(points, centre, np.broadcast_to(radius, 3)), soft)


class _Head:
    """One subject's anatomy: sizes in mm, fixed by the generator and by `age` from 0 (20 years) to 1 (85)."""

    def __init__(self, rng, age, tall=False):
        self.axes = np.array([66.0, 83.0, 63.0]) * np.clip(rng.normal(1, 0.035, 3), 0.93, 1.06)
        self.rim = 1 + 5 * age * rng.normal(1, 0.08)  # fluid around the brain
        self.sulci = 1.5 + 10 * age * rng.normal(1, 0.05)  # depth of the furrows
        self.cortex = 11 - 4.5 * age * rng.normal(1, 0.06)
        self.ventricles = (0.5 + 1.35 * age) * rng.normal(1, 0.05)
        self.cavity = np.array([7.0, 12.0, 21.7] if tall else [7.0, 26.0, 10.0])  # a tall one reaches up, not back
        self.furrows = rng.normal(0, 1, (6, 3)) * 6  # directions and frequencies of the folding
        self.phases = rng.uniform(0, 2 * np.pi, 6)
        self.turn = _rotation(rng.uniform(-4, 4, 3))

    def tissues(self, points, soft):
        """(inside or not, shares (3, X, Y, Z) of fluid, grey and white matter, share of ventricles)."""
        points = np.tensordot(self.turn, points, axes=1)
        depth = _ellipsoid(points, np.zeros(3), self.axes)
        direction = points / (np.sqrt((points**2).sum(0)) + 1e-6)
        waves = np.tensordot(self.furrows, direction, axes=1) + self.phases.reshape(6, 1, 1, 1)
        folding = np.clip(np.sin(waves).sum(0) / 2, 0, 1)  # 1 in a furrow
        pia = depth - self.rim - self.sulci * folding
        fluid = 1 - _rise(pia, soft)
        white = _rise(pia - self.cortex, soft)
        ventricles = np.zeros_like(fluid)
        for side in (-1, 1):
            size = self.cavity * self.ventricles ** np.array([1.2, 0.7, 1.0])
            ventricles = np.maximum(ventricles, _rise(_ellipsoid(points, (side * 13.0, -2.0, 8.0), size), soft))
            nucleus = _ball(points, (side * 24.0, 4.0, -4.0), (9.0, 16.0, 9.0), soft)
            white = white * (1 - nucleus)
        fluid = np.maximum(fluid, ventricles)
        white = white * (1 - fluid)
        return depth > 0, np.stack([fluid, 1 - fluid - white, white]), ventricles

    def inner_place(self, rng, radius):
        """A centre for a lesion inside the brain, clear of the surface."""
        while True:
            place = rng.uniform(-1, 1, 3) * self.axes
            if (place**2 / (self.axes - radius - 8) ** 2).sum() < 1:
                return place

    def dural_place(self, rng, radius):
        """A centre just below the surface, in the upper three quarters of the head."""
        while True:
            way = rng.normal(0, 1, 3)
            way /= np.linalg.norm(way)
            if way[2] > -0.5:
                return way / np.sqrt((way**2 / (self.axes - 0.55 * radius) ** 2).sum())


def _placed(rng, head, wanted):
    """[(name, centre, radius, scale)] for `wanted` (name, radius, scale), placed so that none touch."""
    while True:
        lesions = []
        for name, radius, scale in wanted:
            centre = (head.dural_place if name in ("mass", "cyst") else head.inner_place)(rng, radius)
            if any(np.linalg.norm(centre - other[1]) < radius + other[2] + 4 for other in lesions):
                break
            lesions.append((name, centre, radius, scale))
        else:
            return lesions


class _Scan:
    """A head and its lesions on the grid of one scan: centred on the head, tilted, with its own voxel size.

    shares: [(name, share of each voxel, scale)] of `lesions`, which are as `_placed` gives them.
    """

    def __init__(self, rng, size, head, lesions):
        self.rng = rng
        spacing = 192 / size * np.array([(1, 1, 1), (1, 1, 1.25), (1.08, 1.08, 1.08)][rng.integers(3)])
        self.shape = tuple(int(n) for n in np.round(np.array(_FIELD_MM) / spacing))
        self.affine = np.eye(4)
        turn = self.affine[:3, :3]
        turn[:] = _rotation(rng.uniform(-8, 8, 3)) * spacing
        self.affine[:3, 3] = rng.uniform(-2, 2, 3) - turn @ ((np.array(self.shape) - 1) / 2)
        self.code = _CODES[rng.integers(len(_CODES))]
        world = turn @ np.indices(self.shape).reshape(3, -1) + self.affine[:3, 3:]
        self.points = world.reshape(3, *self.shape)  # of the voxel centres, in mm
        soft = 0.4 * 192 / size  # half a voxel of partial volume at each border
        self.inside, self.tissues, self.ventricles = head.tissues(self.points, soft)
        self.shares = [(name, _ball(self.points, at, radius, soft), scale) for name, at, radius, scale in lesions]

    def image(self, channel):
        """A channel in arbitrary units: tissue contrast, lesions, bias field, noise and the scan's own gain."""
        rng, points = self.rng, self.points
        values = np.array(_CONTRAST[channel]) * rng.normal(1, 0.04, 3)
        image = np.tensordot(values, self.tissues, axes=1)
        for name, share, scale in self.shares:
            level, normal = _LESIONS["mass" if name == "decoy" else name][channel], values[1]
            image = image * (1 - share) + share * (normal + scale * (level - normal))  # scale: how conspicuous it is
        slope = rng.normal(0, 0.06, 3)
        field = np.exp(np.tensordot(slope, points / 80, axes=1) + rng.normal(0, 0.06) * (points[0] * points[1]) / 80**2)
        image = image * field + rng.normal(0, 0.04, image.shape)
        return np.maximum(image, 0.02) * 400 * rng.uniform(0.6, 1.6)

    def write(self, path, array):
        """An image or, of whole numbers, a mask; both are 0 outside the head."""
        array = array * self.inside
        image = array.dtype.kind == "f"
        array = np.clip(np.round(array), 0, 32000).astype(np.int16) if image else array.astype(np.uint8)
        write(path, array, self.affine, self.code)
