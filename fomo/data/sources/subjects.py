"""Subjects that count as several and are perhaps one, by how they are written: an error or a warning."""

import re
import unicodedata

from ...config import UserError
from ..spreadsheet import without_zeros

_SUBJECT = re.compile(r".*?sub[_-][0-9a-z]+", re.ASCII | re.IGNORECASE)
_SEPARATORS = re.compile(r"[\s_-]+")
_BEFORE_NUMBER = re.compile(r"(?<=[^\W\d_])_(?=\d)")  # sub_1, which is perhaps sub1
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


def check_spellings(cases):
    """Refuse subjects that look the same: in two forms of Unicode, or with characters that nobody sees."""
    seen = {}
    for case in cases:
        first = seen.setdefault(_visible(case.subject), case)
        if first.subject != case.subject:
            both = f"{ascii(first.subject)} (case {first.id}) and {ascii(case.subject)} (case {case.id})"
            raise UserError(f"subjects: got {both}, which look the same, wanted one way to write a subject")


def warn_of_spellings(cases, log):
    """Warn of subjects that differ only in how they are written."""
    alike = {}
    for subject in sorted({case.subject for case in cases}):
        alike.setdefault(_essence(subject), []).append(subject)
    if several := ["/".join(subjects) for subjects in alike.values() if len(subjects) > 1]:
        said = "subjects that differ only in capitals, separators, leading zeros or .0 count as different ones"
        log.warn(f"{said}: write those that are one in one way", count=len(several), subjects=several[:_SHOWN])


def _visible(text):
    """A text as it is seen: accents with their letters, every blank a blank, and nothing that takes no room."""
    text = unicodedata.normalize("NFC", text)
    kinds = ((character, unicodedata.category(character)) for character in text)
    return "".join(" " if kind == "Zs" else "" if kind in ("Cf", "Cc") else character for character, kind in kinds)


def _essence(subject):
    """What is left of a subject without that in which people and programs write it differently."""
    text = unicodedata.normalize("NFKC", _visible(subject)).strip().casefold()
    return without_zeros(_BEFORE_NUMBER.sub("", _SEPARATORS.sub("_", text)))
