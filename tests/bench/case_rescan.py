"""Comparing two images."""
import json
import os
import sys

from contest import Command, call, contest, size_text, tool
from ground import read_through


def rescan(top, source, size, runs):
    """Two files with the same content: both contenders have to look at all of it."""
    other = os.path.join(top, "other.img")
    call(["cp", "--reflink=never", source, other])
    read_through(source)
    read_through(other)
    call([tool("bitmap-add"), "-f", "raw", source, "b"])

    def verify(c):
        if json.loads(call([tool("bitmap-list"), "--output=json", source]))["return"][0]["count"]:
            sys.exit(f"{c.name}: finds differences where there are none")

    contest(f"comparing {size_text(size)}, all of it data, with a copy of it", [
        Command("tidemark bitmap-rescan", [tool("bitmap-rescan"), "--against", other, "-F", "raw", source, "b"], source),
        Command("cmp", ["cmp", source, other], source),
        Command("qemu-img compare", ["qemu-img", "compare", "-f", "raw", "-F", "raw", source, other], source),
    ], runs, verify)
    os.unlink(other)
    os.unlink(source + ".bitmaps")
