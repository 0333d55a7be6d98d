"""Synthetic chest CTs with the 18 findings of CT-RATE: something to try slice classification on, with a known answer.

    <root>/volumes/train_12_a_1.nii.gz       Hounsfield units, int16
           masks/train_12_a_1.nii.gz         bit k of a voxel: finding k (of LABELS) is there
           multi_abnormality_labels.csv      VolumeName and 18 columns of 0 or 1

A chest is a body with fat, muscle, ribs, spine, lungs with vessels and bronchi, heart, aorta and a couch below, drawn
in world mm and sampled on a grid of varying orientation. Each finding has its own place and appearance and is large
enough to be seen by a network whose first maps are of 10 mm; related ones occur together more often than chance. One patient in four has two scans
(a_1, a_2: the same chest on another grid, with other noise). One patient in five is called valid_*.
"""

import os

import numpy as np
import scipy.special

from ...runtime import files
from ...space import volume
from . import heads

# Name, share of the patients, and the group of findings that it tends to occur with
_FINDINGS = (
    ("Cardiomegaly", 0.12, "heart"),
    ("Hiatal hernia", 0.14, "age"),
    ("Atelectasis", 0.27, "fluid"),
    ("Pulmonary fibrotic sequela", 0.28, "age"),
    ("Peribronchial thickening", 0.12, "airways"),
    ("Interlobular septal thickening", 0.10, "heart"),
    ("Medical material", 0.13, "heart"),
    ("Pericardial effusion", 0.11, "fluid"),
    ("Lymphadenopathy", 0.26, "infection"),
    ("Lung nodule", 0.45, "infection"),
    ("Pleural effusion", 0.15, "fluid"),
    ("Consolidation", 0.19, "infection"),
    ("Lung opacity", 0.37, "infection"),
    ("Mosaic attenuation pattern", 0.08, "airways"),
    ("Bronchiectasis", 0.12, "airways"),
    ("Emphysema", 0.20, "airways"),
    ("Arterial wall calcification", 0.29, "age"),
    ("Coronary artery wall calcification", 0.25, "age"),
)
LABELS = tuple(name for name, _, _ in _FINDINGS)
_TOGETHER = 0.35  # of a finding's variance that its group shares
_FIELD_MM = 320.0  # in plane; half of it along z
_CODES = ("RAS", "LPS", "LAS", "LAI")


def make(root, volumes, size=64, seed=0):
    """Write `volumes` scans of `size` x `size` x `size`/2 voxels to the new folder `root`, whole or not at all.

    The same arguments give the same files. FileExistsError where `root` has content.
    """
    with heads.new_folder(root) as folder:
        rows = []
        for name, findings, chest, scan in scans(volumes, seed):
            hounsfield, masks, affine = draw(findings, size, chest, scan)
            code = _CODES[int(scan.integers(len(_CODES)))]
            _write(os.path.join(folder, "volumes", name), hounsfield, affine, code)
            bits = sum(mask.astype(np.int32) << k for k, mask in enumerate(masks))
            _write(os.path.join(folder, "masks", name), bits, affine, code)
            rows.append({"VolumeName": name, **{label: int(there) for label, there in zip(LABELS, findings)}})
        files.write_csv(os.path.join(folder, "multi_abnormality_labels.csv"), rows)


def scans(volumes, seed=0):
    """Yield (file name, 18 findings (bool), generator of the chest, generator of the scan) of each of `volumes` scans.

    Every label has its exact share of the train_* and of the valid_* patients, and at least one of each.
    """
    patients = [divmod(i, 5) for i in range(volumes)]  # of five volumes the last is the fourth patient's second scan
    patients = [(4 * group + min(place, 3), 2 if place == 4 else 1) for group, place in patients]
    count = patients[-1][0] + 1
    valid = np.arange(count) % 5 == 2
    findings = np.zeros((count, len(LABELS)), bool)
    for split in (~valid, valid):
        if split.any():
            findings[split] = _draw_findings(np.random.default_rng([seed, int(split[0])]), int(split.sum()))
    for patient, scan in patients:
        name = f"{'valid' if valid[patient] else 'train'}_{patient + 1}_a_{scan}.nii.gz"
        yield (
            name,
            findings[patient],
            np.random.default_rng([seed, 2, patient]),
            np.random.default_rng([seed, 3, patient, scan]),
        )


def _draw_findings(rng, count):
    """(count, 18) bool: normal variables, correlated within a group, cut where the label has its share."""
    groups = sorted({group for _, _, group in _FINDINGS})
    shared = {group: rng.standard_normal(count) for group in groups}
    columns = []
    for _, share, group in _FINDINGS:
        values = _TOGETHER**0.5 * shared[group] + (1 - _TOGETHER) ** 0.5 * rng.standard_normal(count)
        columns.append(np.argsort(np.argsort(values)) < max(1, round(share * count)))
    return np.stack(columns, axis=1)


def draw(findings, size, chest, scan):
    """(Hounsfield units (X, Y, Z) int16, masks (18, X, Y, Z) bool, affine), RAS.

    findings: 18 values, true where the finding is there (its mask is empty where not). chest, scan: numpy Generators of
    the anatomy, and of the grid and the noise.
    """
    voxel = _FIELD_MM / size * scan.uniform(0.97, 1.03, 3)
    shape = (size, size, size // 2)
    affine = np.diag([*voxel, 1.0])
    affine[:3, 3] = scan.uniform(-4, 4, 3) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    coordinates = [start + mm * np.arange(n) for start, mm, n in zip(affine[:3, 3], voxel, shape)]
    drawing = _Drawing(coordinates, soft=0.35 * float(voxel.mean()))
    _draw_chest(drawing, chest, findings)
    noise = scan.normal(0, scan.uniform(10, 25), shape)
    hounsfield = np.clip(np.round(drawing.hounsfield + noise), -1024, 3071).astype(np.int16)
    return hounsfield, np.stack(drawing.masks), affine


def _write(path, array, affine, code):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    volume.write_nifti(path, *heads.in_scanner_order(array, affine, code))


# ------------------------------------------------------------------------------------------- anatomy


class _Drawing:
    """A volume in Hounsfield units that shapes are painted into, and the mask of each finding."""

    def __init__(self, coordinates, soft):
        self.soft = soft
        self.coordinates = coordinates  # in mm, of each axis
        self.x, self.y, self.z = np.meshgrid(*(c.astype(np.float32) for c in coordinates), indexing="ij", sparse=True)
        self.shape = tuple(map(len, coordinates))
        self.hounsfield = np.full(self.shape, -1000, np.float32)
        self.masks = [np.zeros(self.shape, bool) for _ in LABELS]

    def rise(self, distance):
        """Share of each voxel that lies inside a surface at `distance` mm (positive: inside)."""
        return scipy.special.expit(distance / np.float32(self.soft))

    def ellipsoid(self, centre, axes):
        centre, axes = np.asarray(centre, float), np.broadcast_to(axes, 3)
        return self._within(centre - axes, centre + axes, lambda *points: (
            1 - np.sqrt(sum(((p - c) / a) ** 2 for p, c, a in zip(points, centre, axes)))
        ) * np.float32(axes.mean()))  # fmt: skip

    def tube(self, start, end, radius):
        """A line from start to end with round ends."""
        start, end = np.asarray(start, float), np.asarray(end, float)
        way = (end - start) / ((end - start) @ (end - start))

        def distance(*points):
            along = np.clip(sum((p - c) * np.float32(w) for p, c, w in zip(points, start, way)), 0, 1)
            return radius - np.sqrt(
                sum((p - c - along * np.float32(e - c)) ** 2 for p, c, e in zip(points, start, end))
            )

        return self._within(np.minimum(start, end) - radius, np.maximum(start, end) + radius, distance)

    def _within(self, low, high, distance):
        """Shares of a shape that lies between the corners low and high, of its `distance` function: zero elsewhere."""
        ends = [
            (np.searchsorted(c, a - 8 * self.soft), np.searchsorted(c, b + 8 * self.soft))
            for c, a, b in zip(self.coordinates, low, high)
        ]
        box = tuple(slice(*pair) for pair in ends)
        points = self.x[box[0]], self.y[:, box[1]], self.z[:, :, box[2]]
        share = np.zeros(self.shape, np.float32)
        share[box] = self.rise(distance(*(p.astype(np.float32) for p in points)).astype(np.float32))
        return share

    def paint(self, share, hounsfield):
        self.hounsfield += share * (hounsfield - self.hounsfield)

    def mark(self, label, share):
        """What is painted is the finding `label`."""
        self.masks[LABELS.index(label)] |= share > 0.5


def _draw_chest(drawing, rng, findings):
    """Everything, from the outside to the inside; lengths in mm, x to the right, y to the front, z upwards."""
    has = dict(zip(LABELS, findings))
    x, y, z = drawing.x, drawing.y, drawing.z
    paint, tube, ellipsoid = drawing.paint, drawing.tube, drawing.ellipsoid

    def find(label, share, hounsfield):
        paint(share, hounsfield)
        drawing.mark(label, share)

    width, depth = 138 * rng.uniform(0.94, 1.06), 98 * rng.uniform(0.94, 1.06)
    fat = rng.uniform(8, 18)
    enhanced = rng.uniform(150, 220)  # blood, with contrast medium
    lung_hu = rng.uniform(-800, -750)

    def column(width, depth):
        return drawing.rise((1 - np.sqrt((x / width) ** 2 + (y / depth) ** 2)) * depth)

    # ---- couch, body, lungs, mediastinum
    paint(drawing.rise(4 - np.abs(y + depth + 24 - (x / 60) ** 2)) * (np.abs(x) < 130), -200)
    paint(column(width, depth), -100)
    paint(column(width - fat, depth - fat), 50)
    sides = {side: np.array([side * 66.0, 0.0, -4.0]) for side in (-1, 1)}
    axes = np.array([50.0, 68.0, 84.0]) * rng.uniform(0.95, 1.04, 3) * [width / 138, depth / 98, 1]
    lungs = {side: ellipsoid(centre, axes) for side, centre in sides.items()}
    lung = np.maximum(lungs[-1], lungs[1])
    shell = np.maximum(*(ellipsoid(centre, axes + 11) for centre in sides.values()))
    ribs = drawing.rise(20 * (np.cos(2 * np.pi * (z / 27 + y / 90)) - 0.55)) * shell * (np.abs(x) > 40)
    paint(ribs, 330)
    paint(tube((0, depth - 18, -60), (0, depth - 14, 55), 8), 250)  # sternum
    paint(tube((0, -66, -90), (0, -66, 90), 17), 280)  # spine
    paint(lung, lung_hu)
    mediastinum = ellipsoid((0, 8, 10), (34, 52, 90))
    paint(mediastinum, -90)
    inner = lung * (1 - mediastinum)  # what is left of the lungs

    def place(side, low=-1.0, high=1.0, reach=0.62):
        """A point in a lung, away from its border; low, high: of its height, -1 the base and 1 the apex."""
        while True:
            at = rng.uniform(-reach, reach, 3)
            at[2] = rng.uniform(max(low, -0.8), min(high, 0.8))
            at[0] = side * abs(at[0]) if rng.random() < 0.85 else at[0]
            if (at**2).sum() < 0.8:
                return sides[side] + at * axes

    def one_side():
        return int(rng.choice((-1, 1)))

    # ---- what concerns the whole lungs comes before what lies in them
    if has["Mosaic attenuation pattern"]:
        a, b, c = rng.uniform(0, 2 * np.pi, 3)
        waves = np.sin(2 * np.pi * x / 52 + a) * np.sin(2 * np.pi * y / 52 + b) + 0.3 * np.sin(2 * np.pi * z / 70 + c)
        find("Mosaic attenuation pattern", inner * drawing.rise(40 * waves), -600)
    if has["Emphysema"]:
        for level in np.linspace(-0.5, 0.7, 22):
            at = place(one_side(), level, level + 0.1, 0.8)
            find("Emphysema", inner * ellipsoid(at, rng.uniform(13, 20, 3)), -1000)
    if has["Lung opacity"]:
        for side in rng.permutation([-1, 1])[: rng.integers(1, 3)]:
            centre = place(side, -0.4, 0.5, 0.4)
            find("Lung opacity", inner * ellipsoid(centre, np.array([30, 34, 44]) * rng.uniform(0.9, 1.15)), -470)
    if has["Interlobular septal thickening"]:
        angle = rng.uniform(0.2, 1.3)
        u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        lines = np.maximum(*(drawing.rise(30 * (np.cos(2 * np.pi * w / 26) - 0.72)) for w in (u, v)))
        find("Interlobular septal thickening", inner * lines * drawing.rise(30 - z), -420)

    # ---- vessels and airways
    for side in (-1, 1):
        hilum = np.array([side * 26.0, -4.0, 4.0])
        for _ in range(7):
            end = place(side, reach=0.9)
            paint(tube(hilum, end, rng.uniform(2.0, 3.4)) * inner, 20)
        bronchi = [
            (np.array([0, -6, 26.0]), hilum),
            (hilum, place(side, -0.7, -0.2, 0.4)),
            (hilum, place(side, 0.1, 0.6, 0.4)),
        ]
        wall = 16.0 if has["Peribronchial thickening"] else 6.5
        walls = np.maximum.reduce([tube(start, end, wall) for start, end in bronchi])
        paint(walls, 20)
        if has["Peribronchial thickening"]:
            drawing.mark("Peribronchial thickening", walls)
        paint(np.maximum.reduce([tube(start, end, 4.5) for start, end in bronchi]), -980)
    paint(tube((0, -6, 20), (0, -6, 95), 11), 20)
    paint(tube((0, -6, 20), (0, -6, 95), 8), -990)  # trachea

    # ---- heart and vessels
    size = (1.34 if has["Cardiomegaly"] else 1.0) * rng.uniform(0.96, 1.04)
    centre, heart_axes = np.array([-20.0, 22.0, -30.0]), size * np.array([44.0, 38.0, 42.0])
    if has["Pericardial effusion"]:
        find("Pericardial effusion", ellipsoid(centre, heart_axes + 20), 0)
    else:
        paint(ellipsoid(centre, heart_axes + 3), 20)
    heart = ellipsoid(centre, heart_axes)
    paint(heart, enhanced)
    if has["Cardiomegaly"]:
        drawing.mark("Cardiomegaly", heart)
    for hole in ((-34, 12, -26), (-8, 32, -34)):  # muscle between the chambers
        paint(tube(np.array(hole) - [0, 12, 0], np.array(hole) + [0, 10, 0], 5), 90)
    aorta = ((-20, -42, -95), (-20, -42, 42), (-4, 16, 48), (4, 20, 10))
    for start, end in zip(aorta, aorta[1:]):
        paint(tube(start, end, 13), 60)
        paint(tube(start, end, 11), enhanced)
    paint(tube((18, 14, -10), (18, 14, 95), 9), enhanced)  # superior vena cava

    # ---- what lies in the mediastinum and on its organs
    if has["Lymphadenopathy"]:
        for level in np.linspace(-10, 65, 10):
            at = (one_side() * rng.uniform(24, 36), rng.uniform(6, 36), level)
            find("Lymphadenopathy", ellipsoid(at, rng.uniform(13, 18, 3)), 70)
    if has["Hiatal hernia"]:
        at = np.array([20.0, -36.0, -32.0]) + rng.uniform(-4, 4, 3)
        find("Hiatal hernia", ellipsoid(at, np.array([24, 22, 52]) * rng.uniform(0.9, 1.15)), 45)
        paint(ellipsoid(at + [0, 5, 0], (13, 10, 40)), -900)
    if has["Arterial wall calcification"]:
        for _ in range(6):
            angle, level = rng.uniform(0, 2 * np.pi), rng.uniform(-80, 20)
            at = np.array([-20 + 12 * np.cos(angle), -42 + 12 * np.sin(angle), level])
            find("Arterial wall calcification", tube(at, at + [0, 0, rng.uniform(10, 30)], 7), 900)
    if has["Coronary artery wall calcification"]:
        for angle in rng.uniform(0.0, 1.0, 5) * np.pi:  # along a meridian of the heart
            levels = rng.uniform(-0.8, -0.3) + np.linspace(0, 1.0, 5)
            rings = np.sqrt(1 - levels**2)
            line = centre + heart_axes * np.stack([rings * np.cos(angle), rings * np.sin(angle), levels], axis=1)
            for start, end in zip(line, line[1:]):
                find("Coronary artery wall calcification", tube(start, end, 7), 900)

    # ---- what lies in the lungs
    if has["Atelectasis"]:
        for side in rng.permutation([-1, 1])[: rng.integers(1, 3)]:
            angle, at = rng.uniform(0.3, 1.2), place(side, -0.5, 0.1, 0.25)
            plane = np.abs(np.cos(angle) * (x - at[0]) * side - np.sin(angle) * (y - at[1]))
            height = drawing.rise(50 - np.abs(z - at[2]))
            find("Atelectasis", lungs[side] * inner * height * drawing.rise(7 - plane), 10)
    if has["Pulmonary fibrotic sequela"]:
        for _ in range(18):
            start = place(one_side(), -0.1, 0.8, 0.8)
            end = start + rng.choice((-1, 1), 3) * rng.uniform(0.3, 1, 3) * [34, 34, 40]
            find("Pulmonary fibrotic sequela", inner * tube(start, end, rng.uniform(3.5, 5)), 0)
    if has["Bronchiectasis"]:
        for side in (-1, 1, -1, 1, -1, 1, -1, 1):
            start = place(side, -0.7, -0.1, 0.6)
            end = start + rng.uniform(-8, 8, 3) + [0, 0, 50]
            find("Bronchiectasis", inner * tube(start, end, 12), -150)
            paint(inner * tube(start, end, 7.5), -995)
    if has["Consolidation"]:
        side = one_side()
        at = place(side, -0.6, 0.4, 0.45)
        find("Consolidation", inner * ellipsoid(at, np.array([28, 32, 38]) * rng.uniform(0.9, 1.15)), 45)
        for _ in range(2):
            way = rng.uniform(-14, 14, 3)
            paint(inner * tube(at - way, at + way, 3.5), -900)
    if has["Lung nodule"]:
        for level in np.linspace(-0.7, 0.6, int(rng.integers(7, 11))):
            find(
                "Lung nodule", inner * ellipsoid(place(one_side(), level, level + 0.1, 0.75), rng.uniform(11, 16)), 120
            )
    if has["Pleural effusion"]:
        for side in rng.permutation([-1, 1])[: rng.integers(1, 3)]:
            level = -68 * depth / 98 + rng.uniform(26, 42) - np.maximum(z, 0) * 0.3  # lower towards the apex
            find("Pleural effusion", lungs[side] * drawing.rise(level - y), 10)
    if has["Medical material"]:
        side = -1 if rng.random() < 0.8 else 1
        at = np.array([side * 62.0, 0.0, rng.uniform(20, 40)])
        at[1] = depth * np.sqrt(1 - (at[0] / width) ** 2) - 10
        find("Medical material", ellipsoid(at, (18, 7, 20)), 3000)
        for start, end in ((at, (18 * side, 30, 55)), ((18 * side, 30, 55), (8 * side, 28, -40))):
            find("Medical material", tube(start, end, 3.5), 3000)
