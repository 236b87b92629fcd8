"""Incremental backups, beside QEMU's and a bare copier of the same ranges."""
import os
import sys

from contest import BUILD, INCREMENTAL, G, K, Command, QemuJob, call, contest, size_text, tool
from ground import forget, is_sharing, present_bytes, read_through
from qmp import Qemu

COPIER = os.path.join(BUILD, "bench", "copier")


def dirty_ranges(size, dirty, scattered):
    """Contiguous from an eighth of the disk on, or one granule of 64 KiB in every size/dirty."""
    if not scattered:
        return [(size // 8, dirty)]
    return [(n * (size // dirty) * 64 * K, 64 * K) for n in range(dirty // (64 * K))]


class BenchQemu(Qemu):
    """The source read-only and unlocked, so that both sides can use one file; a node without storage of the
    same size, whose bitmap is made dirty once and merged into the source's before each run."""

    def __init__(self, top, source, fmt, size, ranges, settings=""):
        super().__init__(top, [("disk", source, fmt + ",read-only=on,file.locking=off" + settings)], timeout=3600)
        self.must("block-dirty-bitmap-add", node="disk", name="b", granularity=64 * K)
        self.must("blockdev-add", node_name="scratch", driver="null-co", size=size)
        self.must("block-dirty-bitmap-add", node="scratch", name="master", granularity=64 * K)
        for off, length in ranges:
            for at in range(off, off + length, 1 * G):
                self.must("human-monitor-command",
                          command_line=f'qemu-io scratch "write -q -z {at} {min(1 * G, off + length - at)}"')
        self.ready()
        if self.bitmaps("disk")[0]["count"] != sum(length for _, length in ranges):
            sys.exit("QEMU's bitmap is not as dirty as asked: " + self.output())

    def ready(self):
        self.must("block-dirty-bitmap-clear", node="disk", name="b")
        self.must("block-dirty-bitmap-merge", node="disk", target="b", bitmaps=[{"node": "scratch", "name": "master"}])


def incremental(top, source, fmt, size, dirty, scattered, cold, runs):
    """cold: the source is not in memory."""
    ranges = dirty_ranges(size, dirty, scattered)
    out = os.path.join(top, "out", "inc.qcow2")
    for name in ("b", "master"):
        call([tool("bitmap-add"), "-f", fmt, "-g", 64 * K, source, name])
    listing = os.path.join(top, "ranges")
    with open(listing, "w", encoding="ascii") as f:
        f.writelines(f"{off} {length}\n" for off, length in ranges)
    call([tool("bitmap-mark"), "--from", listing, source, "master"])

    def prepared(then=None):
        def before():
            if then:
                then()
            (forget if cold else read_through)(source)
        return before

    def verify(c):
        if c.name.startswith("bare"):
            call([COPIER, "-c", listing, source, out])
            return
        if present_bytes(out) != dirty:
            sys.exit(f"{c.name}: {present_bytes(out)} bytes in the target, {dirty} were dirty")
        call(["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", source, "-F", fmt, out])
        call(["qemu-img", "compare", "-f", fmt, "-F", "qcow2", source, out])

    def merge():
        call([tool("bitmap-merge"), source, "b", "master"])

    best = ",aio=io_uring" + (",cache.direct=on" if cold else "")
    with BenchQemu(top, source, fmt, size, ranges) as qemu, BenchQemu(top, source, fmt, size, ranges, best) as fast:
        contenders = [
            Command("tidemark backup-run", [tool("backup-run"), "--sync", "incremental", "--bitmap", "b", "-F", "qcow2",
                                            source, out], out, prepared(merge), made=out),
            QemuJob("QEMU drive-backup", qemu, out, prepared(qemu.ready), INCREMENTAL),
            QemuJob("QEMU " + best[1:], fast, out, prepared(fast.ready), INCREMENTAL),
            QemuJob("QEMU use-copy-range", qemu, out, prepared(qemu.ready),
                    {**INCREMENTAL, "x-perf": {"use-copy-range": True}}),
        ]
        if fmt == "raw" and os.access(COPIER, os.X_OK):
            contenders += [Command(f"bare copier: {name}", [COPIER, *args, listing, source, out], out, prepared(), made=out)
                           for name, args in (("2 threads", ["-t", "2"]), ("io_uring, direct", ["-u", "-r", "-w"]),
                                              ("reflink", ["-l"]))
                           if name != "reflink" or is_sharing(top)]
        contest(f"incremental backup of {size_text(dirty)} dirty in {size_text(size)}, "
                f"{'scattered in 64 KiB pieces' if scattered else 'contiguous'}, {'cold' if cold else 'cached'}, {fmt} to qcow2, synced",
                contenders, runs, verify)
    os.unlink(source + ".bitmaps")
