"""What a source says of itself, so that nothing else in the house needs to know its name."""

from collections.abc import Callable
from dataclasses import dataclass

from ...config import check_declared
from .. import cache

_VOLUME_KEYS = (
    *("data.optional_channels", "data.spacing_mm", "data.crop", "data.cache_dtype"),
    *("data.crop_position", "data.prepare_workers"),
    *("eval.overlap", "eval.pool_windows"),
)
_MEANING = ("spacing_mm", "crop", "cache_dtype")  # of volumes
VOLUME_LABELS = ("class", "number", "flags", "mask", "several", "nothing")


@dataclass(frozen=True)
class Source:
    """The declaration of a source; `data` is always the config's section.

    list: function (data, wanted, labels, log) that returns the Cases, see `list_cases`. Ids and subjects are the same
        without labels: by them prediction warns of cases that a network was trained on.
    gives: the kinds of labels (Wanted.kind) that it can have.
    needs: keys of which at least one must be set, and what the user should give: (("data.root",), "the folder ...").
    geometry: whether its images are volumes that lie in space, which are preprocessed and can be cut into patches, in
        the formats of `cases.read_volume`. Otherwise they are slices of CT, which --slices and --volumes predict.
    keys: keys of the config that not all sources read, besides those of all volumes.
    options: keys of the config that only this source takes; elsewhere another value than the default is an error.
    reads_csv, reads_root: whether it reads data.csv and data.root.
    columns: function of `data`: whether task.targets names columns of its table.
    one_channel: whether each image is a case of its own.
    number: name and unit of the number that it gives as a target; "" for a unit that it does not know.
    check: function (config, refuse) with further rules; refuse(key, got, wanted) raises.
    warn: function (data, cases, log) that warns of what may be wrong and is no error.
    found: function (data, cases) that returns {key: value} of what lies there, for the log's line of the cases.
    meaning: {key: value} of what decides how an image of it is to be understood.
    record: what a network must know of it for prediction, stored with the checkpoint.
    besides: function (data, asked, left_out) that returns {column: {case id: text or None}} of the columns `asked` of
        its table or, where none are, of those that say where a case is from.
    prepare: function (cases, data, wanted, log, workers) that returns the Prepared cases, see `sources.prepare`.
    """

    list: Callable
    gives: tuple[str, ...]
    needs: tuple[tuple[str, ...], str]
    geometry: bool
    keys: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    reads_csv: bool = False
    reads_root: bool = True
    columns: Callable = lambda data: False
    one_channel: bool = False
    number: tuple[str, str] = ("value", "")
    check: Callable = lambda config, refuse: None
    warn: Callable = lambda data, cases, log: None
    found: Callable = lambda data, cases: {}
    meaning: Callable = lambda data: {f"data.{name}": getattr(data, name) for name in _MEANING}
    record: Callable = lambda data: {}
    besides: Callable = lambda data, asked, left_out: {}
    prepare: Callable = cache.prepare

    def __post_init__(self):
        for name in ("list", "columns", "check", "warn", "found", "meaning", "record", "besides", "prepare"):
            if not callable(getattr(self, name)):
                raise ValueError(f"{name}: got {getattr(self, name)!r}, wanted a function")
        if not isinstance(self.gives, tuple) or not self.gives or not set(self.gives) <= set(VOLUME_LABELS):
            raise ValueError(f"gives: got {self.gives!r}, wanted a tuple of {', '.join(VOLUME_LABELS)}")
        for name in ("geometry", "reads_csv", "reads_root", "one_channel"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}: got {getattr(self, name)!r}, wanted True or False")
        keys, text = self.needs if isinstance(self.needs, tuple) and len(self.needs) == 2 else (None, None)
        if not isinstance(keys, tuple) or not isinstance(text, str):
            raise ValueError(f"needs: got {self.needs!r}, wanted (keys, what the user should give)")
        check_declared("keys, options, needs", (*self.keys, *self.options, *self.needs[0]))
        if self.geometry == (self.prepare is not cache.prepare):
            wanted = "that of volumes" if self.geometry else "a function of its own"
            raise ValueError(f"prepare: got {self.prepare!r}, wanted {wanted} for geometry={self.geometry}")

    @property
    def own_keys(self):
        """Every key of the config that it reads and that some other source does not."""
        return self.keys + (_VOLUME_KEYS if self.geometry else ())
