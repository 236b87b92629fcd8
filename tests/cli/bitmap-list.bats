#!/usr/bin/env bats
# bitmap-list: what query-block says about bitmaps.

load helper

@test "no bitmaps: an empty list, and no sidecar comes of it" {
	truncate -s 1M disk.img
	unchanged done_ bitmap-list --output=json disk.img
	assert_equal "$output" '{"return": []}'
	unchanged done_ bitmap-list disk.img
	assert_equal "$(ls)" disk.img
}

@test "json: one reply, each bitmap with QEMU's members and the store" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b0
	ok bitmap-add --disabled -g 4K disk.img b1
	ok bitmap-mark disk.img b1 0 8K
	unchanged done_ bitmap-list --output=json disk.img
	assert_equal "${#lines[@]}" 1
	jq -e '.return == [
		{"name": "b1", "count": 8192, "granularity": 4096, "recording": false, "busy": false,
		 "persistent": .return[0].persistent, "store": "sidecar"},
		{"name": "b0", "count": 0, "granularity": 65536, "recording": true, "busy": false,
		 "persistent": .return[0].persistent, "store": "sidecar"}]' <<< "$output"
	jq -e '.return | all(.persistent | type == "boolean")' <<< "$output"
	[[ $output == '{"return": [{"'* ]]
}

@test "for people: each bitmap's name, granularity and state" {
	truncate -s 1M disk.img
	ok bitmap-add -g 8K disk.img monday
	ok bitmap-add --disabled disk.img tuesday
	ok bitmap-mark disk.img monday 0 16K
	done_ bitmap-list disk.img
	[[ $output == *monday* && $output == *tuesday* && $output != *'"return"'* ]]
	local people=$output
	done_ bitmap-list --output=human disk.img
	assert_equal "$output" "$people"
	touch disk.img
	done_ bitmap-list disk.img
	[[ $output == *inconsistent* ]]
}

@test "for people: a name cannot play tricks on the terminal" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img $'a\e[2Jb\nc\rd'
	done_ bitmap-list disk.img
	[[ $output != *$'\e'* && $output != *$'\r'* ]]
	[ "$(grep -c '^c' <<< "$output")" -eq 0 ]
}

@test "inconsistent is there only when true" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b
	bitmap disk.img b 'has("inconsistent") | not'
	touch disk.img
	bitmap disk.img b '.inconsistent == true'
}

@test "shows the bitmaps that QEMU keeps inside a qcow2" {
	qcow2 disk.qcow2 4M
	qemu-img bitmap --add -g 32K disk.qcow2 q0
	qemu-img bitmap --add --disable disk.qcow2 q1
	qemu-io -f qcow2 -c 'write -q 1M 40K' disk.qcow2
	unchanged done_ bitmap-list --output=json disk.qcow2
	bitmap disk.qcow2 q0 '. == {"name": "q0", "count": 65536, "granularity": 32768, "recording": true, "busy": false,
		"persistent": true, "store": "image"}'
	bitmap disk.qcow2 q1 '.count == 0 and (.recording | not) and .persistent and .store == "image"'
	ok bitmap-add disk.qcow2 b
	bitmap disk.qcow2 b '.store == "sidecar"'
	bitmap disk.qcow2 q0 '.store == "image"'
	unchanged refused 'Bitmap already exists: q0' bitmap-add disk.qcow2 q0
	done_ bitmap-list disk.qcow2
	[[ $output == *q0* && $output == *q1* ]]
}

@test "a bitmap that QEMU left in use is inconsistent" {
	qcow2 disk.qcow2 4M
	qemu-img bitmap --add disk.qcow2 q
	run qemu-io -f qcow2 -c 'write -q 0 64K' -c abort disk.qcow2
	bitmap disk.qcow2 q '.inconsistent and .count == 0 and (.recording | not)'
}

@test "looks at an image that QEMU writes only when told to" {
	qcow2 disk.qcow2 4M
	ok bitmap-add disk.qcow2 b
	serve qcow2 disk.qcow2
	refused_like 'Failed to get (shared )?"write" lock' bitmap-list --output=json disk.qcow2
	done_ bitmap-list -U --output=json disk.qcow2
	jq -e '.return[0].name == "b"' <<< "$output"
	done_ bitmap-list --force-share disk.qcow2
}

@test "usage, and images that cannot be opened" {
	truncate -s 1M disk.img
	usage bitmap-list
	usage bitmap-list disk.img more
	usage bitmap-list --output=xml disk.img
	refused_like 'nosuch\.img.*No such file or directory' bitmap-list --output=json nosuch.img
	rejected bitmap-list --output=json .
	attempt bitmap-list nosuch.img
	assert_equal "$status" 1
	[[ $stderr == bitmap-list:*nosuch.img*'No such file or directory'* ]]
}
