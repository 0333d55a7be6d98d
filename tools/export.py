"""Write a checkpoint for others to load, make a model soup of a run's folds, or weigh the runs of an ensemble.

  python tools/export.py runs/task1/fold_1/best.pt --output weights.pt                 {name: tensor}, for plain PyTorch
  python tools/export.py runs/mae/fold_1/best.pt --output weights.ckpt --for baseline  for the FOMO25, FOMO26 baselines
  python tools/export.py runs/task1 --soup greedy --output soup.pt                     for tools/predict.py
  python tools/export.py runs/ct_a runs/ct_b --weights auto --output ensemble          the same, of all their networks

Names and shapes are those of the baselines' networks; of a DINO run the teacher's backbone is written. For a baseline
they stand in `state_dict` behind `model.`, with the second names that the residual-encoder U-Net has there.

A soup averages the folds' weights: `uniform` all of them, `greedy` those that do not lower the score on the validation
cases. It needs folds that were fine-tuned from one weights.path.

--weights auto writes the networks of several runs with the same folds into a folder, each with how much its answers
count. That is searched on the validation cases that all runs have in common, and stays equal unless it is better by
more than chance on cases that have not chosen it; see fomo/runs/weights.py.
"""

import argparse
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from fomo import checkpoint, cli
from fomo.config import UserError
from fomo.prediction import members
from fomo.runs import final, weights
from fomo.runtime.log import Log


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = "best.pt, with --soup a run folder, with --weights several"
    parser.add_argument("sources", nargs="+", metavar="CHECKPOINT_OR_RUN", help=which)
    parser.add_argument("--output", required=True, metavar="FILE", help="with --weights a folder")
    parser.add_argument("--prefix", default="", help="before every tensor's name, for example model.")
    parser.add_argument("--for", dest="reader", choices=("plain", "baseline"), default="plain", help="who will load it")
    parser.add_argument("--soup", choices=("uniform", "greedy"), help="make one model of all folds")
    parser.add_argument("--weights", choices=("auto",), help="make one ensemble of several runs")
    options = parser.parse_args(arguments)
    log = Log()
    if os.path.exists(options.output):
        raise UserError(f"--output: {options.output} exists: delete it, or choose another name")
    if bool(options.soup) + bool(options.prefix) + (options.reader != "plain") + bool(options.weights) > 1:
        parser.error("--soup, --prefix, --for, --weights: wanted one of them (make a soup first, then export it)")
    if options.weights:
        return weights.export(options.sources, options.output, log)
    [source, *others] = options.sources
    if others:
        parser.error(f"got {len(options.sources)} sources, wanted one, or --weights auto")
    if options.soup:
        content = final.make_soup(source, options.soup, log)
        log("checkpoint", path=options.output, soup=content["soup"])
    else:
        paths = members.find_checkpoints(source)
        if len(paths) > 1:
            raise UserError(f"{source}: holds {len(paths)} checkpoints, wanted one: give fold_K/best.pt, or --soup")
        model = checkpoint.load(paths[0]).get("model")
        if not isinstance(model, dict):
            raise UserError(f"{paths[0]}: no model in it, wanted a checkpoint that cv.py wrote (best.pt)")
        model = checkpoint.downstream(model)
        parameters = sum(tensor.numel() for tensor in model.values())
        if options.reader == "baseline":
            if any(name.endswith("decoder.share") for name in model):
                wanted = "one of a pretraining, a segmentation, or trained with model.head=linear"
                raise UserError(f"{paths[0]}: got a multistage head, which no baseline has, wanted {wanted}")
            model, options.prefix = checkpoint.with_aliases(model), "model."
        content = {options.prefix + name: tensor for name, tensor in model.items()}
        log("checkpoint", path=options.output, tensors=len(content), parameters=parameters)
        content = {"state_dict": content} if options.reader == "baseline" else content
    checkpoint.save(options.output, content)


if __name__ == "__main__":
    cli.run(main)
