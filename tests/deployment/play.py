"""Sends the packets of a capture out of an interface, some hundred a second: `python play.py CAPTURE INTERFACE`."""

import socket
import sys
import time

import dpkt

with open(sys.argv[1], "rb") as file, socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as line:  # noqa: PTH123
    line.bind((sys.argv[2], 0))
    for _, packet in dpkt.pcap.Reader(file):
        line.send(packet[:1514])
        time.sleep(0.003)
