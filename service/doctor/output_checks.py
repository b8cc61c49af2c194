"""The outputs that a network is between: the other side of each can be reached."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tapline.service.doctor.finding import Finding
from tapline.service.sinks.output_url import EveOutput, Output, OutputError, SyslogOutput, parse_outputs
from tapline.service.sinks.outputs import make_sender
from tapline.service.sinks.sender import AwayError


class OtherSideOfOutput:
    """An output can be reached, as far as that can be seen without sending it anything."""

    what = "output"

    def __init__(self, output: Output) -> None:
        self._output = output

    def run(self) -> Iterator[Finding]:
        """Look as a service does at its start."""
        what = f"{self.what} {self._output.name}"
        try:
            sender = make_sender(self._output)
            try:
                sender.probe()
            finally:
                sender.close()
        except OutputError as error:
            yield Finding(what, "problem", str(error), "Mend the file or the parameter that is named.")
        except AwayError as error:
            yield Finding(
                what,
                "problem",
                str(error),
                "Is the receiver running there, and does a firewall let this machine through?",
            )
        else:
            is_udp = isinstance(self._output, SyslogOutput) and self._output.transport == "udp"
            yield Finding(what, "ok", "its name is known; UDP says no more" if is_udp else "it can be reached")


def output_checks(texts: Sequence[str]) -> list[OtherSideOfOutput]:
    """A check of each output but files, whose folders are looked at with the other disks."""
    return [OtherSideOfOutput(output) for output in parse_outputs(texts) if not isinstance(output, EveOutput)]
