"""Writes a capture of a SYN scan to standard output: syn_scan.py COUNT, a thousand packets a second, nobody answers."""

import struct
import sys

ETHERNET = bytes(12) + b"\x08\x00"
out = sys.stdout.buffer
out.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
for i in range(int(sys.argv[1])):
    target = bytes((10, 1, i >> 8 & 255, i & 255))
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, i & 0xFFFF, 0, 64, 6, 0, b"\x0a\x00\x00\x01", target)
    tcp = struct.pack("!HHIIBBHHH", 40000, 443, i, 0, 0x50, 2, 1024, 0, 0)
    frame = ETHERNET + ip + tcp
    out.write(struct.pack("<IIII", 1700000000 + i // 1000, i % 1000 * 1000, len(frame), len(frame)) + frame)
