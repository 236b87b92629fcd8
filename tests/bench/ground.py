"""The machine, its memory, the sources."""
import json
import os
import platform
import subprocess
import sys

from contest import G, K, M, call, tool


def machine(where):
    cpu = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "?")
    memory = next(int(line.split()[1]) * K for line in open("/proc/meminfo") if line.startswith("MemTotal"))
    fs = call(["df", "--output=source,fstype,avail", "-B1", where]).decode().splitlines()[1].split()
    print(f"machine:     {cpu}, {os.cpu_count()} cores, {memory / G:.1f} GiB memory")
    print(f"kernel:      {platform.release()}")
    print(f"file system: {fs[1]} on {fs[0]}, {int(fs[2]) / G:.1f} GiB free")
    print(f"peers:       {call(['qemu-img', '--version']).decode().splitlines()[0]}")
    print(f"tidemark:    {call([tool('backup-run'), '--version']).decode().splitlines()[0]}")
    return int(fs[2])


def available_memory():
    return next(int(line.split()[1]) * K for line in open("/proc/meminfo") if line.startswith("MemAvailable"))


def warm_memory(wanted):
    """Touches memory once, in a process of its own, so that nobody is the first to get a page from the host."""
    n = min(wanted, available_memory() * 3 // 4)
    code = f"import mmap\nm = mmap.mmap(-1, {n})\nfor i in range(0, {n}, 4096): m[i] = 1"
    subprocess.run([sys.executable, "-c", code], check=False)
    return n


def make_source(path, size, data):
    """A raw image: `data` bytes that nothing compresses, spread in 1 MiB pieces over `size`."""
    pool = os.urandom(64 * M)
    step = size // (data // M)
    with open(path, "wb") as f:
        f.truncate(size)
        for n in range(data // M):
            at = (n * 7919 * 4096 + n) % (len(pool) - M)
            f.seek(n * step // M * M)
            f.write(pool[at:at + M])
        f.flush()
        os.fsync(f.fileno())


def make_system_source(path, size):
    """A raw image of what system disks hold: the files under /usr, each from a new block on, as a file system lays them."""
    with open(path, "wb") as f:
        while f.tell() < size:
            start = f.tell()
            for folder, folders, names in os.walk("/usr"):
                folders.sort()
                for name in sorted(names):
                    file = os.path.join(folder, name)
                    if f.tell() < size and os.path.isfile(file) and not os.path.islink(file):
                        with open(file, "rb") as g:
                            f.write(g.read(min(256 * M, size - f.tell())))
                        f.seek(-f.tell() % 4096, os.SEEK_CUR)
            if f.tell() == start:
                sys.exit("bench: no files under /usr")
        f.truncate(size)
        f.flush()
        os.fsync(f.fileno())


def read_through(path):
    with open(path, "rb", buffering=0) as f:
        buf = bytearray(8 * M)
        while f.readinto(buf):
            pass


def present_bytes(path):
    return sum(e["length"] for e in json.loads(call(["qemu-img", "map", "--output=json", "-f", "qcow2", path]))
               if e["present"] and e["depth"] == 0)


def forget(path):
    """Out of the page cache."""
    os.sync()
    with open(path, "rb") as f:
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def is_sharing(where):
    """Does the file system share data between files?"""
    return call(["df", "--output=fstype", where]).split()[1].decode() in ("btrfs", "xfs", "bcachefs")
