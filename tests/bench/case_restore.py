"""Restoring a chain."""
import os

from case_incremental import dirty_ranges
from contest import K, Command, call, contest, size_text, tool
from ground import read_through


def restore(top, source, size, dirty, runs):
    """A full backup and an incremental one on it, with a quarter of the disk in pieces; it takes the source away."""
    chain = [os.path.join(top, name) for name in ("full.qcow2", "inc.qcow2")]
    call([tool("bitmap-add"), "-f", "raw", source, "b"])
    call([tool("backup-run"), "-F", "qcow2", source, chain[0]])
    listing = os.path.join(top, "ranges")
    with open(listing, "w") as f:
        f.writelines(f"{off} {length}\n" for off, length in dirty_ranges(size, dirty, True))
    call([tool("bitmap-mark"), "--from", listing, source, "b"])
    call([tool("backup-run"), "--sync", "incremental", "--bitmap", "b", "-F", "qcow2", "--backing", chain[0], source,
          chain[1]])
    call(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", source, chain[1]])
    os.unlink(source)
    os.unlink(source + ".bitmaps")
    for image in chain:
        read_through(image)
    for fmt in ("raw", "qcow2"):
        out = os.path.join(top, "out", "restored")
        convert = ["qemu-img", "convert", "-f", "qcow2", "-O", fmt]

        def verify(c):
            call(["qemu-img", "compare", "-f", "qcow2", "-F", fmt, chain[1], out])

        contest(f"restoring a chain of two, {size_text(size)}, to {fmt}, synced", [
            Command("tidemark chain-restore", [tool("chain-restore"), "-F", fmt, chain[1], out], out, made=out),
            Command("qemu-img convert", convert + [chain[1], out], out, made=out),
            Command("qemu-img convert -W -m 16", convert + ["-W", "-m", "16", chain[1], out], out, made=out),
        ], runs, verify)
    for image in chain:
        os.unlink(image)
