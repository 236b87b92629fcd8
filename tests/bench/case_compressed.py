"""Compressed backups."""
import os
import sys

from contest import M, Command, QemuJob, call, contest, tool
from qmp import Qemu, missing_tools


def compressed(top, source, what, kind, runs):
    out, frame, sizes = os.path.join(top, "out", "small.qcow2"), os.path.join(top, "out", "small.zst"), {}
    settings = ["-o", f"compression_type={kind}"]
    convert = ["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", *settings]

    def verify(c):
        sizes[c.name] = os.path.getsize(c.made)
        if c.made == frame:
            call(["sh", "-c", 'zstd -dqc "$1" | cmp - "$2"', "sh", frame, source])
        else:
            call(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", source, out])
            call(["qemu-img", "check", "-q", "-f", "qcow2", out])

    def target():
        call(["qemu-img", "create", "-q", "-f", "qcow2", *settings, out, os.path.getsize(source)])

    contenders = [
        Command("tidemark backup-run --compress", [tool("backup-run"), "--compress", *settings, "-f", "raw", "-F", "qcow2",
                                                   source, out], out, made=out),
        Command("qemu-img convert -c", convert + [source, out], out, made=out),
        Command("qemu-img convert -c -m 16", convert + ["-m", "16", source, out], out, made=out),
    ]
    if not missing_tools("zstd"):
        contenders.append(Command("zstd -T2 (no image, for scale)", ["zstd", "-T2", "-qf", source, "-o", frame], frame,
                                  made=frame))
    with Qemu(top, [("disk", source, "raw,read-only=on,file.locking=off")], timeout=3600) as qemu:
        contenders.insert(3, QemuJob("QEMU drive-backup, compress", qemu, out, target,
                                     {"sync": "full", "compress": True, "mode": "existing"}))
        contest(f"compressed backup of {what}, raw to qcow2 with {kind}, synced", contenders, runs, verify)
    for name, size in sizes.items():
        print(f"  {name:<34} {size / M:>9.1f} MiB, {100 * size / os.path.getsize(source):.1f} %")
    sys.stdout.flush()
