"""What a prediction holds at once: no more for many networks than for two, and no more for many cases than for one."""

import os
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT

from fomo.prediction import loop
from fomo.runtime.log import Log

CPU = torch.device("cpu")

SCRIPT = """
import sys
sys.path.insert(0, {root!r})
import os, tempfile, types, numpy as np, torch
from fomo import config, tasks
from fomo.inference import WindowOptions
from fomo.prediction import folder, members
from fomo.space import volume
torch.set_num_threads(1)
classes, size = 12, 96
task = tasks.build(config.Config(task=config.Task(type="segmentation", classes=classes)))
task.state["postprocess"] = {{"fill_holes": False, "minimum_mm3": 0.0, "largest": False}}
weights = torch.randn(classes, 1, 1, 1)
case = types.SimpleNamespace(id="a", files=(types.SimpleNamespace(path="a.npy"),))

def peak_after(size, patch):
    windows = WindowOptions((patch,) * 3, device=torch.device("cpu"))
    several = [types.SimpleNamespace(task=task, network=lambda x: x * weights, windows=windows)] * {members}
    array = np.random.default_rng(0).random((size, size, size), dtype=np.float32)
    image, _, geometry = volume.preprocess([array], np.diag([-1.0, -1.0, 1.0, 1.0]))
    _, volumes = members.answer(several, members.infer(several, case, image, (0.0,)), geometry)
    with tempfile.TemporaryDirectory() as place:
        for name in ("mask", "probabilities")[: 1 + {written}]:
            folder.write_volume(os.path.join(place, name + ".nii"), volumes[name], case, geometry)
    # not by getrusage, which also counts what the process was started from
    [line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM:")]
    return int(line.split()[1]) * 1024

begin = peak_after(24, 16)  # so that all libraries are there
found = (peak_after(size, {patch}) - begin) / (4 * classes * size**3)
print(found - 2 / classes)  # less the scan and what is made of it
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
@pytest.mark.parametrize(
    "members, patch, written, most", [(1, 24, True, 1.5), (5, 24, True, 1.5), (1, 72, False, 1.5), (3, 48, False, 1.8)]
)
def test_copies_of_the_probabilities_of_all_classes(members, patch, written, most):
    """The mean, the last window, and some volumes of one class; of many networks also the planes of a window."""
    script = SCRIPT.format(root=str(ROOT), members=members, patch=patch, written=written)
    # by itself the C library keeps some 60 MB, which are little beside large volumes, and more than one of these
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < most


@pytest.mark.parametrize("limit, most", [(799, 1), (1600, 3), (10**6, 4)])
def test_networks_wait_while_much_is_being_written(monkeypatch, limit, most):
    class Reader:
        what, counted, together, threads = "case", "cases", 1, 1
        timed = in_space = False
        subjects, volumes = (), ()
        members = [SimpleNamespace(subjects=frozenset(), path="", amp="off", windows=SimpleNamespace(device=CPU))]
        members[0].config, members[0].task = (
            SimpleNamespace(model=SimpleNamespace(name="unet_b")),
            SimpleNamespace(weight=1.0),
        )
        items = [SimpleNamespace(id=str(number)) for number in range(6)]
        held, most, lock = 0, 0, threading.Lock()

        def size(self, item):
            return 1

        def read(self, item):
            return item.id

        def warn(self, items, log):
            pass

        def infer(self, read):
            with self.lock:
                self.held += 1
                self.most = max(self.most, self.held)
            return [([np.zeros(100)], None)]

        def answer(self, item, said, folder):
            time.sleep(0.02)
            with self.lock:
                self.held -= 1
            return {"x": 1}, ()

        def shown(self, row):
            return row

    folder = SimpleNamespace(path="", begin=lambda items, *_: items, add=lambda *_: None, save=lambda: None)
    log = Log(active=False)
    monkeypatch.setattr(loop, "_HELD", limit)
    reader = Reader()
    loop.predict(reader, folder, log)
    assert reader.most == most and reader.held == 0
