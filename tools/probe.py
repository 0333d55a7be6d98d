"""What do embeddings tell, and how evenly? Linear probe and fairness by the protocol of FOMO26 (tasks 6 and 7).

  python tools/probe.py embeddings --table subjects.csv --target selected_cohort --groups sex age:25|50|75
  python tools/probe.py embeddings.npy --table subjects.csv --target sex --seeds 42 --output probe_sex

The embeddings are a folder of ID.npy, as tools/embed.py writes it, or an array with a row per line of the table. The
table has the column id (or ptid), the classes, and the groups: a column as it is, or numbers in bins by their edges.
Writes probe.html, probe.json, probe.csv, fairness.csv and predictions.csv; a probe of other inputs
there is refused. (tools/probe_stages.py tells what each encoder stage of a network knows of a config's task.)
"""

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from fomo import cli
from fomo.runtime.log import Log


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("embeddings", metavar="EMBEDDINGS", help="folder of ID.npy, or an array (lines, numbers)")
    parser.add_argument("--table", required=True, metavar="FILE.csv", help="a line per case")
    parser.add_argument("--target", required=True, metavar="COLUMN", help="of the classes")
    parser.add_argument(
        "--groups", nargs="+", default=[], metavar="COLUMN[:EDGES]", help="as sex age:25|50|75; commas are taken, too"
    )
    parser.add_argument("--id-column", metavar="COLUMN", help="default: id or ptid")
    parser.add_argument("--subject-column", default="subject", metavar="COLUMN", help="default: subject, or the id")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="of the splits; default: 42 43 44 45 46")
    parser.add_argument("--bootstrap", type=int, default=1000, help="resamples of the intervals (1000)")
    parser.add_argument("--output", metavar="DIR", help="default: EMBEDDINGS_probe_COLUMN beside them")
    parser.add_argument("--overwrite", action="store_true", help="replace a probe of other inputs in --output")
    options = parser.parse_args(arguments)
    from fomo.evaluation import probe  # torch, which a wrong argument does not wait for

    place, groups = options.embeddings, [name for text in options.groups for name in text.split(",") if name]
    asked = options.table, options.target, groups, options.id_column, options.subject_column
    output = options.output or os.path.abspath(place).removesuffix(".npy") + f"_probe_{options.target}"
    subjects, seeds, log = probe.read_subjects(*asked), tuple(options.seeds or probe.SEEDS), Log()
    given = probe.inputs(place, output, *asked, seeds)
    if not options.overwrite:
        probe.refuse_another(output, given, "wanted another --output, or --overwrite")
    found = probe.run(probe.read_embeddings(place, subjects), subjects, seeds, options.bootstrap, log)
    title = f"Linear probe: {options.target} from {os.path.basename(os.path.abspath(place))}"
    log("report", path=probe.write(found, output, title, given))


if __name__ == "__main__":
    cli.run(main)
