"""Small commands."""
import json
import os
import sys

from contest import BUILD, K, M, Command, call, contest, size_text, tool

MINIMAL = os.path.join(BUILD, "bench", "minimal")
QEMU = {"add": ["--add"], "clear": ["--clear"], "merge": ["--merge", "other"]}


def listed(image):
    return {b["name"]: b for b in json.loads(call([tool("bitmap-list"), "--output=json", image]))["return"]}


def scatter(top, image, name, bits, size):
    """`bits` granules of 64 KiB dirty, all over the disk."""
    listing = os.path.join(top, "ranges")
    with open(listing, "w", encoding="ascii") as f:
        f.writelines(f"{n * (size // bits) // (64 * K) * 64 * K} 1\n" for n in range(bits))
    call([tool("bitmap-mark"), "--from", listing, image, name])
    os.unlink(listing)


def bitmaps(top, size, bits, runs):
    """The bitmaps are in a sidecar on our side, in the qcow2 on QEMU's, whose command knows no other place."""
    ours, theirs = (os.path.join(top, name) for name in ("ours.qcow2", "theirs.qcow2"))
    for image, where in ((ours, "sidecar"), (theirs, "image")):
        call(["qemu-img", "create", "-q", "-f", "qcow2", image, size])
        for name in ("b", "other"):
            call([tool("bitmap-add"), "--store", where, "-g", 64 * K, image, name])
            if bits:
                scatter(top, image, name, bits, size)
    for verb, words in QEMU.items():
        name = "new" if verb == "add" else "b"

        def again():
            for image in (ours, theirs):
                if verb == "add" and name in listed(image):
                    call([tool("bitmap-remove"), image, name])
                if verb == "clear" and bits:
                    call([tool("bitmap-merge"), image, name, "other"])

        def verify(c):
            if c.argv[0] == MINIMAL:
                return
            found = listed(c.writes)
            if found.get(name, {}).get("count") != (found["other"]["count"] if verb == "merge" else 0):
                sys.exit(f"{c.name}: bitmaps {found}")

        own = [tool(f"bitmap-{verb}"), ours, name] + (["other"] if verb == "merge" else [])
        contenders = [Command(f"tidemark bitmap-{verb}", own, ours, again),
                      Command(f"qemu-img bitmap --{verb}", ["qemu-img", "bitmap", *words, theirs, name], theirs, again)]
        if os.access(MINIMAL, os.X_OK):
            contenders.append(Command("minimal program", [MINIMAL, os.path.join(top, "small")], ours))
        contest(f"bitmap {verb}, {size_text(size)} qcow2, {bits} dirty bits, synced", contenders, runs, verify)
    for image in (ours, theirs):
        os.unlink(image)
        if os.path.exists(image + ".bitmaps"):
            os.unlink(image + ".bitmaps")
