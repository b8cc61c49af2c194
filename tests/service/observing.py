"""An observer that remembers what it was told."""


class Told:
    """Flows with a verdict, flows without, traces and alerts, in the order in which it was told of them."""

    def __init__(self, flows=None, traces=None):
        self.flows = [] if flows is None else flows
        self.left_out = []
        self.traces = [] if traces is None else traces
        self.alerts = []

    def flow(self, source, flow, verdict):
        if verdict is None:
            self.left_out.append(flow)
        else:
            self.flows.append((source, flow, verdict))

    def trace(self, trace):
        self.traces.append(trace)

    def alert(self, alert):
        self.alerts.append(alert)
