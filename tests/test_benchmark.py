"""Every part of the benchmark runs, at toy size: its figures are for people, that it runs is for this test."""

import pytest
from conftest import run_command


@pytest.mark.parametrize(
    "part, options, said",
    [
        ("manifest", ["--cases", 40, "--ranks", 1], "start step=warm cases=40"),
        ("gpu", ["--turns", 1, "--parts", "chip", "fed"], "fed who=fomo"),
        ("gpu", ["--turns", 1, "--parts", "evaluated"], "same_dice=true"),
        ("gpu", ["--minutes", 0], "left_out part=compile"),
        ("inference", ["--turns", 1], "memory case=windows_two_channels"),
        ("growth", ["--cases", 160], "what=evaluation"),
        ("growth", ["--cases", 40], "members=5"),
        ("start", ["--turns", 1], "case=first_eta"),
        ("saving", ["--turns", 1, "--width", 2], "who=each_epoch"),
        ("mae", ["--turns", 1, "--patch", 32, "--batch", 1], "mae case=unet_b_lw_dec_32"),
        ("slices", ["--turns", 1, "--slices", 16, "--batch", 8], "who=fomo"),
        pytest.param(
            "data",
            ["--turns", 1, "--cases", 2, "--parts", "waiting", "--width", 2],
            "waiting workers=2",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_part_runs(part, options, said):
    done = run_command("tools/benchmark", part, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert said in done.stdout and "\nfailed " not in done.stdout, done.stdout
