"""Which epochs are kept."""

import types

import pytest

from fomo import checkpoint
from fomo.run_folder import FoldFolder
from fomo.training import selection
from fomo.training.kept import Kept

TASK = types.SimpleNamespace(select="auroc", higher_is_better=True, is_best=None)


def test_the_best_epoch_needs_a_defined_metric_and_ties_go_to_the_lower_loss():
    def row(auroc, val_loss):
        return {"val_auroc": auroc, "val_loss": val_loss}

    def beats(row, history):
        return selection.place_of(TASK, row, history) == 1

    nan = float("nan")
    assert not beats(row(nan, 0.1), [])
    assert beats(row(0.5, 9.0), [row(nan, 0.1)])
    assert not beats(row(0.8, 0.5), [row(0.8, 0.5)])
    assert beats(row(0.8, 0.4), [row(0.8, 0.5), row(0.7, 0.1)])
    assert not beats(row(0.7, 0.0), [row(0.8, 0.5)])


def files(folder):
    return {path.name: checkpoint.load(path)["epoch"] for path in folder.iterdir()}


@pytest.mark.parametrize("every", [1, 2, 3, 7])
def test_the_best_epochs_are_kept_in_their_order(tmp_path, every):
    history, scores = [], [0.5, 0.7, 0.6, 0.65, 0.2, float("nan"), 0.7]
    kept = Kept(FoldFolder(tmp_path, 1).kept(3))
    for epoch, auroc in enumerate(scores, start=1):
        row = {"val_auroc": auroc, "val_loss": 1.0}
        place = selection.place_of(TASK, row, history)
        history.append(row)
        if place <= 3:
            kept.add(place, {"epoch": epoch})
        if epoch % every == 0:
            kept.write()
            assert not kept.write(), "once"
    kept.write()
    assert files(tmp_path) == {"best.pt": 2, "best_2.pt": 7, "best_3.pt": 4}


def test_early_stopping_counts_epochs_without_a_lower_loss_than_the_lowest():
    def stops(losses, patience, min_delta=0.0):
        train = types.SimpleNamespace(patience=patience, min_delta=min_delta)
        return selection.stop_early(train, [{"val_loss": loss} for loss in losses])

    assert not stops([], 1) and not stops([3, 4, 5, 6], None)
    assert not stops([3, 2, 2.5], 2) and stops([3, 2, 2.5, 2.0], 2)
    assert not stops([3, 2, 2.5, 1.9], 2) and stops([3, 2, 2.5, 1.9], 2, min_delta=0.5)


def test_epochs_that_are_trained_once_more_are_forgotten(tmp_path):
    paths = FoldFolder(tmp_path, 1).kept(3)
    for path, epoch in zip(paths, (4, 1, 2)):
        checkpoint.save(path, {"epoch": epoch})

    def left(count, epoch):
        Kept(paths[:count]).forget_after(epoch)
        return files(tmp_path)

    assert left(1, 3) == left(3, 4) == {"best.pt": 4, "best_2.pt": 1, "best_3.pt": 2}
    assert left(3, 3) == {"best.pt": 1, "best_2.pt": 2}
    assert left(3, 0) == {}
