#!/usr/bin/env bats
# bitmap-export: a bitmap of an image into one of another image, or of the other store.

load helper

@test "what is not there is created: the original's granularity and content, recording" {
	truncate -s 1M disk.img other.img
	ok bitmap-add -g 4K --disabled disk.img b
	ok bitmap-mark disk.img b 12K 1
	ok bitmap-export disk.img b --to other.img#t
	bitmap other.img t '.granularity == 4096 and .count == 4096 and .recording and .store == "sidecar" and (.busy | not)'
	assert_equal "$(dirty other.img t)" 12288+4096
	assert_equal "$(dirty disk.img b)" 12288+4096
	ok bitmap-export -g 8K --disabled disk.img b --to other.img
	bitmap other.img b '.granularity == 8192 and (.recording | not)'
	assert_equal "$(dirty other.img b)" 8192+8192
	assert_equal "$(names other.img)" 'b t'
	assert_equal "$(names disk.img)" b
}

@test "what is there is added to, and keeps what it had" {
	truncate -s 1M disk.img other.img
	ok bitmap-add -g 4K disk.img b
	ok bitmap-mark disk.img b 12K 1
	ok bitmap-add other.img t
	ok bitmap-mark other.img t 960K 1
	ok bitmap-export disk.img b --to other.img#t
	assert_equal "$(dirty other.img t)" '0+65536 983040+65536'
	unchanged refused "Bitmap 't' exists: 'granularity' is only for a new bitmap" \
		bitmap-export -g 64K disk.img b --to other.img#t
	unchanged refused "Bitmap 't' exists: 'disabled' is only for a new bitmap" \
		bitmap-export --disabled disk.img b --to other.img#t
}

@test "within an image, and a name with a # in it" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b
	ok bitmap-mark disk.img b 64K 1
	ok bitmap-export disk.img b --to '#c#1'
	assert_equal "$(dirty disk.img 'c#1')" 65536+65536
	ln disk.img link.img
	ok bitmap-export disk.img 'c#1' --to link.img#d
	assert_equal "$(dirty disk.img d)" 65536+65536
	ok bitmap-export disk.img b --to disk.img
	assert_equal "$(dirty disk.img b)" 65536+65536
	unchanged refused 'Bitmap name cannot be empty' bitmap-export disk.img b --to disk.img#
	unchanged refused_like 'nosuch\.img' bitmap-export disk.img b --to nosuch.img
	unchanged refused "Dirty bitmap 'zz' not found" bitmap-export disk.img zz --to '#y'
}

@test "from QEMU's store into the sidecar and back" {
	qcow2 disk.qcow2 4M
	qemu-img bitmap --add -g 32K disk.qcow2 q
	qemu-io -f qcow2 -c 'write -q 1M 40K' disk.qcow2
	ok bitmap-export disk.qcow2 q --to disk.qcow2#b
	bitmap disk.qcow2 b '.store == "sidecar"'
	assert_equal "$(dirty disk.qcow2 b)" 1048576+65536
	ok bitmap-mark disk.qcow2 b 3M 1
	ok bitmap-export --store image disk.qcow2 b --to disk.qcow2#inside
	bitmap disk.qcow2 inside '.store == "image" and .granularity == 32768'
	assert_equal "$(hash_of disk.qcow2 inside)" "$(hash_of disk.qcow2 b)"
	ok bitmap-export disk.qcow2 b --to disk.qcow2#q
	assert_equal "$(hash_of disk.qcow2 q)" "$(hash_of disk.qcow2 b)"
	clean disk.qcow2
	raw disk.img 4M
	unchanged refused "Can't store persistent bitmaps to disk.img: Operation not supported" \
		bitmap-export --store image disk.qcow2 b --to disk.img
	[ ! -e disk.img.bitmaps ]
}

@test "disks of different sizes" {
	truncate -s 1000448 short.img
	truncate -s 2M long.img
	ok bitmap-add -g 4K short.img b
	ok bitmap-export short.img b --to long.img
	[[ $stderr == *"bitmap 'b' covers only 1000448 of 2097152 bytes; the rest is dirty in bitmap 'b'"* ]]
	assert_equal "$(dirty long.img b)" 999424+1097728
	unchanged refused "Bitmap 'b' is dirty at 1003520, beyond the end of the disk 'short.img' of 1000448 bytes" \
		bitmap-export long.img b --to short.img
	ok bitmap-mark --unset long.img b 1003520 1093632
	ok bitmap-export long.img b --to short.img#c
	assert_equal "$(dirty short.img c)" 999424+1024
}

@test "inconsistent bitmaps are refused on both sides" {
	truncate -s 1M disk.img other.img
	ok bitmap-add disk.img b
	ok bitmap-add other.img t
	touch other.img
	unchanged refused "Bitmap 't' is inconsistent and cannot be used" bitmap-export disk.img b --to other.img#t
	unchanged refused "Bitmap 't' is inconsistent and cannot be used" bitmap-export other.img t --to disk.img
}

@test "an image that QEMU writes is refused on both sides" {
	qcow2 disk.qcow2 1M
	truncate -s 1M other.img
	ok bitmap-add disk.qcow2 b
	ok bitmap-add other.img o
	serve qcow2 disk.qcow2
	unchanged refused_like 'Failed to get (shared )?"write" lock' bitmap-export disk.qcow2 b --to other.img
	unchanged refused_like 'Failed to get (shared )?"write" lock' bitmap-export other.img o --to disk.qcow2
}

@test "--dry-run changes nothing" {
	truncate -s 1M disk.img other.img
	ok bitmap-add disk.img b
	unchanged ok bitmap-export --dry-run disk.img b --to other.img
	[ ! -e other.img.bitmaps ]
}

@test "in a transaction" {
	truncate -s 1M disk.img other.img
	ok bitmap-add disk.img b
	ok bitmap-mark disk.img b 0 1
	cat > one.json <<- 'END'
		{"execute": "x-block-dirty-bitmap-export", "arguments": {"node": "disk", "name": "b", "granularity": 131072,
		  "disabled": true, "x-store": "sidecar", "sink": {"node": "other", "name": "c"}}}
	END
	ok txn-apply --drive disk=disk.img --drive other=other.img one.json
	bitmap other.img c '.granularity == 131072 and (.recording | not)'
	assert_equal "$(dirty other.img c)" 0+131072
	jq 'del(.arguments.sink)' one.json > bad.json
	unchanged refused "Parameter 'sink' is missing" txn-apply --drive disk=disk.img --drive other=other.img bad.json
	jq '{actions: [{type: "x-block-dirty-bitmap-export", data: (.arguments | .sink.name = "d")},
		{type: "block-dirty-bitmap-clear", data: {node: "disk", name: "b"}}]}' one.json > two.json
	jq '.actions += [{type: "abort", data: {}}]' two.json > undone.json
	unchanged refused 'Transaction aborted using Abort action' \
		txn-apply --drive disk=disk.img --drive other=other.img undone.json
	ok txn-apply --drive disk=disk.img --drive other=other.img two.json
	assert_equal "$(dirty other.img d)" 0+131072
	assert_equal "$(dirty disk.img b)" ''
}

@test "nothing is brought into a server's bitmaps" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b
	unchanged refused "The bitmaps of 'nbd+unix:///x?socket=s' belong to its server, and it has no sidecar for others" \
		bitmap-export disk.img b --to 'nbd+unix:///x?socket=s#b'
}

@test "usage" {
	usage bitmap-export
	usage bitmap-export disk.img b
	usage bitmap-export disk.img b c --to other.img
}
