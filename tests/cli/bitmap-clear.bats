#!/usr/bin/env bats
# bitmap-clear: block-dirty-bitmap-clear from a shell.

load helper

@test "clears all, keeps the rest" {
	truncate -s 1000001 disk.img
	ok bitmap-add -g 4K disk.img b
	ok bitmap-add --disabled -g 512 disk.img d
	ok bitmap-add disk.img other
	for n in b d other; do ok bitmap-mark disk.img $n 0 1000001; done
	bitmap disk.img b '.count == 245 * 4096'
	ok bitmap-clear disk.img b
	bitmap disk.img b '.count == 0 and .granularity == 4096 and .recording'
	ok bitmap-clear disk.img d
	bitmap disk.img d '.count == 0 and .granularity == 512 and (.recording | not)'
	bitmap disk.img other '.count == 16 * 65536'
	assert_equal "$(names disk.img)" 'other d b'
	assert_equal "$(dirty disk.img b)" ''
}

@test "a second time too, and it records again" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b
	ok bitmap-clear disk.img b
	ok image-write --pattern 1 disk.img 64K 64K
	assert_equal "$(dirty disk.img b)" 65536+65536
	ok bitmap-clear disk.img b
	ok bitmap-clear disk.img b
	bitmap disk.img b '.count == 0'
}

@test "refuses what is not there, and what is inconsistent" {
	truncate -s 1M disk.img
	unchanged refused "Dirty bitmap 'nope' not found" bitmap-clear disk.img nope
	ok bitmap-add disk.img b
	unchanged refused "Dirty bitmap 'nope' not found" bitmap-clear disk.img nope
	unchanged refused "Dirty bitmap '' not found" bitmap-clear disk.img ''
	touch disk.img
	unchanged refused "Bitmap 'b' is inconsistent and cannot be used" bitmap-clear disk.img b
	usage bitmap-clear disk.img
}

@test "--dry-run clears nothing" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b
	ok bitmap-mark disk.img b 0 1
	unchanged ok bitmap-clear --dry-run disk.img b
}
