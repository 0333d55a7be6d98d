"""Write a checkpoint for others to load, or make a model soup of a run's folds.

  python tools/export.py runs/task1/fold_1/best.pt --output weights.pt                 {name: tensor}, for plain PyTorch
  python tools/export.py runs/task1/fold_1/best.pt --output weights.pt --prefix model. for the FOMO25 baseline
  python tools/export.py runs/task1 --soup greedy --output soup.pt                     for tools/predict.py

Names and shapes are those of the baseline's UNet-B; of a DINO run the teacher's backbone is written. A soup averages
the folds' weights: `uniform` all of them, `greedy` those that do not lower the score on the validation cases. It needs
folds that were fine-tuned from one weights.path.
"""

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from fomo import checkpoint, cli
from fomo.config import UserError
from fomo.prediction import members
from fomo.runs import final
from fomo.runtime.log import Log


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="CHECKPOINT_OR_RUN", help="best.pt, or with --soup a run folder")
    parser.add_argument("--output", required=True, metavar="FILE")
    parser.add_argument("--prefix", default="", help="before every tensor's name, for example model.")
    parser.add_argument("--soup", choices=("uniform", "greedy"), help="make one model of all folds")
    options = parser.parse_args(arguments)
    log = Log()
    if os.path.exists(options.output):
        raise UserError(f"--output: {options.output} exists: delete it, or choose another name")
    if options.soup:
        if options.prefix:
            parser.error("--prefix and --soup: make the soup first, then export it")
        content = final.make_soup(options.source, options.soup, log)
        log("checkpoint", path=options.output, soup=content["soup"])
    else:
        paths = members.find_checkpoints(options.source)
        if len(paths) > 1:
            raise UserError(
                f"{options.source}: holds {len(paths)} checkpoints, wanted one: give fold_K/best.pt, or --soup"
            )
        model = checkpoint.load(paths[0]).get("model")
        if not isinstance(model, dict):
            raise UserError(f"{paths[0]}: no model in it, wanted a checkpoint that cv.py wrote (best.pt)")
        model = checkpoint.downstream(model)
        content = {options.prefix + name: tensor for name, tensor in model.items()}
        parameters = sum(tensor.numel() for tensor in model.values())
        log("checkpoint", path=options.output, tensors=len(content), parameters=parameters)
    checkpoint.save(options.output, content)


if __name__ == "__main__":
    cli.run(main)
