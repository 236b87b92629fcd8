#!/usr/bin/env bats
# chain-info: a chain is drawn, also where it is broken.

load helper

# top.qcow2 over sub/mid.qcow2 over sub/base.raw, with bitmaps.
chain() {
	mkdir sub
	raw sub/base.raw 4M
	qemu-img create -q -f qcow2 -b base.raw -F raw sub/mid.qcow2
	qemu-io -f qcow2 -c 'write -q -P 1 1M 128K' -c 'write -q -z 2M 64K' sub/mid.qcow2
	qemu-img bitmap --add sub/mid.qcow2 below
	qemu-io -f qcow2 -c 'write -q -P 2 0 64K' sub/mid.qcow2
	qemu-img create -q -f qcow2 -b sub/mid.qcow2 -F qcow2 top.qcow2
	qemu-io -f qcow2 -c 'write -q -P 3 3M 64K' top.qcow2
	ok bitmap-add -g 64K top.qcow2 beside
	ok image-write --pattern 4 top.qcow2 0 1
}

json() {
	attempt chain-info --output=json "$@"
	jq .return <<< "$output" > chain.json
}

@test "a whole chain, in JSON" {
	chain
	json top.qcow2
	assert_equal "$status" 0
	jq -e '.verdict == "whole" and (.verified | not) and (.images | length == 3)' chain.json
	jq -e '[.images[].filename] == ["top.qcow2", "sub/mid.qcow2", "sub/base.raw"]' chain.json
	jq -e '[.images[].format] == ["qcow2", "qcow2", "raw"]' chain.json
	jq -e --arg d "$(realpath .)" '[.images[].path] == [$d + "/top.qcow2", $d + "/sub/mid.qcow2", $d + "/sub/base.raw"]' chain.json
	jq -e 'all(.images[]; ."virtual-size" == 4194304 and .verdict == "whole" and .leaks == 0 and .corruptions == 0)' chain.json
	jq -e '.images[0] | .data == 131072 and .zeroes == 0 and ."backing-filename" == "sub/mid.qcow2"' chain.json
	jq -e '.images[1] | .data == 196608 and .zeroes == 65536 and ."backing-filename-format" == "raw"' chain.json
	jq -e '.images[0].bitmaps[0] | .name == "beside" and .count == 65536 and .store == "sidecar"' chain.json
	jq -e '.images[1].bitmaps[0] | .name == "below" and .count == 65536 and .recording' chain.json
	jq -e --argjson s "$(stat -c %s sub/base.raw)" --argjson t "$(stat -c %Y sub/base.raw)" \
		'.images[2] | ."file-size" == $s and .modified.seconds == $t' chain.json
	jq -e --argjson b "$(($(stat -c %b sub/mid.qcow2) * 512))" '.images[1]."actual-size" == $b' chain.json
}

@test "a whole chain, drawn" {
	chain
	touch -d '2001-02-03 04:05:06' sub/base.raw
	done_ chain-info top.qcow2
	[[ ${lines[0]} == IMAGE*FORMAT*DISK*DATA*FILE*MODIFIED ]]
	[[ ${lines[1]} == 'top.qcow2 '*'qcow2'*'4 MiB'*'128 KiB'* ]]
	[[ ${lines[2]} == *'# beside: recording, 64 KiB dirty' ]]
	[[ ${lines[3]} == *'sub/mid.qcow2 '*'qcow2'*'192 KiB'* ]]
	[[ ${lines[4]} == *'# below: recording, 64 KiB dirty' ]]
	[[ ${lines[5]} == *'sub/base.raw '*'raw'*'2001-02-03 04:05:06' ]]
	assert_equal "${#lines[@]}" 6
}

@test "names are relative to the top's directory, wherever the command runs" {
	chain
	mkdir elsewhere
	cd elsewhere
	json ../top.qcow2
	jq -e '[.images[].filename] == ["top.qcow2", "sub/mid.qcow2", "sub/base.raw"]' chain.json
}

@test "a missing link is drawn, and the status 1" {
	chain
	mv sub/base.raw away.raw
	json top.qcow2
	assert_equal "$status" 1
	jq -e '.verdict == "damaged" and (.images | length == 3)' chain.json
	jq -e '.images[2] | (has("format") | not) and .findings[0].kind == "link" and
		(.findings[0].text | contains("No such file or directory")) and (.path | endswith("/base.raw"))' chain.json
	jq -e '.images[1].data == 196608' chain.json
	attempt chain-info top.qcow2
	assert_equal "$status" 1
	[[ $output == *top.qcow2*sub/mid.qcow2*base.raw*'! '*'No such file or directory'* ]]
	[[ $stderr == *'The chain is not whole'* ]]
}

@test "a loop ends" {
	qemu-img create -q -f qcow2 a.qcow2 1M
	qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2
	qemu-img rebase -u -b b.qcow2 -F qcow2 a.qcow2
	json b.qcow2
	assert_equal "$status" 1
	jq -e '(.images | length == 3) and .images[2].findings[0].kind == "link" and
		(.images[2].findings[0].text | contains("loop"))' chain.json
}

@test "a backing image of another format than recorded" {
	chain
	qemu-img rebase -u -b base.raw -F qcow2 sub/mid.qcow2
	json top.qcow2
	assert_equal "$status" 1
	jq -e '.images[2].findings[0] | .kind == "link" and (.text | contains("not in qcow2 format"))' chain.json
}

@test "an image that may not be read is no damage" {
	chain
	chmod 0 sub/base.raw
	attempt mortal chain-info --output=json top.qcow2
	assert_equal "$status" 1
	jq -e '.return | .verdict == "unknown" and .images[2].findings[0].kind == "unknown"' <<< "$output"
}

@test "what should be known: sizes, times, raw that begins like a qcow2" {
	qemu-img create -q -f qcow2 inner.qcow2 1M
	qemu-img create -q -f qcow2 -b inner.qcow2 -F raw top.qcow2 8M
	touch -d '+1 hour' inner.qcow2
	json top.qcow2
	assert_equal "$status" 0
	jq -e '.verdict == "whole" and ([.images[0].findings[].kind] == ["doubt", "doubt", "doubt"])' chain.json
	jq -e '[.images[0].findings[].text] | (.[0] | contains("reads as zeroes")) and (.[1] | contains("modified later")) and
		(.[2] | contains("begins like a qcow2"))' chain.json
	done_ chain-info top.qcow2
	[[ $output == *'? the backing image was modified later'* ]]
}

@test "inconsistent bitmaps" {
	chain
	# As a QEMU that died leaves them.
	python3 - sub/mid.qcow2 <<- 'PY'
		import struct, sys
		with open(sys.argv[1], "r+b") as f:
		    head = f.read(65536)
		    at = head.index(struct.pack(">II", 0x23852875, 24)) + 8
		    directory, = struct.unpack_from(">Q", head, at + 16)
		    f.seek(directory + 12)
		    flags, = struct.unpack(">I", f.read(4))
		    f.seek(directory + 12)
		    f.write(struct.pack(">I", flags | 1))
	PY
	json top.qcow2
	assert_equal "$status" 0
	jq -e '.images[1].bitmaps[0].inconsistent' chain.json
	done_ chain-info top.qcow2
	[[ $output == *'# below: inconsistent'* ]]
}

@test "the top image in use, and not there" {
	chain
	serve qcow2 top.qcow2
	refused_like 'Failed to get shared "write" lock' chain-info --output=json top.qcow2
	done_ chain-info -U top.qcow2
	served_no_more
	refused_like 'No such file' chain-info --output=json missing.qcow2
	usage chain-info
	usage chain-info --output=picture top.qcow2
}

@test "a name that leaves the directory is not followed unless allowed" {
	chain
	mv sub/base.raw base.raw
	qemu-img rebase -u -b ../base.raw -F raw sub/mid.qcow2
	json top.qcow2
	assert_equal "$status" 1
	jq -e '.verdict == "unknown" and (.images | length == 3) and .images[2].findings[0].kind == "unknown"' chain.json
	json --allow-backing=outside top.qcow2
	assert_equal "$status" 0
	jq -e '.images[2].filename == "base.raw"' chain.json
}
