#!/usr/bin/env bats
# bitmap-add: block-dirty-bitmap-add from a shell.

load helper

@test "adds an empty, recording bitmap beside the image" {
	raw disk.img 1M
	local before
	before=$(sha256sum disk.img; stat -c '%y %s' disk.img)
	ok bitmap-add disk.img b0
	bitmap disk.img b0 '.count == 0 and .granularity == 65536 and .recording and (.busy | not) and .store == "sidecar"'
	[ -s disk.img.bitmaps ]
	assert_equal "$(sha256sum disk.img; stat -c '%y %s' disk.img)" "$before"
}

@test "newest first" {
	truncate -s 1M disk.img
	for n in one two three; do ok bitmap-add disk.img "$n"; done
	assert_equal "$(names disk.img)" 'three two one'
}

@test "the default granularity is the cluster size within 4 KiB and 64 KiB" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b
	bitmap disk.img b '.granularity == 65536'
	local cluster want
	while read -r cluster want; do
		qemu-img create -q -f qcow2 -o "cluster_size=$cluster" "$cluster.qcow2" 1M
		ok bitmap-add "$cluster.qcow2" b
		bitmap "$cluster.qcow2" b ".granularity == $want"
	done <<- END
		512 4096
		1K 4096
		2K 4096
		4K 4096
		8K 8192
		16K 16384
		32K 32768
		64K 65536
		128K 65536
		2M 65536
	END
}

@test "takes every power of two from 512 to 2 GiB, in any spelling" {
	truncate -s 1M disk.img
	local g n=0
	for ((g = 512; g <= 1 << 31; g *= 2)); do
		ok bitmap-add -g "$g" disk.img "b$g"
		bitmap disk.img "b$g" ".granularity == $g"
	done
	while read -r g want; do
		ok bitmap-add --granularity="$g" disk.img "s$((n += 1))"
		bitmap disk.img "s$n" ".granularity == $want"
	done <<- END
		4K 4096
		64KiB 65536
		0x10000 65536
		1M 1048576
		2G 2147483648
	END
}

@test "refuses other granularities with QEMU's text" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b0
	local g
	for g in 0 1 3 256 511 513 3000 64000 2147483649 4294967295; do
		unchanged refused 'Granularity must be power of 2 and at least 512' bitmap-add -g "$g" disk.img b1
	done
	for g in 4294967296 9223372036854775808; do
		unchanged rejected bitmap-add -g "$g" disk.img b1
	done
	# Granularity is looked at before the name is looked up.
	unchanged refused 'Granularity must be power of 2 and at least 512' bitmap-add -g 3 disk.img b0
}

@test "refuses what is no size" {
	truncate -s 1M disk.img
	local g
	for g in '' 4x -1 1.5 K 0x 64KB '64 K' ' 64K' +4096 16E 99999999999999999999 nan; do
		unchanged rejected bitmap-add -g "$g" disk.img b
	done
}

@test "refuses an empty name, before it looks at the image" {
	truncate -s 1M disk.img
	unchanged refused 'Bitmap name cannot be empty' bitmap-add disk.img ''
	unchanged refused 'Bitmap name cannot be empty' bitmap-add -g 3 nosuch.img ''
}

@test "refuses a name that is taken" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b0
	unchanged refused 'Bitmap already exists: b0' bitmap-add disk.img b0
	unchanged refused 'Bitmap already exists: b0' bitmap-add --disabled -g 4K disk.img b0
	# Names are bytes: case counts, and so does a space.
	ok bitmap-add disk.img B0
	ok bitmap-add disk.img 'b0 '
}

@test "a name has at most 1023 bytes" {
	truncate -s 1M disk.img
	local a e
	a=$(printf 'a%.0s' {1..1023})
	e=$(printf 'é%.0s' {1..600})
	ok bitmap-add disk.img "$a"
	assert_equal "$(names disk.img)" "$a"
	unchanged refused "Bitmap name too long: b$a" bitmap-add disk.img "b$a"
	unchanged refused "Bitmap name too long: $e" bitmap-add disk.img "$e"
	ok bitmap-add disk.img "${e:0:511}a"
	bitmap disk.img "${e:0:511}a" '.count == 0'
}

@test "names are any text" {
	truncate -s 1M disk.img
	local n
	for n in 'with space' 'with"quotes"' "with'quote" 'back\slash' $'new\nline' $'tab\tbell\a' $'\e[31mred' '#' 'a#b' '%s%n' \
		'ünï' '日本' '💾' '../../etc' '$HOME' '{"json": 1}' '0' 'é' $'e\u301'; do
		ok bitmap-add -- disk.img "$n"
		bitmap disk.img "$n" '.count == 0'
		ok bitmap-remove -- disk.img "$n"
	done
	ok bitmap-add disk.img -- -dash
	bitmap disk.img -dash '.recording'
}

@test "refuses names that are no UTF-8" {
	truncate -s 1M disk.img
	local n
	for n in $'\xff' $'a\xffb' $'\xc3' $'\xc0\xaf' $'\xed\xa0\x80' $'\xf4\x90\x80\x80' $'ok\xe2\x82'; do
		unchanged refused_like 'UTF-8' bitmap-add disk.img "$n"
		jq -e . <<< "$output" > /dev/null
	done
	[ ! -e disk.img.bitmaps ]
}

@test "--disabled makes one that does not record" {
	truncate -s 1M disk.img
	ok bitmap-add --disabled disk.img b
	bitmap disk.img b '.recording == false'
	ok image-write --pattern 1 disk.img 0 64K
	bitmap disk.img b '.count == 0'
}

@test "an image that cannot be opened" {
	unchanged refused_like 'nosuch\.img.*No such file or directory' bitmap-add nosuch.img b
	mkdir dir
	unchanged rejected bitmap-add dir b
	unchanged rejected bitmap-add /dev/null b
	unchanged rejected bitmap-add '' b
	mkfifo fifo
	run timeout 5 bitmap-add fifo b
	assert_equal "$status" 1
	[ ! -e fifo.bitmaps ]
}

@test "--dry-run changes nothing, and refuses what would be refused" {
	truncate -s 1M disk.img
	unchanged ok bitmap-add --dry-run disk.img b0
	[ ! -e disk.img.bitmaps ]
	ok bitmap-add disk.img b0
	unchanged ok bitmap-add --dry-run disk.img b1
	unchanged refused 'Bitmap already exists: b0' bitmap-add --dry-run disk.img b0
}

@test "--sidecar names another place for the bitmaps" {
	truncate -s 1M disk.img
	mkdir elsewhere
	ok bitmap-add --sidecar elsewhere/s disk.img b0
	[ -s elsewhere/s ]
	[ ! -e disk.img.bitmaps ]
	assert_equal "$(names disk.img)" ''
	list_with --sidecar elsewhere/s
	assert_equal "$(names disk.img)" b0
	ok image-write --sidecar elsewhere/s --pattern 7 disk.img 0 1
	bitmap disk.img b0 '.count == 65536'
}

@test "usage" {
	truncate -s 1M disk.img
	usage bitmap-add
	usage bitmap-add disk.img
	usage bitmap-add disk.img b c
	usage bitmap-add --nonsense disk.img b
	rejected bitmap-add -f bogus disk.img b
	usage bitmap-add --store bogus disk.img b
	[ ! -e disk.img.bitmaps ]
	done_ bitmap-add --help
	[[ $output == *granularity* ]]
	done_ bitmap-add --usage
	done_ bitmap-add --version
	[[ $output == *[0-9].[0-9]* ]]
}

@test "the format can be given, and is kept" {
	qcow2 disk.qcow2 1M
	ok bitmap-add -f raw disk.qcow2 b
	bitmap disk.qcow2 b '.granularity == 65536 and .count == 0'
	# As raw the disk is the file: its last byte can be marked, and no more.
	local size
	size=$(stat -c %s disk.qcow2)
	ok bitmap-mark disk.qcow2 b $((size - 1)) 1
	unchanged rejected bitmap-mark disk.qcow2 b "$size" 1
	truncate -s 1M disk.img
	unchanged refused_like '' bitmap-add -f qcow2 disk.img b
	[ ! -e disk.img.bitmaps ]
}

@test "an empty disk, a small one, a huge one" {
	: > empty.img
	ok bitmap-add empty.img b
	bitmap empty.img b '.count == 0'
	assert_equal "$(hash_of empty.img b)" af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc
	truncate -s 512 small.img
	ok bitmap-add small.img b
	ok bitmap-mark small.img b 0 512
	bitmap small.img b '.count == 65536'
	truncate -s 64M disk.img
	ok bitmap-add -g 2G disk.img b
	ok bitmap-mark disk.img b 1M 1
	bitmap disk.img b '.count == 2147483648'
	truncate -s 8T huge.img || skip 'no file of 8 TiB here'
	ok bitmap-add -g 512 huge.img b
	ok bitmap-mark huge.img b 7T 1K
	bitmap huge.img b '.count == 1024'
	assert_equal "$(dirty huge.img b)" $((7 << 40))+1024
}

@test "forty bitmaps" {
	truncate -s 4M disk.img
	local i want=
	for i in {1..40}; do
		bitmap-add -g $((512 << i % 8)) disk.img "b$i" > out.txt
		want="b$i${want:+ $want}"
	done
	assert_equal "$(names disk.img)" "$want"
	ok image-write --pattern 1 disk.img 1M 512
	bitmap-list --output=json disk.img > list.json
	jq -e '.return | all(.count == .granularity)' list.json
}

@test "a bitmap inside a raw image there cannot be" {
	truncate -s 1M disk.img
	unchanged rejected bitmap-add --store image disk.img b
}
