"""One scan in several places: found by the checksums of the voxels, whatever the files are called."""

from ..config import UserError


def check(cases, pretraining, log):
    """Refuse images of which a channel has the same voxels in the cases of two subjects; warn of what may be right.

    cases: Prepared cases with `checksums`. A pretraining tests nothing, and public sets overlap: there it is a warning.
    So are, with any task, masks with foreground that two subjects share, a scan that is twice one subject's, and equal
    channels of a case.
    """
    images, masks = {}, {}
    found = {"images": [], "masks": [], "own": [], "channels": []}  # pairs of cases
    for case in cases:
        channels = [one for c, one in enumerate(case.checksums[: len(case.background)]) if c not in case.missing]
        if len(set(channels)) < len(channels):
            found["channels"].append((case, case))
        for channel in set(channels):
            first = images.setdefault(channel, case)
            if first is not case:
                found["own" if first.subject == case.subject else "images"].append((first, case))
        if any(case.class_voxels[1:]):
            first = masks.setdefault(case.checksums[-1], case)
            if first.subject != case.subject:
                found["masks"].append((first, case))
    if found["images"] and not pretraining:
        one, other = found["images"][0]
        got = f"case {one.id} of subject '{one.subject}' and case {other.id} of subject '{other.subject}'"
        files = " and ".join(image.path for case in (one, other) for image in case.case.files[:1])
        more = f" (and {len(found['images']) - 1} pairs more)" if found["images"][1:] else ""
        wanted = "wanted every scan in one subject's cases: remove a copy, or give both the same subject"
        raise UserError(f"{got} have an image of the same voxels{more}: got {files}, {wanted}")
    for kind, said in (
        ("images", "images of different subjects have the same voxels: copies of one scan?"),
        ("masks", "masks of different subjects have the same voxels: copies of one mask?"),
        ("own", "images of one subject's cases have the same voxels: a scan that counts several times?"),
        ("channels", "channels of a case have the same voxels: one scan in two columns?"),
    ):
        if found[kind] and log:
            log.warn(said, cases=len(found[kind]), example=list(dict.fromkeys(case.id for case in found[kind][0])))
