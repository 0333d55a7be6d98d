"""Warnings of subjects that count as several and are perhaps one, by how they are written."""

import re

_SUBJECT = re.compile(r".*?sub[_-][0-9a-z]+", re.ASCII | re.IGNORECASE)
_ZEROS = re.compile(r"(?<![\d.])0+(?=\d)|\.0+$", re.ASCII)  # in front of a number, and those that make 1 a 1.0
_SHOWN = 5  # pairs of subjects that a warning names


def warn_of_beginnings(cases, log):
    """Warn of cases whose names begin with one subject, and which count as several."""
    alike = {}
    for case in cases:
        if beginning := _SUBJECT.match(case.id):
            alike.setdefault(beginning[0].lower(), {}).setdefault(case.subject, case.id)
    if several := [list(ids.values()) for ids in alike.values() if len(ids) > 1]:
        said = "cases count as different subjects, though their names begin alike"
        told = "sessions of one subject are told by _ses_ in the name, or by data.subject_column"
        log.warn(f"{said}: {told}", beginnings=len(several), example=several[0][:2])


def warn_of_spellings(cases, log):
    """Warn of subjects that differ only in how they are written."""
    alike = {}
    for subject in sorted({case.subject for case in cases}):
        alike.setdefault(_ZEROS.sub("", subject.lower()), []).append(subject)
    if several := ["/".join(subjects) for subjects in alike.values() if len(subjects) > 1]:
        said = "subjects that differ only in capitals, leading zeros or .0 count as different ones"
        log.warn(f"{said}: write those that are one in one way", count=len(several), subjects=several[:_SHOWN])
