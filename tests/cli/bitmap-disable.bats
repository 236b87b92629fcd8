#!/usr/bin/env bats
# bitmap-disable: block-dirty-bitmap-disable from a shell.

load helper

@test "a disabled bitmap keeps its bits and records nothing" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b
	ok bitmap-add disk.img other
	ok image-write --pattern 1 disk.img 0 1
	ok bitmap-disable disk.img b
	bitmap disk.img b '(.recording | not) and .count == 65536'
	bitmap disk.img other .recording
	ok image-write --pattern 1 disk.img 128K 1
	ok image-write --zero disk.img 256K 1
	ok image-write --discard disk.img 512K 64K
	assert_equal "$(dirty disk.img b)" 0+65536
	assert_equal "$(dirty disk.img other)" '0+65536 131072+65536 262144+65536 524288+65536'
}

@test "a second time too" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b
	ok bitmap-disable disk.img b
	ok bitmap-disable disk.img b
	bitmap disk.img b '.recording | not'
	ok bitmap-enable disk.img b
	bitmap disk.img b .recording
}

@test "refuses what is not there, and what is inconsistent" {
	truncate -s 1M disk.img
	unchanged refused "Dirty bitmap 'nope' not found" bitmap-disable disk.img nope
	ok bitmap-add disk.img b
	unchanged refused "Dirty bitmap 'nope' not found" bitmap-disable disk.img nope
	touch disk.img
	unchanged refused "Bitmap 'b' is inconsistent and cannot be used" bitmap-disable disk.img b
	usage bitmap-disable disk.img
	usage bitmap-disable
}

@test "--dry-run changes nothing" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b
	unchanged ok bitmap-disable --dry-run disk.img b
}
