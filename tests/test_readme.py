"""The READMEs say what the code does: keys, files, links and snippets; commands: test_readme_commands.py."""

import re

import pytest
from conftest import ROOT, run_command

from fomo import kinds

PAGES = ["README.md", *(f"{folder}/README.md" for folder in ("configs", "fomo", "tools", "tests"))]


def text(page):
    return (ROOT / page).read_text()


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), re.DOTALL | re.MULTILINE)


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


def test_snippets_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippets = blocks("README.md", "python")
    assert len(snippets) == 3
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {})
    assert not list(tmp_path.iterdir())
