"""The process of a flow network (`network_process`): judges batch after batch, in their order.

It ends when its socket does, so that it never outlives who started it, however that ended, and at no signal that is
meant for all of a service's processes: what is on its way is still computed.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from pathlib import Path
from queue import SimpleQueue
from socket import socket

import msgspec

from tapline.models.checkpoint import CheckpointError
from tapline.service.engines.engine import EngineError
from tapline.service.engines.loading import load_engine
from tapline.service.engines.warm_flows import LONG_FLOW, SHORT_FLOW
from tapline.service.inference.flow_network import FlowNetwork
from tapline.service.inference.network_messages import (
    Answer,
    NetworkRecipe,
    Ready,
    Refused,
    Said,
    pack_answer,
    receive,
    send,
    unpack_batch,
)
from tapline.service.process.garbage import spare_what_is_loaded


def main() -> None:
    """Load, then answer until nobody asks any more."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    connection = socket(fileno=0)
    asked: SimpleQueue[bytes] = SimpleQueue()
    try:
        network = _loaded(msgspec.json.decode(sys.argv[1], type=NetworkRecipe))
    except CheckpointError as error:
        send(connection, pack_answer(Refused(str(error), by_checkpoint=True)))
        return
    except Exception as error:
        send(connection, pack_answer(Refused(_reason(error))))
        return
    threading.Thread(target=_listen, args=(connection, asked), daemon=True).start()
    send(connection, pack_answer(Ready(network.provider)))
    while True:
        send(connection, pack_answer(_answer(network, asked.get())))


def _loaded(recipe: NetworkRecipe) -> FlowNetwork:
    """The network, warm, on few flows, for an engine keeps what its largest batch took."""
    engine = load_engine(recipe.engine, Path(recipe.directory), recipe.threads, recipe.precision, recipe.device)
    network = FlowNetwork(engine)
    for flows in ([SHORT_FLOW], [LONG_FLOW, SHORT_FLOW]):
        network.judge(flows, [True] * len(flows), [False] * len(flows))
    gc.collect()
    spare_what_is_loaded()
    return network


def _listen(connection: socket, asked: SimpleQueue[bytes]) -> None:
    while (body := receive(connection)) is not None:
        asked.put(body)
    os._exit(0)  # whatever is being computed: nobody waits for it


def _answer(network: FlowNetwork, body: bytes) -> Answer:
    flows, ports, cascade, with_scores = unpack_batch(body)
    try:
        judged = network.judge(flows, ports, cascade, with_scores=with_scores)
    except Exception as error:
        return Refused(_reason(error))
    return Said(judged.verdicts, judged.embeddings.tobytes(), judged.timing)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, EngineError) and str(error) else type(error).__name__
