"""The model repository: versions by their numbers, names that cannot leave it, one clear word for what is not there."""

import shutil

import pytest

from tapline.service.inference.repository import (
    Repository,
    UnknownModelError,
    newest_version,
    shipped_checkpoint,
    versions_directory,
)


@pytest.fixture
def repository(tmp_path, checkpoint_dir):
    for version in ("9", "10", "2"):
        shutil.copytree(checkpoint_dir, tmp_path / "random" / version)
    (tmp_path / "random" / ".10-half-written").mkdir()
    (tmp_path / "empty").mkdir()
    return Repository(tmp_path)


def test_versions_order_by_their_numbers(repository):
    assert repository.names() == ["random"]
    assert repository.versions("random") == ["2", "9", "10"]
    assert repository.find("random").name == "10"
    assert repository.find("random", "9").name == "9"
    assert newest_version(repository.root / "random").name == "10"


def test_the_other_versions_of_a_checkpoint_are_beside_it(repository):
    above = repository.root / "random"
    assert versions_directory(above / "9", "random") == above
    assert versions_directory(above, "random") == above
    assert versions_directory(above / "9", "other") == above / "9"  # a directory of its own, whatever is beside it


@pytest.mark.parametrize(
    ("name", "version", "says"),
    [
        ("other", None, "no model other here: there is random"),
        ("random", "11", "no version 11 of random: there is 2, 9, 10"),
        ("../random", None, "not the name of a model"),
        ("random", "../9", "not the name of a model, or not a version"),
        ("empty", None, "no model empty"),
    ],
)
def test_what_is_not_there_is_said(repository, name, version, says):
    with pytest.raises(UnknownModelError, match=says):
        repository.find(name, version)


def test_a_pinned_directory_stands_for_its_model(repository, checkpoint_dir):
    pinned = Repository(repository.root, {"mine": checkpoint_dir})
    assert pinned.names() == ["mine", "random"]
    assert pinned.find("mine") == checkpoint_dir
    assert pinned.versions("mine") == [checkpoint_dir.name]
    above = Repository(repository.root, {"mine": repository.root / "random"})
    assert above.find("mine", "2").name == "2"


def test_the_checkpoint_that_ships_is_found():
    assert (shipped_checkpoint("flow-protocols") / "checkpoint.json").is_file()
