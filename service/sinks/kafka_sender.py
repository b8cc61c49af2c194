"""The outputs `kafka` and `kafka+tls`: a record a message, by `confluent-kafka`, which is the extra `kafka`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from tapline.installation import install_command
from tapline.models.foreign_text import clean
from tapline.service.sinks.output_queue import Record
from tapline.service.sinks.output_url import KafkaOutput, OutputError
from tapline.service.sinks.sender import AwayError, reason_of

_FLUSH_GRACE_SECONDS = 1.0


class _Head(msgspec.Struct):
    """What of a record its message is keyed by."""

    community_id: str = ""
    src_ip: str = ""
    dest_ip: str = ""


_HEAD = msgspec.json.Decoder(_Head)


class KafkaSender:
    """Produces to a topic, with an answer for each message from all replicas in sync; as of `sender.Sender`.

    The key of a message is the Community ID, else the host that it is about: records of one flow are in one partition.
    """

    batch_records = 1000
    batch_bytes = 1 << 20
    gather_seconds = 0.25

    def __init__(self, output: KafkaOutput) -> None:
        """
        Raises:
            OutputError: `confluent-kafka` is not installed, or does not take the properties.
        """
        try:
            import confluent_kafka  # an extra, and large
        except ModuleNotFoundError:
            raise OutputError(f"{output.name} needs confluent-kafka: {install_command('kafka')}") from None
        self._output = output
        self._kafka: Any = confluent_kafka
        self._refusals = {
            confluent_kafka.KafkaError.MSG_SIZE_TOO_LARGE,
            confluent_kafka.KafkaError.INVALID_MSG_SIZE,
            confluent_kafka.KafkaError.INVALID_RECORD,
        }
        self._trouble = ""
        self._producer: Any = self._make_producer()

    def send(self, records: Sequence[Record]) -> Sequence[Record]:
        """Produce records; those that are too large for the topic.

        Raises:
            AwayError: some were not acknowledged in time.
        """
        if self._producer is None:
            self._producer = self._reconnected()
        failed: dict[int, Any] = {}
        done: set[int] = set()

        def answered(number: int, error: Any, _message: object) -> None:
            done.add(number)
            if error is not None:
                failed[number] = error

        for number, record in enumerate(records):
            try:
                self._producer.produce(
                    self._output.topic, record.line, _key(record), on_delivery=partial(answered, number)
                )
            except self._kafka.KafkaException as error:
                answered(number, error.args[0], None)
        if self._producer.flush(self._output.timeout_seconds + _FLUSH_GRACE_SECONDS):
            self._producer.purge()
            self._producer.flush(_FLUSH_GRACE_SECONDS)
        refused = [number for number, error in failed.items() if error.code() in self._refusals]
        rest = [number for number in range(len(records)) if number not in done or number in failed.keys() - refused]
        if rest:
            first = next(iter(failed[number] for number in rest if number in failed), None)
            if first is not None and first.fatal():
                self.reopen()
            reason = self._trouble or (first.str() if first is not None else "no answer")
            again = sorted([*rest, *refused])
            raise AwayError(f"{self._output.shown}: {clean(reason)}", [records[number] for number in again])
        self._trouble = ""
        return [records[number] for number in refused]

    def probe(self) -> None:
        """Ask a broker for the topic.

        Raises:
            AwayError: none answers, or there is no such topic for us.
        """
        if self._producer is None:
            self._producer = self._reconnected()
        try:
            topics = self._producer.list_topics(self._output.topic, self._output.timeout_seconds).topics
            problem = topics[self._output.topic].error if self._output.topic in topics else None
        except self._kafka.KafkaException as error:
            problem = error.args[0]
        if problem is not None and problem.code() != self._kafka.KafkaError.LEADER_NOT_AVAILABLE:  # it is being made
            raise AwayError(f"{self._output.shown}: {clean(self._trouble or problem.str())}")
        self._trouble = ""

    def reopen(self) -> None:
        """Connect anew, by the files as they are then, before the next record."""
        self._producer = None

    def close(self) -> None:
        """Let the connection go."""
        self._producer = None

    def _reconnected(self) -> Any:
        try:
            return self._make_producer()
        except OutputError as error:
            raise AwayError(str(error)) from None

    def _make_producer(self) -> Any:
        quiet = logging.getLogger("tapline.kafka")
        quiet.setLevel(logging.CRITICAL + 1)  # what is wrong comes to `_told`, and is said once in so many seconds
        try:
            return self._kafka.Producer({**self._properties(), "error_cb": self._told}, logger=quiet)
        except self._kafka.KafkaException as error:
            raise OutputError(f"{self._output.name}: {clean(error.args[0].str())}") from None

    def _told(self, error: Any) -> None:
        self._trouble = error.str()

    def _properties(self) -> dict[str, str | int | bool]:
        output = self._output
        found: dict[str, str | int | bool] = {
            "client.id": "tapline",
            "enable.idempotence": True,
            "acks": "all",
            **_read_properties(output),
            "bootstrap.servers": output.servers,
            "message.timeout.ms": round(output.timeout_seconds * 1000),
        }
        if output.tls:
            found.setdefault("security.protocol", "ssl")
            files = {
                "ssl.ca.location": output.ca,
                "ssl.certificate.location": output.cert,
                "ssl.key.location": output.key or output.cert,
            }
            found.update({name: path for name, path in files.items() if path is not None})
        return found


def _key(record: Record) -> bytes | None:
    head = _HEAD.decode(record.line)
    return (head.community_id or head.src_ip or head.dest_ip).encode() or None


def _read_properties(output: KafkaOutput) -> dict[str, str]:
    """The properties in `config_file`: `key=value` a line, `#` begins a comment."""
    if output.config_file is None:
        return {}
    place = f"{output.name}: config_file={output.config_file}"
    try:
        text = Path(output.config_file).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(
            f"{place} cannot be read: {reason_of(error) if isinstance(error, OSError) else 'expected UTF-8'}"
        ) from None
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, mark, value = line.partition("=")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not mark or not name.strip():
            raise OutputError(f"{place}, line {number}: expected key=value")
        found[name.strip()] = value.strip()
    return found
