"""What rank 0 finds reaches every rank whole, and long lists in parts; threads of a rank."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
from conftest import ROOT, run_command

from fomo.runtime import dist

SCRIPT = """
    import json, sys
    sys.path.insert(0, {root!r})
    from fomo.runtime import dist

    dist.init()
    sizes, broadcast = [], dist._broadcast

    def counted(value):
        value = broadcast(value)
        sizes.append(len(value) if isinstance(value, list) else value)
        return value

    dist._PART, dist._broadcast = 4, counted
    found = [dist.on_main(lambda: value) for value in (list("abcdefghij"), list("abcd"), [], {{"a": 1}}, None)]
    with open({folder!r} + f"/{{dist.rank()}}.json", "w") as file:
        json.dump([found, sizes], file)
    dist.close()
"""


def test_lists_reach_all_ranks_in_parts(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT.format(root=str(ROOT), folder=str(tmp_path))))
    done = run_command(script, ranks=2)
    assert done.returncode == 0, done.stderr
    wanted = [list("abcdefghij"), list("abcd"), [], {"a": 1}, None]
    for rank in range(2):
        found, sizes = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == wanted
        assert sizes == [3, 4, 4, 2, 0, 4, 0, 0, 0, {"a": 1}, 0, None]


ASKED = "from fomo.runtime import dist; print(dist._threads_are_asked_for())"
LAUNCHER = f"""
import os, subprocess, sys
os.environ.setdefault("OMP_NUM_THREADS", sys.argv[1])  # as torchrun does
subprocess.run([sys.executable, "-c", {ASKED!r}])
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="the launcher's environment cannot be read here")
@pytest.mark.parametrize("users, launchers, asked", [(None, "1", False), ("1", "1", True), (None, "4", True)])
def test_threads_that_the_launcher_has_set_are_not_the_users(users, launchers, asked):
    own = {name: text for name, text in os.environ.items() if name != "OMP_NUM_THREADS"}
    own |= {"PYTHONPATH": str(ROOT), **({"OMP_NUM_THREADS": users} if users else {})}
    done = subprocess.run([sys.executable, "-c", LAUNCHER, launchers], env=own, capture_output=True, text=True)
    assert done.stdout.strip() == str(asked), done.stderr


def test_ranks_share_the_cores_of_their_machine(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")
    for ranks, threads in (("4", 4), ("32", 1)):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", ranks)
        assert dist._share_of_cores() == threads
