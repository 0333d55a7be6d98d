"""Score predictions against references: masks, or tables of probabilities or of numbers.

  python tools/evaluate.py --predictions answers --references data/labels
  python tools/evaluate.py --predictions answers/predictions.csv --references targets.csv --output scores

  python tools/evaluate.py --predictions answers --references multi_abnormality_labels.csv    (chest CT)

Masks pair by name (ID.nii.gz; SUB/SES/seg.nii.gz is the case SUB_SES), tables by the column id. Every case must be on
both sides. The targets of a table are in the column that the networks learned, or in --column; classes are called as
there, or 0 and 1. For predicted masks it names masks in its column `mask`, or --column. Intervals draw whole subjects
where a column `subject` or the folders SUB tell them. Writes evaluation_cases.csv (one row a case, lesions counted),
evaluation.csv and evaluation.json (with intervals).
--part NAME scores one of several tasks that were learned together, as if it were alone.
--challenge fomo26 adds its Dice and surface Dice (surface elements, 1 mm; two empty masks: 1 and 0) as columns of their
own, fomo26_dice and fomo26_nsd, of each class and of their mean.
"""

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from fomo import cli, metrics
from fomo.evaluation import evaluate
from fomo.runtime.log import Log

_COLUMNS = (
    ("--column", "of the targets in the CSV; default: what the networks learned, or else target, label or age"),
    ("--id-column", "of the case ids in the CSV; default: id (chest CT: VolumeName or id)"),
    ("--subject-column", "of the subjects in the CSV, for the intervals; default: subject"),
)


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    predictions = "folder of tools/predict.py or of a run, folder of masks, or CSV"
    parser.add_argument("--predictions", required=True, help=predictions)
    references = "folder of masks or of label.txt files, or CSV with id and target, or id and mask"
    parser.add_argument("--references", required=True, help=references)
    for flag, text in _COLUMNS:
        parser.add_argument(flag, metavar="NAME", help=text)
    parser.add_argument("--output", help="folder of the results; default: beside the predictions")
    parser.add_argument("--tolerance-mm", type=float, default=1.0, help="of the surface Dice (1)")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples of the intervals (1000; 0: none)")
    parser.add_argument("--part", metavar="NAME", help="task.type=multitask: the part that is scored")
    parser.add_argument("--challenge", choices=metrics.CHALLENGES, help="score masks as this challenge does, too")
    options = parser.parse_args(arguments)
    place, log = options.predictions, Log()
    beside = place if os.path.isdir(place) else os.path.dirname(os.path.abspath(place))
    columns = evaluate.Columns(options.column, options.id_column, options.subject_column)
    kind, rows, summary = evaluate.evaluate(
        place,
        options.references,
        options.tolerance_mm,
        options.bootstrap,
        columns=columns,
        log=log,
        challenge=options.challenge,
        part=options.part,
    )
    evaluate.write(kind, rows, summary, options.output or beside)
    for name, values in summary.items():
        log("evaluate", metric=name, **evaluate.printed(values))
    if options.bootstrap:
        log("evaluate", intervals=evaluate.COVERS)


if __name__ == "__main__":
    cli.run(main)
