"""What rank 0 finds reaches every rank whole, and long lists in parts."""

import json
import textwrap

from conftest import ROOT, run_command

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
