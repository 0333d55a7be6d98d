"""Synthetic chest CTs with the 18 findings of CT-RATE, to try slice classification on data with a known answer.

    <root>/volumes/train_12_a_1.nii.gz       Hounsfield units, int16
           masks/train_12_a_1.nii.gz         bit k of a voxel: finding k (of LABELS) is there
           multi_abnormality_labels.csv      VolumeName and 18 columns of 0 or 1

A chest is drawn in world mm and sampled on a grid of varying orientation. Each finding has its own place and
appearance, and is large enough for a network whose first maps are of 10 mm; related ones occur together more often than
by chance. One patient in four has two scans (a_1, a_2: the same chest on another grid, with other noise). One in five
is called valid_*.
"""

import os

import numpy as np
import scipy

from ...runtime import files
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
_HEART = np.array([-20.0, 22.0, -30.0])  # its centre, in mm
_CODES = ("RAS", "LPS", "LAS", "LAI")


def make(root, volumes, size=64, seed=0):
    """Write `volumes` scans of `size` x `size` x `size`/2 voxels to the new folder `root`, whole or not at all.

    The same arguments give the same files. FileExistsError where `root` has content.
    """
    with files.new_folder(root) as folder:
        rows = []
        for name, findings, chest, scan in scans(volumes, seed):
            hounsfield, masks, affine = draw(findings, size, chest, scan)
            code = _CODES[int(scan.integers(len(_CODES)))]
            heads.write(os.path.join(folder, "volumes", name), hounsfield, affine, code)
            bits = sum(mask.astype(np.int32) << k for k, mask in enumerate(masks))
            heads.write(os.path.join(folder, "masks", name), bits, affine, code)
            rows.append({"VolumeName": name, **{label: int(there) for label, there in zip(LABELS, findings)}})
        files.write_csv(os.path.join(folder, "multi_abnormality_labels.csv"), rows)


def scans(volumes, seed=0):
    """Yield (file name, 18 findings (bool), generator of the chest, generator of the scan) of each of `volumes` scans.

    Each label has its exact share, and at least one, of the train_* patients and of the valid_* patients.
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
        chest, grid = (np.random.default_rng([seed, *key]) for key in ((2, patient), (3, patient, scan)))
        yield name, findings[patient], chest, grid


def _draw_findings(rng, count):
    """(count, 18) bool: normal variables, correlated within a group, cut so that each label has its share."""
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
    drawn = _Chest(coordinates, 0.35 * float(voxel.mean()), chest, findings)
    # from the outside to the inside
    for part in (_body, _whole_lungs, _vessels_and_airways, _heart_and_aorta, _in_mediastinum, _in_lungs, _at_the_wall):
        part(drawn)
    noise = scan.normal(0, scan.uniform(10, 25), shape)
    hounsfield = np.clip(np.round(drawn.hounsfield + noise), -1024, 3071).astype(np.int16)
    return hounsfield, np.stack(drawn.masks), affine


class _Chest:
    """A volume in Hounsfield units that shapes are painted into, the mask of each finding, and the sizes of one chest.

    coordinates: in mm, of each axis; x to the right, y to the front, z upwards. soft: mm over which a border rises.
    """

    def __init__(self, coordinates, soft, rng, findings):
        self.coordinates, self.soft = coordinates, soft
        self.x, self.y, self.z = np.meshgrid(*(c.astype(np.float32) for c in coordinates), indexing="ij", sparse=True)
        self.shape = tuple(map(len, coordinates))
        self.hounsfield = np.full(self.shape, -1000, np.float32)
        self.masks = [np.zeros(self.shape, bool) for _ in LABELS]
        self.rng, self.has = rng, dict(zip(LABELS, findings))
        self.width, self.depth = 138 * rng.uniform(0.94, 1.06), 98 * rng.uniform(0.94, 1.06)
        self.fat = rng.uniform(8, 18)
        self.enhanced = rng.uniform(150, 220)  # blood, with contrast medium
        self.lung_hu = rng.uniform(-800, -750)
        size = rng.uniform(0.95, 1.04, 3)
        self.lung_axes = np.array([50.0, 68.0, 84.0]) * size * [self.width / 138, self.depth / 98, 1]
        self.lung_centres = {side: np.array([side * 66.0, 0.0, -4.0]) for side in (-1, 1)}
        self.lungs = {side: self.ellipsoid(centre, self.lung_axes) for side, centre in self.lung_centres.items()}
        self.mediastinum = self.ellipsoid((0, 8, 10), (34, 52, 90))
        self.inner = np.maximum(self.lungs[-1], self.lungs[1]) * (1 - self.mediastinum)  # what is left of the lungs

    def rise(self, distance):
        """Share of each voxel that lies inside a surface at `distance` mm (positive: inside)."""
        return scipy.special.expit(distance / np.float32(self.soft))

    def ellipsoid(self, centre, axes):
        centre, axes = np.asarray(centre, float), np.broadcast_to(axes, 3)

        def distance(*points):
            squares = sum(((p - c) / a) ** 2 for p, c, a in zip(points, centre, axes))
            return (1 - np.sqrt(squares)) * np.float32(axes.mean())

        return self._within(centre - axes, centre + axes, distance)

    def tube(self, start, end, radius):
        """A line from start to end with round ends."""
        start, end = np.asarray(start, float), np.asarray(end, float)
        way = (end - start) / ((end - start) @ (end - start))

        def distance(*points):
            along = np.clip(sum((p - c) * np.float32(w) for p, c, w in zip(points, start, way)), 0, 1)
            squares = sum((p - c - along * np.float32(e - c)) ** 2 for p, c, e in zip(points, start, end))
            return radius - np.sqrt(squares)

        return self._within(np.minimum(start, end) - radius, np.maximum(start, end) + radius, distance)

    def _within(self, low, high, distance):
        """Shares of a shape between the corners low and high, from its `distance` function; zero elsewhere."""
        edge = 8 * self.soft
        ends = zip(self.coordinates, low - edge, high + edge)
        box = tuple(slice(*np.searchsorted(c, pair)) for c, *pair in ends)
        points = self.x[box[0]], self.y[:, box[1]], self.z[:, :, box[2]]
        share = np.zeros(self.shape, np.float32)
        share[box] = self.rise(distance(*(p.astype(np.float32) for p in points)).astype(np.float32))
        return share

    def paint(self, share, hounsfield):
        self.hounsfield += share * (hounsfield - self.hounsfield)

    def mark(self, label, share):
        self.masks[LABELS.index(label)] |= share > 0.5

    def find(self, label, share, hounsfield):
        self.paint(share, hounsfield)
        self.mark(label, share)

    def place(self, side, low=-1.0, high=1.0, reach=0.62):
        """A point in a lung, away from its border; low, high: of its height, -1 the base and 1 the apex."""
        rng = self.rng
        while True:
            at = rng.uniform(-reach, reach, 3)
            at[2] = rng.uniform(max(low, -0.8), min(high, 0.8))
            at[0] = side * abs(at[0]) if rng.random() < 0.85 else at[0]
            if (at**2).sum() < 0.8:
                return self.lung_centres[side] + at * self.lung_axes

    def one_side(self):
        return int(self.rng.choice((-1, 1)))

    def some_sides(self):
        return self.rng.permutation([-1, 1])[: self.rng.integers(1, 3)]


def _body(chest):
    """Couch, body, ribs, sternum, spine, lungs and mediastinum."""
    x, y, z, paint, depth = chest.x, chest.y, chest.z, chest.paint, chest.depth
    paint(chest.rise(4 - np.abs(y + depth + 24 - (x / 60) ** 2)) * (np.abs(x) < 130), -200)
    for inset, hounsfield in ((0, -100), (chest.fat, 50)):
        wide, deep = chest.width - inset, depth - inset
        paint(chest.rise((1 - np.sqrt((x / wide) ** 2 + (y / deep) ** 2)) * deep), hounsfield)
    shell = np.maximum(*(chest.ellipsoid(centre, chest.lung_axes + 11) for centre in chest.lung_centres.values()))
    paint(chest.rise(20 * (np.cos(2 * np.pi * (z / 27 + y / 90)) - 0.55)) * shell * (np.abs(x) > 40), 330)  # ribs
    paint(chest.tube((0, depth - 18, -60), (0, depth - 14, 55), 8), 250)  # sternum
    paint(chest.tube((0, -66, -90), (0, -66, 90), 17), 280)  # spine
    paint(np.maximum(chest.lungs[-1], chest.lungs[1]), chest.lung_hu)
    paint(chest.mediastinum, -90)


def _whole_lungs(chest):
    """Findings of the whole lungs, which come before those that lie in them."""
    x, y, z, rng, has, inner = chest.x, chest.y, chest.z, chest.rng, chest.has, chest.inner
    if has["Mosaic attenuation pattern"]:
        a, b, c = rng.uniform(0, 2 * np.pi, 3)
        waves = np.sin(2 * np.pi * x / 52 + a) * np.sin(2 * np.pi * y / 52 + b) + 0.3 * np.sin(2 * np.pi * z / 70 + c)
        chest.find("Mosaic attenuation pattern", inner * chest.rise(40 * waves), -600)
    if has["Emphysema"]:
        for level in np.linspace(-0.5, 0.7, 22):
            at = chest.place(chest.one_side(), level, level + 0.1, 0.8)
            chest.find("Emphysema", inner * chest.ellipsoid(at, rng.uniform(13, 20, 3)), -1000)
    if has["Lung opacity"]:
        for side in chest.some_sides():
            at = chest.place(side, -0.4, 0.5, 0.4)
            axes = np.array([30, 34, 44]) * rng.uniform(0.9, 1.15)
            chest.find("Lung opacity", inner * chest.ellipsoid(at, axes), -470)
    if has["Interlobular septal thickening"]:
        angle = rng.uniform(0.2, 1.3)
        u, v = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
        lines = np.maximum(*(chest.rise(30 * (np.cos(2 * np.pi * w / 26) - 0.72)) for w in (u, v)))
        chest.find("Interlobular septal thickening", inner * lines * chest.rise(30 - z), -420)


def _vessels_and_airways(chest):
    paint, tube = chest.paint, chest.tube
    thick = chest.has["Peribronchial thickening"]
    for side in (-1, 1):
        hilum = np.array([side * 26.0, -4.0, 4.0])
        for _ in range(7):
            end = chest.place(side, reach=0.9)
            paint(tube(hilum, end, chest.rng.uniform(2.0, 3.4)) * chest.inner, 20)
        ends = chest.place(side, -0.7, -0.2, 0.4), chest.place(side, 0.1, 0.6, 0.4)
        bronchi = [(np.array([0, -6, 26.0]), hilum), *((hilum, end) for end in ends)]
        walls = np.maximum.reduce([tube(start, end, 16.0 if thick else 6.5) for start, end in bronchi])
        paint(walls, 20)
        if thick:
            chest.mark("Peribronchial thickening", walls)
        paint(np.maximum.reduce([tube(start, end, 4.5) for start, end in bronchi]), -980)
    for radius, hounsfield in ((11, 20), (8, -990)):  # trachea
        paint(tube((0, -6, 20), (0, -6, 95), radius), hounsfield)


def _heart_and_aorta(chest):
    paint, tube = chest.paint, chest.tube
    size = (1.34 if chest.has["Cardiomegaly"] else 1.0) * chest.rng.uniform(0.96, 1.04)
    axes = chest.heart_axes = size * np.array([44.0, 38.0, 42.0])
    if chest.has["Pericardial effusion"]:
        chest.find("Pericardial effusion", chest.ellipsoid(_HEART, axes + 20), 0)
    else:
        paint(chest.ellipsoid(_HEART, axes + 3), 20)
    heart = chest.ellipsoid(_HEART, axes)
    paint(heart, chest.enhanced)
    if chest.has["Cardiomegaly"]:
        chest.mark("Cardiomegaly", heart)
    for hole in ((-34, 12, -26), (-8, 32, -34)):  # muscle between the chambers
        paint(tube(np.array(hole) - [0, 12, 0], np.array(hole) + [0, 10, 0], 5), 90)
    aorta = ((-20, -42, -95), (-20, -42, 42), (-4, 16, 48), (4, 20, 10))
    for start, end in zip(aorta, aorta[1:]):
        paint(tube(start, end, 13), 60)
        paint(tube(start, end, 11), chest.enhanced)
    paint(tube((18, 14, -10), (18, 14, 95), 9), chest.enhanced)  # superior vena cava


def _in_mediastinum(chest):
    """Findings in the mediastinum and on its organs."""
    rng, has, tube, ellipsoid = chest.rng, chest.has, chest.tube, chest.ellipsoid
    if has["Lymphadenopathy"]:
        for level in np.linspace(-10, 65, 10):
            at = (chest.one_side() * rng.uniform(24, 36), rng.uniform(6, 36), level)
            chest.find("Lymphadenopathy", ellipsoid(at, rng.uniform(13, 18, 3)), 70)
    if has["Hiatal hernia"]:
        at = np.array([20.0, -36.0, -32.0]) + rng.uniform(-4, 4, 3)
        chest.find("Hiatal hernia", ellipsoid(at, np.array([24, 22, 52]) * rng.uniform(0.9, 1.15)), 45)
        chest.paint(ellipsoid(at + [0, 5, 0], (13, 10, 40)), -900)
    if has["Arterial wall calcification"]:
        for _ in range(6):
            angle, level = rng.uniform(0, 2 * np.pi), rng.uniform(-80, 20)
            at = np.array([-20 + 12 * np.cos(angle), -42 + 12 * np.sin(angle), level])
            chest.find("Arterial wall calcification", tube(at, at + [0, 0, rng.uniform(10, 30)], 7), 900)
    if has["Coronary artery wall calcification"]:
        for angle in rng.uniform(0.0, 1.0, 5) * np.pi:  # along a meridian of the heart
            levels = rng.uniform(-0.8, -0.3) + np.linspace(0, 1.0, 5)
            rings = np.sqrt(1 - levels**2)
            line = _HEART + chest.heart_axes * np.stack([rings * np.cos(angle), rings * np.sin(angle), levels], axis=1)
            for start, end in zip(line, line[1:]):
                chest.find("Coronary artery wall calcification", tube(start, end, 7), 900)


def _in_lungs(chest):
    """Findings that lie in the lungs."""
    rng, has, inner, tube, ellipsoid = chest.rng, chest.has, chest.inner, chest.tube, chest.ellipsoid
    if has["Atelectasis"]:
        for side in chest.some_sides():
            angle, at = rng.uniform(0.3, 1.2), chest.place(side, -0.5, 0.1, 0.25)
            plane = np.abs(np.cos(angle) * (chest.x - at[0]) * side - np.sin(angle) * (chest.y - at[1]))
            height = chest.rise(50 - np.abs(chest.z - at[2]))
            chest.find("Atelectasis", chest.lungs[side] * inner * height * chest.rise(7 - plane), 10)
    if has["Pulmonary fibrotic sequela"]:
        for _ in range(18):
            start = chest.place(chest.one_side(), -0.1, 0.8, 0.8)
            end = start + rng.choice((-1, 1), 3) * rng.uniform(0.3, 1, 3) * [34, 34, 40]
            chest.find("Pulmonary fibrotic sequela", inner * tube(start, end, rng.uniform(3.5, 5)), 0)
    if has["Bronchiectasis"]:
        for side in (-1, 1, -1, 1, -1, 1, -1, 1):
            start = chest.place(side, -0.7, -0.1, 0.6)
            end = start + rng.uniform(-8, 8, 3) + [0, 0, 50]
            chest.find("Bronchiectasis", inner * tube(start, end, 12), -150)
            chest.paint(inner * tube(start, end, 7.5), -995)
    if has["Consolidation"]:
        at = chest.place(chest.one_side(), -0.6, 0.4, 0.45)
        chest.find("Consolidation", inner * ellipsoid(at, np.array([28, 32, 38]) * rng.uniform(0.9, 1.15)), 45)
        for _ in range(2):
            way = rng.uniform(-14, 14, 3)
            chest.paint(inner * tube(at - way, at + way, 3.5), -900)
    if has["Lung nodule"]:
        for level in np.linspace(-0.7, 0.6, int(rng.integers(7, 11))):
            at = chest.place(chest.one_side(), level, level + 0.1, 0.75)
            chest.find("Lung nodule", inner * ellipsoid(at, rng.uniform(11, 16)), 120)


def _at_the_wall(chest):
    """Fluid behind the lungs, and a device below the skin with its lead."""
    rng, depth = chest.rng, chest.depth
    if chest.has["Pleural effusion"]:
        for side in chest.some_sides():
            level = -68 * depth / 98 + rng.uniform(26, 42) - np.maximum(chest.z, 0) * 0.3  # lower towards the apex
            chest.find("Pleural effusion", chest.lungs[side] * chest.rise(level - chest.y), 10)
    if chest.has["Medical material"]:
        side = -1 if rng.random() < 0.8 else 1
        at = np.array([side * 62.0, 0.0, rng.uniform(20, 40)])
        at[1] = depth * np.sqrt(1 - (at[0] / chest.width) ** 2) - 10
        chest.find("Medical material", chest.ellipsoid(at, (18, 7, 20)), 3000)
        for start, end in ((at, (18 * side, 30, 55)), ((18 * side, 30, 55), (8 * side, 28, -40))):
            chest.find("Medical material", chest.tube(start, end, 3.5), 3000)
