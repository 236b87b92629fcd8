"""Restoring a chain."""
import os

from case_incremental import dirty_ranges
from contest import K, Command, call, contest, size_text, tool
from ground import read_through


def make_chain(top, source, size, dirty, depth):
    """A full backup and depth - 1 incremental ones on it, each with `dirty` bytes in pieces; it takes the source away."""
    chain = [os.path.join(top, f"{n}.qcow2") for n in range(depth)]
    call([tool("bitmap-add"), "-f", "raw", source, "b"])
    call([tool("backup-run"), "-F", "qcow2", source, chain[0]])
    listing = os.path.join(top, "ranges")
    for n in range(1, depth):
        with open(listing, "w", encoding="ascii") as f:
            # Each one's pieces lie beside those of the one before.
            f.writelines(f"{(off + n * length) % size} {length}\n" for off, length in dirty_ranges(size, dirty, True))
        call([tool("bitmap-mark"), "--from", listing, source, "b"])
        call([tool("backup-run"), "--sync", "incremental", "--bitmap", "b", "-F", "qcow2", "--backing", chain[n - 1], source,
              chain[n]])
    call(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", source, chain[-1]])
    os.unlink(source)
    os.unlink(source + ".bitmaps")
    return chain


def restore(top, source, size, dirty, depth, runs):
    chain = make_chain(top, source, size, dirty, depth)
    for image in chain:
        read_through(image)
    for fmt in ("raw", "qcow2"):
        out = os.path.join(top, "out", "restored")
        convert = ["qemu-img", "convert", "-f", "qcow2", "-O", fmt]

        def verify(c):
            call(["qemu-img", "compare", "-f", "qcow2", "-F", fmt, chain[-1], out])

        contest(f"restoring a chain of {depth}, {size_text(size)}, to {fmt}, synced", [
            Command("tidemark chain-restore", [tool("chain-restore"), "-F", fmt, chain[-1], out], out, made=out),
            Command("qemu-img convert", convert + [chain[-1], out], out, made=out),
            Command("qemu-img convert -W -m 16", convert + ["-W", "-m", "16", chain[-1], out], out, made=out),
        ], runs, verify)
    for image in chain:
        os.unlink(image)
