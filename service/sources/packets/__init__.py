"""Capture formats, and what lies in a packet: link layers, IP, fragments, tunnels. Knows no flow."""
