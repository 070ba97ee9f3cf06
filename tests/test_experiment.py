from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from distsens.distributed.runs import new_name
from distsens.errors import InputError
from distsens.experiment import Experiment, load_recipe, merge, name_after
from distsens.storage.keys import is_key

RECIPES = Path(__file__).parents[1] / "jobs" / "recipes"


def nested(field: str, value: Any) -> dict[str, Any]:
    """``{"a": {"b": value}}`` for ``"a.b"``."""
    *sections, name = field.split(".")
    fields: dict[str, Any] = {name: value}
    for section in reversed(sections):
        fields = {section: fields}
    return fields


def parse_error(fields: dict[str, Any]) -> InputError:
    with pytest.raises(InputError) as raised:
        Experiment.parse(fields)
    assert "\n" not in str(raised.value)
    return raised.value


def leaves(section: type[BaseModel] = Experiment, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field that is not a section, by dotted name."""
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, field


LEAVES = dict(leaves())


# Values.


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("8/255", 8 / 255),
        ("1/2", 0.5),
        (" 1 / 4 ", 0.25),
        ("0.3", 0.3),
        ("1e-3", 0.001),
        (0, 0.0),
        (1, 1.0),
        (0.25, 0.25),
    ],
)
def test_a_number_may_be_a_fraction_or_text(written: object, value: float) -> None:
    found = Experiment.parse({"objective": {"beta": written}, "model": {"std": [1, written or 1]}})
    assert found.objective.beta == value
    assert type(found.objective.beta) is float
    assert found.model.std == (1.0, value or 1.0)


@given(a=st.integers(0, 10**6), b=st.integers(1, 10**6))
def test_any_fraction_is_its_quotient(a: int, b: int) -> None:
    assert Experiment.parse({"stabilize": {"weight": f"{a}/{b}"}}).stabilize.weight == a / b


def test_fractions_work_in_a_yaml_recipe(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("threat: {eps: 8/255}\ntraining: {lr: 3e-3}\n")
    experiment = Experiment.parse(load_recipe("small", [tmp_path]))
    assert (experiment.threat.eps, experiment.training.lr) == (8 / 255, 0.003)


@pytest.mark.parametrize("wrong", ["8/0", "1/2/3", "nan", "inf/1", "-1/2", "a/b", "", None, True, [1]])
def test_what_is_no_number_is_refused(wrong: object) -> None:
    error = parse_error({"threat": {"eps": wrong}})
    assert error.field == "threat.eps"


@pytest.mark.parametrize(
    "number", ["1:30", "1:30:00", "1:30.5", "017", "0o17", "0x10", "0b11", "08", "1__0", "1_", "\u0661"]
)
def test_numbers_that_only_some_read_as_they_are_meant_are_refused(tmp_path: Path, number: str) -> None:
    write(tmp_path, one=f"training: {{epochs: {number}}}", other=f"training: {{lr: {number}}}")
    for recipe, field in (("one", "training.epochs"), ("other", "training.lr")):
        error = parse_error(load_recipe(recipe, [tmp_path]))
        assert (error.field, error.value) == (field, number)


@pytest.mark.parametrize(
    ("number", "value"),
    [
        ("1e-3", 1e-3),
        ("1E-3", 1e-3),
        ("1.5e2", 150),
        ("1.0e+2", 100),
        ("1_0.5", 10.5),
        (".5", 0.5),
        ("1.", 1),
        ("+1", 1),
    ],
)
def test_decimal_numbers_are_read_whichever_way_they_are_written(tmp_path: Path, number: str, value: float) -> None:
    write(tmp_path, one=f"training: {{lr: {number}}}")
    assert Experiment.parse(load_recipe("one", [tmp_path])).training.lr == value


@pytest.mark.parametrize("wrong", [True, False, 2.5, "3", "1/2", None])
def test_what_is_no_whole_number_is_refused(wrong: object) -> None:
    error = parse_error({"training": {"epochs": wrong}})
    allowed = "input should be a valid integer (allowed: at least 1, at most 100000)"
    assert str(error) == f"training.epochs: got {wrong!r}; {allowed}"


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("threat.eps", 8.0, "pixels lie in [0, 1], so a linf eps must too (8/255, not 8)"),
        ("training.lr", 0, "greater than 0"),
        ("training.epochs", 0, "greater than or equal to 1"),
        ("training.warmup", 2, "allowed: at least 0, below 1"),
        ("stabilize.ratio", 1.5, "allowed: above 0, at most 1"),
        ("stabilize.layers", [], "at least 1 item"),
        ("data.validation_fraction", 1, "allowed: above 0, below 1"),
        ("attack.precision", "fp16", "'fp32' or 'bf16'"),
        ("objective.name", "fast", "'standard', 'nat', 'pgd_at', 'fast_at', 'free_at', 'alp', 'trades' or 'mart'"),
        ("objective.alpha", 1.5, "allowed: at least 0, at most 1"),
        ("objective.replays", 0, "greater than or equal to 1"),
        ("objective.label_smoothing", 1, "allowed: at least 0, below 1"),
        ("name", "a b", "pattern"),
        ("workers.gpus", 2, "allowed: at least 0, at most 1"),
        ("data.augment", "crop", "tuple"),
        ("threat", None, "dictionary"),
        ("test", [1], "dictionary"),
    ],
)
def test_a_wrong_value_is_named_with_its_field_and_what_is_allowed(field: str, value: Any, allowed: str) -> None:
    error = parse_error(nested(field, value))
    assert (error.field, error.value) == (field, value)
    assert str(error).startswith(f"{field}: got {value!r}; ")
    assert allowed in str(error)


def test_fields_that_do_not_fit_each_other_are_named() -> None:
    assert str(parse_error({"stabilize": {"warmup_start": 0.9}})) == (
        "stabilize.warmup_end: got 0.6; at least warmup_start (0.9)"
    )
    assert str(parse_error({"training": {"batch_size": 3}, "workers": {"num": 4}})) == (
        "training.batch_size: got 3; at least one image a worker (4)"
    )
    assert str(parse_error({"objective": {"name": "mart", "label_smoothing": 0.1}})) == (
        "objective.label_smoothing: got 0.1; mart has no cross-entropy to smooth: leave it at 0"
    )


ADVERSARIAL = ["nat", "pgd_at", "fast_at", "free_at", "alp", "trades", "mart"]


@pytest.mark.parametrize("objective", ADVERSARIAL)
@pytest.mark.parametrize("eps", [0, 1e-12])
def test_twins_that_are_the_images_themselves_are_not_trained_on(objective: str, eps: float) -> None:
    error = parse_error({"objective": {"name": objective}, "threat": {"eps": eps}})
    assert str(error) == f"threat.eps: got {float(eps)}; at least 1e-06 with objective.name {objective}, as in 8/255"


def test_without_twins_the_ball_may_be_a_point() -> None:
    standard = {"objective": {"name": "standard"}, "threat": {"eps": 0}, "test": {"step_size": 0.01}}
    assert Experiment.parse(standard).threat.eps == 0
    assert "with stabilize.weight 0.5" in str(parse_error({**standard, "stabilize": {"weight": 0.5}}))


@pytest.mark.parametrize("section", ["attack", "validation", "test"])
def test_a_step_may_be_ten_times_the_radius_and_no_longer(section: str) -> None:
    for norm, eps in (("linf", 0.05), ("l2", 3.0), ("l1", 100.0)):
        threat = {"norm": norm, "eps": eps}
        assert Experiment.parse({"threat": threat, section: {"step_size": 10 * eps}})
        error = parse_error({"threat": threat, section: {"step_size": 10.1 * eps}})
        assert error.field == f"{section}.step_size"
        assert f"at most 10 times eps ({eps:g})" in str(error)


def test_an_l2_ball_may_be_larger_than_a_pixel() -> None:
    assert Experiment.parse({"threat": {"norm": "l2", "eps": 3}}).threat.eps == 3.0


@pytest.mark.parametrize(
    ("fields", "field", "known"),
    [
        ({"epochs": 3}, "epochs", "name, seed, data"),
        ({"training": {"epoch": 3}}, "training.epoch", "epochs, batch_size, optimizer"),
        ({"test": {"eps": 3}}, "test.eps", "name, steps, step_size, random_start"),
    ],
)
def test_an_unknown_field_is_named_beside_the_known_ones(fields: dict[str, Any], field: str, known: str) -> None:
    error = parse_error(fields)
    assert error.field == field
    assert f"there is no such field; allowed are {known}" in str(error)


@pytest.mark.parametrize("fields", [{1: 2}, {"data": {1: 2}}])
def test_a_field_whose_name_is_no_text_is_refused(fields: dict[Any, Any]) -> None:
    assert "keys should be strings" in str(parse_error(fields))


@given(value=st.text(max_size=30).filter(lambda text: text not in ("linf", "l2")))
def test_a_message_is_one_line_whatever_was_written(value: str) -> None:
    for field in ("threat.norm", "seed", "data.augment"):
        error = parse_error(nested(field, value))
        assert len(str(error).splitlines()) == 1
        assert error.field == field


# Recipes.


def write(folder: Path, **recipes: str) -> None:
    for name, text in recipes.items():
        (folder / f"{name}.yaml").write_text(text)


def test_a_recipe_extends_another_field_by_field(tmp_path: Path) -> None:
    write(
        tmp_path,
        base="training: {epochs: 7, lr: 0.2}\nmodel: {mean: [0.1, 0.2, 0.3]}\nseed: 1",
        middle="extends: base\ntraining: {lr: 0.3}\nmodel: {mean: [0.5]}",
        top="extends: middle\nseed: 5",
    )
    assert load_recipe("top", [tmp_path]) == {
        "training": {"epochs": 7, "lr": 0.3},
        "model": {"mean": [0.5]},
        "seed": 5,
    }


def test_a_recipe_may_be_a_path_and_extend_its_neighbour_or_a_known_one(tmp_path: Path) -> None:
    known, own = tmp_path / "known", tmp_path / "own"
    known.mkdir()
    own.mkdir()
    write(known, shared="seed: 1\nname: shared")
    write(own, base="extends: shared\nseed: 2", mine="extends: base\nname: mine", far=f"extends: {known}/shared.yaml")
    assert load_recipe(str(own / "mine.yaml"), [known]) == {"seed": 2, "name": "mine"}
    assert load_recipe(str(own / "far.yaml"), []) == {"seed": 1, "name": "shared"}


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("my recipe.yaml", "my-recipe"),
        ("folder/café crème.yml", "cafe-creme"),
        ("  (1).yaml", "1"),
        ("données_à_moi.v2.yaml", "donnees_a_moi.v2"),
        ("日本語.yaml", "experiment"),
        ("-x.yaml", "x"),
        ("quickstart", "quickstart"),
    ],
)
def test_an_experiment_is_named_after_its_recipe_whatever_that_files_name_is(file: str, name: str) -> None:
    assert name_after(file) == name
    assert Experiment.parse({"name": name_after(file)}).name == name


def test_the_longest_name_has_room_for_all_that_runs_are_called_after_it() -> None:
    longest = Experiment.parse({"name": name_after("a" * 250 + ".yaml")})
    champion = f"{new_name(longest)}-champion-99999"
    assert is_key(champion)
    with pytest.raises(InputError, match="at most 160 characters"):
        Experiment.parse({"name": longest.name + "a"})


def test_a_recipe_that_says_something_twice_is_refused_with_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "my recipe é.YAML"
    path.write_text("training: {epochs: 3}\ndata: {name: digits}\ntraining: {lr: 0.5}\n")
    with pytest.raises(InputError, match=r"recipe: got '.*é.YAML'; training is there twice, in lines 1 and 3"):
        load_recipe(str(path), [])
    (tmp_path / "above.yaml").write_text("extends: below\n")
    (tmp_path / "below.yaml").write_text("model:\n  mean: [0.1]\n  name: lenet5\n  mean: [0.2]\n")
    with pytest.raises(InputError, match=r"below.yaml'; mean is there twice, in lines 2 and 4"):
        load_recipe("above", [tmp_path])


def test_a_long_chain_of_recipes_is_refused(tmp_path: Path) -> None:
    write(tmp_path, **{f"r{number}": f"extends: r{number + 1}" for number in range(30)})
    with pytest.raises(InputError, match="extends: got 'r20'; more than 20 recipes extend one another"):
        load_recipe("r0", [tmp_path])


@pytest.mark.parametrize("text", ["extends: [a]", "extends: 3", "extends: {a: 1}", "extends: true"])
def test_a_recipe_extends_one_that_is_named(tmp_path: Path, text: str) -> None:
    write(tmp_path, bad=text)
    with pytest.raises(InputError, match=r"extends: got .*; it takes the name of a recipe"):
        load_recipe("bad", [tmp_path])


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("~nobody-at-all/x.yaml", "no user of this machine is called 'nobody-at-all'"),
        ("a" * 300, "no file's name is longer than 255 bytes"),
        ("a/" * 5000, "longer than 4,096 characters"),
        ("a\0b.yaml", "no text may hold the character NUL"),
        ("a\udcff.yaml", "it is not UTF-8"),
        ("/dev/null/x.yaml", "there is no such file"),
    ],
)
def test_what_no_file_can_be_called_is_refused_in_a_short_line(tmp_path: Path, recipe: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as raised:
        load_recipe(recipe, [tmp_path])
    assert len(str(raised.value)) < 500
    for field in ("storage.path", "data.root", "data.extra", "model.weights") if "/dev" not in recipe else ():
        assert parse_error(nested(field, recipe)).field == field


@pytest.mark.parametrize("text", ["0", "no", "[]", "''"])
def test_what_is_nothing_but_no_empty_file_holds_no_fields(tmp_path: Path, text: str) -> None:
    write(tmp_path, bad=text)
    with pytest.raises(InputError, match="it must hold fields"):
        load_recipe("bad", [tmp_path])


def test_recipes_in_a_circle_are_refused(tmp_path: Path) -> None:
    write(tmp_path, a="extends: b", b="extends: c", c="extends: a", self="extends: self")
    for name in ("a", "self"):
        with pytest.raises(InputError, match=r"extends: got .*in a circle"):
            load_recipe(name, [tmp_path])


def test_a_missing_recipe_lists_the_known_ones(tmp_path: Path) -> None:
    write(tmp_path, one="", two="", wrong="extends: three")
    with pytest.raises(InputError, match="recipe: got 'three'; one of one, two, wrong, or the path of a YAML file"):
        load_recipe("wrong", [tmp_path])
    with pytest.raises(InputError, match="there is no such file"):
        load_recipe("./three.yaml", [tmp_path])


@pytest.mark.parametrize(
    "text", ["a: [", "a: b: c", "\tx", "- a", "just text", "x: !!int a", "a: !!python/object:os.system x", "\x00"]
)
def test_a_file_that_holds_no_fields_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    write(tmp_path, bad=text)
    with pytest.raises(InputError) as raised:
        load_recipe("bad", [tmp_path])
    assert raised.value.field == "recipe"
    assert str(tmp_path / "bad.yaml") in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(InputError, match="not readable YAML"):
        load_recipe("bad", [tmp_path])


def test_an_empty_recipe_is_the_defaults(tmp_path: Path) -> None:
    write(tmp_path, empty="# nothing yet\n")
    assert Experiment.parse(load_recipe("empty", [tmp_path])) == Experiment()


@pytest.mark.parametrize(
    "path",
    sorted(path for path in RECIPES.glob("*.yaml") if not path.stem.startswith("tune-")),
    ids=lambda path: path.stem,
)
def test_every_published_recipe_is_an_experiment(path: Path) -> None:
    by_name = Experiment.parse(load_recipe(path.stem, [RECIPES]))
    assert by_name == Experiment.parse(load_recipe(str(path), [RECIPES]))


TREES = st.recursive(
    st.integers() | st.text(max_size=3),
    lambda below: st.dictionaries(st.sampled_from("abc"), below, max_size=3),
    max_leaves=8,
)
SECTIONS = st.dictionaries(st.sampled_from("abc"), TREES, max_size=3)


@given(fields=SECTIONS, changes=SECTIONS)
def test_merging_puts_changes_on_top_and_loses_nothing_else(fields: dict[str, Any], changes: dict[str, Any]) -> None:
    merged = merge(fields, changes)
    assert merged.keys() == fields.keys() | changes.keys()
    assert merge(merged, changes) == merged
    assert merge(fields, {}) == fields
    assert merge({}, changes) == changes
    for key, value in merged.items():
        if key not in changes:
            assert value == fields[key]
        elif not (isinstance(changes[key], dict) and isinstance(fields.get(key), dict)):
            assert value == changes[key]
        else:
            assert value == merge(fields[key], changes[key])


# The whole.

OTHER: dict[str, Any] = {
    "name": "other",
    "seed": 9,
    "data.name": "mnist",
    "data.root": "/elsewhere",
    "data.download": True,
    "data.validation_fraction": 0.2,
    "data.limit": 500,
    "data.augment": ["crop"],
    "data.image_size": 64,
    "data.resize": 72,
    "data.interpolation": "bicubic",
    "data.test_fraction": 0.3,
    "data.memory": 1,
    "data.decoding_cpus": 2,
    "data.extra": "/elsewhere.npz",
    "data.extra_ratio": 0.7,
    "data.extra_sha256": "0" * 64,
    "model.name": "lenet5",
    "model.small_images": True,
    "model.weights": "/elsewhere/weights.pt",
    "model.weights_sha256": "0" * 64,
    "model.mean": [0.5],
    "model.std": [0.25],
    "threat.norm": "l2",
    "threat.eps": "16/255",
    "objective.name": "trades",
    "objective.beta": 3,
    "objective.alpha": 0.25,
    "objective.replays": 4,
    "objective.label_smoothing": 0.1,
    "stabilize.weight": 1,
    "stabilize.ratio": 0.2,
    "stabilize.selection": "random",
    "stabilize.layers": ["conv*"],
    "stabilize.distance": "l2",
    "stabilize.measure": "relative",
    "stabilize.refresh_steps": 5,
    "stabilize.pairs": 0.5,
    "stabilize.decay": 0.9,
    "stabilize.warmup_start": 0.1,
    "stabilize.warmup_end": 0.7,
    "training.epochs": 3,
    "training.batch_size": 64,
    "training.optimizer": "adamw",
    "training.lr": 0.01,
    "training.momentum": 0.8,
    "training.weight_decay": 0,
    "training.schedule": "cosine",
    "training.warmup": 0.1,
    "training.milestones": [0.6],
    "training.drop": 0.5,
    "training.eps_warmup": 0.1,
    "training.gradient_clip": 1,
    "training.awp_gamma": 0.005,
    "training.awp_warmup": 0.1,
    "training.ema_decay": 0.99,
    "training.batch_norm": "separate",
    "training.sync_batch_norm": False,
    "training.precision": "bf16",
    "training.patience": 4,
    "alarm.action": "rollback",
    "alarm.gap": 0.3,
    "alarm.fall": 0.4,
    "workers.num": 3,
    "workers.cpus": 2,
    "workers.gpus": 1,
    "workers.max_failures": 0,
    "checkpoint.every": 2,
    "checkpoint.keep": 3,
    "storage.path": "/elsewhere",
    "tracking.uri": "http://elsewhere",
    "tracking.experiment": "other",
} | {
    f"{attack}.{name}": value
    for attack in ("attack", "validation", "test")
    for name, value in {
        "name": "mim",
        "steps": 4,
        "step_size": 0.01,
        "random_start": "none",
        "momentum": 0.9,
        "l1_fraction": 0.05,
        "restarts": 2,
        "precision": "bf16",
    }.items()
}
"""For every field another value than its default."""

ASIDE = (
    *("name", "data.root", "data.download", "data.memory", "data.decoding_cpus"),
    *("workers.", "checkpoint.", "storage.", "tracking."),
)


def everything_else() -> Experiment:
    fields: dict[str, Any] = {}
    for field, value in OTHER.items():
        fields = merge(fields, nested(field, value))
    return Experiment.parse(fields)


def test_the_other_values_cover_every_field() -> None:
    assert OTHER.keys() == LEAVES.keys()


@pytest.mark.parametrize("experiment", [Experiment(), everything_else()], ids=["defaults", "others"])
def test_an_experiment_survives_its_yaml(experiment: Experiment) -> None:
    again = Experiment.parse(yaml.safe_load(experiment.to_yaml()))
    assert again == experiment
    assert again.to_yaml() == experiment.to_yaml()
    assert again.digest() == experiment.digest()


@given(eps=st.floats(1e-6, 1), lr=st.floats(1e-30, 1e3), mean=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=3))
def test_numbers_survive_the_yaml_exactly(eps: float, lr: float, mean: list[float]) -> None:
    experiment = Experiment.parse({"threat": {"eps": eps}, "training": {"lr": lr}, "model": {"mean": mean}})
    assert Experiment.parse(yaml.safe_load(experiment.to_yaml())) == experiment


def test_flat_fields_are_plain_values_by_dotted_name() -> None:
    flat = everything_else().flat()
    assert flat.keys() == LEAVES.keys()
    assert all(value is None or isinstance(value, str | int | float | bool) for value in flat.values())
    assert flat["threat.eps"] == 16 / 255
    assert flat["data.augment"] == '["crop"]'
    assert flat["model.mean"] == "[0.5]"
    assert flat["data.root"] == "/elsewhere"
    assert Experiment().flat()["data.limit"] is None
    assert json.loads(json.dumps(flat)) == flat


@pytest.mark.parametrize("field", LEAVES)
def test_the_digest_changes_with_what_decides_the_result_alone(field: str) -> None:
    changed = Experiment.parse(nested(field, OTHER[field]))
    assert (changed.digest() == Experiment().digest()) == field.startswith(ASIDE)


@pytest.mark.parametrize("field", LEAVES)
def test_differences_name_the_field_that_differs(field: str) -> None:
    changed = Experiment.parse(nested(field, OTHER[field]))
    assert changed.differences(Experiment()) == Experiment().differences(changed) == [field]
    assert changed.differences(changed) == []


@pytest.mark.parametrize("field", LEAVES)
def test_every_field_has_a_line_of_help(field: str) -> None:
    description = LEAVES[field].description
    assert description
    assert description.endswith(".")
    assert "\n" not in description


def test_an_experiment_cannot_be_changed() -> None:
    experiment = Experiment()
    with pytest.raises(ValueError, match="frozen"):
        experiment.seed = 1
    with pytest.raises(ValueError, match="frozen"):
        experiment.threat.eps = 0.5


def test_a_section_keeps_its_own_defaults_beside_what_is_given() -> None:
    """The attack that judges has more steps than any other, also when only its restarts are given."""
    assert Experiment().test.steps == 20
    assert Experiment.parse({"test": {"restarts": 2}}).test.steps == 20
    assert Experiment.parse({"attack": {"restarts": 2}}).attack.steps == 10
