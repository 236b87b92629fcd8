"""Many dirty granules on a disk of 1 TiB, in the same places on one of 64 TiB, and all over that: what grows with the
disk shows between the first two; between the others, what it costs that dirty granules lie far apart."""
import os
import sys

from case_bitmap import listed, scatter
from contest import K, M, T, Command, call, contest, size_text, tool
from ground import present_bytes

RUNS = 256
DISKS = ((1 * T, 1 * T), (64 * T, 1 * T), (64 * T, 64 * T))  # size, and how much of it is dirty here and there


def runs_of(bits, spread):
    """So many granules in runs: a target's tables have 64 KiB for each 512 MiB that anything was written to, and
    are what is measured when every granule is in another one."""
    return [(n * (spread // RUNS), bits // RUNS * 64 * K) for n in range(RUNS)]


def name_of(size, spread):
    return size_text(size) + (", all over" if spread > T else ", its first TiB" if spread < size else "")


def make(top, bits, size, spread):
    """Sparse, with a MiB of data in each run; bitmaps: `b` and `other` scattered, `runs`, `inc`."""
    image, listing = os.path.join(top, f"{size // T}-{spread // T}.qcow2"), os.path.join(top, "ranges")
    call(["qemu-img", "create", "-q", "-f", "qcow2", image, size])
    io = [word for n, (off, _) in enumerate(runs_of(bits, spread)) for word in ("-c", f"write -q -P {n % 255 + 1} {off + 3 * M} 1M")]
    call(["qemu-io", "-f", "qcow2", *io, image])
    for name in ("b", "other", "runs", "inc"):
        call([tool("bitmap-add"), "-g", 64 * K, image, name])
    for name in ("b", "other"):
        scatter(top, image, name, bits, spread)
    with open(listing, "w", encoding="ascii") as f:
        f.writelines(f"{off} {length}\n" for off, length in runs_of(bits, spread))
    call([tool("bitmap-mark"), "--from", listing, image, "runs"])
    os.unlink(listing)
    return image


def huge(top, bits, runs):
    images = {disk: make(top, bits, *disk) for disk in DISKS}
    out = os.path.join(top, "out", "inc.qcow2")

    def again(image, verb):
        def before():
            if verb == "add" and "new" in listed(image):
                call([tool("bitmap-remove"), image, "new"])
            if verb == "clear":
                call([tool("bitmap-merge"), image, "b", "other"])
            if verb == "incremental":
                call([tool("bitmap-merge"), image, "inc", "runs"])
        return before

    def verify(c):
        image, found = c.image, listed(c.image)
        wrong = {"clear": found["b"]["count"], "merge": found["b"]["count"] - found["other"]["count"],
                 "incremental": found["inc"]["count"]}.get(c.verb, 0)
        if wrong:
            sys.exit(f"{c.name}: bitmaps {found}")
        if c.verb == "incremental":
            if present_bytes(out) != bits * 64 * K:
                sys.exit(f"{c.name}: {present_bytes(out)} bytes in the target")
            call(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", image, "-F", "qcow2", out])
            call(["qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", image, out])

    words = {"add": lambda i: ["bitmap-add", i, "new"], "clear": lambda i: ["bitmap-clear", i, "b"],
             "merge": lambda i: ["bitmap-merge", i, "b", "other"], "list": lambda i: ["bitmap-list", i],
             "dump": lambda i: ["bitmap-dump", "--output=ranges", i, "other"],
             "incremental": lambda i: ["backup-run", "--sync", "incremental", "--bitmap", "inc", "-F", "qcow2", i, out]}
    for verb, argv in words.items():
        contenders = []
        made = out if verb == "incremental" else None
        for disk, image in images.items():
            command = argv(image)
            c = Command(f"{command[0]}, {name_of(*disk)}", [tool(command[0]), *command[1:]], made or image, again(image, verb), made)
            c.verb, c.image = verb, image
            contenders.append(c)
        contest(f"{verb}, {bits} dirty granules of 64 KiB, sparse qcow2, synced", contenders, runs, verify)
    for image in images.values():
        os.unlink(image)
        os.unlink(image + ".bitmaps")
