#!/usr/bin/env bats
# Stamps: a write that the bitmaps did not record makes them inconsistent.

load helper

two_bitmaps() {
	raw disk.img 1M
	ok bitmap-add disk.img a
	ok bitmap-add disk.img b
	ok image-write --pattern 1 disk.img 0 1
}

inconsistent() {
	bitmap disk.img "$1" '.inconsistent == true'
}

trusted() {
	bitmap disk.img "$1" 'has("inconsistent") | not'
}

@test "tracked writes keep the trust" {
	two_bitmaps
	trusted a
	ok image-write --zero disk.img 0 1M
	ok image-write --discard disk.img 0 1M
	trusted a
	trusted b
	cat disk.img > copy
	trusted a
}

@test "whatever writes around the tracking takes it" {
	two_bitmaps
	cp disk.img orig.img
	cp disk.img.bitmaps orig.bitmaps
	local stamp how
	stamp=$(stat -c %y disk.img)
	touch later
	for how in 'touch disk.img' 'noise 1 | put disk.img 5' 'qemu-io -f raw -c "write -q 0 512" disk.img' \
		'truncate -s 2M disk.img' 'truncate -s 1000K disk.img' "touch -d '$stamp - 1 second' disk.img" 'cp orig.img disk.img' \
		'truncate -s 1048577 disk.img; touch -d "$stamp" disk.img'; do
		cp --preserve=all orig.img disk.img
		cp orig.bitmaps disk.img.bitmaps
		touch -d "$stamp" disk.img
		trusted a
		eval "$how"
		inconsistent a
		inconsistent b
	done
}

@test "inconsistent bitmaps are refused everywhere but for removal" {
	two_bitmaps
	touch disk.img
	local text="Bitmap 'b' is inconsistent and cannot be used"
	unchanged refused "$text" bitmap-clear disk.img b
	unchanged refused "$text" bitmap-enable disk.img b
	unchanged refused "$text" bitmap-disable disk.img b
	unchanged refused "Bitmap 'a' is inconsistent and cannot be used" bitmap-merge disk.img a b
	unchanged refused "$text" bitmap-merge disk.img b b
	unchanged refused "$text" backup-run --sync incremental --bitmap b -F qcow2 disk.img x.qcow2
	unchanged refused 'Bitmap already exists: b' bitmap-add disk.img b
	[ ! -e x.qcow2 ]
	done_ backup-run -F qcow2 disk.img full.qcow2
	ok bitmap-remove disk.img b
	inconsistent a
}

@test "people are told, and what to do" {
	two_bitmaps
	touch disk.img
	attempt backup-run --sync incremental --bitmap b -F qcow2 disk.img x.qcow2
	assert_equal "$status" 1
	[[ $stderr == *bitmap-mark* || $stderr == *--ignore-stamp* || $stderr == *bitmap-remove* ]]
}

@test "--ignore-stamp trusts all the same" {
	two_bitmaps
	touch disk.img
	list_with --ignore-stamp
	bitmap disk.img b '(has("inconsistent") | not) and .count == 65536'
	list_with
	inconsistent b
	done_ backup-run --ignore-stamp --sync incremental --bitmap b -F qcow2 disk.img inc.qcow2
	event BLOCK_JOB_COMPLETED '{"device": "disk", "len": 65536, "offset": 65536, "speed": 0, "type": "backup"}'
	ok bitmap-clear --ignore-stamp disk.img a
}

@test "bitmap-mark makes that bitmap good again, and no other" {
	two_bitmaps
	noise 100 | put disk.img 300000
	inconsistent a
	inconsistent b
	ok bitmap-mark disk.img b 300000 100
	trusted b
	inconsistent a
	assert_equal "$(dirty disk.img b)" '0+65536 262144+65536'
	ok bitmap-disable disk.img b
	unchanged refused "Bitmap 'a' is inconsistent and cannot be used" bitmap-disable disk.img a
	ok bitmap-mark disk.img a 0 1
	trusted a
}

@test "nothing else makes a bitmap good again" {
	two_bitmaps
	touch disk.img
	ok image-write --pattern 2 disk.img 128K 1
	inconsistent a
	inconsistent b
	ok bitmap-add disk.img new
	inconsistent a
	inconsistent b
	trusted new
	ok bitmap-clear disk.img new
	ok image-write --pattern 2 disk.img 256K 1
	bitmap disk.img new '.count == 65536 and (has("inconsistent") | not)'
	done_ backup-run --sync incremental --bitmap new -F qcow2 disk.img x.qcow2
	inconsistent a
	ok bitmap-remove disk.img new
	inconsistent a
	inconsistent b
}

@test "a bitmap made good again has what was tracked before and after" {
	two_bitmaps
	cp disk.img base.img
	noise 100 | put disk.img 300000
	ok image-write --pattern 2 disk.img 600000 1
	ok bitmap-mark disk.img b 300000 100
	assert_equal "$(dirty disk.img b)" '0+65536 262144+65536 589824+65536'
}

@test "an image that was put back under its old time is trusted, as the manual says" {
	two_bitmaps
	cp -p disk.img saved
	touch disk.img
	inconsistent a
	touch -r saved disk.img
	trusted a
}

@test "a new size: nothing lies about the disk" {
	two_bitmaps
	truncate -s 2M disk.img
	inconsistent a
	unchanged refused "Bitmap 'b' is inconsistent and cannot be used" \
		backup-run --sync incremental --bitmap b -F qcow2 disk.img x.qcow2
	done_ backup-run -F qcow2 disk.img full.qcow2
	same raw disk.img qcow2 full.qcow2
	ok bitmap-remove disk.img a
	ok bitmap-remove disk.img b
	ok bitmap-add disk.img c
	ok bitmap-mark disk.img c 1536K 1
	bitmap disk.img c '.count == 65536 and (has("inconsistent") | not)'
}

@test "qcow2: written by QEMU" {
	qcow2 disk.qcow2 4M
	ok bitmap-add disk.qcow2 b
	qemu-io -f qcow2 -c 'write -q 0 512' disk.qcow2
	bitmap disk.qcow2 b .inconsistent
	ok bitmap-mark disk.qcow2 b 0 512
	bitmap disk.qcow2 b 'has("inconsistent") | not'
	# Looking is not writing.
	qemu-img check -q disk.qcow2
	qemu-img info disk.qcow2 > /dev/null
	qemu-io -r -f qcow2 -c 'read -q 0 512' disk.qcow2
	bitmap disk.qcow2 b 'has("inconsistent") | not'
}

# mapped FILE CMD: stores to a page of FILE through a mapping, runs CMD, and stores to the same page again.
mapped() {
	python3 - "$@" <<- 'PY'
		import mmap, subprocess, sys
		with open(sys.argv[1], "r+b") as f:
		    page = mmap.mmap(f.fileno(), 4096)
		    page[0] = page[0] ^ 1
		    subprocess.run(["bash", "-c", sys.argv[2]], check=True)
		    page[1] = page[1] ^ 1
	PY
}

@test "a store through a mapping whose page was dirty already" {
	[ "$(stat -f -c %T .)" != tmpfs ] || skip 'tmpfs does not notice such stores'
	local cmd
	for cmd in true 'bitmap-clear disk.img b' 'image-write --pattern 1 disk.img 512K 1' \
		'backup-run -q --sync incremental --bitmap b -F qcow2 disk.img x.qcow2' \
		'touch disk.img; bitmap-rescan --against copy.img --against-format raw disk.img b'; do
		rm -f -- disk.img* x.qcow2
		two_bitmaps
		cp disk.img copy.img
		mapped disk.img "{ bitmap-remove disk.img a; bitmap-remove disk.img b; bitmap-add disk.img b; $cmd; } > out"
		inconsistent b
	done
}

@test "a write around the tracking in the second of a tracked one, where times are whole seconds" {
	[ "$(id -u)" -eq 0 ] || skip "mounts a file system"
	PATH=$PATH:/sbin:/usr/sbin
	truncate -s 20M ext4
	mkfs.ext4 -q -I 128 ext4 2> mkfs.err || skip "no mkfs.ext4"
	mkdir fs
	mount -o loop ext4 fs 2> /dev/null || skip "cannot mount"
	mounts+=("$PWD/fs")
	truncate -s 1M fs/disk.img
	local cmd
	for cmd in 'image-write --pattern 1 fs/disk.img 0 1' 'bitmap-add fs/disk.img c' \
		'backup-run --sync incremental --bitmap b -F qcow2 fs/disk.img x.qcow2'; do
		rm -f fs/disk.img.*
		noise 512 | put fs/disk.img 0
		ok bitmap-add fs/disk.img b
		# shellcheck disable=SC2086 # words
		done_ $cmd
		printf x | put fs/disk.img 512K
		bitmap fs/disk.img b .inconsistent
	done
}

@test "--ignore-stamp of image-write vouches for all bitmaps" {
	local before
	for before in 'touch disk.img' 'touch disk.img; image-write --pattern 1 disk.img 64K 1 > out'; do
		rm -f -- disk.img*
		two_bitmaps
		eval "$before"
		inconsistent a
		attempt image-write --ignore-stamp --pattern 2 disk.img 256K 1
		assert_equal "$status" 0
		[ -z "$stderr" ] || fail "$stderr"
		trusted a
		trusted b
		assert_equal "$(dirty disk.img b | tr ' ' '\n' | tail -n 1)" 262144+65536
		touch disk.img
		inconsistent a
	done
}
