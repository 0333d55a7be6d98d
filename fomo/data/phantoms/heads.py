"""Synthetic heads in the five Task layouts, to try everything on data with a known answer.

A head is an ellipsoid with cortex, sulci, white matter and ventricles. It is drawn in world mm and sampled on a scan
grid of varying orientation, tilt and voxel size. Each scan has its own gain, bias field and noise, so that no absolute
intensity means anything. A network can learn:

    1  infarct: bright on DWI and dark on ADC at the same place. Every scan has two lesions, so that one channel alone
       tells nothing: an infarct and an old cavity (dark on DWI, bright on ADC), or T2 shine-through (bright on both)
       and an old bleeding (dark on both).
    2  meningioma: a mass at the dura. Lesions inside the brain with the same intensities, and cysts at the dura, do not
       belong to it. One subject in sixteen has none.
    3  age: ventricles, sulci and the rim of fluid widen and the cortex thins with age; head size means nothing.
    4  trigeminal nerve (1) and vessels (2): tubes of two voxels' width in a cistern of fluid, the nerves grey, the
       vessels dark, a nerve and a vessel close to each other on both sides. Tubes in the brain belong to neither.
    5  polymicrogyria: in one half of the head, left or right, a thick cortex with shallow furrows, and as much less of
       it in the other half, so that no share of grey tells. In the other class both halves are alike.

Tasks 1 to 3 have the names of FOMO25 (t1, label.txt, sub_001/ses_1) or, as 4 and 5 always, those of FOMO26 (t1w,
labels.txt, sub-001/ses-01; task 3 without t2).

A further data set is a table (table.csv) of heads with everything at once; the mean intensity tells none of it:

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
_SAME = {"t1w": "t1", "t2w": "t2"}  # names of one sequence
_LESIONS = {
    "infarct": {"dwi_b1000": 2.20, "flair": 1.35, "adc": 0.20, "swi": 0.60, "t2s": 0.65},
    "old_cavity": {"dwi_b1000": 0.35, "flair": 0.50, "adc": 2.00, "swi": 0.30, "t2s": 0.35},
    "shine_through": {"dwi_b1000": 2.20, "flair": 1.35, "adc": 2.00, "swi": 0.60, "t2s": 0.65},
    "old_bleeding": {"dwi_b1000": 0.35, "flair": 0.50, "adc": 0.20, "swi": 0.30, "t2s": 0.35},
    "mass": {"dwi_b1000": 1.20, "flair": 1.40, "swi": 0.40, "t2s": 0.45},
    "bright": {"t1": 1.60, "t2": 1.80},
    "dark": {"t1": 0.15, "t2": 0.20},
    "cyst": {"dwi_b1000": 0.25, "flair": 0.25, "swi": 0.85, "t2s": 1.00},
    "cistern": {"t2w": 1.00},
    "nerve": {"t2w": 0.55},
    "vessels": {"t2w": 0.05},
}
_LOOKS_LIKE = {"decoy": "mass", "in_brain": "vessels"}
# what the tasks are seen in; the last of tasks 1 and 2 is swi or t2s
_SEEN = {1: ("dwi_b1000", "flair", "adc"), 2: ("dwi_b1000", "flair"), 3: ("t1", "t2"), 4: ("t2w",), 5: ("t1",)}


def make(root, task, cases, size, seed=0, edition=25):
    """Write the data set of `task` (1 to 5, or "table") to the new folder `root`.

    cases: number of scans; one subject in ten has two. size: voxels along the longest axis (192 mm). edition: 25 or 26,
    of the challenge, whose names folders and files have. The same arguments give the same files. The folder appears
    whole or not at all; FileExistsError where `root` has content.
    """
    if task not in (*_SEEN, "table"):
        raise ValueError(f"task: got {task!r}, wanted {', '.join(map(str, _SEEN))} or table")
    if edition not in (25, 26) or (task in (4, 5) and edition != 26):
        raise ValueError(f"edition: got {edition!r} for task {task}, wanted {'26' if task in (4, 5) else '25 or 26'}")
    rows = []
    with files.new_folder(root) as folder:
        for scan in range(cases):
            pair, place = divmod(scan, 11)  # scans 9 and 10 of eleven are one subject's
            subject, session = 10 * pair + min(place, 9), 2 if place == 10 else 1
            if task == "table":
                rows.append(_write_row(folder, subject, session, size, seed))
            else:
                _write_case(folder, task, subject, session, size, seed, edition)
        if rows:
            files.write_csv(os.path.join(folder, "table.csv"), rows)


def _write_case(folder, task, number, session, size, seed, edition):
    """Anatomy and lesions belong to the subject, the rest to the session."""
    stream = [seed, {4: 44, 5: 45}.get(task, task), number]  # 4: the table
    own = np.random.default_rng(stream)
    age = own.uniform(20, 85) if task == 3 else own.uniform(40, 65)
    positive = (number + number // 10) % 2  # subjects are exchangeable: as good as random, and balanced
    head = _Head(own, (age - 20) / 65, uneven=task == 5 and positive == 1)
    lesions, tubes = [], []
    if task == 1:
        names = ("infarct", "old_cavity") if positive else ("shine_through", "old_bleeding")
        lesions = _placed(own, head, [(name, own.uniform(17, 24), own.uniform(0.85, 1.1)) for name in names])
    elif task == 2:
        lesions = _placed(own, head, _masses(own, number % 16 != 5))
    elif task == 4:
        lesions, tubes = [("cistern", np.array([0.0, 12.0, -14.0]), np.array([44.0, 26.0, 22.0]), 1.0)], _tubes(own)
    scan = _Scan(np.random.default_rng([*stream, session]), size, head, lesions)
    scan.add_tubes(tubes, 192 / size)
    place, channels, stated = _names(task, number, session, edition)
    for channel in channels:
        scan.write(os.path.join(folder, "preprocessed", place, f"{channel}.nii.gz"), scan.image(channel))
    label = age + 0.5 * (session - 1) if task == 3 else positive
    _write_labels(os.path.join(folder, "labels", place), task, number, scan, stated, label)


def _names(task, number, session, edition):
    """(SUB/SES, channels, file of the stated label) of a scan, as an edition of the challenge calls them."""
    venous = ("swi" if number % 3 else "t2s",) if task in (1, 2) else ()
    channels = (*_SEEN[task], *venous)
    if edition == 25:
        return os.path.join(f"sub_{number + 1:03d}", f"ses_{session}"), channels, "label.txt"
    place = os.path.join(f"sub-{number + 1:03d}", f"ses-{session:02d}")
    return place, ("t1w",) if task == 3 else channels, "label.txt" if task == 1 else "labels.txt"


def _write_labels(folder, task, number, scan, stated, label):
    """The mask, the number in the file `stated`, or both; of task 1 some have one, some the other, some both."""
    named = {1: ("infarct",), 2: ("mass",), 4: ("nerve", "vessels")}.get(task, ())
    if task in (2, 4) or (task == 1 and number % 5 < 2):
        scan.write(os.path.join(folder, "seg.nii.gz"), scan.mask(named))
    if task in (3, 5) or (task == 1 and number % 5 > 0):
        os.makedirs(folder, exist_ok=True)
        files.write_text(os.path.join(folder, stated), f"{label:g}\n")


def _tubes(rng):
    """[(name, points (n, 3) of a line in mm)]: of each side a nerve and a vessel that crosses it, and two in the brain.

    Later ones lie over earlier ones.
    """
    found = []
    for side in (-1, 1):
        root, cave = np.array([side * 10.0, 2.0, -14.0]), np.array([side * 34.0, 26.0, -14.0])
        nerve = np.stack([root, cave]) + rng.normal(0, 1.5, (2, 3))
        touch = nerve.mean(0) + np.array([0, 0, rng.choice((-1, 1)) * rng.uniform(5, 9)])
        ends = np.array([[side * 12.0, 22.0, -20.0], [side * 30.0, 2.0, -8.0]]) + rng.normal(0, 2, (2, 3))
        found += [("nerve", nerve), ("vessels", np.stack([ends[0], touch, ends[1]]))]
        high = np.array([[side * 14.0, -30.0, 22.0], [side * 40.0, -10.0, 26.0]]) + rng.normal(0, 3, (2, 3))
        found.append(("in_brain", high))
    return found


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


def _to_segment(points, start, end):
    """Distance in mm of points (3, X, Y, Z) to a segment."""
    offset, along = points - start.reshape(3, 1, 1, 1), end - start
    share = np.clip(np.tensordot(along, offset, axes=1) / (along @ along), 0, 1)
    return np.sqrt(((offset - along.reshape(3, 1, 1, 1) * share) ** 2).sum(0))


class _Head:
    """One subject's anatomy: sizes in mm, fixed by the generator and by `age` from 0 (20 years) to 1 (85)."""

    def __init__(self, rng, age, tall=False, uneven=False):
        """uneven: one half, which is drawn, has a thick cortex with shallow furrows, and the other one a thin one."""
        self.axes = np.array([66.0, 83.0, 63.0]) * np.clip(rng.normal(1, 0.035, 3), 0.93, 1.06)
        self.rim = 1 + 5 * age * rng.normal(1, 0.08)  # fluid around the brain
        self.sulci = 1.5 + 10 * age * rng.normal(1, 0.05)  # depth of the furrows
        self.cortex = 11 - 4.5 * age * rng.normal(1, 0.06)
        self.ventricles = (0.5 + 1.35 * age) * rng.normal(1, 0.05)
        self.cavity = np.array([7.0, 12.0, 21.7] if tall else [7.0, 26.0, 10.0])  # a tall one reaches up, not back
        self.furrows = rng.normal(0, 1, (6, 3)) * 6  # directions and frequencies of the folding
        self.phases = rng.uniform(0, 2 * np.pi, 6)
        self.turn = _rotation(rng.uniform(-4, 4, 3))
        self.side = rng.choice((-1, 1)) if uneven else 0

    def tissues(self, points, soft):
        """(inside or not, shares (3, X, Y, Z) of fluid, grey and white matter, share of ventricles)."""
        points = np.tensordot(self.turn, points, axes=1)
        depth = _ellipsoid(points, np.zeros(3), self.axes)
        direction = points / (np.sqrt((points**2).sum(0)) + 1e-6)
        waves = np.tensordot(self.furrows, direction, axes=1) + self.phases.reshape(6, 1, 1, 1)
        folding = np.clip(np.sin(waves).sum(0) / 2, 0, 1)  # 1 in a furrow
        sulci, cortex = self.sulci, self.cortex
        if self.side:
            half = np.tanh(self.side * points[0] / 8)  # 1 in the thick half, -1 in the other one
            sulci, cortex = sulci * (1 - 0.4 * half), cortex * (1 + 0.6 * half)
        pia = depth - self.rim - sulci * folding
        fluid = 1 - _rise(pia, soft)
        white = _rise(pia - cortex, soft)
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

    def add_tubes(self, tubes, radius):
        """Add (name, points (n, 3) of a line in mm) of a radius in mm; what lies in the brain looks like vessels."""
        for name, line in tubes:
            distance = np.min([_to_segment(self.points, *ends) for ends in zip(line, line[1:])], axis=0)
            self.shares.append((name, _rise(radius - distance, 0.3 * radius), 1.0))

    def mask(self, names):
        """Of the voxels that are more than half of a class: 1, 2 ... in the order of the `names`, the last one wins."""
        found = np.zeros(self.shape, np.uint8)
        for label, name in enumerate(names, start=1):
            found[sum((share for own, share, _ in self.shares if own == name), np.zeros(self.shape)) > 0.5] = label
        return found

    def image(self, channel):
        """A channel in arbitrary units: tissue contrast, lesions, bias field, noise and the scan's own gain."""
        rng, points = self.rng, self.points
        values = np.array(_CONTRAST[_SAME.get(channel, channel)]) * rng.normal(1, 0.04, 3)
        image = np.tensordot(values, self.tissues, axes=1)
        for name, share, scale in self.shares:
            level, normal = _LESIONS[_LOOKS_LIKE.get(name, name)][channel], values[1]
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
