"""The inputs of fuzz.py by kind: how one is made, and how it is read."""

from fuzz_checkpoints import check_checkpoint, make_checkpoint
from fuzz_images import check_array, check_nifti, make_array, make_nifti
from fuzz_texts import check_config, check_table, make_config, make_table

KINDS = {
    "config": (make_config, check_config),
    "nifti": (make_nifti, check_nifti),
    "array": (make_array, check_array),
    "checkpoint": (make_checkpoint, check_checkpoint),
    "table": (make_table, check_table),
}
