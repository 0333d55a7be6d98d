"""The READMEs say what the code does: keys, files, links, commands and snippets."""

import functools
import re
import shlex

import pytest
from conftest import ROOT, run_command

from fomo import kinds
from fomo.runs import settings

PAGES = ["README.md", *(f"{folder}/README.md" for folder in ("configs", "fomo", "tools", "tests"))]
OTHERS = ("torchrun", "pytest", "pip", "docker", "apptainer", "sbatch", "git", "tensorboard", "track.py")


def text(page):
    return (ROOT / page).read_text()


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), re.DOTALL | re.MULTILINE)


def commands(page):
    """The words of each command of this project in a page's shell blocks, from the script's name on."""
    found = []
    for line in "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
        words = shlex.split(line.split("  #")[0].replace("$task", "1").replace("&&", " ").replace("; done", " "))
        scripts = [i for i, word in enumerate(words) if word.endswith(".py") or word == "tools/benchmark"]
        found += [words[scripts[0] :]] if scripts else []
    return found


def test_the_first_page_is_short():
    page = text("README.md")
    assert len(page.encode()) < 12_000 and page.count("\n") <= 200


def test_the_picture_is_light():
    assert (ROOT / "tools" / "report.png").stat().st_size < 60_000


def test_the_key_list_is_the_helps():
    assert f"```text\n{kinds.describe_keys()}\n```" in text("configs/README.md")


def test_help_prints_every_key():
    for script in ("cv.py", "train.py"):
        done = run_command(script, "--help")
        assert done.returncode == 0 and kinds.describe_keys() in done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_named_files_exist(page):
    for name in set(re.findall(r"(?:configs|tools|tests|fomo)/[\w/.]+\w", text(page))):
        paths = [ROOT / name.replace("$task", str(task)) for task in (1, 2, 3)]
        assert all(path.exists() for path in paths) or (ROOT / f"{name}1.yaml").exists(), name


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_pages_and_headings(page):
    for target in re.findall(r"\]\(([^)]+)\)", text(page)):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        path = (ROOT / page).parent / path if path else ROOT / page
        path = path / "README.md" if path.is_dir() else path
        assert path.exists(), target
        headings = [] if path.suffix == ".png" else re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
        anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in anchors, f"{target}: {anchors}"


@functools.cache
def help_of(script):
    done = run_command(script, "--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_understood(page):
    """Configs exist and their keys are taken; of tools the options stand in their help."""
    for script, *words in commands(page):
        if script in OTHERS or not (ROOT / script).exists():
            assert script in OTHERS, script
            continue
        config = next((word for word in words if word.endswith(".yaml") and (ROOT / word).exists()), None)
        if config is not None:
            given = [word for word in words if re.match(r"[a-z_]+(\.[a-z_]+)*=", word)]
            settings.read(ROOT / config, given) if script == "tools/search.py" else kinds.load(ROOT / config, given)
        assert config or script not in ("cv.py", "train.py") or "my.yaml" in words, (script, words)
        options = {word.split("=")[0] for word in words if word.startswith("--")}
        missing = [option for option in options if option not in help_of(script)]
        assert not missing, (script, missing)


def test_snippets_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippets = blocks("README.md", "python")
    assert len(snippets) == 3
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {})
    assert not list(tmp_path.iterdir())
