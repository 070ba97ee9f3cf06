"""Recipes and command lines, drawn at random from every field of every job, our recipes, and what nobody means."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from distsens.analysis import Analysis
from distsens.examination import Examination
from distsens.experiment import Experiment, StoragePlace
from distsens.search import Sweep
from distsens.search.space import KINDS

ROOT = Path(__file__).parents[2]
RECIPE = "recipe.yaml"
RECIPES = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "jobs" / "recipes").glob("*.yaml"))]
SCRIPTS = {
    "train": "jobs/train.py",
    "tune": "jobs/tune.py",
    "evaluate": "jobs/evaluate.py",
    "analyze": "jobs/analyze.py",
    "models": "jobs/models.py",
    "benchmark": "jobs/benchmark.py",
    "submit": "cluster/submit.py",
    "stack": "infra/stack/stack.py",
    "local": "cluster/local/cluster.py",
}
_OFTEN = (12, 10, 8, 5, 2, 2, 2, 1, 0.2)  # of the scripts, in order
_SECTIONS: dict[str, dict[str, type[BaseModel]]] = {
    "train": {"": Experiment},
    "tune": {"": Experiment, "sweep.": Sweep},
    "evaluate": {"": Examination},
    "analyze": {"": Analysis},
    "models": {"storage.": StoragePlace},
    "benchmark": {"": Experiment},
}

_DIGITS, _LONG = "9" * 5000, "x" * 100_000
_LAUGHS = ", ".join(f"&a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))
_NUMBERS = f"""
0 1 2 3 -1 -0 1e-3 1e-30 1e5 1e30 2e9 1e400 0.0 0.5 1.5 .5 1. 5e-324 1/3 8/255 1/0 1/2/3 0/0 9/1e-320 nan .nan inf .inf
-.inf 1:30 1:30:00 1:30.5 017 08 0o17 0x10 0b11 1_000 1__0 1_ _1 +1 ++1 2147483647 2147483648 9223372036854775808
{_DIGITS} -{_DIGITS} 0x{_DIGITS} {_DIGITS}/3 3/{_DIGITS} 0.{_DIGITS} {_DIGITS}e{_DIGITS} 1e{_DIGITS} 1_{_DIGITS}
1:{_DIGITS} {_DIGITS[:200]} {_DIGITS[:300]} {_DIGITS[:301]}
""".split()
_WORDS = rf"""
true false yes no on off y null ~ None '' "\0" "a\0b" "\ud800" é 😀 @x `x %x | ? = << &a *a ! !x [ ] ' " , . .. / // ---
... 2026-01-02 2026-02-30 2026-01-02T10:11:12.5+99:00 $HOME %s%n {{0}} [red] $\frac{{$ =cmd|x <script> ../x ~/x ~nobody
~nobody/x ~root/x ./~nobody /proc/self/mem /proc/x/y /dev/null/x net.pt/x net.pt net.pt@x:y net.pt#1
net.pt#{_DIGITS} RUN#{_DIGITS} net.pt@{"a." * 3000} {"a" * 256} {"é" * 200} /{"a" * 300} {"a/" * 3000} {"a" * 5000}
{_LONG} '{_LONG}' /{_LONG}.yaml {_LONG}.yaml base.yaml {"./" * 500} s3:// s3:/// s3:/x s3://? s3://B_A_D!/x file:// file:///
file:///%00 file:///{"b" * 300} http:// http://[ http://[::1 http://x:99999999 http://u:p@h/x http://h:a http://ü ftp://x
:// sqlite:// sqlite:///x runs:/ models:/x models:/{"x" * 5000} runs:/../../x databricks
""".split()
_LINES = [
    *(
        "",
        "' '",
        "'\u202e'",
        "\x07",
        "\x1b[2J",
        "\ufeff",
        "\u2028",
        "\x85",
        "\t",
        "a\tb",
        "a\nb",
        "|\n x",
        "> x",
        "- a",
    ),
    *("a: b", "a: b: c", "a:\tb", "# x", "<<: a", "&a [*a]", "&a {x: *a}", "--- a\n--- b", "%YAML 9.9", "!!int x"),
    *("!!float y", "!!bool maybe", "!!null x", "!!binary '!'", "!!timestamp x", "!!set {a}", "!!omap [a: 1]", "!<x> y"),
    *("!!python/object/apply:os.getcwd []", "2026-01-02 10:11:12", "s3://B A D/x"),
]
_NESTS = [
    *"[] {} [[]] [[[]]] [1,[2]] {1:2} {a} {[a]:b} {{}:b} [null] [1.5] [true] [a,a] {<<} {?a} [?a] [~,~,~]".split(),
    *(
        "{a: 1}",
        "{1: 2}",
        "{null: x}",
        "{1.5: x}",
        "{true: x}",
        "{[a]: b}",
        "{{}: b}",
        "{a: {b: {c: 1}}}",
        "{a: 1, a: 2}",
    ),
    *(
        "{<<: {a: 1}}",
        "{<<: [1]}",
        "{? a}",
        "{a.b.c: 1}",
        "{" + "a." * 5000 + "a: 1}",
        "{'': 1}",
        "{.: 1}",
        "{a..b: 1}",
    ),
    *("{'\\0': 1}", f"{{{_LONG}: 1}}", "{grid: [1]}", "{grid: []}", "{grid: 1}", "{grid: [[a], {b: 1}]}", "{1: [2]}"),
    *("{uniform: [0, 1]}", "{choice: [1, 1.0]}", f"{{uniform: [0, {_DIGITS}]}}", "{loguniform: [1/3, 1e400]}"),
    *(f"{{randint: [0, {_DIGITS[:200]}]}}", "{grid: [a], choice: [b]}", f"[&a0 [x], {_LAUGHS}]"),
    *("[" * 3000 + "]" * 3000, "[" * 90_000, "{a: " * 500 + "}" * 500, "{" * 9000, "[a, " * 2000, "- " * 5000),
    *(
        "? " * 5000,
        "[" + "1," * 9000 + "]",
        "[" + "1," * 90_000 + "]",
        "{" + ", ".join(f"a{n}: 1" for n in range(3000)) + "}",
    ),
]
_NASTY = (_NUMBERS, _WORDS, _LINES, _NESTS)
_AROUND = ("[V]", "[V, V]", "{a: V}", "'V'", '"V"', "-V", "V/V", "!!str V", "&a V", "V # x")
_USUAL = ("0", "1", "2", "0.5", "0.1", "8/255", "auto", "digits", "x", "[0.1]", "[1, 2]", "[crop]")
_BELOW = (".x", ".0", ".a.b", ".", "..", ".-", ".1.5", ".None", ".model_fields", ".grid")
_NO_FIELDS = (
    *(" ", "\t", "\x00", "a." * 3000 + "a", _LONG),
    *". a a.b 1 1.5 null extends search sweep model true a..b __class__ name.x é - -- no_ no <<".split(),
)
_CHARACTERS = "[]{}:,&*!|>'\"%@`#-?\t\n\0\x07 \ufeff0~=<"


@dataclass(frozen=True)
class Case:
    """A command line, and the recipe that it may name."""

    job: str
    arguments: tuple[str, ...]
    recipe: bytes

    def __str__(self) -> str:
        words = [word if len(word) < 200 else f"{word[:80]}...({len(word)})" for word in map(repr, self.arguments)]
        shown = self.recipe if len(self.recipe) < 1500 else self.recipe[:700] + b"......" + self.recipe[-700:]
        return f"{SCRIPTS[self.job]} {' '.join(words)}\n{RECIPE}: {shown!r}"


def drawn_case(seed: int, number: int, modules: dict[str, ModuleType]) -> Case:
    """The case of this number, by the scripts as modules."""
    draw = random.Random(f"{seed}:{number}")
    (job,) = draw.choices(list(SCRIPTS), _OFTEN)
    arguments, recipe = [], ""
    if job in ("train", "tune"):
        arguments = ["--recipe", RECIPE]
        kind = draw.random()
        if kind < 0.45:
            recipe = _recipe(draw, job)
        elif kind < 0.7:
            recipe = _mutated(draw, draw.choice(RECIPES))
        elif kind < 0.75:
            recipe = _value(draw)
        elif job == "tune":
            recipe = "search: {threat.eps: {uniform: [0.1, 0.2]}}"
        if kind < 0.75 and draw.random() < 0.8:
            return Case(job, tuple(arguments), _encoded(draw, recipe))
        if draw.random() < 0.1:
            arguments = [draw.choice(["--recipe", "--resume", "--summary"]), _value(draw)]
    elif job in ("evaluate", "analyze"):
        arguments = ["--model", draw.choice(["net.pt", "net.pt", _value(draw)])]
    elif job == "submit":
        arguments = ["--address", draw.choice(["http://127.0.0.1:1", _value(draw)])]
    elif job == "stack":
        flag = draw.choice(["--cpus", "--folder", "--ray-port"])
        arguments = [draw.choice(["up", "down", _value(draw)]), flag, _value(draw)]
    arguments += _arguments(draw, job, modules[job])
    if job == "submit" and draw.random() < 0.8:
        arguments += ["--", "python", draw.choice(["jobs/train.py", f"{_value(draw)}.py"]), _value(draw)]
    return Case(job, tuple(arguments), _encoded(draw, recipe))


def _leaves(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every field by dotted name with its type, sections themselves among them."""
    for name, field in section.model_fields.items():
        yield prefix + name, field.annotation
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _leaves(field.annotation, f"{prefix}{name}.")


_KNOWN = {
    job: [one for prefix, section in _SECTIONS.get(job, {}).items() for one in _leaves(section, prefix)]
    for job in SCRIPTS
}


def _words_of(annotation: Any) -> list[str]:
    """Words that a field of this type may take."""
    if get_origin(annotation) is Literal:
        return [str(one) for one in get_args(annotation)]
    if annotation is bool:
        return ["true", "false"]
    return [word for one in get_args(annotation) for word in _words_of(one)]


def _value(draw: random.Random, annotation: Any = None) -> str:
    """A value as it is written: often one that somebody may mean, else anything."""
    kind = draw.random()
    if kind < 0.35 and (words := _words_of(annotation)):
        return draw.choice(words)
    if kind < 0.5:
        return draw.choice(_USUAL)
    value = draw.choice(draw.choice(_NASTY))
    return draw.choice(_AROUND).replace("V", value) if kind > 0.93 else value


def _field(draw: random.Random, job: str) -> tuple[str, Any]:
    """A field's name, sometimes of none, and its type."""
    kind, known = draw.random(), _KNOWN[job]
    if known and kind < 0.85:
        name, annotation = draw.choice(known)
        return (name + draw.choice(_BELOW) if kind > 0.8 else name), annotation
    return draw.choice(_NO_FIELDS), None


def _recipe(draw: random.Random, job: str) -> str:
    """A recipe of drawn fields, written flat or nested; not always YAML."""
    lines = []
    for _ in range(draw.choice([0, 1, 1, 1, 2, 2, 3])):
        name, annotation = _field(draw, job)
        value = _value(draw, annotation)
        section, dot, last = name.rpartition(".")
        if dot and len(section) < 100 and draw.random() < 0.9:
            lines.append(f"{section.replace('.', ': {')}: {{{last}: {value}}}{'}' * section.count('.')}")
        else:
            lines.append(f"{name}: {value}")
    searched = []
    for _ in range(draw.choice([0, 1, 1, 2, 3]) if job == "tune" else 0):
        name, annotation = _field(draw, job)
        values = ", ".join(_value(draw, annotation) for _ in range(draw.choice([0, 1, 2, 2, 3])))
        searched.append(f"{name}: {{{draw.choice([*KINDS, 'x'])}: [{values}]}}")
    lines += [f"search: {{{', '.join(searched)}}}"] if searched else []
    if draw.random() < 0.15:
        lines.append(f"extends: {draw.choice(['base.yaml', RECIPE, 'quickstart', 'none', _value(draw)])}")
    return draw.choice(["\n", "\n", "\n", "\n", "\r\n", "\r"]).join(lines)


def _mutated(draw: random.Random, text: str) -> str:
    """The text with a few characters or lines changed."""
    for _ in range(draw.choice([1, 1, 2, 3, 5])):
        at, to = sorted(draw.randrange(len(text) + 1) for _ in range(2))
        lines = text.split("\n")
        line = draw.randrange(len(lines))
        before, this, after = lines[:line], lines[line], lines[line + 1 :]
        key, colon, _ = this.partition(":")
        indented = draw.choice(["  ", "\t", "- ", "? ", ": ", "--- "]) + this
        text = draw.choice(
            [
                text[:at] + text[at + draw.randrange(1, 20) :],
                text[:at] + draw.choice(_CHARACTERS) + text[at:],
                text[:at] + draw.choice(draw.choice(_NASTY)) + text[at:],
                text[:at],
                text[:to] + text[at:to] + text[to:],
                "\n".join([*lines, this]),
                "\n".join([*before, indented, *after]),
                "\n".join([*before, f"{key}{colon} {_value(draw)}", *after]),
            ]
        )[:300_000]
    return text


def _encoded(draw: random.Random, text: str) -> bytes:
    """Mostly UTF-8."""
    kind = draw.random()
    if kind < 0.94:
        return text.encode("utf-8")
    if kind < 0.98:
        return text.encode(draw.choice(["utf-16", "utf-32", "latin-1", "utf-7", "utf-8-sig"]), errors="replace")
    data = bytearray(text.encode("utf-8") or b"a")
    data[draw.randrange(len(data))] = draw.randrange(256)
    return bytes(data)


def _arguments(draw: random.Random, job: str, module: ModuleType) -> list[str]:
    """Flags of drawn fields and options."""
    options = [field.name for field in fields(module.Options)] if hasattr(module, "Options") else []
    arguments: list[str] = []
    for _ in range(draw.choice([0, 1, 1, 2, 3])):
        name, annotation = _field(draw, job)
        if options and draw.random() < 0.4:
            name, annotation = draw.choice(options), None
        elif job == "tune" and draw.random() < 0.3:
            name = f"search.{name}.{draw.choice(KINDS)}"
        flag = draw.choice(["--", "--", "--", "--", "--", "--", "--no-", "-", "---", ""]) + name
        if draw.random() < 0.5:
            flag = flag.replace("_", "-")
        values = [_value(draw, annotation) for _ in range(draw.choice([0, 1, 1, 1, 1, 2, 3]))]
        arguments += [f"{flag}={values[0]}"] if values and draw.random() < 0.2 else [flag, *values]
    if draw.random() < 0.1:
        word = draw.choice(["--", "-h", "--dry-run", "--print-experiment", draw.choice(draw.choice(_NASTY))])
        arguments.insert(draw.randrange(len(arguments) + 1), word)
    if draw.random() < 0.1 and arguments:
        arguments.append(draw.choice(arguments))
    return arguments
