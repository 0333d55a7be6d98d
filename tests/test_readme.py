"""The README says what the code does."""

from conftest import ROOT, run_command

from fomo import kinds

README = (ROOT / "README.md").read_text()


def test_the_key_list_is_the_helps():
    assert f"```text\n{kinds.describe_keys()}\n```" in README


def test_help_prints_every_key():
    for script in ("cv.py", "train.py"):
        done = run_command(script, "--help")
        assert done.returncode == 0 and kinds.describe_keys() in done.stdout


def test_named_files_exist():
    import re

    for name in set(re.findall(r"(?:configs|tools|tests|fomo)/[\w/.]+\w", README)):
        paths = [ROOT / name.replace("$task", str(task)) for task in (1, 2, 3)]
        assert all(path.exists() for path in paths) or (ROOT / f"{name}1.yaml").exists(), name
