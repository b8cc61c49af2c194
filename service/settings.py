"""The one table of settings of `tapline serve`: flags, environment variables (`TAPLINE_...`), `tapline.toml` and docs
follow it. How they are given, and in which order, belongs to `configuration`."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from tapline.service.engines.devices import parse_devices
from tapline.service.engines.engine import Cascade, EngineName, Ports, Precision
from tapline.service.sinks.output_url import parse_outputs, shown_output
from tapline.service.sources.bus.transport import shown_url
from tapline.service.sources.zeek_options import ZeekOptionError, zeek_arguments
from tapline.service.validation_words import ProblemsError

ENV_PREFIX = "TAPLINE_"


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


TextList = Annotated[list[str], NoDecode, BeforeValidator(_split)]
"""Several texts; in an environment variable, with commas between them."""


def _split_options(value: object) -> object:
    return [part.strip() for part in value.split(";") if part.strip()] if isinstance(value, str) else value


OptionList = Annotated[list[str], NoDecode, BeforeValidator(_split_options)]
"""Several options of Zeek, which may have commas in them; in an environment variable, with `;` between them."""


def _split_urls(value: object) -> object:
    return value.split() if isinstance(value, str) else value


UrlList = Annotated[list[str], NoDecode, BeforeValidator(_split_urls)]
"""Several URLs, which may have commas in them; in an environment variable, with blanks between them."""


def _check_devices(text: str) -> str:
    parse_devices(text)
    return text


def default_data_dir() -> Path:
    """Where data is kept by default: `$XDG_DATA_HOME/tapline` or `~/.local/share/tapline`; `/var/lib/tapline` of a user
    without a home."""
    base = os.environ.get("XDG_DATA_HOME", "")
    if base.startswith("/"):
        return Path(base) / "tapline"
    try:
        return Path("~/.local/share/tapline").expanduser()
    except RuntimeError:
        return Path("/var/lib/tapline")


class Settings(BaseSettings):
    """Read once at the start, then fixed. Units are in the names."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    dashboard: Literal["on", "off"] = Field("on", description="pages at /, where the extra `ui` is installed")
    host: str = Field("127.0.0.1", description="address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on")
    api_key: SecretStr | None = Field(
        None, description="key that requests must carry (Authorization: Bearer KEY, or X-API-Key)"
    )
    allow_remote: bool = Field(False, description="listen on other than loopback addresses without an API key")
    served_names: TextList = Field(
        [], description="names (or addresses) that requests may call this service by, beside its own; may be repeated"
    )
    keys_file: Path | None = Field(
        None, description="file of hashed keys, as `tapline keys add` writes it; it is read again when it changes"
    )
    keys: TextList = Field(
        [], description="hashed key, NAME SCOPE sha256:HASH, as `tapline keys add` prints it; may be repeated"
    )
    rate_limit_per_minute: int = Field(
        6000, ge=0, le=10_000_000, description="most requests of a key in a minute; 0 for no limit"
    )
    failed_keys_per_minute: int = Field(
        20, ge=1, le=100_000, description="most wrong keys of a client address in a minute"
    )
    audit_log: Path | None = Field(
        None,
        description="file of failed keys, sign-ins and changes, as JSON lines; they go to the log where not given",
        json_schema_extra={"exposes": "written"},
    )
    tls_cert: Path | None = Field(None, description="PEM file of the certificate (and its chain) to serve HTTPS with")
    tls_key: Path | None = Field(None, description="PEM file of the key of that certificate, without passphrase")
    forwarded_allow_ips: TextList = Field(
        [], description="address or network of a proxy whose X-Forwarded-For and -Proto are believed; may be repeated"
    )
    repository: Path | None = Field(
        None, description="model repository, NAME/VERSION/ below it; the models that ship where not given"
    )
    model: str = Field("flow-protocols", description="model of the repository that serves by default")
    load_models: TextList = Field([], description="further models of the repository to load; may be repeated")
    checkpoint: Path | None = Field(None, description="checkpoint directory that serves by default instead")
    traces: TextList = Field(
        [],
        description="trace model, by its directory or its name in the repository, or none for no traces; may be "
        "repeated (in the environment: with commas between them); those that ship where not given",
    )
    trace_lateness_seconds: float = Field(
        60, ge=0, le=86_400, description="how far behind the newest flow a flow may start and still count in its window"
    )
    trace_subjects: int = Field(
        20_000,
        ge=1,
        le=10_000_000,
        description="most subjects with open windows, of all trace models together; the longest silent are closed "
        "beyond",
    )
    trace_open_flows: int = Field(
        300_000,
        ge=1,
        le=100_000_000,
        description="most flows in open windows, of all trace models together; the first to end are closed beyond",
    )
    state_dir: Path | None = Field(
        None, description="directory that keeps open trace windows over a restart; not kept where not given"
    )
    data_dir: Path = Field(
        default_factory=default_data_dir,
        description="directory of the history, jobs and Zeek's runs; one service at a time uses it",
    )
    history: str = Field(
        "sqlite",
        description="where verdicts are kept: sqlite (history.db in the data directory), none, or a URL: "
        "sqlite:///FILE, postgresql+psycopg://USER@HOST/DATABASE",
    )
    history_days: float = Field(30, gt=0, le=36_500, description="longest that the history keeps verdicts, in days")
    history_mb: int = Field(
        10_000, ge=16, le=100_000_000, description="most that the history keeps, in MiB; the oldest goes first"
    )
    history_content: bool = Field(False, description="keep the first content bytes of flows in the history")
    max_jobs: int = Field(2, ge=1, le=64, description="jobs that run at a time; the others wait in turn")
    max_queued_jobs: int = Field(100, ge=1, le=10_000, description="most jobs that wait; more are told to come again")
    max_job_mb: int = Field(
        65_536, ge=1, le=100_000_000, description="largest capture of a job, as sent and after decompression, in MiB"
    )
    job_timeout_seconds: float = Field(86_400, gt=0, description="longest time that the capture of one job may be read")
    job_days: float = Field(30, gt=0, le=36_500, description="days that a job that has ended is kept")
    jobs_mb: int = Field(
        65_536,
        ge=1,
        le=100_000_000,
        description="most room of all jobs on disk, in MiB; beyond, the oldest are deleted",
    )
    captures_dir: Path | None = Field(
        None, description="directory of captures that jobs may name by their paths below it; none where not given"
    )
    engine: EngineName = Field("onnx", description="onnx (CPU, or GPU with the extra `gpu`) or torch (extra `torch`)")
    devices: Annotated[str, AfterValidator(_check_devices)] = Field(
        "auto",
        description="what computes: auto (every GPU that can be used, else the CPU), cpu, numbers of GPUs (0,1), "
        "or simulated:N (as if there were N GPUs, on the CPU)",
    )
    precision: Precision = Field("float32", description="float32, int8 (onnx, if the model has it) or bfloat16 (torch)")
    ports: Ports = Field("on", description="off: verdicts on flows do not read ports, unless a request asks for it")
    cascade: Cascade = Field(
        "on", description="off: the whole network answers every flow, also those that the model's student is sure of"
    )
    model_trial_seconds: float = Field(
        30, gt=0, le=3600, description="longest time that loading and running a checkpoint once may take"
    )
    engine_timeout_seconds: float = Field(
        60, gt=0, le=3600, description="longest time of a batch; an engine that hangs on is given up, and the service"
    )
    engine_processes: int = Field(
        0,
        ge=0,
        le=64,
        description="processes that compute flow verdicts beside this one, so that receiving and computing do not take "
        "turns; 0: this one computes. With several GPUs at least one for each",
    )
    threads: int = Field(
        0, ge=0, le=1024, description="threads of an engine, 0: one per core, of which processes have a share each"
    )
    max_batch_size: int = Field(256, ge=1, le=65536, description="most flows in a batch")
    max_batch_tokens: int = Field(65_536, ge=1, le=1 << 26, description="most tokens in a batch; one flow always fits")
    max_queue_delay_ms: float = Field(5.0, ge=0, le=10_000, description="longest wait for a batch to fill")
    max_queue_size: int = Field(16_384, ge=1, le=10_000_000, description="most flows waiting for the engine")
    max_upload_mb: int = Field(1024, ge=1, le=1_000_000, description="largest capture to accept, in MiB")
    max_capture_mb: int = Field(4096, ge=1, le=10_000_000, description="largest capture after decompression, in MiB")
    max_uploads: int = Field(4, ge=1, le=1024, description="captures worked on at a time; more are told to come again")
    request_timeout_seconds: float = Field(
        30, gt=0, le=3600, description="longest time that a request with flows waits; what is late is not computed"
    )
    client_timeout_seconds: float = Field(
        10, ge=1, le=3600, description="longest time that a client may take for a request's head, and between progress"
    )
    client_min_bytes_per_second: int = Field(
        1024,
        ge=1,
        le=1 << 30,
        description="slowest that a client may send a body or read an answer: else it is cut off",
    )
    max_body_mb: int = Field(32, ge=1, le=1024, description="largest JSON body, in MiB")
    parse_timeout_seconds: float = Field(600, gt=0, description="longest time that one capture may be read")
    parse_memory_mb: int = Field(
        2048, ge=256, description="most memory (address space) of a process that reads captures"
    )
    alerts: Path | None = Field(
        None, description="file of alert rules (TOML), read anew when it changes; no alerts where not given"
    )
    zeek: TextList = Field(
        [], description="bus of a sensor: ws://host:port, wss://host:port or broker://host:port; may be repeated"
    )
    interface: TextList = Field(
        [], description="network interface to start Zeek on, or eth0=NAME to name the sensor; may be repeated"
    )
    zeek_dir: Path | None = Field(
        None,
        description="directory of the logs of Zeeks on interfaces, each run in one of its own; zeek/ of the data "
        "directory where not given",
    )
    zeek_logs_mb: int = Field(
        10_240,
        ge=0,
        le=100_000_000,
        description="most logs of one run of Zeek, in MiB: beyond, the oldest rotated "
        "ones of that run are removed, and it is logged; 0 for no bound; earlier runs are never touched",
    )
    zeek_script: TextList = Field(
        [], description="script that Zeeks on interfaces load, too: a file, or a name on Zeek's path; may be repeated"
    )
    zeek_option: OptionList = Field(
        [], description="option of Zeek on interfaces, Name=value; may be repeated (in the environment: with ; between)"
    )
    sensor_grace_seconds: float = Field(
        30, ge=0, le=86_400, description="longest time without any sensor connected before the service is not ready"
    )
    zeek_ca: Path | None = Field(None, description="PEM file of the CA that signed the sensors' certificates")
    zeek_cert: Path | None = Field(None, description="PEM file of the certificate to show to sensors")
    zeek_key: Path | None = Field(None, description="PEM file of the key of that certificate")
    shards: TextList = Field([], description="shards of the flows to take, as the sensor numbers them; may be repeated")
    spool_verdicts: int = Field(
        100_000, ge=0, le=10_000_000, description="most verdicts kept for a sensor that is away; 0 sends none back"
    )
    output: UrlList = Field(
        [],
        description="where records of verdicts and alerts go: eve:FILE, syslog+tls://HOST, https://HOST/PATH, "
        "kafka://HOST/TOPIC and more (docs/outputs.md); may be repeated (in the environment: with blanks between)",
    )
    live_queue_flows: int = Field(20_000, ge=1, le=10_000_000, description="most live flows waiting; more are shed")
    live_deadline_seconds: float = Field(
        0.5,
        ge=0,
        le=3600,
        description="longest wait of a live flow under overload, longer in bursts; late ones are shed; 0: none",
    )
    replay: Path | None = Field(None, description="capture to play through the live path")
    speed: float = Field(
        1.0, ge=0, description="speed of the replay: 2 is twice as fast as it was, 0 as fast as it goes"
    )
    shutdown_seconds: float = Field(10, ge=0, description="longest time to finish work when asked to stop")

    @model_validator(mode="before")
    @classmethod
    def _nothing_empty(cls, given: dict[str, Any]) -> dict[str, Any]:
        """An empty text is not a value: above all not a key that lets everybody in."""
        for name, value in given.items():
            text = value.get_secret_value() if isinstance(value, SecretStr) else value
            if isinstance(text, str) and not text.strip() and not is_list(cls.model_fields.get(name)):
                raise ValueError(f"{ENV_PREFIX}{name.upper()} is empty: give it a value, or leave it out")
        return given

    @field_validator("api_key")
    @classmethod
    def _fits_a_header(cls, key: SecretStr | None) -> SecretStr | None:
        text = key.get_secret_value() if key is not None else ""
        if text != text.strip() or any(ord(letter) < 32 or ord(letter) == 127 for letter in text):
            raise ValueError("expected a key without blanks at its ends, line ends and control characters")
        return key

    @field_validator("forwarded_allow_ips")
    @classmethod
    def _are_addresses(cls, given: list[str]) -> list[str]:
        for one in given:
            try:
                names_some = ipaddress.ip_network(one).prefixlen > 0
            except ValueError:
                names_some = False
            if not names_some:
                raise ValueError("expected addresses or networks of proxies, as 10.0.0.0/8; all else could be anybody")
        return given

    @field_serializer("keys", when_used="json")
    def _show_names_of_keys(self, lines: list[str]) -> list[str]:
        return [line.partition("sha256:")[0].strip() for line in lines]

    @field_serializer("zeek", when_used="json")
    def _show_no_passwords(self, urls: list[str]) -> list[str]:
        return [shown_url(url) for url in urls]

    @field_validator("output")
    @classmethod
    def _outputs_are_understood(cls, texts: list[str]) -> list[str]:
        parse_outputs(texts)
        return texts

    @field_serializer("output", when_used="json")
    def _show_no_parameters(self, texts: list[str]) -> list[str]:
        return [shown_output(text) for text in texts]

    @field_serializer("history", when_used="json")
    def _show_no_password(self, url: str) -> str:
        return shown_url(url) if "://" in url else url

    @property
    def is_live(self) -> bool:
        """Whether flows come from sensors or a replay."""
        return bool(self.zeek or self.interface or self.replay)

    @model_validator(mode="after")
    def _goes_together(self) -> Settings:
        if problems := list(self._contradictions()):
            raise ProblemsError(problems)
        return self

    def _contradictions(self) -> Iterator[str]:
        """What is wrong with the values of several settings together."""
        for script, option in [([one], []) for one in self.zeek_script] + [([], [one]) for one in self.zeek_option]:
            try:
                zeek_arguments(script, option)
            except ZeekOptionError as error:
                yield str(error)
        if self.replay and (self.zeek or self.interface):
            yield "a replay beside live traffic: give --replay, or --zeek and --interface"
        has_keys = self.api_key is not None or self.keys or self.keys_file is not None
        if not self.allow_remote and not has_keys and not is_loopback(self.host):
            yield (
                f"listening on {self.host} would let others in: give keys (--keys-file, or one by --api-key), or "
                "--allow-remote"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            yield "a certificate without its key, or a key without: give --tls-cert and --tls-key, or none"


def is_list(field: FieldInfo | None) -> bool:
    """Whether a setting is several texts, of which there may be none."""
    return field is not None and get_origin(field.annotation) is list


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
