#!/usr/bin/env bats
# The owner and mode of files that commands create, and links that are not followed (SECURITY.md).

load helper

# Names, owners and modes of all files here.
owners() {
	find . -maxdepth 1 -type f -printf '%f %u:%g %m\n' | sort
}

as_nobody() {
	setpriv --reuid nobody --regid nogroup --clear-groups "$@"
}

need_root() {
	[ "$(id -u)" -eq 0 ] || skip 'not root'
}

# Others may enter the test's directory, which is made with this mode.
open_dir() {
	local d=$PWD

	chmod "$1" .
	while [ "$d" != "$BATS_RUN_TMPDIR" ] && [ "$d" != / ]; do
		d=${d%/*}
		chmod o+x "$d"
	done
}

@test "sidecar and target get the owner and mode of the image, whatever the umask" {
	need_root
	truncate -s 1M disk.img
	chown nobody:nogroup disk.img
	chmod 640 disk.img
	umask 0
	ok bitmap-add disk.img b
	ok image-write --pattern 1 disk.img 0 64K
	done_ backup-run --sync incremental --bitmap b -F qcow2 disk.img inc.qcow2
	ok bitmap-clear disk.img b
	run -0 owners
	refute_line --regexp ' root:'
	refute_line --regexp ' 6[4-7][1-7]$'
	assert_line 'disk.img.bitmaps nobody:nogroup 640'
	assert_line 'inc.qcow2 nobody:nogroup 640'
}

@test "what a running job makes is open to its maker alone, or to those who may read the image" {
	need_root
	truncate -s 4M disk.img
	chmod 600 disk.img
	ok image-write --pattern 1 disk.img 0 4M
	ok bitmap-add disk.img b
	ok bitmap-mark disk.img b 0 4M
	umask 0
	backup-run --sync incremental --bitmap b --speed 64K -F qcow2 disk.img inc.qcow2 > out 2> err &
	bg_pids+=($!)
	until bitmap-list -U --output=json disk.img 2> /dev/null | grep -q '"busy": true'; do sleep 0.05; done
	run -0 find . -maxdepth 1 -type f ! -name out ! -name err -perm /077
	assert_output ''
}

@test "no privilege is needed that the image's own mode does not ask for" {
	need_root
	open_dir 777
	truncate -s 1M disk.img
	chown nobody:nogroup disk.img
	chmod 600 disk.img
	ok as_nobody bitmap-add disk.img b
	ok as_nobody image-write --pattern 5 disk.img 64K 64K
	done_ as_nobody backup-run --sync incremental --bitmap b -F qcow2 disk.img inc.qcow2
	ok as_nobody chain-restore --allow-part inc.qcow2 back.img
	cmp disk.img back.img
	assert_equal "$(stat -c %U disk.img.bitmaps)" nobody
}

@test "who may only read the image may look at its bitmaps, and not change them" {
	need_root
	open_dir 755
	truncate -s 1M disk.img
	chmod 644 disk.img
	ok bitmap-add disk.img b
	done_ as_nobody bitmap-list disk.img
	refused_like 'Permission denied' as_nobody bitmap-clear disk.img b
	done_ bitmap-list --output=json disk.img
	assert_equal "$(jq -r '.return[0].recording' <<< "$output")" true
}

# as USER GROUPS CMD...: a person of this number, whose first group is 100, and who is in GROUPS too.
as() {
	setpriv --reuid "$1" --regid 100 --groups "$2" "${@:3}"
}

@test "the owner cannot be given: the group is" {
	need_root
	open_dir 777
	raw disk.img 1M
	chown 12001:12100 disk.img
	chmod 640 disk.img
	umask 0
	done_ as 12002 100,12100 backup-run -F qcow2 disk.img full.qcow2
	ok as 12002 100,12100 chain-restore full.qcow2 back.img
	assert_equal "$(stat -c '%u:%g %a' full.qcow2)" '12002:12100 640'
	assert_equal "$(stat -c '%u:%g %a' back.img)" '12002:12100 640'
	chmod 660 disk.img
	ok as 12002 100,12100 bitmap-add disk.img b
	assert_equal "$(stat -c '%u:%g %a' disk.img.bitmaps)" '12002:12100 660'
	# The owner of the image can go on with it.
	ok as 12001 12100 image-write --pattern 1 disk.img 0 1
	ok as 12001 12100 bitmap-clear disk.img b
	# Everybody's group, which the image does not belong to, has gained nothing.
	run as 12003 100 cat full.qcow2 back.img disk.img.bitmaps disk.img.bitmaps.log
	assert_output --partial 'Permission denied'
	refute_output --partial QFI
}

@test "neither owner nor group can be given: only the maker's bits remain" {
	need_root
	open_dir 777
	raw disk.img 1M
	chown 12001:12100 disk.img
	umask 0
	local mode
	for mode in 646 664 666; do
		rm -f full.qcow2 back.img disk.img.bitmaps* all.qcow2 data
		chmod $mode disk.img
		done_ as 12002 100 backup-run -F qcow2 disk.img full.qcow2
		ok as 12002 100 chain-restore -F qcow2 -o data_file=data full.qcow2 all.qcow2
		assert_equal "$(stat -c '%u:%g %a' full.qcow2 all.qcow2 data | sort -u)" '12002:100 600'
	done
	ok as 12002 100 bitmap-add disk.img b
	ok as 12002 100 image-write --pattern 1 disk.img 0 1
	assert_equal "$(stat -c '%u:%g %a' disk.img.bitmaps disk.img.bitmaps.log | sort -u)" '12002:100 600'
}

@test "an external data file is as confidential as its image" {
	need_root
	raw disk.img 1M
	chown 12001:12100 disk.img
	chmod 640 disk.img
	umask 0
	done_ backup-run -F qcow2 -o data_file=data disk.img full.qcow2
	assert_equal "$(stat -c '%u:%g %a' full.qcow2 data | sort -u)" '12001:12100 640'
}

@test "a backup is as confidential as every image of the chain" {
	need_root
	umask 0
	qcow2 base.qcow2 1M
	chown 12001:12100 base.qcow2
	ok image-create -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
	chown 12001:12100 top.qcow2
	chmod 664 top.qcow2
	local mode
	for mode in 600:600 640:640 644:644 666:664; do
		rm -f full.qcow2 back.img
		chmod ${mode%:*} base.qcow2
		done_ backup-run -F qcow2 top.qcow2 full.qcow2
		ok chain-restore top.qcow2 back.img
		assert_equal "$(stat -c '%u:%g %a' full.qcow2 back.img | sort -u)" "12001:12100 ${mode#*:}"
	done
	chown 12001:12101 base.qcow2
	chmod 660 base.qcow2
	rm full.qcow2
	done_ backup-run -F qcow2 top.qcow2 full.qcow2
	assert_equal "$(stat -c '%u:%g %a' full.qcow2)" '12001:12100 600'
}

@test "an access control list: the owning group gets its own bits, not the list's" {
	need_root
	raw disk.img 1M
	chown 12001:12100 disk.img
	chmod 600 disk.img
	# user::rw-, user:12002:rw-, group::---, mask::rw-, other::---
	python3 - <<- 'PY' || skip 'no access control lists'
		import os, struct, sys
		entries = [(1, 6, 0xffffffff), (2, 6, 12002), (4, 0, 0xffffffff), (0x10, 6, 0xffffffff), (0x20, 0, 0xffffffff)]
		acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *e) for e in entries)
		try:
		    os.setxattr("disk.img", "system.posix_acl_access", acl)
		except OSError:
		    sys.exit(1)
	PY
	assert_equal "$(stat -c %a disk.img)" 660
	umask 0
	ok bitmap-add disk.img b
	done_ backup-run -F qcow2 disk.img full.qcow2
	assert_equal "$(stat -c '%u:%g %a' disk.img.bitmaps full.qcow2 | sort -u)" '12001:12100 600'
}

@test "the owner of a read-only image can change its bitmaps" {
	need_root
	open_dir 777
	raw disk.img 1M
	chown 12001:12100 disk.img
	local mode who
	for who in root owner; do
		for mode in 444:644 400:600 440:640; do
			rm -f disk.img.bitmaps* inc.qcow2
			chmod ${mode%:*} disk.img
			if [ $who = root ]; then ok bitmap-add disk.img b; else ok as 12001 12100 bitmap-add disk.img b; fi
			assert_equal "$(stat -c '%u:%g %a' disk.img.bitmaps)" "12001:12100 ${mode#*:}"
			ok as 12001 12100 bitmap-mark disk.img b 0 1
			done_ as 12001 12100 backup-run --sync incremental --bitmap b -F qcow2 disk.img inc.qcow2
			ok as 12001 12100 bitmap-disable disk.img b
			assert_equal "$(stat -c '%u:%g %a' inc.qcow2)" "12001:12100 ${mode%:*}"
		done
	done
}

@test "who may only read the image does not make its sidecar" {
	need_root
	open_dir 777
	raw disk.img 1M
	chown 12001:12100 disk.img
	local mode
	for mode in 444 644 440 664; do
		rm -f disk.img.bitmaps* own
		chmod $mode disk.img
		unchanged refused_like 'its owner could not change the bitmaps' as 12002 "100$([ $mode = 664 ] || echo ,12100)" \
			bitmap-add disk.img b
		[ ! -e disk.img.bitmaps ]
		ok as 12002 100,12100 bitmap-add --sidecar own disk.img b
		ok as 12001 12100 bitmap-add disk.img b
		ok as 12001 12100 bitmap-clear disk.img b
		refused_like 'Permission denied' as 12002 100 bitmap-clear disk.img b
	done
}

@test "a link in the place of the sidecar is not followed" {
	truncate -s 1M disk.img
	echo precious > victim
	ln -s victim disk.img.bitmaps
	refused_like "The sidecar '.*disk.img.bitmaps' is a symbolic link" bitmap-add disk.img b
	refused_like "The sidecar '.*disk.img.bitmaps' is a symbolic link" bitmap-list --output=json disk.img
	assert_equal "$(cat victim)" precious
	rm disk.img.bitmaps
	ok bitmap-add disk.img b
	mv disk.img.bitmaps elsewhere
	ln -s elsewhere disk.img.bitmaps
	cp elsewhere before
	refused_like 'is a symbolic link' bitmap-clear disk.img b
	cmp elsewhere before
}
@test "a link in the place of the write log is not followed" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b
	echo precious > victim
	ln -s victim disk.img.bitmaps.log
	rejected image-write --pattern 1 disk.img 0 64K
	assert_equal "$(cat victim)" precious
}
