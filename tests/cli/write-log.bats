#!/usr/bin/env bats
# The write log: tracked writes do not rewrite the sidecar, and the bits of the log are never lost, in any state of it.

load helper

@test "many writes leave the sidecar alone, and none is lost" {
	truncate -s 64M disk.img
	ok bitmap-add -g 4K disk.img b
	ok bitmap-add -g 64K disk.img c
	local before i n=${WRITES:-100}
	before=$(stat -c '%i %Y' disk.img.bitmaps; sha256sum disk.img.bitmaps)
	for ((i = 0; i < n; i++)); do image-write -q --pattern 7 disk.img $((i * 65536)) 512 > /dev/null; done
	assert_equal "$(stat -c '%i %Y' disk.img.bitmaps; sha256sum disk.img.bitmaps)" "$before"
	bitmap disk.img b ".count == $((n * 4096))"
	bitmap disk.img c ".count == $((n * 65536)) and (has(\"inconsistent\") | not)"
	ok bitmap-clear disk.img c
	[ ! -e disk.img.bitmaps.log ]
	bitmap disk.img b ".count == $((n * 4096))"
	bitmap disk.img c '.count == 0'
}

@test "it has the image's owner and mode" {
	raw disk.img 1M
	chmod 640 disk.img
	ok bitmap-add disk.img b
	ok image-write --pattern 1 disk.img 0 1
	assert_equal "$(stat -c %a disk.img.bitmaps.log)" 640
	ok bitmap-add --sidecar other disk.img b
	ok image-write --sidecar other --pattern 1 disk.img 64K 1
	[ -e other.log ]
	done_ bitmap-list --output=json --sidecar other disk.img
	jq -e '.return[0].count == 65536' <<< "$output"
}

@test "without it the image is newer than its sidecar knows" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	sleep 0.05
	ok image-write --pattern 1 disk.img 0 1
	rm disk.img.bitmaps.log
	bitmap disk.img b .inconsistent
}

@test "damaged anywhere: said, and everything is dirty" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	ok image-write --pattern 1 disk.img 0 1
	cp -p disk.img.bitmaps.log good.log
	local at
	for at in 0 33 60 81 100 511 512 530 1023 1024 1535 2000; do
		cp -p good.log disk.img.bitmaps.log
		flip disk.img.bitmaps.log $at
		attempt bitmap-list --output=json disk.img
		assert_equal "$status" 0
		[[ $stderr == *disk.img.bitmaps.log*byte* ]] || fail "$at: $stderr"
		bitmap disk.img b '.count == 1048576 and (has("inconsistent") | not)'
	done
	for at in 0 100 4096 8191; do
		head -c $at good.log > disk.img.bitmaps.log
		bitmap disk.img b '.count == 1048576'
	done
	ok bitmap-enable disk.img b
	[ ! -e disk.img.bitmaps.log ]
	bitmap disk.img b '.count == 1048576 and (has("inconsistent") | not)'
}

@test "of a later version: refused, and left alone" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	ok image-write --pattern 1 disk.img 0 1
	printf '\2' | put disk.img.bitmaps.log 8
	unchanged refused_like 'disk.img.bitmaps.log.*version' bitmap-clear disk.img b
	unchanged refused_like 'disk.img.bitmaps.log.*version' image-write --pattern 1 disk.img 0 1
	unchanged refused_like 'disk.img.bitmaps.log.*version' bitmap-list --output=json disk.img
}

@test "of another sidecar: its bits are dirty, its stamp is not believed" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	ok image-write --pattern 1 disk.img 0 1
	cp -p disk.img.bitmaps.log old.log
	ok bitmap-clear disk.img b
	ok image-write --pattern 1 disk.img 512K 1
	ok bitmap-enable disk.img b
	ok bitmap-disable disk.img b
	ok bitmap-enable disk.img b
	assert_equal "$(dirty disk.img b)" 524288+65536
	cp -p old.log disk.img.bitmaps.log
	attempt bitmap-list --output=json disk.img
	[[ $stderr == *"another sidecar"* ]]
	assert_equal "$(dirty disk.img b)" '0+65536 524288+65536'
	touch disk.img
	bitmap disk.img b .inconsistent
}

@test "left behind by a command that had added it: not taken twice" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	ok image-write --pattern 1 disk.img 0 1
	cp -p disk.img.bitmaps.log old.log
	ok bitmap-clear disk.img b
	cp -p old.log disk.img.bitmaps.log
	bitmap disk.img b '.count == 0 and (has("inconsistent") | not)'
	ok image-write --pattern 1 disk.img 64K 1
	assert_equal "$(dirty disk.img b)" 65536+65536
}

@test "a write that fails has not more dirty than it may have changed" {
	raw disk.img 256M
	ok bitmap-add disk.img b
	ok image-write --pattern 1 disk.img 255M 64K
	head -c 9M /dev/zero > data
	cat data | ok image-write disk.img 0
	assert_equal "$(dirty disk.img b)" '0+9437184 267386880+65536'
}

@test "no room for it: an error of the write, before anything is written" {
	[ "$(id -u)" -eq 0 ] || skip "mounts a file system"
	mkdir small
	mount -t tmpfs -o size=64K tmpfs small || skip "tmpfs cannot be mounted"
	mounts+=("$PWD/small")
	truncate -s 1T disk.img
	ok bitmap-add --sidecar small/s disk.img b
	cp -p disk.img.bitmaps before 2> /dev/null || true
	refused_like 'No space left' image-write --sidecar small/s --pattern 1 disk.img 0 1
	assert_equal "$(byte disk.img 0)" 00
}

# foreign: a file of another program in the place of the log.
foreign() {
	echo 'Nov 28 host daemon: started' > disk.img.bitmaps.log
	sha256sum disk.img.bitmaps.log > foreign.sum
}

@test "a file of another program in its place is left alone" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	foreign
	attempt bitmap-list --output=json disk.img
	assert_equal "$status" 0
	[[ $stderr == *"disk.img.bitmaps.log' is not a write log and is not used"* ]] || fail "$stderr"
	ok bitmap-add disk.img c
	ok bitmap-clear disk.img b
	done_ backup-run -q --sync incremental --bitmap b -F qcow2 disk.img x.qcow2
	bitmap disk.img b '.count == 0 and (has("inconsistent") | not)'
	unchanged refused_like 'disk.img.bitmaps.log.*File exists' image-write --pattern 1 disk.img 0 1
	[[ $stderr == *'move it away'* ]] || fail "$stderr"
	sha256sum -c --quiet foreign.sum
	mv disk.img.bitmaps.log elsewhere
	ok image-write --pattern 1 disk.img 0 1
	# A log of ours that it replaced is missed.
	foreign
	bitmap disk.img b .inconsistent
	sha256sum -c --quiet foreign.sum
}

@test "something in its place that is no file at all" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	local make
	for make in 'mkdir disk.img.bitmaps.log' 'mkfifo disk.img.bitmaps.log' 'ln -s /dev/zero disk.img.bitmaps.log' \
		'python3 -c "import socket; socket.socket(socket.AF_UNIX).bind(\"disk.img.bitmaps.log\")"'; do
		eval "$make"
		done_ timeout 10 bitmap-list disk.img
		[[ $stderr == *"disk.img.bitmaps.log' is not a write log and is not used"* ]] || fail "$stderr"
		ok timeout 10 bitmap-add disk.img c
		ok timeout 10 bitmap-remove disk.img c
		refused_like 'disk.img.bitmaps.log' timeout 10 image-write --pattern 1 disk.img 0 1
		[[ $stderr == *'move it away'* ]] || fail "$stderr"
		mv disk.img.bitmaps.log elsewhere
		# A log that it replaced is missed.
		ok image-write --pattern 1 disk.img 0 1
		bitmap disk.img b '.inconsistent | not'
		rm -rf disk.img.bitmaps.log
		mv elsewhere disk.img.bitmaps.log
		bitmap disk.img b .inconsistent
		rm -rf disk.img.bitmaps.log disk.img.bitmaps
		ok bitmap-add disk.img b
	done
}

@test "on a device, where no stamp shows it, such a file may have replaced a log" {
	truncate -s 1M dev.img
	loop dev.img
	ok bitmap-add --sidecar s "$loop" b
	echo text > s.log
	list_with --sidecar s
	bitmap "$loop" b '.count == 1048576 or .inconsistent'
	ok bitmap-disable --sidecar s "$loop" b
	assert_equal "$(cat s.log)" text
}

@test "no target has a name of the bitmaps" {
	raw disk.img 1M
	local name
	for name in other.bitmaps disk.img.bitmaps.log other.bitmaps.lock d/x.bitmaps.group disk.img.bitmaps.group-1a2b \
		disk.img.bitmaps.commit disk.img.bitmaps.commit-2 d/.tidemark-0123456789abcdef0123456789abcdef.log; do
		mkdir -p d
		refused_like "Could not create '.*$name': the name is one of the bitmaps" backup-run -F qcow2 disk.img $name
		refused_like 'the name is one of the bitmaps' image-create -f raw $name 1M
		refused_like 'the name is one of the bitmaps' chain-restore -f raw disk.img $name
		refused_like 'the name is one of the bitmaps' image-create -f qcow2 -o data_file=${name##*/} d/new.qcow2 1M
		truncate -s 1M $name
		refused_like 'the name is one of the bitmaps' backup-run --mode existing -F raw disk.img $name
		refused_like 'the name is one of the bitmaps' chain-restore -f raw --in-place disk.img $name
		rm $name
	done
	ok image-create -f raw disk.img.bitmaps.old 1M
	ok image-create -f raw .bitmaps 1M
	ok bitmap-add --sidecar s disk.img b
	ok image-write --sidecar s --pattern 1 disk.img 0 1
	refused_like 'contains the bitmaps of an image' backup-run -F qcow2 disk.img s.log
	refused_like 'contains the bitmaps of an image' backup-run --overwrite -F qcow2 disk.img s.log
	truncate -s 1M s.log
	refused_like 'contains the bitmaps of an image' backup-run --mode existing -F raw disk.img s.log
}
