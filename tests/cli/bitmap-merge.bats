#!/usr/bin/env bats
# bitmap-merge: block-dirty-bitmap-merge from a shell.

load helper

@test "the target gets what any of the sources has, and keeps what it had" {
	truncate -s 1M disk.img
	for n in a b c t; do ok bitmap-add disk.img $n; done
	ok bitmap-mark disk.img a 0 1
	ok bitmap-mark disk.img b 64K 64K
	ok bitmap-mark disk.img c 64K 192K
	ok bitmap-mark disk.img t 960K 1
	ok bitmap-merge disk.img t a b
	assert_equal "$(dirty disk.img t)" '0+131072 983040+65536'
	ok bitmap-merge disk.img t c
	assert_equal "$(dirty disk.img t)" '0+262144 983040+65536'
	assert_equal "$(dirty disk.img a)" 0+65536
	assert_equal "$(dirty disk.img b)" 65536+65536
	assert_equal "$(names disk.img)" 't c b a'
}

@test "across granularities, up to the end of the disk" {
	truncate -s 1000448 disk.img
	ok bitmap-add -g 128K disk.img coarse
	ok bitmap-mark disk.img coarse 1000447 1
	local g bits
	while read -r g bits; do
		ok bitmap-add -g "$g" disk.img "f$g"
		ok bitmap-merge disk.img "f$g" coarse
		bitmap disk.img "f$g" ".count == $bits * .granularity"
		assert_equal "$(dirty disk.img "f$g")" 917504+82944
	done <<- END
		512 162
		4K 21
		64K 2
	END
	ok bitmap-add -g 512 disk.img fine
	ok bitmap-mark disk.img fine 300000 1
	ok bitmap-merge disk.img coarse fine
	assert_equal "$(dirty disk.img coarse)" '262144+131072 917504+82944'
}

@test "disabled bitmaps take part" {
	truncate -s 1M disk.img
	ok bitmap-add --disabled disk.img a
	ok bitmap-add --disabled disk.img t
	ok bitmap-mark disk.img a 0 1
	ok bitmap-merge disk.img t a
	bitmap disk.img t '.count == 65536 and (.recording | not)'
}

@test "into itself: no effect" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img t
	ok bitmap-mark disk.img t 0 1
	ok bitmap-merge disk.img t t
	bitmap disk.img t '.count == 65536'
}

@test "all or nothing" {
	truncate -s 1M disk.img
	for n in a t; do ok bitmap-add disk.img $n; done
	ok bitmap-mark disk.img a 0 1
	unchanged refused "Dirty bitmap 'zz' not found" bitmap-merge disk.img t a zz
	unchanged refused "Dirty bitmap 'zz' not found" bitmap-merge disk.img zz a
	unchanged refused "Dirty bitmap 'zz' not found" bitmap-merge disk.img t zz
	bitmap disk.img t '.count == 0'
	unchanged ok bitmap-merge --dry-run disk.img t a
}

@test "from another image" {
	truncate -s 1M disk.img other.img
	truncate -s 2M big.img
	ok bitmap-add disk.img t
	ok bitmap-add other.img b
	ok bitmap-add big.img b
	ok bitmap-mark other.img b 0 1
	ok bitmap-merge disk.img t other.img#b
	assert_equal "$(dirty disk.img t)" 0+65536
	unchanged refused "Bitmaps are of different sizes (destination size is 1048576, source size is 2097152) and can't be merged" \
		bitmap-merge disk.img t big.img#b
	unchanged refused "Dirty bitmap 'zz' not found" bitmap-merge disk.img t other.img#zz
	unchanged refused_like 'nosuch\.img' bitmap-merge disk.img t nosuch.img#b
}

@test "a bitmap that QEMU keeps inside the image can be a source" {
	qcow2 disk.qcow2 4M
	qemu-img bitmap --add -g 32K disk.qcow2 q
	qemu-io -f qcow2 -c 'write -q 1M 40K' disk.qcow2
	ok bitmap-add disk.qcow2 t
	ok bitmap-merge disk.qcow2 t q
	assert_equal "$(dirty disk.qcow2 t)" 1048576+65536
	ok bitmap-clear disk.qcow2 q
	ok bitmap-merge disk.qcow2 q t
	assert_equal "$(dirty disk.qcow2 q)" 1048576+65536
	clean disk.qcow2
}

@test "an inconsistent bitmap takes no part" {
	truncate -s 1M disk.img other.img
	ok bitmap-add disk.img t
	ok bitmap-add other.img b
	touch other.img
	unchanged refused "Bitmap 'b' is inconsistent and cannot be used" bitmap-merge disk.img t other.img#b
	touch disk.img
	unchanged refused "Bitmap 't' is inconsistent and cannot be used" bitmap-merge disk.img t t
}

@test "usage" {
	usage bitmap-merge
	usage bitmap-merge disk.img
}

@test "a source whose name is the device id of the image" {
	truncate -s 1M disk.img disk
	ok bitmap-add disk.img t
	ok bitmap-add disk b
	ok bitmap-mark disk b 0 1
	ok bitmap-merge disk.img t disk#b
	assert_equal "$(dirty disk.img t)" 0+65536
}
