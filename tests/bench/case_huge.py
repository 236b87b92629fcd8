"""A million dirty granules on a disk of 64 TiB, beside as many on one of 1 TiB: what grows with the disk shows as a ratio."""
import os
import sys

from case_bitmap import listed, scatter
from contest import K, M, T, Command, call, contest, size_text, tool
from ground import present_bytes

BITS = 1 << 20
RUNS = 256
SIZES = (64 * T, 1 * T)


def runs_of(size):
    """The million in runs of 256 MiB: a target's tables have 64 KiB for each 512 MiB that anything was written to, and
    are what is measured when every granule is in another one."""
    return [(n * (size // RUNS), BITS // RUNS * 64 * K) for n in range(RUNS)]


def make(top, size):
    """Sparse, with a MiB of data in each run; bitmaps: `b` and `other` scattered, `runs`, `inc`."""
    image, listing = os.path.join(top, f"{size_text(size).split()[0]}t.qcow2"), os.path.join(top, "ranges")
    call(["qemu-img", "create", "-q", "-f", "qcow2", image, size])
    io = [word for n, (off, _) in enumerate(runs_of(size)) for word in ("-c", f"write -q -P {n % 255 + 1} {off + 3 * M} 1M")]
    call(["qemu-io", "-f", "qcow2", *io, image])
    for name in ("b", "other", "runs", "inc"):
        call([tool("bitmap-add"), "-g", 64 * K, image, name])
    for name in ("b", "other"):
        scatter(top, image, name, BITS, size)
    with open(listing, "w", encoding="ascii") as f:
        f.writelines(f"{off} {length}\n" for off, length in runs_of(size))
    call([tool("bitmap-mark"), "--from", listing, image, "runs"])
    os.unlink(listing)
    return image


def huge(top, runs):
    images = {size: make(top, size) for size in SIZES}
    out = os.path.join(top, "out", "inc.qcow2")

    def again(size, verb):
        def before():
            if verb == "add" and "new" in listed(images[size]):
                call([tool("bitmap-remove"), images[size], "new"])
            if verb == "clear":
                call([tool("bitmap-merge"), images[size], "b", "other"])
            if verb == "incremental":
                call([tool("bitmap-merge"), images[size], "inc", "runs"])
        return before

    def verify(c):
        image, found = c.image, listed(c.image)
        wrong = {"clear": found["b"]["count"], "merge": found["b"]["count"] - found["other"]["count"],
                 "incremental": found["inc"]["count"]}.get(c.verb, 0)
        if wrong:
            sys.exit(f"{c.name}: bitmaps {found}")
        if c.verb == "incremental":
            if present_bytes(out) != BITS * 64 * K:
                sys.exit(f"{c.name}: {present_bytes(out)} bytes in the target")
            call(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", image, "-F", "qcow2", out])
            call(["qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", image, out])

    words = {"add": lambda i: ["bitmap-add", i, "new"], "clear": lambda i: ["bitmap-clear", i, "b"],
             "merge": lambda i: ["bitmap-merge", i, "b", "other"], "list": lambda i: ["bitmap-list", i],
             "dump": lambda i: ["bitmap-dump", "--output=ranges", i, "other"],
             "incremental": lambda i: ["backup-run", "--sync", "incremental", "--bitmap", "inc", "-F", "qcow2", i, out]}
    for verb, argv in words.items():
        contenders = []
        for size in SIZES:
            command = argv(images[size])
            c = Command(f"tidemark {command[0]}, {size_text(size)}", [tool(command[0]), *command[1:]],
                        out if verb == "incremental" else images[size], again(size, verb), out if verb == "incremental" else None)
            c.verb, c.image = verb, images[size]
            contenders.append(c)
        contest(f"{verb}, a million dirty granules of 64 KiB, sparse qcow2, synced", contenders, max(runs, 5), verify)
    for image in images.values():
        os.unlink(image)
        os.unlink(image + ".bitmaps")
