"""The plugin's deflate and base64 against Python's own: what it compresses is the same again, within its bounds."""

import base64
import random
import shutil
import struct
import subprocess
import zlib

import pytest

from tests.paths import ROOT

SOURCES = ROOT / "zeek" / "plugin" / "src"
COMPILER = shutil.which("c++")
MAIN = """
#include "deflate.h"
#include <cstdio>
#include <vector>

// Of each input, behind its size in 4 bytes, the base64 of its stream, a line each. All room is as small as it may be.
int main() {
    tapline::Deflater deflater;
    for ( uint32_t size; fread(&size, sizeof size, 1, stdin) == 1; ) {
        std::vector<uint8_t> data(size), stream(tapline::Deflater::Bound(size));
        if ( fread(data.data(), 1, size, stdin) != size )
            return 1;
        stream.resize(deflater.Stream(stream.data(), data));
        std::vector<char> text(tapline::base64_size(stream.size()));
        tapline::base64(text.data(), stream);
        fwrite(text.data(), 1, text.size(), stdout);
        putchar('\\n');
    }
}
"""

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


def inputs():
    """Of every small size, at the edges of lengths and distances, of all kinds of content."""
    chance = random.Random(3)
    for size in range(40):
        yield bytes(size)
        yield chance.randbytes(size)
    for size in (257, 258, 259, 260, 261, 262, 263, 516, 5_551, 5_553, 195_264):
        yield b"\xff" * size
        yield chance.randbytes(size)
        yield bytes(chance.choices(b"\x00\x01\x8f\x90", k=size))
    for distance in (1, 2, 3, 4, 5, 255, 256, 257, 24_577, 32_767, 32_768, 32_769):
        piece = chance.randbytes(distance)
        yield piece + piece[:300]
    for _ in range(300):
        pieces = [chance.randbytes(chance.randrange(1, 40)) for _ in range(20)]
        yield b"".join(chance.choices(pieces, k=chance.randrange(200)))


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deflate")
    (folder / "main.cc").write_text(MAIN)
    command = [COMPILER, "-std=c++20", "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    command += [f"-I{SOURCES}", str(SOURCES / "deflate.cc"), str(folder / "main.cc"), "-o", str(folder / "main")]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    framed = b"".join(struct.pack("=I", len(data)) + data for data in inputs())
    done = subprocess.run([folder / "main"], input=framed, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return [base64.b64decode(line, validate=True) for line in done.stdout.split(b"\n")[:-1]]


def test_what_was_compressed_is_the_same_again(packed):
    whole = list(inputs())
    assert len(packed) == len(whole)
    for stream, data in zip(packed, whole, strict=True):
        inflater = zlib.decompressobj()
        assert inflater.decompress(stream) == data
        assert inflater.eof
        assert not inflater.unused_data


def test_what_repeats_itself_becomes_small(packed):
    sizes = [len(stream) for stream, data in zip(packed, inputs(), strict=True) if data == b"\xff" * 195_264]
    assert sizes[0] < 2_000
