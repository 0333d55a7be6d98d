"""What the report shows of each task: one file per task, and a view for tasks that have none.

A new task needs nothing here; to show more than the plain view does it gets a file with `VIEW = View(...)` that names
only what it shows in its own way, and a line in VIEWS.
"""

from ..classification import Classification
from ..dino import Dino
from ..mae import MaskedAutoencoder
from ..multilabel import Multilabel
from ..multitarget import Multitarget
from ..regression import Regression
from ..segmentation import Segmentation
from . import classification, dino, mae, multilabel, multitarget, regression, segmentation
from .view import View

VIEWS = {
    Classification: classification.VIEW,
    Multitarget: multitarget.VIEW,
    Multilabel: multilabel.VIEW,
    Segmentation: segmentation.VIEW,
    Regression: regression.VIEW,
    MaskedAutoencoder: mae.VIEW,
    Dino: dino.VIEW,
}


def of(run):
    """The View of a run's task."""
    return VIEWS.get(type(run.task), View())
