"""Flows as sensors publish them on Zeek's bus, over WebSocket or the native bindings."""
