import dataclasses
import json
from pathlib import Path

import ml_collections
import pytest

from llama2_jax.config import (
    ConfigError,
    build,
    changes,
    check_arguments,
    named_paths,
    parse_arg,
    read_json,
    require,
    require_choice,
    to_plain,
    write_json,
)


@dataclasses.dataclass(frozen=True)
class Section:
    width: int
    names: tuple[str, ...] = ()
    rate: float = 0.5


def test_a_section_becomes_a_frozen_dataclass_with_plain_leaves():
    section = ml_collections.ConfigDict({"width": 3, "names": ["a", "b"]})
    found = build(Section, section, name="part")
    assert found == Section(3, ("a", "b"), 0.5)
    hash(found)


def test_an_unknown_or_missing_key_is_named():
    with pytest.raises(ConfigError, match=r"config\.part has unknown key.* widht; known: names, rate, width"):
        build(Section, {"widht": 3}, name="part")
    with pytest.raises(ConfigError, match=r"config\.part lacks width"):
        build(Section, {"rate": 1.0}, name="part")


def test_the_argument_of_a_config_file_is_typed_by_its_defaults():
    found = parse_arg("7b, tokens=1e9,steps=5", variant="tiny", tokens=0.0, steps=1, name="x")
    assert vars(found) == {"variant": "7b", "tokens": 1e9, "steps": 5, "name": "x"}
    assert parse_arg("", variant="tiny").variant == "tiny"


def test_a_wrong_argument_says_what_is_known():
    with pytest.raises(ConfigError, match=r"'toks=5'.*unknown key 'toks'; known: variant, tokens"):
        parse_arg("toks=5", variant="tiny", tokens=0.0)
    with pytest.raises(ConfigError, match=r"steps=many"):
        parse_arg("steps=many", steps=1)


def test_require_raises_its_message_only_when_it_fails():
    require(True, "fine")
    with pytest.raises(ConfigError, match="not fine"):
        require(False, "not fine")
    require_choice("colour", "red", ["red", "blue"])
    with pytest.raises(ConfigError, match="colour is 'green'; choose one of 'red', 'blue'"):
        require_choice("colour", "green", ["red", "blue"])


def test_plain_values_are_what_json_can_hold():
    config = ml_collections.ConfigDict({"part": {"width": 3}, "items": (1, 2)})
    assert to_plain(config) == {"part": {"width": 3}, "items": [1, 2]}
    plain = to_plain({"section": Section(3, ("a",)), "path": Path("runs") / "x"})
    assert plain == {"section": {"width": 3, "names": ["a"], "rate": 0.5}, "path": "runs/x"}
    json.dumps(plain)


def test_json_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "config.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1}
    assert [file.name for file in path.parent.iterdir()] == ["config.json"]


def test_a_file_may_be_missing_where_there_is_a_default(tmp_path):
    assert read_json(tmp_path / "results.json", default=None) is None
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "results.json")
    write_json(tmp_path / "results.json", {"a": 1})
    assert read_json(tmp_path / "results.json", default={}) == {"a": 1}


@pytest.mark.parametrize("content", [b"", b'{"a": 1', b"\xff", b"\0\0\0"])
def test_a_damaged_json_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json is not JSON \(.+\); put a sound copy in its place"):
        read_json(path)


def test_changes_name_the_leaves_that_differ():
    old = {"model": {"width": 3, "layers": 2}, "seed": 0, "gone": 1}
    new = {"model": {"width": 4, "layers": 2}, "seed": 0, "new": {"x": 1}}
    assert changes(old, new) == [
        "gone: 1 -> '(absent)'",
        "model.width: 3 -> 4",
        "new: '(absent)' -> {'x': 1}",
    ]
    assert changes(old, old) == []


def test_named_paths_are_in_order():
    assert list(named_paths(("z=a/b", "a=c=d"), field="F").items()) == [("z", "a/b"), ("a", "c=d")]
    for wrong in ("", "x", "=x", "x=", "a/b=c"):
        with pytest.raises(ConfigError, match=f"F has '{wrong}'; each must be name=path"):
            named_paths((wrong,), field="F")
    with pytest.raises(ConfigError, match="F names 'a' twice"):
        named_paths(("a=1", "a=2"), field="F")


@pytest.mark.parametrize(
    "argument",
    ["gs://bucket/a", "--output=s3://bucket/a", "--set=name=gs://bucket/a", "--input=a,GCS://bucket/b"],
)
def test_an_address_of_an_object_store_is_refused(argument):
    with pytest.raises(ConfigError, match=r"only paths of a file system .* mount the bucket"):
        check_arguments(["--workdir=runs/a", argument])


@pytest.mark.parametrize(
    "argument",
    [
        "--workdir=~/run",
        "--workdir=~",
        "--workdir=~bob/My Runs/x",
        "~/a",
        "--set=name=~/a",
        "--input=a,~/b",
        "--config.versions=('x','~/b')",
    ],
)
def test_a_tilde_that_no_shell_expanded_is_refused(argument):
    with pytest.raises(ConfigError, match=r"write \$HOME"):
        check_arguments(["--workdir=runs/a", argument])


def test_texts_and_paths_are_no_addresses():
    check_arguments(["--system=Say ~/x", '--system=Say "~/"', "--workdir=runs/a~/b", "--x=a~", "--x=~ 5"])
    check_arguments(
        ["--prompt=s3://x is an address", "--system=See https://a.b/c", "--workdir=/gs/bucket", "a=b"]
    )
