#!/usr/bin/env bats
# bitmap-enable: block-dirty-bitmap-enable from a shell.

load helper

@test "a disabled bitmap records from then on" {
	truncate -s 1M disk.img
	ok bitmap-add --disabled disk.img b
	ok image-write --pattern 1 disk.img 0 1
	bitmap disk.img b '.count == 0'
	ok bitmap-enable disk.img b
	bitmap disk.img b '.recording and .count == 0'
	ok image-write --pattern 1 disk.img 128K 1
	assert_equal "$(dirty disk.img b)" 131072+65536
}

@test "an enabled one stays as it is" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b
	ok bitmap-mark disk.img b 0 1
	ok bitmap-enable disk.img b
	bitmap disk.img b '.recording and .count == 65536'
}

@test "refuses what is not there, and what is inconsistent" {
	truncate -s 1M disk.img
	unchanged refused "Dirty bitmap 'nope' not found" bitmap-enable disk.img nope
	ok bitmap-add --disabled disk.img b
	unchanged refused "Dirty bitmap 'nope' not found" bitmap-enable disk.img nope
	unchanged refused "Dirty bitmap '' not found" bitmap-enable disk.img ''
	touch disk.img
	unchanged refused "Bitmap 'b' is inconsistent and cannot be used" bitmap-enable disk.img b
	usage bitmap-enable disk.img
	usage bitmap-enable
}

@test "--dry-run changes nothing" {
	truncate -s 1M disk.img
	ok bitmap-add --disabled disk.img b
	unchanged ok bitmap-enable --dry-run disk.img b
}
