"""Small commands."""
import json
import os
import sys

from contest import Command, call, contest, size_text, tool


def bitmap_add(top, size, runs):
    image = os.path.join(top, "bitmaps.qcow2")
    call(["qemu-img", "create", "-q", "-f", "qcow2", image, size])

    def forget():
        if "bitmaps" in json.loads(call(["qemu-img", "info", "--output=json", image]))["format-specific"]["data"]:
            call(["qemu-img", "bitmap", "--remove", image, "b"])
        if os.path.exists(image + ".bitmaps"):
            os.unlink(image + ".bitmaps")

    def verify(c):
        found = json.loads(call([tool("bitmap-list"), "--output=json", image]))["return"]
        if [b["name"] for b in found] != ["b"]:
            sys.exit(f"{c.name}: bitmaps {found}")

    contest(f"a new bitmap on an {size_text(size)} qcow2, synced", [
        Command("tidemark bitmap-add", [tool("bitmap-add"), image, "b"], image, forget),
        Command("qemu-img bitmap --add", ["qemu-img", "bitmap", "--add", image, "b"], image, forget),
    ], runs, verify)
    os.unlink(image)
