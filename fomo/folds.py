"""Folds for cross-validation: grouped, stratified, and the same for the same cases in any order.

A fold is {"train": ids, "val": ids, "test": ids}, each sorted. A group (the subject) is never split. Every id is tested
in exactly one fold. `val` is held back from the training part, grouped and stratified like the test part.

The `kind` of labels says what is balanced:
  "class"       one label per id; every test, val and train part has every class, or it is an error
  "class_and_number"  a pair per id: balanced as "class", and the groups of each class as "continuous"
  "continuous"  one number per id; groups are binned by the quantile of their mean, as finely as the parts allow
  "multilabel"  one row of 0/1 per id; each label is balanced, and so are ids without any; rare labels are spread out

Method: the iterative stratification of Sechidis et al. 2011, of groups instead of cases. Groups are placed one by one,
the largest and rarest first, in the part that needs their labels most, and then exchanged while that helps. Of many
groups most are dealt out first, neighbours in the order of their labels to different parts; those that are left, the
rarest among them, make up for what is uneven.
"""

from collections import Counter

import numpy as np

_SIZE_WEIGHT = 0.1  # of the sizes of the parts; the labels together weigh 1
_MISSING_WEIGHT = 10.0  # of a part without a class: more than any imbalance
_PARTNERS = 200  # groups that are tried for an exchange, so that large sets stay fast
_BINS = 100  # of a number at most, of all classes together
_MANY, _LEFT = 4000, 600  # groups: of more than so many all but _LEFT of the rarest and _LEFT others are dealt out
_KINDS = ("class", "class_and_number", "continuous", "multilabel")


def kfold(ids, groups, labels, folds, val_fraction, seed, kind="class"):
    """A list of `folds` folds {"train", "val", "test"}; val has about `val_fraction` of the ids that are not in test.

    ids: unique, text. groups, labels: one per id, see the top of the file. Raises ValueError, with class and count,
    where a class is in fewer groups than `folds`, or in too few for a validation part.
    """
    if folds < 2:
        raise ValueError(f"folds: got {folds}, wanted at least 2")
    cases = _sorted_cases(ids, groups, labels, val_fraction, kind)
    rng = np.random.default_rng(seed)
    parts = _divide(cases, [1 / folds] * folds, kind, rng, f"{folds} folds", _classes(cases, kind))
    return _with_validation(parts, cases, val_fraction, kind, rng, [f"fold {i + 1}" for i in range(folds)])


def leave_one_group_out(ids, subjects, sites, labels, val_fraction, seed, kind="class"):
    """One fold per site, in sorted order: the site is its test part. val is grouped by subject.

    A site may lack a class, but the others must have it for both training and validation. Raises ValueError for a
    subject at two sites and for fewer than two sites.
    """
    cases = _sorted_cases(ids, subjects, labels, val_fraction, kind)
    site_of = dict(zip(ids, sites, strict=True))
    seen = {}
    for name, subject, _ in cases:
        if seen.setdefault(subject, site_of[name]) != site_of[name]:
            raise ValueError(f"sites: subject {subject} is at {seen[subject]} and at {site_of[name]}, wanted one site")
    names = sorted(set(site_of.values()))
    if len(names) < 2:
        raise ValueError(f"sites: got {', '.join(map(str, names)) or 'none'}, wanted at least two")
    parts = [[case for case in cases if site_of[case[0]] == site] for site in names]
    rng = np.random.default_rng(seed)
    return _with_validation(parts, cases, val_fraction, kind, rng, [f"site {site}" for site in names])


def holdout(ids, groups, labels, val_fraction, seed, kind="class", val=(), test=()):
    """One {"train", "val", "test"}: `val` and `test` are given ids, train is the rest.

    An empty `test` stays empty. Where `val` is empty, a part of the rest is held back as in `kfold`, or, without labels
    (None), groups drawn at random. Raises ValueError like `kfold`, and for a group in two parts.
    """
    val, test = sorted(val), sorted(test)
    rest = sorted(set(ids) - set(val) - set(test))
    group_of = dict(zip(ids, groups, strict=True))
    rng = np.random.default_rng(seed)
    if not val and labels is None:
        names = sorted({group_of[name] for name in rest})
        if len(names) < 2:
            raise ValueError(f"training and validation: got {len(names)} groups (subjects), wanted at least 2")
        held = {names[i] for i in rng.permutation(len(names))[: max(1, round(val_fraction * len(names)))]}
        val = [name for name in rest if group_of[name] in held]
    elif not val:
        label_of = dict(zip(ids, labels, strict=True))
        own = [group_of[name] for name in rest], [label_of[name] for name in rest]
        cases = _sorted_cases(rest, *own, val_fraction, kind)
        shares, what = [1 - val_fraction, val_fraction], "training and validation"
        val = [case[0] for case in _divide(cases, shares, kind, rng, what, _classes(cases, kind))[1]]
    split = {"train": sorted(set(rest) - set(val)), "val": val, "test": test}
    check_split(split, group_of)
    return split


def check_split(split, group_of):
    """Raise ValueError unless train and val have ids, and no id and no group is in two parts; group_of: {id: group}."""
    for part in ("train", "val"):
        if not split[part]:
            raise ValueError(f"{part}: got no ids, wanted at least one")
    part_of, parts = {}, {}
    for part, names in split.items():
        for name in names:
            if parts.setdefault(name, part) != part:
                raise ValueError(f"{name} is in {parts[name]} and in {part}")
            if part_of.setdefault(group_of[name], part) != part:
                raise ValueError(f"group {group_of[name]} is in {part_of[group_of[name]]} and in {part}")


def check(folds, group_of=None):
    """Raise ValueError unless each fold's parts are filled and disjoint, all folds have the same ids, each tested once.

    group_of: {id: group}; where given, it must know exactly these ids, and groups must be disjoint as well.
    """
    if not folds:
        raise ValueError("folds: got none")
    for i, fold in enumerate(folds, 1):
        if set(fold) != {"train", "val", "test"} or not all(fold.values()):
            got = ", ".join(f"{part} ({len(names)})" for part, names in fold.items())
            raise ValueError(f"fold {i}: got {got or 'nothing'}, wanted train, val and test, none of them empty")
    tested = Counter(name for fold in folds for name in fold["test"])
    if twice := sorted(name for name, count in tested.items() if count > 1):
        raise ValueError(f"test parts: {_some(twice)} tested more than once, wanted each id in one fold")
    group_of = {name: name for name in tested} if group_of is None else group_of
    if differing := sorted(set(group_of) ^ set(tested)):
        raise ValueError(f"test parts: {_some(differing)} not in both the folds and the cases")
    for i, fold in enumerate(folds, 1):
        try:
            _check_fold(fold, tested, group_of)
        except ValueError as error:
            raise ValueError(f"fold {i}: {error}") from None


def _check_fold(fold, tested, group_of):
    """tested: {id: 1} of the ids of all folds."""
    found = Counter(name for part in fold.values() for name in part)
    if found != tested:
        wrong = sorted(name for name in found | tested if found[name] != tested[name])
        raise ValueError(f"{_some(wrong)} not in exactly one of train, val and test")
    check_split(fold, group_of)


def _sorted_cases(ids, groups, labels, val_fraction, kind):
    """[(id, group, label)] sorted by id, checked."""
    if kind not in _KINDS:
        raise ValueError(f"kind: got {kind!r}, wanted one of {', '.join(_KINDS)}")
    if not 0 < val_fraction < 1:
        raise ValueError(f"val_fraction: got {val_fraction}, wanted more than 0 and less than 1")
    if not len(ids) == len(groups) == len(labels):
        lengths = f"{len(ids)}, {len(groups)} and {len(labels)}"
        raise ValueError(f"ids, groups, labels: got {lengths}, wanted one each per id")
    cases = sorted(zip(ids, groups, labels), key=lambda case: case[0])
    if twice := [a[0] for a, b in zip(cases, cases[1:]) if a[0] == b[0]]:
        raise ValueError(f"ids: {_some(twice)} appears twice")
    for name, _, label in cases:
        if kind in ("continuous", "class_and_number") and not np.isfinite(label[1] if kind != "continuous" else label):
            raise ValueError(f"labels: got {label} for {name}, wanted a finite number")
        if kind == "multilabel" and not set(np.asarray(label).tolist()) <= {0, 1}:
            raise ValueError(f"labels: got {label} for {name}, wanted zeros and ones")
    return cases


def _classes(cases, kind):
    if kind == "class_and_number":
        return sorted({label[0] for _, _, label in cases}, key=str)
    return sorted({label for _, _, label in cases}, key=str) if kind == "class" else []


def _with_validation(parts, cases, val_fraction, kind, rng, names):
    """The folds with these test parts; names: what errors call each fold."""
    folds, shares, classes = [], [1 - val_fraction, val_fraction], _classes(cases, kind)
    for test, name in zip(parts, names):
        tested = {case[0] for case in test}
        rest = [case for case in cases if case[0] not in tested]
        train, val = _divide(rest, shares, kind, rng, f"{name}: training and validation", classes)
        chosen = {"train": train, "val": val, "test": test}
        folds.append({part: [case[0] for case in cases_of] for part, cases_of in chosen.items()})
    check(folds, {name: group for name, group, _ in cases})
    return folds


def _divide(cases, shares, kind, rng, what, classes):
    """The cases in parts of about these shares, each with all `classes`; groups stay whole. `what` begins errors."""
    members = {}
    for i, (_, group, _) in enumerate(cases):
        members.setdefault(group, []).append(i)
    if len(members) < len(shares):
        raise ValueError(f"{what}: got {len(members)} groups (subjects), wanted at least {len(shares)}")
    counts = _counts([case[2] for case in cases], list(members.values()), kind, classes, shares)
    present = counts > 0
    if classes:
        present = present[:, : len(classes)]  # bins may be empty
        for label, groups in zip(classes, present.sum(0)):
            if groups < len(shares):
                got = f"class {label} is in {groups} group{'' if groups == 1 else 's'} (subjects)"
                raise ValueError(f"{what}: {got}, wanted at least {len(shares)}")
    elif kind == "continuous":
        present = present[:, :0]  # bins may be empty
    sizes = np.array([len(rows) for rows in members.values()])
    part, missing = _place(counts, present, sizes, np.array(shares), rng)
    if missing and classes:
        every = ", ".join(map(str, classes))
        raise ValueError(f"{what}: no way found to give each part every class ({every}) with whole groups")
    divided = [[] for _ in shares]
    for rows, p in zip(members.values(), part):
        divided[p] += rows
    return [[cases[i] for i in sorted(rows)] for rows in divided]


def _counts(labels, members, kind, classes, shares):
    """(groups, strata): the number of ids of each group in each stratum."""
    order = np.concatenate(members)
    starts = np.cumsum([0, *map(len, members)])[:-1]

    def of_groups(values):
        return np.add.reduceat(values[order], starts, axis=0)

    sizes = of_groups(np.ones(len(labels)))
    if kind == "continuous":  # a group is in one bin, with all its ids
        means = of_groups(np.asarray(labels, float)) / sizes
        return _binned(means, np.arange(len(members)), shares) * sizes[:, None]
    if kind == "multilabel":
        rows = np.asarray(labels, dtype=float).reshape(len(labels), -1)
        return of_groups(np.column_stack([rows, rows.sum(1) == 0]))
    names, numbers = zip(*labels) if kind == "class_and_number" else (labels, None)
    place = {name: i for i, name in enumerate(classes)}
    counts = of_groups(np.eye(len(classes))[[place[name] for name in names]])
    if numbers is None:
        return counts
    means = of_groups(np.asarray(numbers, float)) / sizes
    most = max(1, _BINS // len(classes))
    finer = [_binned(means, np.flatnonzero(column), shares, most) * column[:, None] for column in counts.T]
    return np.hstack([counts, *finer])


def _binned(means, chosen, shares, most=_BINS):
    """(groups, bins) of 0 and 1: the quantile of their mean in which the `chosen` groups, their numbers, are.

    There are as many bins as give each part a group of each, and `most` at most.
    """
    least = 1 / min(shares)  # groups, of which each part can have one
    bins = max(1, int(len(chosen) / least / max(1, np.ceil(len(chosen) / least / most))))
    rank = np.argsort(np.argsort(means[chosen], kind="stable"), kind="stable")
    found = np.zeros((len(means), bins))
    found[chosen, rank * bins // max(1, len(chosen))] = 1
    return found


def _place(counts, present, sizes, shares, rng):
    """(part of each group, number of (part, class) pairs without a group): the best of a few searches.

    A search minimises the squared deviation of each part from its share of each stratum and of the ids, relative to
    the stratum's total, so that rare strata weigh as much as common ones.
    """
    z = np.column_stack([_weighed(counts, present.shape[1]), sizes / sizes.sum() * np.sqrt(_SIZE_WEIGHT)])
    present = np.column_stack([np.ones(len(z), bool), present]).astype(int)  # first: no part is empty
    weight = np.round(np.linalg.norm(z, axis=1), 9)
    part = _dealt(counts, weight, shares, rng) if len(z) > _MANY else np.full(len(z), -1)
    left = np.flatnonzero(part < 0)
    excess = -np.outer(shares, z.sum(0))  # of each part in each stratum
    covered = np.zeros((len(shares), present.shape[1]), int)
    for p in range(len(shares)):
        excess[p] += z[part == p].sum(0)
        covered[p] += present[part == p].sum(0)
    found, effort = [], (max(2, min(20, 20_000 // len(z))), _PARTNERS if len(z) <= _MANY else _PARTNERS // 2)
    for _ in range(max(1, min(4, 2000 // len(z)))):
        order = rng.permutation(len(left))
        order = order[np.argsort(-weight[left][order], kind="stable")]
        found.append(_search(z[left], present[left], shares, order, (excess.copy(), covered.copy()), effort, rng))
    part[left], (missing, _) = min(found, key=lambda search: search[1])
    return part, missing


def _weighed(counts, classes):
    """The counts (groups, strata) relative to each stratum's total, so that the squares of all totals add up to 1.

    Where strata stand behind those of the `classes`, they divide these, and weigh as much as they do in all.
    """
    totals = counts.sum(0)
    used = totals > 0
    if not 0 < classes < counts.shape[1]:
        return counts[:, used] / totals[used] / np.sqrt(used.sum())
    weights = np.where(np.arange(len(used)) < classes, used[:classes].sum(), used[classes:].sum())
    return counts[:, used] / totals[used] / np.sqrt(2 * weights[used])


def _dealt(counts, weight, shares, rng):
    """The part of each group: neighbours in the order of their strata go to different ones; -1 for those left out.

    These are the _LEFT with the largest weight and _LEFT others. Each part gets its share of every run of neighbours.
    """
    order = rng.permutation(len(weight))
    order = order[np.argsort(-weight[order], kind="stable")][_LEFT:]
    order = rng.permutation(order)[_LEFT:]
    order = order[np.lexsort(counts[order].astype(np.int16).T)]
    ends = np.round(np.cumsum(shares) * len(order)).astype(int)  # of each part's seats
    seats = np.repeat(np.arange(len(shares)), np.diff(ends, prepend=0))
    place = np.concatenate([(np.arange(count) + rng.random(count)) / count for count in np.bincount(seats)])
    part = np.full(len(weight), -1)
    part[order] = seats[np.argsort(place, kind="stable")]
    return part


def _search(z, present, shares, order, begun, effort, rng):
    """(part of each group, (missing pairs, deviation)); values are rounded, so that all machines break ties alike.

    begun: (excess, covered) of each part in each stratum and class, before any of these groups is placed.
    effort: how often all groups are looked at, and how many partners are tried for each.
    """
    part, (excess, covered), (rounds, tried) = np.empty(len(z), int), begun, effort
    for g in order:
        gain = np.round((excess * z[g]).sum(1), 9)
        part[g] = rng.choice(np.flatnonzero(gain == gain.min()))
        excess[part[g]] += z[g]
    covered += np.array([present[part == p].sum(0) for p in range(len(shares))])
    nothing = np.zeros((len(shares) - 1, 1), int)
    for _ in range(rounds):
        changed = False
        for g in order:
            here = part[g]
            partners = np.arange(len(z)) if len(z) <= tried else rng.integers(len(z), size=tried)
            partners = partners[part[partners] != here]
            # exchange g with a partner, or give it to another part for nothing
            there = np.concatenate([part[partners], np.delete(np.arange(len(shares)), here)])
            step = np.concatenate([z[partners] - z[g], nothing - z[g]])
            pairs = np.concatenate([present[partners] - present[g], nothing - present[g]])
            change = 2 * (step * (excess[here] - excess[there] + step)).sum(1)
            lost = (covered[here] + pairs == 0).sum(1) + (covered[there] - pairs == 0).sum(1)
            lost -= (covered[here] == 0).sum() + (covered[there] == 0).sum(1)
            change = np.round(change + _MISSING_WEIGHT * lost, 9)
            best = change.argmin()
            if change[best] < 0:
                changed = True
                if best < len(partners):
                    part[partners[best]] = here
                part[g] = there[best]
                excess[here] += step[best]
                excess[there[best]] -= step[best]
                covered[here] += pairs[best]
                covered[there[best]] -= pairs[best]
        if not changed:
            break
    return part, (int((covered == 0).sum()), round(float((excess**2).sum()), 9))


def _some(names):
    return ", ".join(map(str, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
