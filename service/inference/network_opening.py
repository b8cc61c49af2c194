"""The flow networks that serve a checkpoint: engines in this process, one for each device, or processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from tapline.service.engines.devices import Device
from tapline.service.engines.loading import asked_devices, load_engines, usable
from tapline.service.engines.thread import EngineThread
from tapline.service.inference.flow_network import FlowNetwork, Network
from tapline.service.inference.network_messages import NetworkRecipe
from tapline.service.inference.network_process import NetworkProcess


def open_networks(
    recipe: NetworkRecipe,
    processes: int,
    devices: Sequence[Device] | None,
    timeout_seconds: float,
    restarted: Callable[[str], None] = lambda process: None,
) -> Sequence[Network]:
    """So many processes, or one for each of the `devices` (as of `load_engines`) where those are more, in turn on
    them; with 0 processes an engine here for each device. `timeout_seconds` is that of a batch, `restarted` as of
    `NetworkProcess`; of `recipe` the device is not looked at.

    Raises:
        CheckpointError, EngineError: as of `load_engines`.
    """
    if not processes:
        engines = load_engines(recipe.engine, Path(recipe.directory), recipe.threads, recipe.precision, devices)
        return [
            FlowNetwork(engine, EngineThread(f"engine {number} of {engine.checkpoint.name}", timeout_seconds))
            for number, engine in enumerate(engines, 1)
        ]
    asked = asked_devices(recipe.engine, devices)
    places = [asked[number % len(asked)] for number in range(max(processes, len(asked)))]
    threads = recipe.threads or max(1, len(os.sched_getaffinity(0)) // (processes + 1))  # a share of the cores
    networks = [
        NetworkProcess(msgspec.structs.replace(recipe, device=place, threads=threads), timeout_seconds, restarted)
        for place in places
    ]
    for network in networks:
        network.check_started()
    return usable(recipe.engine, places, networks, chosen=devices is not None, least=processes)
