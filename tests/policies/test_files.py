"""A file or a folder is whole, or what it was before."""

import pytest

from vivace.policies.files import replacing


def interrupted(target, put):
    with replacing(target) as path:
        put(path, "third")
        raise KeyboardInterrupt


@pytest.mark.parametrize("is_folder", [False, True])
def test_what_is_there_stays_until_the_new_one_is_whole(tmp_path, is_folder):
    target = tmp_path / "made"

    def put(path, text):
        if is_folder:
            path.mkdir()
            path /= text
        path.write_text(text)

    def found():
        return [path.name for path in target.iterdir()] if is_folder else [target.read_text()]

    with replacing(target) as path:
        put(path, "first")
        assert not target.exists()
    assert found() == ["first"]
    with replacing(target) as path:
        put(path, "second")
        assert found() == ["first"]
    assert found() == ["second"]
    with pytest.raises(KeyboardInterrupt):
        interrupted(target, put)
    assert (found(), list(tmp_path.iterdir())) == (["second"], [target])


def test_what_an_earlier_attempt_left_is_gone_before_the_next(tmp_path):
    (tmp_path / "film.mp4.partial.mp4").write_text("killed")
    with replacing(tmp_path / "film.mp4", ending=".mp4") as path:
        assert (path.suffix, path.exists()) == (".mp4", False)
        path.write_text("whole")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["whole"]
