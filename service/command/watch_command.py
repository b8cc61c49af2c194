"""The command `tapline watch`: its options, and which settings are its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tapline.models.checkpoint import CheckpointError
from tapline.service.command.chosen_classifier import CASCADE_HELP, PORTS_HELP, Traces
from tapline.service.command.settings_options import Config, configuration
from tapline.service.command.streams import fail
from tapline.service.command.watch import watch as run_watch
from tapline.service.configuration.problems import ConfigurationError
from tapline.service.engines.engine import Cascade, EngineError, Ports
from tapline.service.process.process_title import hide_passwords
from tapline.service.sources.bus.transport import TransportError
from tapline.service.sources.capture import CaptureError
from tapline.service.sources.zeek_process import ZeekError
from tapline.service.traces.window_state import StateError

EXIT_FAILED = 1
EXIT_USAGE = 2

NOT_OF_WATCH: dict[str, Any] = {"history": "none", "state_dir": None, "output": [], "host": "127.0.0.1"}
"""What a configuration says to a service, and not to who looks beside it: what both would write, where one listens."""


def watch(
    interface: Annotated[
        list[str] | None,
        typer.Option(help="start Zeek on this interface, or eth0=NAME to name the sensor; repeatable"),
    ] = None,
    zeek: Annotated[
        list[str] | None, typer.Option(help="attach to a running sensor: ws://host:port; repeatable")
    ] = None,
    replay: Annotated[Path | None, typer.Option(help="play a capture instead, without Zeek")] = None,
    speed: Annotated[float, typer.Option(min=0, help="speed of the replay, 0 as fast as it goes")] = 1.0,
    config: Config = None,
    checkpoint: Annotated[Path | None, typer.Option(help="checkpoint directory [default: the one that ships]")] = None,
    traces: Traces = None,
    ports: Annotated[Ports | None, typer.Option(help=f"{PORTS_HELP} [default: on]")] = None,
    cascade: Annotated[Cascade | None, typer.Option(help=f"{CASCADE_HELP} [default: on]")] = None,
    zeek_dir: Annotated[
        Path | None,
        typer.Option(
            help="where Zeek on the interface keeps its logs, each run in a directory of its own "
            "[default: zeek/ of the data directory]"
        ),
    ] = None,
    zeek_script: Annotated[
        list[str] | None, typer.Option(help="script that Zeek on the interface loads, too; repeatable")
    ] = None,
    zeek_option: Annotated[
        list[str] | None, typer.Option(help="option of Zeek on the interface, Name=value; repeatable")
    ] = None,
    return_verdicts: Annotated[
        bool, typer.Option("--return-verdicts", help="send verdicts back to Zeek's logs and notices, as `serve` does")
    ] = False,
) -> None:
    """Show verdicts on live traffic, until Ctrl-C."""
    if not (interface or zeek or replay):
        fail("nothing to watch: give --interface IF, --zeek ws://host:port or --replay CAPTURE", EXIT_USAGE)
    if replay and (interface or zeek):
        fail("a replay beside live traffic: give --replay, or --zeek and --interface", EXIT_USAGE)
    try:
        chosen = {
            "checkpoint": checkpoint, "traces": traces, "ports": ports, "cascade": cascade,
            "zeek_dir": zeek_dir,
            "zeek_script": zeek_script, "zeek_option": zeek_option,
        }  # fmt: skip
        alone = {"zeek": zeek or [], "interface": interface or [], "replay": replay, "speed": speed, **NOT_OF_WATCH}
        settings = configuration(config, chosen, alone).settings()
        hide_passwords(settings.zeek)
        if not return_verdicts:
            settings = settings.model_copy(update={"spool_verdicts": 0})
        raise typer.Exit(run_watch(settings))
    except ConfigurationError as error:
        fail("; ".join(error.problems), EXIT_USAGE)
    except (CheckpointError, EngineError, StateError, TransportError) as error:
        fail(str(error), EXIT_USAGE)
    except (ZeekError, CaptureError) as error:
        fail(str(error), EXIT_FAILED)
