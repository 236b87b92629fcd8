# Shared by the tests of lineage: a disk with its bitmap 'n', and its backups.
#
# shellcheck shell=bash
# shellcheck disable=SC2154 # status, output and stderr are set by `run`

write() { ok image-write --pattern "$1" disk.img "$2" 64K; }

inc() { done_ backup-run -q --sync incremental --bitmap n -F qcow2 "$@"; }

auto() { done_ backup-run -q --sync auto --bitmap n -F qcow2 "$@"; }

member() { head -n 1 <<< "$output" | jq -r ".return[\"$1\"]"; }

# restores TOP: the chain shows the disk as it is now.
restores() {
	done_ chain-verify "$1"
	ok chain-restore --overwrite "$1" restored.img
	cmp restored.img disk.img
}

# A disk, a full backup, a bitmap that counts from it.
begin() {
	noise 4M > disk.img
	auto disk.img full.qcow2
	assert_equal "$(member x-sync)" full
}

verdict() {
	attempt chain-verify "$2"
	assert_equal "$status" "$1"
}
