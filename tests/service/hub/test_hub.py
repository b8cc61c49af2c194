"""Checkpoints pulled from and pushed to a Hub on loopback, folders and `file:` URLs, whole or not at all; what a Hub
may say wrong; and that nothing else opens a connection."""

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard
from msgspec.structs import replace

from tapline.models.card_header import card_header, headline_of, with_header, without_header
from tapline.models.checkpoint import CheckpointError, read_any_checkpoint, read_checkpoint
from tapline.models.checkpoint_files import MAX_FILE_BYTES
from tapline.service.hub.places import HubError, HubRepository, place_of
from tapline.service.hub.pull import pull
from tapline.service.hub.push import push
from tapline.service.inference.repository import ZOO
from tests.paths import DATA, ROOT
from tests.service.hub.fake_hub import FakeHub

FLOWS = ZOO / "flow-protocols" / "5"
TRACES = ZOO / "iot-devices" / "3"
SHIPPED = sorted(path.parent for path in ZOO.glob("*/*/checkpoint.json"))
MAIN = [sys.executable, "-c", "from tapline.service.command.cli import main; main()"]


@pytest.fixture
def hub():
    return FakeHub()


@pytest.fixture
def tapline(hub, tmp_path):
    """Runs `tapline` with the fake Hub as the only one that it knows; gives the exit status and what was said."""
    with hub.running() as environment:

        def run(*arguments, **more):
            done = subprocess.run(
                [*MAIN, *map(str, arguments)],
                env={**os.environ, **environment, "HF_HOME": str(tmp_path / "hf"), **more},
                capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
            return done.returncode, done.stdout + " ".join(done.stderr.split())

        yield run


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.name != "origin.json"}


def held(hub):
    """A repository that holds the shipped flow model."""
    hub.repositories["org/flows"] = contents(FLOWS)
    return hub.repositories["org/flows"]


def test_what_is_pushed_to_a_hub_is_pulled_from_it(hub, tapline, tmp_path):
    status, said = tapline("models", "push", FLOWS, "hf:org/flows", HF_TOKEN="hf_secret")
    commit = hub.commit("org/flows")
    assert (status, said.strip()) == (0, f"pushed {FLOWS} to hf:org/flows, commit {commit}")
    assert hub.repositories["org/flows"].keys() == contents(FLOWS).keys()
    assert hub.tokens == {"Bearer hf_secret"}
    status, said = tapline("models", "pull", "hf:org/flows", "--to", tmp_path / "models")
    pulled = tmp_path / "models" / "flow-protocols" / "5"
    assert (status, said.strip()) == (0, f"pulled hf:org/flows, commit {commit}, into {pulled}")
    assert contents(pulled) == contents(FLOWS)
    origin = json.loads((pulled / "origin.json").read_text())
    assert (origin["source"], origin["revision"]) == ("hf:org/flows", commit)
    assert origin["manifest_sha256"] == hashlib.sha256((FLOWS / "checkpoint.json").read_bytes()).hexdigest()
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["flow-protocols"]
    status, said = tapline("models", "pull", f"hf:org/flows@{commit}", "--to", tmp_path / "models")
    assert status == 1
    assert "is there already: remove it, or give another --to" in said
    asked = tapline("classify", DATA / "captures" / "android.pcap", "--checkpoint", pulled, "--format", "csv")
    assert asked[0] == 0


def test_files_that_a_new_version_lacks_are_deleted_on_the_hub(hub, tapline):
    held(hub)["encoder.onnx"] = b"old"
    hub.repositories["org/flows"]["notes.txt"] = b"mine"
    assert tapline("models", "push", FLOWS, "hf:org/flows")[0] == 0
    assert hub.repositories["org/flows"].keys() == {*contents(FLOWS), "notes.txt"}


def swapped(name, content):
    return lambda files, hub: files.update({name: content})


def without(name):
    return lambda files, hub: files.pop(name)


def endless(name):
    return lambda files, hub: hub.endless.add(name)


def manifest(change):
    def break_it(files, hub):
        said = json.loads(files["checkpoint.json"])
        change(said)
        files["checkpoint.json"] = json.dumps(said).encode()

    return break_it


def naming(*names, size=3):
    """A manifest that names further files."""
    record = {"size_bytes": size, "sha256": "0" * 64}
    return manifest(lambda said: said["files"].update(dict.fromkeys(names, record)))


NONE = "its checkpoint.json is no checkpoint manifest"
FAULTS = {
    "no manifest": (without("checkpoint.json"), "no checkpoint.json there"),
    "no weights": (without("model.safetensors"), "no model.safetensors there"),
    "a manifest that is none": (swapped("checkpoint.json", b"[]"), NONE),
    "a deep manifest": (swapped("checkpoint.json", b'{"name":' + b"[" * 10**6), NONE),
    "an endless manifest": (endless("checkpoint.json"), "has more than 4194304 bytes"),
    "an endless card": (endless("README.md"), "README.md has more than 1048576 bytes"),
    "endless weights": (endless("model.safetensors"), "more bytes where the manifest says 1615080"),
    "other weights": (swapped("model.safetensors", bytes(1615080)), "its SHA-256 is not the one in the manifest"),
    "cut weights": (swapped("model.onnx", b"ab"), "only 2 bytes where the manifest says 1619202"),
    "a connection that breaks": (lambda files, hub: hub.cut.update({"model.onnx": 5}), "model.onnx"),
    "a way out": (naming("../../evil"), "'../../evil', which is no file of a checkpoint"),
    "a pickle": (naming("pytorch_model.bin"), "which is no file of a checkpoint"),
    "code": (naming("modeling.py"), "which is no file of a checkpoint"),
    "a name with a path": (manifest(lambda said: said.update(name="../up")), NONE),
    "a version with a path": (manifest(lambda said: said.update(version="/etc")), NONE),
    "too much in all": (naming("trace.onnx", "encoder.onnx", size=MAX_FILE_BYTES), "expected 4294967296 at most"),
    "labels that do not fit": (manifest(lambda said: said["labels"].pop()), "76 labels and a background class"),
    "another format": (manifest(lambda said: said.update(format_version=9)), "format version 9, this tapline reads 1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_at_a_hub_is_one_sentence_and_leaves_nothing(hub, tapline, tmp_path, fault):
    break_it, sentence = FAULTS[fault]
    break_it(held(hub), hub)
    status, said = tapline("models", "pull", "hf:org/flows", "--to", tmp_path / "new" / "models")
    assert status == 1
    assert sentence in said, said
    assert "Traceback" not in said
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "hf" / "hub").exists()


def test_repositories_and_revisions_that_are_not_there(hub, tapline, tmp_path):
    held(hub)
    assert "hf:org/none: 404" in tapline("models", "pull", "hf:org/none", "--to", tmp_path / "m")[1]
    assert "hf:org/flows@v9: 404" in tapline("models", "pull", "hf:org/flows@v9", "--to", tmp_path / "m")[1]
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("form", ["{}", "file://{}", "file:{}"])
def test_a_folder_of_that_layout_is_pushed_to_and_pulled_from(tmp_path, form):
    folder = tmp_path / "a folder"
    target = form.format(str(folder).replace(" ", "%20") if form.startswith("file") else folder)
    assert push(FLOWS, target) == str(folder)
    assert push(FLOWS, target) == str(folder)
    directory, origin = pull(target, tmp_path / "models")
    assert contents(directory) == contents(FLOWS)
    assert origin.revision is None
    assert read_checkpoint(directory) == read_checkpoint(FLOWS)


def test_folders_that_are_no_checkpoint(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("work")
    with pytest.raises(HubError, match="holds something else than a checkpoint"):
        push(FLOWS, str(tmp_path / "mine"))
    push(FLOWS, str(tmp_path / "flows"))
    with pytest.raises(HubError, match="holds the model 'flow-protocols', and this one is 'iot-devices'"):
        push(TRACES, str(tmp_path / "flows"))
    assert contents(tmp_path / "flows") == contents(FLOWS)
    shutil.rmtree(tmp_path / "flows")
    with pytest.raises(HubError, match="no such folder"):
        pull(str(tmp_path / "none"), tmp_path / "m")
    with pytest.raises(HubError, match=r"no checkpoint.json there"):
        pull(str(tmp_path / "mine"), tmp_path / "m")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        push(tmp_path / "mine", str(tmp_path / "x"))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_links_are_not_followed_and_pipes_not_waited_for(tmp_path):
    shutil.copytree(FLOWS, tmp_path / "linked")
    (tmp_path / "linked" / "README.md").unlink()
    (tmp_path / "linked" / "README.md").symlink_to("/etc/hostname")
    with pytest.raises(HubError, match="links are not followed"):
        pull(str(tmp_path / "linked"), tmp_path / "m")
    (tmp_path / "linked" / "README.md").unlink()
    os.mkfifo(tmp_path / "linked" / "README.md")
    with pytest.raises(HubError, match="expected a plain file"):
        pull(str(tmp_path / "linked"), tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    "text",
    ["hf:flows", "hf:org/flows/more", "hf:org/flows@", "hf:org/flows@a/../b", "hf:../x", "hf:org/fl ows", "s3://bucket/x",
     "http://hub/org/x", "file://elsewhere/x", "file:", "hf:"],
)  # fmt: skip
def test_places_that_are_none(text):
    with pytest.raises(HubError, match="expected "):
        place_of(text)


def test_a_place_says_itself():
    assert str(place_of("hf:org/flows@v1.0")) == "hf:org/flows@v1.0"
    assert place_of("hf:org/flows") == HubRepository("org/flows")


@pytest.mark.parametrize("directory", SHIPPED, ids=lambda path: path.parent.name)
def test_cards_that_ship_have_a_header_that_a_hub_reads(directory):
    card = ModelCard.load(directory / "README.md")
    checkpoint = read_any_checkpoint(directory)
    assert (card.data.license, card.data.library_name) == ("bsd-3-clause", "tapline")
    assert {"network-traffic", checkpoint.kind} <= set(card.data.tags)
    (result,) = card.data.eval_results
    assert result.metric_value == pytest.approx(headline_of(checkpoint.metrics).value, abs=1e-4)
    assert card.text.lstrip().startswith(f"# {checkpoint.name} {checkpoint.version}")
    assert with_header((directory / "README.md").read_text(), checkpoint) == (directory / "README.md").read_text()


def test_a_card_without_a_header_gets_one_when_it_is_pushed(tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(FLOWS, bare)
    (bare / "README.md").write_text(without_header((FLOWS / "README.md").read_text()))
    push(bare, str(tmp_path / "a"), "mit")
    assert ModelCard.load(tmp_path / "a" / "README.md").data.license == "mit"
    (bare / "README.md").unlink()
    push(bare, str(tmp_path / "b"))
    card = ModelCard.load(tmp_path / "b" / "README.md")
    assert card.data.license is None
    assert card.text.strip() == "# flow-protocols 5"
    assert not (bare / "README.md").exists()


@pytest.mark.parametrize(
    "metrics", [{}, {"cross_validation": []}, {"cross_validation": {"figures": {"macro_f1": "x"}}}]
)
def test_a_checkpoint_without_figures_has_a_header_without(metrics):
    checkpoint = replace(read_checkpoint(FLOWS), metrics=metrics)
    assert ModelCard(card_header(checkpoint)).data.eval_results is None


def test_a_name_of_a_hub_is_fetched_by_nothing_but_pull(hub, tapline):
    held(hub)
    capture = DATA / "captures" / "android.pcap"
    for arguments in (
        ("classify", capture, "--checkpoint", "hf:org/flows"),
        ("classify", capture, "--traces", "hf:org/flows"),
        ("serve", "--checkpoint", "hf:org/flows", "--port", "0"),
    ):
        status, said = tapline(*arguments)
        assert status != 0
        assert "nothing is fetched unless asked: run `tapline models pull hf:org/flows`" in said
    assert hub.asked == []


WATCHED = """
import sys
opened = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        opened.append(event)
sys.addaudithook(watch)
from {module} import main
try:
    main()
except SystemExit as error:
    status = error.code
else:
    status = 0
assert "huggingface_hub" not in sys.modules, "imported"
assert not opened, opened
sys.exit(status)
"""


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("tapline.service.command.cli", ["classify", "CAPTURE"]),
        ("tapline.service.command.cli", ["features", "CAPTURE"]),
        ("tapline.service.command.cli", ["models", "push", "FLOWS", "OUT/pushed"]),
        ("tapline.service.command.cli", ["models", "pull", "FLOWS", "--to", "OUT/pulled"]),
        ("tapline.training.commands.entry", ["extract", "CAPTURE", "--processes", "1", "--out", "OUT/features"]),
    ],
    ids=lambda each: "-".join(each[:2]) if isinstance(each, list) else each.split(".")[1],
)
def test_no_command_opens_a_connection(hub, tmp_path, module, arguments):
    named = {"CAPTURE": str(DATA / "captures" / "android.pcap"), "FLOWS": str(FLOWS)}
    arguments = [named.get(each, each.replace("OUT", str(tmp_path))) for each in arguments]
    with hub.running() as environment:
        done = subprocess.run(
            [sys.executable, "-c", WATCHED.format(module=module), *arguments],
            env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert hub.asked == []


def test_one_room_alone_imports_the_library():
    found = set()
    for folder in ("models", "service", "training"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if any(name.partition(".")[0] == "huggingface_hub" for name in names):
                    found.add(path.relative_to(ROOT).as_posix())
    assert found == {"service/hub/places.py"}


def test_without_the_library_the_sentence_says_how_to_get_it(tmp_path):
    code = "import sys; sys.modules['huggingface_hub'] = None; from tapline.service.command.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "models", "pull", "hf:org/flows", "--to", str(tmp_path / "m")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "a Hub needs huggingface_hub: pip install" in " ".join(done.stderr.split())
