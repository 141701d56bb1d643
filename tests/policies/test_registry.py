"""Things by their type: ours, registered ones, and those of installed packages."""

import pytest

from vivace.envs.registry import describe, task_names
from vivace.policies.errors import BadSetting, UnknownEnvironment
from vivace.policies.registry import Registry


def registry() -> Registry:
    return Registry("policy type", "vivace.test", {"path": "pathlib:Path", "json": "json"})


def install(folder, name, value, monkeypatch):
    facts = folder / f"{name}-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[vivace.test]\nqueue = {value}\n")
    monkeypatch.syspath_prepend(folder)


def test_a_type_is_ours_registered_offered_or_unknown(tmp_path, monkeypatch):
    from collections import Counter, deque
    from pathlib import Path

    types = registry()
    assert types.find("path") is Path
    assert types.find("json").__name__ == "json"
    assert types.find("counter") is None
    types.register("counter", "collections:Counter")
    types.register("counter", "collections:Counter")
    assert types.find("counter") is Counter
    assert types.find("queue") is None
    install(tmp_path / "a", "first", "collections:deque", monkeypatch)
    assert types.find("queue") is deque
    assert types.names() == ("path", "json", "counter", "queue")


def test_what_is_taken_missing_or_offered_twice_is_refused(tmp_path, monkeypatch):
    types = registry()
    with pytest.raises(
        BadSetting, match="policy type 'json' is json already, so mine:Own needs another name"
    ):
        types.register("json", "mine:Own")
    types.register("gone", "nowhere_at_all:Own")
    with pytest.raises(
        BadSetting, match=r"policy type 'gone' cannot be imported from nowhere_at_all:Own \(No"
    ):
        types.find("gone")
    types.register("nameless", "json:Nothing")
    with pytest.raises(BadSetting, match="policy type 'nameless' cannot be imported from json:Nothing"):
        types.find("nameless")
    install(tmp_path / "a", "first", "collections:deque", monkeypatch)
    install(tmp_path / "b", "second", "queue:Queue", monkeypatch)
    with pytest.raises(BadSetting, match="offered by several packages: collections:deque, queue:Queue"):
        types.find("queue")


def test_an_unknown_world_is_told_from_an_unknown_task():
    with pytest.raises(
        UnknownEnvironment, match="environment type 'moon' does not exist; the types: metaworld"
    ):
        task_names("moon")
    with pytest.raises(UnknownEnvironment, match="'metaworld' has no task 'reach-movin'; .*: reach-moving"):
        describe("metaworld", "reach-movin")
