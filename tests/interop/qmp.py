"""A small QMP client that runs a QEMU of its own: no machine, no display, block devices only."""
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time

QEMU = "qemu-system-x86_64"


class QmpError(Exception):
    pass


class Qemu:
    """One QEMU process in directory cwd; drives: [(id, file, format), …]."""

    def __init__(self, cwd, drives, timeout=60):
        self.timeout = timeout
        self.events = []
        self.said = 0
        self.log = tempfile.TemporaryFile()
        ours, theirs = socket.socketpair()
        argv = [QEMU, "-machine", "none", "-nodefaults", "-display", "none", "-chardev",
                f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "chardev=qmp,mode=control"]
        for ident, path, fmt in drives:
            argv += ["-drive", f"if=none,id={ident},file={path.replace(',', ',,')},format={fmt}"]
        self.proc = subprocess.Popen(argv, cwd=cwd, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                     pass_fds=[theirs.fileno()])
        theirs.close()
        ours.settimeout(timeout)
        self.sock = ours
        self.buffer = b""
        self._next()  # the greeting
        self.must("qmp_capabilities")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()

    def close(self):
        if self.proc.poll() is None:
            try:
                self.cmd("quit")
            except (QmpError, OSError):
                self.proc.kill()
        try:
            self.proc.wait(self.timeout)
        except subprocess.TimeoutExpired:
            self.proc.kill()
            self.proc.wait()
        self.sock.close()
        self.log.close()

    def output(self):
        """What QEMU printed (qemu-io's results, warnings) since the last call."""
        self.log.seek(self.said)
        text = self.log.read()
        self.said += len(text)
        return text.decode(errors="replace")

    def _next(self):
        while b"\n" not in self.buffer:
            try:
                chunk = self.sock.recv(1 << 16)
            except socket.timeout:
                raise QmpError("QEMU did not answer in time: " + self.output()) from None
            if not chunk:
                raise QmpError("QEMU ended: " + self.output())
            self.buffer += chunk
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def cmd(self, command, /, **arguments):
        """The reply as it came; events met on the way are kept for take_events and wait."""
        request = {"execute": command, "arguments": {k.replace("_", "-"): v for k, v in arguments.items()}}
        self.sock.sendall(json.dumps(request).encode() + b"\n")
        while True:
            message = self._next()
            if "event" not in message:
                return message
            self.events.append(message)

    def must(self, command, /, **arguments):
        reply = self.cmd(command, **arguments)
        if "return" not in reply:
            raise QmpError(f"{command} {arguments}: {reply}")
        return reply["return"]

    def wait(self, wanted):
        """Waits until an event for which wanted(event) holds has been met."""
        deadline = time.monotonic() + self.timeout
        seen = 0
        while True:
            while seen < len(self.events):
                if wanted(self.events[seen]):
                    return self.events[seen]
                seen += 1
            if time.monotonic() > deadline:
                raise QmpError(f"no such event came, only {self.events}")
            self.events.append(self._next())

    def wait_job_gone(self, ident):
        self.wait(lambda e: e["event"] == "JOB_STATUS_CHANGE" and e["data"] == {"id": ident, "status": "null"})

    def take_events(self):
        events, self.events = self.events, []
        return events

    def io(self, drive, *commands):
        """qemu-io commands on a drive; returns what they printed."""
        for command in commands:
            self.must("human-monitor-command", command_line=f'qemu-io {drive} "{command}"')
        return self.output()

    def bitmaps(self, drive):
        for device in self.must("query-block"):
            if device["device"] == drive:
                return device["inserted"].get("dirty-bitmaps", [])
        raise QmpError(f"no device {drive}")

    def cpu_seconds(self):
        with open(f"/proc/{self.proc.pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_reset(self):
        with open(f"/proc/{self.proc.pid}/clear_refs", "w") as f:
            f.write("5")

    def peak_kib(self):
        with open(f"/proc/{self.proc.pid}/status") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("VmHWM"))


def missing_tools(*tools):
    """Those of the programs that are not installed."""
    return [t for t in tools if not shutil.which(t)]
