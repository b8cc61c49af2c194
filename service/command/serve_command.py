"""The command `tapline serve`: its options are the table of settings, so that neither can drift from the other."""

from __future__ import annotations

from typing import Any

import typer

from tapline.models.checkpoint import CheckpointError
from tapline.service.access.keys import KeysError
from tapline.service.access.tls import TlsError
from tapline.service.alerts.rule_faults import AlertRulesError
from tapline.service.command.settings_options import Config, configuration, with_settings
from tapline.service.command.streams import say
from tapline.service.configuration.problems import ConfigurationError
from tapline.service.engines.engine import EngineError
from tapline.service.history.history_errors import HistoryError
from tapline.service.jobs.job_store import JobsInUseError
from tapline.service.log_lines import log
from tapline.service.process.data_directory import DataDirectoryError
from tapline.service.process.process_title import hide, hide_passwords
from tapline.service.sinks.output_url import OutputError
from tapline.service.sources.bus.transport import TransportError
from tapline.service.sources.packets.capture_error import CaptureError
from tapline.service.sources.zeek_process import ZeekError
from tapline.service.traces.window_state import StateError

EXIT_FAILED = 1
EXIT_USAGE = 2


@with_settings()
def serve(config: Config = None, **given: Any) -> None:
    """Serve the REST API and metrics; nothing leaves this machine unless you say so."""
    # imports the web framework, which other commands do without
    from tapline.service.api.server import GaveUpError, ListenError
    from tapline.service.api.server import serve as run_server

    try:
        found = configuration(config, given)
        settings = found.settings()
        hide_passwords([*settings.zeek, settings.history])
        if given.get("api_key"):
            hide(given["api_key"].encode())
        if settings.replay is not None:
            from tapline.service.sources.capture import check_capture

            check_capture(settings.replay)
        if found.file is not None:
            log.info("configuration", file=str(found.file.path), settings=len(found.file.values))
        run_server(settings)
    except CaptureError as error:
        say(f"{settings.replay}: {error}")
        raise typer.Exit(EXIT_FAILED) from None
    except ConfigurationError as error:
        for problem in error.problems:
            say(problem)
        raise typer.Exit(EXIT_USAGE) from None
    except GaveUpError as error:
        say(f"gave up: {error}")
        raise typer.Exit(EXIT_FAILED) from None
    except (ListenError, ZeekError, DataDirectoryError, JobsInUseError) as error:
        say(str(error))
        raise typer.Exit(EXIT_FAILED) from None
    except AlertRulesError as error:
        for problem in error.lines:
            say(problem)
        raise typer.Exit(EXIT_USAGE) from None
    except (
        CheckpointError,
        EngineError,
        HistoryError,
        KeysError,
        OutputError,
        StateError,
        TlsError,
        TransportError,
    ) as error:
        say(str(error))
        raise typer.Exit(EXIT_USAGE) from None
