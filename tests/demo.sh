#!/bin/sh
# Plays the session of the README on a real ext4 file system: demo.sh BINDIR, where the commands are.
# Prints each command before it runs; ends with an error at the first that fails.
set -eu
bin=${1:?usage: demo.sh BINDIR}
[ -x "$bin/backup-run" ] || { echo "demo.sh: $bin/backup-run has not been built" >&2; exit 1; }
bin=$(cd "$bin" && pwd)
PATH=$bin:$PATH:/usr/sbin:/sbin
export PATH
command -v mkfs.ext4 > /dev/null || { echo "demo.sh: mkfs.ext4 is missing (Debian package e2fsprogs)" >&2; exit 1; }

# The files that fill the file system, and the data of the tracked write: the directories of these that exist here.
# Half of 512 MiB leaves room for ext4's own tables and for rounding up many small files.
files=
for d in /usr/share/doc /usr/share/man /usr/share/zoneinfo /usr/share/perl5 /usr/share/misc; do
	if [ -d "$d" ] && [ "$(du -sk "$d" | cut -f 1)" -lt 262144 ]; then
		files=$d
		break
	fi
done
text=
for f in /etc/services /etc/protocols /etc/ssl/openssl.cnf /etc/passwd; do
	[ -s "$f" ] && [ -r "$f" ] && text=$f && break
done
if [ -z "$files" ] || [ -z "$text" ]; then
	echo "demo.sh: found nothing to put into a file system" >&2
	exit 1
fi

tmp=$(mktemp -d "${TMPDIR:-/tmp}/tidemark-demo.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
cd "$tmp"

run() {
	printf '\n$ %s\n' "$*"
	"$@" || fail $? "$*"
}
run_from() { # run_from FILE COMMAND...
	input=$1
	shift
	printf '\n$ %s < %s\n' "$*" "$input"
	"$@" < "$input" || fail $? "$*"
}
fail() {
	echo "demo.sh: '$2' ended with status $1" >&2
	exit 1
}

run mkfs.ext4 -q -d "$files" disk.img 512M
run bitmap-add disk.img bitmap0
run backup-run -F qcow2 disk.img full.qcow2
run bitmap-clear disk.img bitmap0

run_from "$text" image-write disk.img 4M
run bitmap-list disk.img
run backup-run --sync incremental --bitmap bitmap0 -F qcow2 --backing full.qcow2 disk.img inc0.qcow2

run image-write --pattern 0xab disk.img 300M 1M
run backup-run --sync incremental --bitmap bitmap0 -F qcow2 --backing inc0.qcow2 disk.img inc1.qcow2
run bitmap-list disk.img

run chain-restore inc1.qcow2 restored.img
run cmp disk.img restored.img
printf '\n'
ls -ls disk.img full.qcow2 inc0.qcow2 inc1.qcow2 restored.img
printf '\nrestored.img equals disk.img.\n'
