"""The code of the page on Python runs, block after block, as a reader would run it."""

import asyncio
import re
import shutil

import pytest

from tests.batches import flows_event
from tests.documentation.pages import blocks
from tests.logged import reset_logs
from tests.paths import DATA, ROOT
from tests.service.sources.bus.sensors import WebSocketSensor
from tests.service.sources.bus.test_events import FLOW

ANDROID = DATA / "captures" / "android.pcap"


async def watch(namespace, capsys):
    """What the page's last function prints of a flow of a sensor."""
    async with asyncio.timeout(60), WebSocketSensor().running() as sensor:
        task = asyncio.ensure_future(namespace["watch"](sensor.url))
        await sensor.wait_for_client()
        await sensor.publish(flows_event([FLOW], 7, sensor="tap-1"))
        said = ""
        while "\n" not in said:
            assert not task.done(), task
            await asyncio.sleep(0.01)
            said += capsys.readouterr().out
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return said


@pytest.mark.whole
def test_every_block_runs(tmp_path, monkeypatch, capsys):
    reset_logs()  # another test may have said how logs are written
    monkeypatch.chdir(tmp_path)
    (tmp_path / "captures").mkdir()
    for place in ("capture.pcap", "captures/other.pcap"):
        shutil.copy(ANDROID, place)
    namespace = {"__name__": "page"}
    found = [block for block in blocks("docs/python.md", "python") if block.mark != "not run"]
    assert len(found) == 10
    for block in found:
        exec(compile(block.text, str(block), "exec"), namespace)
    said = capsys.readouterr().out
    assert len(namespace["df"]) == 66
    assert "132 of 138 flows" in said
    assert "(69, 77) (69, 128)" in said
    assert "iot-devices c4:61:8b:35:82:a9 2020-02-23" in said
    assert re.fullmatch(r"CUid 2001:db8::2 \S+ early\n", asyncio.run(watch(namespace, capsys)))


def test_the_lines_of_the_readme_run(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (block,) = blocks("README.md", "python")
    namespace = {"__name__": "page"}
    exec(compile(block.text, str(block), "exec"), namespace)
    assert len(namespace["df"]) == 66
