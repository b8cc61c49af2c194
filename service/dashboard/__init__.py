"""The dashboard: pages over what the service knows, in the same process, built with NiceGUI (extra `ui`)."""
