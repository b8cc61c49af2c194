"""The command `tapline models`: asks a running service what serves, and has it load or unload models; pulls checkpoints
into a repository, and pushes them."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.table import Table

from tapline.models.checkpoint import CheckpointError
from tapline.models.checkpoint_files import HUB_PREFIX
from tapline.service.command.baseline_command import baseline
from tapline.service.command.console import make_console
from tapline.service.command.streams import say
from tapline.service.hub.places import HubError
from tapline.service.hub.pull import pull
from tapline.service.hub.push import push
from tapline.service.process.process_title import hide

EXIT_USAGE = 2
TIMEOUT_SECONDS = 120
DEFAULT_URL = "http://127.0.0.1:8000"

app = typer.Typer(
    no_args_is_help=True,
    help="List, load and unload the models of a running service; pull and push checkpoints, and give them baselines.",
)

Url = Annotated[str, typer.Option(help="where the service listens", envvar="TAPLINE_URL")]
Key = Annotated[
    str | None, typer.Option(help="its API key; better by env TAPLINE_API_KEY, or a file", show_default=False)
]
KeyFile = Annotated[
    Path | None,
    typer.Option(help="file that holds the API key alone", envvar="TAPLINE_API_KEY_FILE", show_default=False),
]
Name = Annotated[str, typer.Argument(help="name of the model")]


@app.command("list")
def list_models(url: Url = DEFAULT_URL, api_key: Key = None, api_key_file: KeyFile = None) -> None:
    """Show the models of the repository, and those that serve."""
    _show(_ask("GET", url, "/v1/models", _key(api_key, api_key_file))["models"])


@app.command("load")
def load_model(
    name: Name,
    version: Annotated[str, typer.Option(help="the newest where none is given")] = "",
    url: Url = DEFAULT_URL,
    api_key: Key = None,
    api_key_file: KeyFile = None,
) -> None:
    """Load a model, or swap the one that serves for another version, with no gap.

    A trace model serves beside those of other names. Where it takes the place of another version, windows that are open
    are closed with the verdicts of that one.
    """
    query = f"?{urllib.parse.urlencode({'version': version})}" if version else ""
    key = _key(api_key, api_key_file)
    model = _ask("POST", url, f"/v1/models/{urllib.parse.quote(name, safe='')}/load{query}", key)
    _show([model])
    if model.get("closed_windows"):
        typer.echo(f"closed with the verdicts of the version before: {model['closed_windows']} live windows")


@app.command("unload")
def unload_model(name: Name, url: Url = DEFAULT_URL, api_key: Key = None, api_key_file: KeyFile = None) -> None:
    """Serve a model no more."""
    key = _key(api_key, api_key_file)
    _show(_ask("POST", url, f"/v1/models/{urllib.parse.quote(name, safe='')}/unload", key)["models"])


@app.command("pull")
def pull_model(
    source: Annotated[str, typer.Argument(help="hf:ORGANISATION/NAME, also with @REVISION; a folder; file:///FOLDER")],
    to: Annotated[
        Path, typer.Option("--to", help="repository: NAME/VERSION/ goes below it", envvar="TAPLINE_REPOSITORY")
    ] = Path("checkpoints"),
) -> None:
    """Fetch a checkpoint into a model repository, whole and verified or not at all.

    Nothing else of tapline fetches anything. Private repositories are read with the token of `hf auth login` or of
    HF_TOKEN.
    """
    try:
        directory, origin = pull(source, to)
    except (HubError, OSError) as error:
        _fail(str(error))
    at = f", commit {origin.revision}," if origin.revision else ""
    typer.echo(f"pulled {source}{at} into {directory}")


@app.command("push")
def push_model(
    directory: Annotated[Path, typer.Argument(help="checkpoint directory: NAME/VERSION")],
    target: Annotated[str, typer.Argument(help="hf:ORGANISATION/NAME, also with @BRANCH; a folder; file:///FOLDER")],
    licence: Annotated[
        str | None, typer.Option("--license", help="for the card's header: bsd-3-clause, ... [default: as it is there]")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="make a new repository private")] = False,
) -> None:
    """Put a checkpoint into a repository of a Hub, or into a folder of that layout."""
    try:
        said = push(directory, target, licence, private=private)
    except (CheckpointError, HubError, OSError) as error:
        _fail(str(error))
    at = f", commit {said}" if target.startswith(HUB_PREFIX) else ""
    typer.echo(f"pushed {directory} to {target}{at}")


app.command("baseline")(baseline)


def _show(models: list[dict[str, Any]]) -> None:
    table = Table("name", "kind", "serving", "versions", "labels", "needs", "runs on", box=None, pad_edge=False)
    for model in models:
        serving = model["version"] or "-"
        table.add_row(
            model["name"],
            model["kind"] or "-",
            f"{serving} (default)" if model["default"] else serving,
            ", ".join(model["versions"]),
            str(len(model["labels"] or [])) if model["version"] else "-",
            _needs(model),
            _runs_on(model),
        )
    make_console().print(table)


def _runs_on(model: dict[str, Any]) -> str:
    """What computes it, and whether a student answers before it."""
    provider: str = (model.get("provider") or "-").removesuffix("ExecutionProvider")
    return f"student, {provider}" if model.get("cascade") else provider


def _needs(model: dict[str, Any]) -> str:
    """The least that a flow or a trace must have to get a verdict."""
    for field, what in (("min_packets", "packet"), ("min_flows", "flow")):
        least = model.get(field)
        if least is not None:
            return f"{least} {what}{'' if least == 1 else 's'}"
    return "-"


def _key(given: str | None, file: Path | None) -> str | None:
    """The key to send: of the option, of the file, or of the environment; it ends where that is empty."""
    if given is not None:
        hide(given.encode())
    try:
        key = file.read_text("utf-8").strip() if given is None and file is not None else given
    except (OSError, UnicodeDecodeError) as error:
        _fail(f"{file}: cannot be read: {getattr(error, 'strerror', None) or 'no text'}")
    key = os.environ.get("TAPLINE_API_KEY") if key is None else key
    if key is not None and not key.strip():
        say("the API key is empty: give it a value, or leave it out")
        raise typer.Exit(EXIT_USAGE)
    return key


def _ask(method: str, url: str, path: str, key: str | None) -> Any:
    try:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            raise ValueError("expected http:// or https://")
        request = urllib.request.Request(url.rstrip("/") + path, method=method)
        if key is not None:
            request.add_unredirected_header("X-API-Key", key.encode())  # type: ignore[arg-type]
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        _fail(_message(error))
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        _fail(f"{url}: no answer: {getattr(error, 'reason', error)}")
    except ValueError as error:
        _fail(f"{url}: {error}")


def _message(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"the service answered {error.code} {error.reason}"


def _fail(message: str) -> NoReturn:
    say(message)
    raise typer.Exit(1)
