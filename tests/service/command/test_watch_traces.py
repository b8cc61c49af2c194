"""What `tapline watch` shows of traces."""

import asyncio
import io

import pytest
from rich.console import Console, ConsoleDimensions

from tapline.service.command.watch import View
from tapline.service.runtime import Service
from tapline.service.settings import Settings
from tests.paths import ROOT

pytestmark = pytest.mark.whole

CAPTURE = ROOT / "tests" / "data" / "captures" / "android.pcap"


def shown(settings, width=200, height=60) -> str:
    view = View()

    async def main():
        service = Service(settings, view)
        async with asyncio.timeout(60), service.running():
            await service.replay.finished.wait()
            console = Console(file=io.StringIO(), width=width)
            console.print(view.draw(service, ConsoleDimensions(width, height)))
            return console.file.getvalue()

    return asyncio.run(main())


@pytest.mark.parametrize(("width", "height"), [(80, 30), (120, 40), (200, 70)])
def test_the_height_of_the_terminal_is_used_and_not_exceeded(checkpoint_dir, mac_traces_dir, width, height):
    settings = Settings(checkpoint=checkpoint_dir, traces=[str(mac_traces_dir)], replay=CAPTURE, speed=0)
    lines = shown(settings, width, height).splitlines()
    assert height - 2 <= len(lines) <= height  # a row may have two lines
    assert max(map(len, lines)) <= width


def test_recent_traces_and_what_their_shares_mean(checkpoint_dir, mac_traces_dir):
    text = shown(Settings(checkpoint=checkpoint_dir, traces=[str(mac_traces_dir)], replay=CAPTURE, speed=0))
    assert "traces by random-tracegram: 0 windows open, 0 flows in them   cut " in text
    assert "4c:6a:f6:9f:f6:27" in text
    assert "2020-02-23" in text
    assert "not what caused it" in text


def test_without_a_trace_checkpoint_nothing_is_said_of_traces(checkpoint_dir):
    text = shown(Settings(checkpoint=checkpoint_dir, traces=["none"], replay=CAPTURE, speed=0))
    assert "traces by" not in text
    assert "verdicts 66" in text
