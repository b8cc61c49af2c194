"""What a flow checkpoint says of labelled flows in captures: through the classifier that serves, on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from tapline.models.flow import Flow
from tapline.models.verdict import Verdict
from tapline.service.inference.classifier import Classifier
from tapline.training.checking.own_captures import OwnLabels, batches
from tapline.training.checking.said import Said
from tapline.training.data.origins import Origin, OriginReader
from tapline.training.data.store import id_of


def flow_verdicts(
    classifier: Classifier, origins: Sequence[Origin], labels: OwnLabels, progress: Callable[[int], None]
) -> Said:
    """Classify the flows with payload and a label; `progress` is told of each capture."""
    said = Said("flow", tools=labels.new_tools(), captures_read=len(origins))
    for origin in origins:
        _one_capture(classifier, origin, labels, said)
        progress(1)
    return said


def _one_capture(classifier: Classifier, origin: Origin, labels: OwnLabels, said: Said) -> None:
    capture = f"{origin.corpus}/{origin.capture}"
    reader = OriginReader(origin, classifier.heads)
    for batch in batches(_labelled(reader, origin, labels, said)):
        accepted = [(label, flow) for label, flow in batch if classifier.accepts(flow)]
        said.leave_out("flow of too few packets for the model", len(batch) - len(accepted))
        flows = [flow for _, flow in accepted]
        found = _verdicts(classifier, flows, None)
        without = _verdicts(classifier, flows, [False] * len(flows)) if classifier.checkpoint.has_ports else found
        for (label, flow), verdict, other in zip(accepted, found, without, strict=True):
            if verdict is None or other is None:
                said.leave_out("flow that the model failed on")
                continue
            said.ids.append(id_of(capture, flow.uid))
            said.names.append((flow.uid, flow.start_us, flow.proto, flow.orig_h, flow.orig_p, flow.resp_h, flow.resp_p))
            said.captures.append(capture)
            said.labels.append(label)
            said.verdicts.append(verdict)
            if classifier.checkpoint.has_ports:
                said.without_ports.append(other)
            labels.ask_tools(said.tools, capture, flow)
    for reason, count in reader.left_out.items():
        said.leave_out(reason, count)
    if reader.warning:
        said.warnings[capture] = reader.warning


def _labelled(flows: Iterable[Flow], origin: Origin, labels: OwnLabels, said: Said) -> Iterator[tuple[str, Flow]]:
    for flow in flows:
        label = labels.of_flow(origin, flow, said.account)
        if label is None:
            said.leave_out("flow without a label")
        else:
            yield label, flow


def _verdicts(classifier: Classifier, flows: Sequence[Flow], ports: Sequence[bool] | None) -> list[Verdict | None]:
    return [None if said is None else said.verdict for said in classifier.classify_each(flows, ports)]
