"""nnU-Net v2 as an arm of `peers.py`: as it is, in this process, but for how long it trains.

The planner makes its 3d_fullres plan of the cases that the others train and select on. Network, loss, sampling,
augmentation, optimizer, polynomial rate, windows and mirroring are its own. Its epochs are not: the rate is a function
of the CPU-seconds, and what would be validated and saved after each epoch is left out. Batches are made here, not by
processes that nobody counts. On a CPU it computes in float32 by itself.
"""

import json
import os

import arms
import nibabel
import numpy as np
import torch

from fomo.runtime import files


def masks(folder, parts, seed, cpu_s, *, width=None, bf16=0, mirror=1):
    """(CPU-seconds, steps, rows of the test cases).

    folder: where its own folders go. parts: {train, val, test: [{id, image: paths of the channels, mask}]}.
    width: channels of the first stage; the others in proportion (None: as planned). bf16, mirror: whether.
    """
    root = folder / f"nnunet_n{len(parts['train'])}"
    os.environ |= {f"nnUNet_{name}": str(root / name) for name in ("raw", "preprocessed", "results")}
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1"}
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    plans, dataset = plan(root, parts, seed)
    stages = plans["configurations"]["3d_fullres"]["architecture"]["arch_kwargs"]
    if width:
        planned = stages["features_per_stage"]
        stages["features_per_stage"] = [int(features * width / planned[0]) for features in planned]
    os.environ["nnUNet_n_proc_DA"] = "0"  # batches are made in this process; its planner fails with 0
    torch.manual_seed(seed)
    np.random.seed(seed)
    trainer = nnUNetTrainer({**plans, "continue_training": False}, "3d_fullres", 0, dataset, torch.device("cpu"))
    trainer.on_train_start()
    trainer.network.forward = in_bf16(trainer.network.forward) if bf16 else trainer.network.forward
    spent, steps = train(trainer, cpu_s)
    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(
        use_mirroring=bool(mirror), perform_everything_on_device=False, device=trainer.device, allow_tqdm=False
    )
    what = trainer.network.eval(), trainer.plans_manager, trainer.configuration_manager, [trainer.network.state_dict()]
    predictor.manual_initialization(*what, dataset, "nnUNetTrainer", trainer.inference_allowed_mirroring_axes)
    return spent, steps, list(rows(predictor, root / "masks", parts["test"]))


def in_bf16(forward):
    """The forward pass of a network in bfloat16; its outputs, and so its losses, are of float32."""

    def cast(image):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = forward(image)
        return [output.float() for output in outputs] if isinstance(outputs, (list, tuple)) else outputs.float()

    return cast


def train(trainer, cpu_s):
    """(CPU-seconds, steps)."""
    began, steps = arms.cpu_s(), 0
    trainer.network.train()
    while (share := (arms.cpu_s() - began) / cpu_s) < 1:
        trainer.optimizer.param_groups[0]["lr"] = trainer.initial_lr * (1 - share) ** 0.9
        loss = float(trainer.train_step(next(trainer.dataloader_train))["loss"])
        steps += 1
        if steps % 10 == 1:
            print(f"nnunet steps={steps} cpu_s={arms.cpu_s() - began:.0f} loss={loss:.4g}", flush=True)
    return arms.cpu_s() - began, steps


def rows(predictor, folder, cases):
    """Yield the row of each case, whose mask is on the grid of its files."""
    os.makedirs(folder, exist_ok=True)
    for case in cases:
        predictor.predict_from_files_sequential([case["image"]], [str(folder / case["id"])])
        yield arms.dice_row(case, nibabel.load(folder / f"{case['id']}.nii.gz").get_fdata() == 1)


def plan(root, parts, seed):
    """(plans, dataset.json) of the cases that the others train and select on, which are preprocessed."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    name, cases = f"Dataset{seed + 1:03d}_peers", parts["train"] + parts["val"]
    raw, ready = root / "raw" / name, root / "preprocessed" / name
    for case in cases:
        links = {f"imagesTr/{case['id']}_{place:04d}": path for place, path in enumerate(case["image"])}
        for link, path in (links | {f"labelsTr/{case['id']}": case["mask"]}).items():
            os.makedirs((raw / link).parent, exist_ok=True)
            (raw / f"{link}.nii.gz").unlink(missing_ok=True)
            (raw / f"{link}.nii.gz").symlink_to(path)
    names = {str(place): f"channel_{place}" for place in range(len(cases[0]["image"]))}
    about = dict(channel_names=names, labels={"background": 0, "lesion": 1}, numTraining=len(cases))
    files.write_json(raw / "dataset.json", {**about, "file_ending": ".nii.gz"})
    if not (ready / "splits_final.json").exists():
        api.extract_fingerprints([seed + 1], num_processes=1)
        api.plan_experiments([seed + 1])
        api.preprocess([seed + 1], configurations=["3d_fullres"], num_processes=[1])
        ids = {part: [case["id"] for case in parts[part]] for part in ("train", "val")}
        files.write_json(ready / "splits_final.json", [ids])
    return json.loads((ready / "nnUNetPlans.json").read_text()), json.loads((raw / "dataset.json").read_text())
