"""Shared parts of the lints: the tree's files, and TAP."""
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.abspath(os.environ.get("BUILD") or os.path.join(ROOT, "build"))
SKIPPED_DIRS = {".git", "build", "__pycache__"}


def files():
    """Every file of the project, as a path from its root."""
    found = []
    for where, dirs, names in os.walk(ROOT):
        dirs[:] = sorted(d for d in dirs if d not in SKIPPED_DIRS and os.path.join(where, d) != BUILD)
        found += [os.path.relpath(os.path.join(where, n), ROOT) for n in sorted(names) if n != ".git"]
    return [f for f in found if not re.fullmatch(r"tidemark-.*\.tar\.gz", f)]


def read(path):
    """A file's text; bytes that are no UTF-8 come back as replacement characters."""
    with open(os.path.join(ROOT, path), encoding="utf-8", errors="replace") as f:
        return f.read()


def is_text(path):
    with open(os.path.join(ROOT, path), "rb") as f:
        return b"\0" not in f.read(8192)


def without_comments(source):
    """C source with comments and string contents blanked; line numbers stay."""
    def blank(m):
        text = m.group(0)
        if text.startswith('"') or text.startswith("'"):
            return text[0] + text[-1]
        return re.sub(r"[^\n]", " ", text)
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', blank, source, flags=re.S)


def run(*argv, **more):
    return subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, check=False,
                          **more)


class Tap:
    """Prints results as they come, the plan last.  Each result lists what is wrong; nothing listed passes."""

    def __init__(self):
        self.count = self.failed = 0

    def result(self, what, problems=()):
        self.count += 1
        problems = list(problems)
        self.failed += bool(problems)
        print(f"{'not ok' if problems else 'ok'} {self.count} - {what}")
        for p in problems:
            print("\n".join("# " + line for line in str(p).splitlines()))
        sys.stdout.flush()

    def skip(self, what, why):
        self.count += 1
        print(f"ok {self.count} - {what} # SKIP {why}")

    def done(self):
        print(f"1..{self.count}")
        sys.exit(1 if self.failed or not self.count else 0)
