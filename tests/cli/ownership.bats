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
	ok as_nobody chain-restore inc.qcow2 back.img
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
