"""Full backups, raw to qcow2."""
import os

from contest import Command, call, contest, tool


def full(top, source, what, runs):
    out = os.path.join(top, "out", "full.qcow2")
    convert = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2"]

    def verify(c):
        if c.name.startswith("cp"):
            call(["cmp", source, out])
        else:
            call(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", source, out])

    contest(f"full backup of {what}, raw to qcow2, synced", [
        Command("tidemark backup-run", [tool("backup-run"), "-f", "raw", "-F", "qcow2", source, out], out, made=out),
        Command("qemu-img convert", convert + [source, out], out, made=out),
        Command("qemu-img convert -W -m 16", convert + ["-W", "-m", "16", source, out], out, made=out),
        Command("cp (raw to raw, for scale)", ["cp", "--reflink=never", "--sparse=auto", source, out], out, made=out),
    ], runs, verify)
