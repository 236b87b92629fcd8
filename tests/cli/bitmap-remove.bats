#!/usr/bin/env bats
# bitmap-remove: block-dirty-bitmap-remove from a shell.

load helper

@test "removes the bitmap it names and no other" {
	truncate -s 1M disk.img
	for n in a b c; do ok bitmap-add disk.img "$n"; done
	ok bitmap-mark disk.img a 0 1
	ok bitmap-remove disk.img b
	assert_equal "$(names disk.img)" 'c a'
	bitmap disk.img a '.count == 65536'
	unchanged refused "Dirty bitmap 'b' not found" bitmap-remove disk.img b
}

@test "the last one, and one of the same name after it" {
	truncate -s 1M disk.img
	ok bitmap-add -g 4K disk.img b
	ok bitmap-mark disk.img b 0 1M
	ok bitmap-remove disk.img b
	assert_equal "$(names disk.img)" ''
	ok bitmap-add disk.img b
	bitmap disk.img b '.count == 0 and .granularity == 65536'
}

@test "refuses what is not there" {
	truncate -s 1M disk.img
	unchanged refused "Dirty bitmap 'nope' not found" bitmap-remove disk.img nope
	ok bitmap-add disk.img b
	unchanged refused "Dirty bitmap 'nope' not found" bitmap-remove disk.img nope
	unchanged refused "Dirty bitmap '' not found" bitmap-remove disk.img ''
	unchanged refused_like 'nosuch\.img.*No such file or directory' bitmap-remove nosuch.img b
}

@test "a disabled bitmap, and an inconsistent one" {
	truncate -s 1M disk.img
	ok bitmap-add --disabled disk.img d
	ok bitmap-remove disk.img d
	ok bitmap-add disk.img b
	ok bitmap-add disk.img c
	touch disk.img
	bitmap disk.img b .inconsistent
	ok bitmap-remove disk.img b
	bitmap disk.img c .inconsistent
	ok bitmap-remove disk.img c
	assert_equal "$(names disk.img)" ''
}

@test "--dry-run removes nothing" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b
	unchanged ok bitmap-remove --dry-run disk.img b
	unchanged refused "Dirty bitmap 'c' not found" bitmap-remove --dry-run disk.img c
}

@test "a bitmap that QEMU keeps inside the image goes for QEMU too" {
	qcow2 disk.qcow2 1M
	qemu-img bitmap --add disk.qcow2 q
	ok bitmap-remove disk.qcow2 q
	qemu-img info --output=json disk.qcow2 > info.json
	jq -e '."format-specific".data | has("bitmaps") | not' info.json
	clean disk.qcow2
}

@test "usage" {
	usage bitmap-remove
	usage bitmap-remove disk.img
	usage bitmap-remove disk.img b c
}
