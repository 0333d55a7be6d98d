"""Configs and tables for fuzz.py: make(folder, rng) writes one (None: undamaged), check(folder, given) reads it."""

import copy
import functools
import os
import pathlib
import re

import numpy as np
import yaml
from fuzz_damage import CANARY, ROOT, TOUCH, damage, pick

from fomo import config as config_module
from fomo import kinds, tasks
from fomo.data import cache, cases, sources
from fomo.evaluation import evaluate
from fomo.prediction.inputs import cases_from_table
from fomo.run_folder import RunFolder
from fomo.runs import splits
from fomo.runtime.log import Log

# ------------------------------------------------------------------------------------------- configs

_TEXTS = [
    "", "none", "~", "no", "é\u202e\u0000", "\ud7ff", "x" * 5000, "../../../etc/passwd", "/dev/zero", "/dev/stdin",
    "-1", "1e400", "nan", ".inf", "0x" + "f" * 6000, "9" * 4000, "9" * 5000, "190:20:30", "2026-11-21", "[", "{",
    "*a", "&a", "!!binary aGk=", "a=b", "%s%n", "{}", "\x1b[31m",
]  # fmt: skip
_VALUES = [
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, 10**4000, -(10**400), 0.0, -0.5, 1e308, float("inf"), float("nan"),
    [], [[]], [None], [1, 2], [1] * 500, [16, 16, 16], [1, 2, 3, 4], ["a", "a"], {}, {"a": 1}, {"a": {"b": {}}},
    {"p": 2}, {"rotate": {"p": "x"}}, {"rotate": 3}, b"bytes", *_TEXTS,
]  # fmt: skip
_YAML = [
    f'!!python/object/apply:os.system ["{TOUCH}"]', f"!!python/object/new:subprocess.Popen [['touch', '{CANARY}']]",
    "!!python/name:os.system", "!!python/module:os", "!!python/tuple [1]", "!!set {a, b}", "!!omap [a: 1]",
    "!!timestamp 2026-99-99", "!!int x", "!!float x", "!!bool x", "!!null x", "!!binary '!'", "!!str [1]",
    "!!map [1]", "!!seq {a: 1}", "!unknown x", "&a {x: *a}", "&a [*a]", "*nobody", "<<: {name: x}", "? [a]\n: b",
    "? {a: b}\n: c", "---\nname: b", "%YAML 9.9\n---", "- a\n- b", "'", '"', "\t", "@", "`", "|\n", ">\n x",
    "{" * 50, "[" * 50, "name: a\nname: b", ": ", "1: 2", "null: 3",
]  # fmt: skip
_NAMES = [name for name, _, _ in config_module.fields(config_module.Config())]


@functools.lru_cache(maxsize=1)
def _config_texts():
    """{name: text} of the repository's configs and of one that sets every key."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "configs").glob("*.yaml"))}
    full = config_module.to_dict(config_module.Config())
    full["data"]["channels"] = ["t1", "t2"]
    return {**texts, "full.yaml": yaml.safe_dump(full)}


def _laughs(rng, kind):
    """Anchors of anchors: a few lines that stand for 9 ** 20 values."""
    width, depth = 9, int(rng.integers(6, 20))
    first = {"list": "[x, x]", "map": "{x: 1}", "merge": "{x: 1}"}[kind]
    lines = [f"a0: &a0 {first}"]
    for level in range(1, depth):
        below = f"*a{level - 1}"
        body = {
            "list": "[" + ", ".join([below] * width) + "]",
            "map": "{" + ", ".join(f"k{i}: {below}" for i in range(width)) + "}",
            "merge": "{<<: [" + ", ".join([below] * width) + "]}",
        }[kind]
        lines.append(f"a{level}: &a{level} {body}")
    return "\n".join(lines)


def _special_config(rng, folder):
    kind = rng.integers(13)
    many = int(10 ** rng.uniform(1, 5))
    if kind < 3:
        return _laughs(rng, ("list", "map", "merge")[kind]).encode()
    if kind == 3:
        return (pick(rng, "[{-(") * many).encode()
    if kind == 4:
        depth = min(many, 2000)
        return "".join(" " * level + f"{pick(rng, ('a', 'data', 'x'))}:\n" for level in range(depth)).encode()
    if kind == 5:
        return ("augment: {parameters: " + "{a: " * min(many, 3000) + "1" + "}" * min(many, 3000) + "}").encode()
    if kind == 6:
        return "".join(f"k{i}: {i}\n" for i in range(min(many, 20_000))).encode()
    if kind == 7:  # a chain of bases, which may close
        length = int(rng.integers(1, 60)) if rng.random() < 0.8 else 1500
        for i in range(length):
            (folder / f"b{i}.yaml").write_text(f"base: {'' if rng.random() < 0.5 else './'}b{i + 1}.yaml\nseed: {i}\n")
        last = pick(rng, ["name: end\n", "base: config.yaml\n", "base: b0.yaml\n", "base: .\n"])
        (folder / f"b{length}.yaml").write_text(last)
        return b"base: b0.yaml\n"
    if kind == 8:
        place = pick(
            rng,
            [
                "/dev/zero",
                "/dev/stdin",
                "/dev/null",
                "/etc/passwd",
                "..",
                "/",
                "fifo",
                "",
                "~",
                "x" * 5000,
                "a\0b",
                "../" * 50 + "etc/hosts",
            ],
        )
        if place == "fifo":
            os.mkfifo(folder / "fifo")
        return f"base: {yaml.safe_dump(place).removesuffix('...').strip() or repr('')}\n".encode()
    if kind == 9:
        return "name: é\n".encode(pick(rng, ["utf-16", "latin-1", "utf-32", "utf-8-sig", "cp500"]))
    if kind == 10:
        return b"name: " + pick(rng, [b"x", b"1", b"\0", b"\xff"]) * many
    if kind == 11:
        return b"# " + b"x" * many + b"\n" + b"\n" * many
    return rng.integers(256, size=min(many, 5000), dtype=np.uint8).tobytes()


def _change_tree(rng, tree):
    places = [(tree, name) for name in tree] + [
        (tree[s], name) for s in tree if isinstance(tree[s], dict) for name in tree[s]
    ]
    for _ in range(int(rng.integers(1, 5))):
        section, name = pick(rng, places) if places else (tree, "name")
        kind = rng.integers(5)
        if kind == 0:
            section.pop(name, None)
        elif kind == 1:
            section[pick(rng, ["x", "", "name", "é", f"{name}s", "base"])] = pick(rng, _VALUES)
        elif kind == 2 and isinstance(section.get(name), list) and section[name]:
            section[name][int(rng.integers(len(section[name])))] = pick(rng, _VALUES)
        else:
            section[name] = copy.deepcopy(pick(rng, _VALUES))
    return tree


def make_config(folder, rng):
    """(path, overrides)."""
    texts = _config_texts()
    path = folder / "config.yaml"
    if rng is None:
        path.write_text(texts["full.yaml"])
        return path, ["seed=3"]
    name = pick(rng, sorted(texts))
    for text in [texts[name]]:
        for base in re.findall(r"^base: *(\S+)", text, re.M):
            if base in texts:
                (folder / base).write_text(texts[base])
    data, kind = texts[name].encode(), rng.integers(10)
    overrides = []
    if kind < 3:
        data = damage(rng, data, [token.encode() for token in (*_YAML, ": ", "\n  ", "\n", "#", "base: ../x")])
    elif kind < 6:
        tree = _change_tree(rng, yaml.safe_load(texts[pick(rng, [name, "full.yaml"])]))
        data = yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")
    elif kind < 8:
        data = _special_config(rng, folder) if rng.random() < 0.7 else data + b"\n" + _special_config(rng, folder)
    elif kind == 8:  # a value written as YAML cannot be dumped
        lines = data.decode().splitlines()
        at = int(rng.integers(len(lines)))
        key, colon, _ = lines[at].partition(":")
        lines[at] = f"{key}{colon or ':'} {pick(rng, _YAML)}"
        data = "\n".join(lines).encode()
    else:
        for _ in range(int(rng.integers(1, 4))):
            value = pick(
                rng, [*_YAML, *_TEXTS, *(repr(value)[:6000] for value in _VALUES if not isinstance(value, int))]
            )
            key = pick(
                rng,
                [
                    *_NAMES,
                    "augment.parameters.rotate.p",
                    "augment.parameters",
                    "data",
                    "x",
                    "",
                    "a.b.c.d",
                    "data.",
                    ".",
                    "é",
                    "name.x",
                ],
            )
            overrides.append(
                f"{key}={value}"
                if rng.random() < 0.9
                else damage(rng, f"{key}={value}".encode()).decode(errors="replace")
            )
    path.write_bytes(data)
    return path, overrides


@functools.lru_cache(maxsize=None)
def _listed(kind):
    """24 cases of 12 subjects, to make splits of."""
    target = {"classification": lambda i: float(i % 2), "segmentation": lambda i: float(i % 2)}.get(kind, float)
    return [cases.Case(f"c{i}", f"s{i // 2}", (), None, target(i), f"g{i % 6 // 2}") for i in range(24)]


def check_config(folder, given):
    """What a command does with a config before it looks at the data. The run folder's config must be what was read."""
    path, overrides = given
    config = kinds.load(path, overrides)
    again = kinds.from_dict(config_module.to_dict(config), "again")
    assert config_module.identity(again) == config_module.identity(config)
    tasks.build(config).augmentation()
    RunFolder(folder / "run").claim(config, Log(active=False)).close()
    assert config_module.identity(kinds.load(folder / "run" / "config.yaml")) == config_module.identity(config)
    if config.task.type in ("classification", "segmentation", "regression") and config.data.source == "phantom":
        splits.make_splits(config, tasks.build(config), _listed(config.task.type))


check_config.refuses = ()

# -------------------------------------------------------------------------------------------- tables

_CELLS = [
    "", " ", "nan", "inf", "-1", "1e400", "0x10", "١", "2", "..", "../../escape", "/etc/passwd", "a/b", "a\\b",
    ".hidden", "~", "-rf", "=1+1", "=cmd|' /C calc'!A0", "@SUM(1)", "\0", "a\0b", "\x1b[31m", "\u202e", "é",
    "x" * 300, "x" * 200_000, '"', "'", "a\nb", "a,b", "a;b", "CON", "nul", "scan_0.npy", "../in/scan_0.npy",
    "file:///etc/passwd", "http://localhost:1/x", "$(touch ../canary)", "`touch ../canary`", "| touch ../canary",
    "%s%s%n", "{0.__class__}", "<b>x</b>", ".", "a.",
]  # fmt: skip
_TABLES = ("table", "groups", "labels", "cases", "predictions", "paths")


def make_table(folder, rng):
    """(what the table is for, path)."""
    kind = "table" if rng is None else pick(rng, _TABLES)
    header, rows = {
        "table": (
            ["id", "subject", "t1", "mask", "age", "fold"],
            [[f"c{i}", f"s{i % 3}", f"scan_{i % 3}.npy", "", str(40 + i), str(i % 2)] for i in range(6)],
        ),
        "groups": (["subject", "group"], [[f"s{i}", f"g{i % 2}"] for i in range(6)]),
        "labels": (["label"], []),
        "cases": (["id", "t1"], [[f"c{i}", f"scan_{i % 2}.npy"] for i in range(4)]),
        "predictions": (["id", "probability", "decision"], [[f"c{i}", f"{i / 8}", str(i // 3)] for i in range(6)]),
        "paths": (["scan_0.npy"], [["scan_1.npy"]]),
    }[kind]
    for i in range(3):
        np.save(folder / f"scan_{i}.npy", np.random.default_rng(i).normal(size=(5, 4, 3)).astype(np.float32))
    if rng is not None and rng.random() < 0.7:
        for _ in range(int(rng.integers(1, 4))):
            line = pick(rng, [header, *rows])
            line[int(rng.integers(len(line)))] = pick(rng, _CELLS)
        if rng.random() < 0.2:
            line.append(pick(rng, _CELLS))
        if rng.random() < 0.1:
            line.pop()
    quoted = rng is not None and rng.random() < 0.5
    text = (
        "\n".join(
            ",".join('"' + cell.replace('"', '""') + '"' if quoted else cell for cell in line)
            for line in [header, *rows]
        )
        + "\n"
    )
    data = text.encode("utf-8", "surrogatepass")
    if kind == "labels":
        data = pick(rng, [*_CELLS, "1", "1.0", " 0\n", "\ufeff1"]).encode()
    if rng is not None and rng.random() < 0.4:
        data = damage(rng, data, [b"\0", b'"', b",", b"\n", b"\r", b"\xff\xfe", b"\xef\xbb\xbf", b";", b"..", b"\x80"])
    path = folder / "table.csv"
    path.write_bytes(data)
    if rng is not None and kind == "predictions":
        (folder / "targets.csv").write_text("id,target\n" + "".join(f"c{i},{i % 2}\n" for i in range(6)))
        if rng.random() < 0.5:
            os.rename(folder / "targets.csv", folder / "other.csv")
            os.rename(folder / "table.csv", folder / "targets.csv")
            os.rename(folder / "other.csv", folder / "table.csv")
    return kind, path


def _table_config(folder, **data):
    section = {"channels": ["t1"], "patch": [32, 16, 16], "prepare_workers": 0, "rescan": "always", **data}
    task = {"type": "regression", **({"targets": ["age"]} if data["source"] == "table" else {})}
    (folder / "config.yaml").write_text(yaml.safe_dump({"output": str(folder / "runs"), "task": task, "data": section}))
    return kinds.load(folder / "config.yaml")


def check_table(folder, given):
    """Listed, preprocessed into the cache, used for splits: a name in the table must not become a place elsewhere."""
    kind, path = given
    if kind in ("table", "paths"):
        source = {"table": "table", "paths": "volumes"}[kind]
        config = _table_config(folder, source=source, csv=str(path))
        listed = sources.list_cases(config.data, tasks.wanted(config), labels=kind == "table")
        cached = cache.prepare(listed, config.data, tasks.wanted(config))
        assert all(pathlib.Path(case.folder).parent == folder / "runs" / "cache" for case in cached)
    elif kind in ("groups", "labels"):
        for i in range(6):
            place = folder / "root" / "preprocessed" / f"s{i}" / "ses_1"
            place.mkdir(parents=True)
            (place / "t1.nii.gz").touch()
            label = folder / "root" / "labels" / f"s{i}" / "label.txt"
            label.parent.mkdir(parents=True)
            label.write_bytes(path.read_bytes() if kind == "labels" and i == 3 else b"40")
        groups = {"groups": str(path)} if kind == "groups" else {}
        config = _table_config(folder, source="fomo3", root=str(folder / "root"), **groups)
        sources.list_cases(config.data, tasks.wanted(config))
    elif kind == "cases":
        listed = cases_from_table(str(path), config_module.Data(channels=("t1",)))
        assert all(os.path.basename(case.id) == case.id and case.id not in (".", "..") for case in listed)
    else:
        evaluate.evaluate(str(path), str(folder / "targets.csv"), resamples=10)


check_table.refuses = ()
