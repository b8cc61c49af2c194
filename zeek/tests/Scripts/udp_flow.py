"""Writes a capture of one UDP flow: udp_flow.py COUNT, datagrams of 1, 2, 3 ... bytes, every third one back."""

import struct
import sys

ETHERNET = bytes(12) + b"\x08\x00"
CLIENT, SERVER = (b"\x0a\x00\x00\x01", 40000), (b"\x0a\x00\x00\x02", 7777)
out = sys.stdout.buffer
out.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
for i in range(int(sys.argv[1])):
    (source, sport), (target, dport) = (SERVER, CLIENT) if i % 3 == 2 else (CLIENT, SERVER)
    payload = bytes(n & 255 for n in range(i + 1))
    udp = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), i, 0, 64, 17, 0, source, target)
    frame = ETHERNET + ip + udp
    out.write(struct.pack("<IIII", 1700000000, i * 1000, len(frame), len(frame)) + frame)
