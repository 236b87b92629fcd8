#!/usr/bin/env bats
# bitmap-import: a bitmap of another image, or of the other store, into one of an image.

load helper

# outward SOURCE-DUMP GRANULARITY SIZE: what a bitmap of that granularity and disk has to have, from what the other one dumped.
outward() {
	jq -r --argjson g "$2" --argjson s "$3" '[.return[] | select(.dirty) |
			[(.start / $g | floor) * $g, ([(((.start + .length) / $g) | ceil) * $g, $s] | min)]]
		| reduce .[] as $r ([]; if length > 0 and .[-1][1] >= $r[0] then .[-1][1] = ([.[-1][1], $r[1]] | max) else . + [$r] end)
		| map("\(.[0])+\(.[1] - .[0])") | join(" ")' "$1"
}

@test "what is not there is created: the source's granularity and content, recording" {
	truncate -s 1M disk.img other.img
	ok bitmap-add -g 4K --disabled other.img b
	ok bitmap-mark other.img b 12K 1
	ok bitmap-import disk.img b --from other.img#b
	bitmap disk.img b '.granularity == 4096 and .count == 4096 and .recording and .store == "sidecar" and (.busy | not)'
	assert_equal "$(dirty disk.img b)" 12288+4096
	bitmap other.img b '.count == 4096 and (.recording | not)'
	ok bitmap-import --disabled disk.img c --from other.img#b
	bitmap disk.img c '.recording | not'
	assert_equal "$(names disk.img)" 'c b'
}

@test "what is there is added to, and keeps what it had" {
	truncate -s 1M disk.img other.img
	ok bitmap-add -g 4K other.img b
	ok bitmap-mark other.img b 12K 1
	ok bitmap-add --disabled disk.img t
	ok bitmap-mark disk.img t 960K 1
	ok bitmap-import disk.img t --from other.img#b
	assert_equal "$(dirty disk.img t)" '0+65536 983040+65536'
	bitmap disk.img t '.granularity == 65536 and (.recording | not)'
	assert_equal "$(dirty other.img b)" 12288+4096
	unchanged refused "Bitmap 't' exists: 'granularity' is only for a new bitmap" \
		bitmap-import -g 64K disk.img t --from other.img#b
	unchanged refused "Bitmap 't' exists: 'disabled' is only for a new bitmap" \
		bitmap-import --disabled disk.img t --from other.img#b
}

@test "granularities of 512 bytes to 2 MiB, outward, in both directions" {
	local size=10000896 from to want
	truncate -s $size disk.img
	for from in 512 4096 65536 2097152; do
		ok bitmap-add -g $from disk.img "s$from"
		ok bitmap-mark disk.img "s$from" 0 1
		ok bitmap-mark disk.img "s$from" 3000000 70000
		ok bitmap-mark disk.img "s$from" 4194303 2
		ok bitmap-mark disk.img "s$from" $((size - 1)) 1
		bitmap-dump --output=json disk.img "s$from" > source.json
		for to in 512 1024 32768 1048576 2097152; do
			want=$(outward source.json $to $size)
			[ -n "$want" ]
			ok bitmap-import -g $to disk.img "n$from-$to" --from "disk.img#s$from"
			bitmap disk.img "n$from-$to" ".granularity == $to"
			assert_equal "$(dirty disk.img "n$from-$to")" "$want"
			ok bitmap-add -g $to disk.img "m$from-$to"
			ok bitmap-import disk.img "m$from-$to" --from "#s$from"
			assert_equal "$(dirty disk.img "m$from-$to")" "$want"
		done
	done
	ok bitmap-import disk.img same --from '#s512'
	assert_equal "$(hash_of disk.img same)" "$(hash_of disk.img s512)"
}

@test "what SOURCE can be" {
	mkdir odd#dir
	truncate -s 1M disk.img other.img odd#dir/x.img
	for i in other.img odd#dir/x.img; do
		ok bitmap-add $i b
		ok bitmap-mark $i b 0 1
	done
	ok bitmap-import disk.img b --from other.img
	assert_equal "$(dirty disk.img b)" 0+65536
	ok bitmap-import disk.img 'with#hash' --from '#b'
	ok bitmap-import disk.img c --from '#with#hash'
	assert_equal "$(dirty disk.img c)" 0+65536
	ok bitmap-import disk.img d --from odd#dir/x.img#b
	ok bitmap-add odd#dir/x.img 'b#2'
	ok bitmap-import disk.img d2 --from 'odd#dir/x.img#b#2'
	ok bitmap-merge disk.img d2 'odd#dir/x.img#b#2'
	ln -s disk.img link.img
	ok bitmap-import disk.img e --from link.img#d
	assert_equal "$(dirty disk.img e)" 0+65536
	ok bitmap-import disk.img e --from ./disk.img
	unchanged refused_like 'No such file or directory' bitmap-import disk.img f --from odd#dir/x.img
	unchanged refused "Dirty bitmap 'f' not found" bitmap-import disk.img f --from other.img
	unchanged refused "Dirty bitmap '' not found" bitmap-import disk.img f --from other.img#
	unchanged refused_like 'nosuch\.img' bitmap-import disk.img f --from nosuch.img#b
}

@test "from a bitmap that QEMU recorded inside a qcow2" {
	qcow2 disk.qcow2 4M
	qemu-img bitmap --add -g 32K disk.qcow2 q
	qemu-io -f qcow2 -c 'write -q 1M 40K' disk.qcow2
	ok bitmap-import disk.qcow2 b --from disk.qcow2#q
	bitmap disk.qcow2 b '.store == "sidecar" and .granularity == 32768 and .count == 65536'
	assert_equal "$(dirty disk.qcow2 b)" 1048576+65536
	truncate -s 4M disk.img
	ok bitmap-import disk.img q --from disk.qcow2
	assert_equal "$(hash_of disk.img q)" "$(hash_of disk.qcow2 q)"
	clean disk.qcow2
}

@test "into the image's own store, where QEMU finds it" {
	qcow2 disk.qcow2 4M
	truncate -s 4M disk.img
	ok bitmap-add -g 32K disk.img b
	ok bitmap-mark disk.img b 1M 40K
	ok bitmap-import --store image disk.qcow2 b --from disk.img
	bitmap disk.qcow2 b '.store == "image" and .recording and .granularity == 32768'
	assert_equal "$(dirty disk.qcow2 b)" 1048576+65536
	[ ! -e disk.qcow2.bitmaps ]
	clean disk.qcow2
	qemu-io -f qcow2 -c 'write -q 2M 1' -c 'write -q 2M 512' disk.qcow2
	assert_equal "$(dirty disk.qcow2 b)" '1048576+65536 2097152+32768'
	ok bitmap-mark disk.img b 3M 1
	ok bitmap-import disk.qcow2 b --from disk.img
	assert_equal "$(dirty disk.qcow2 b)" '1048576+65536 2097152+32768 3145728+32768'
	[ ! -e disk.qcow2.bitmaps ]
	clean disk.qcow2
	unchanged refused "Can't store persistent bitmaps to disk: Operation not supported" \
		bitmap-import --store image disk.img c --from disk.qcow2#b
}

@test "a shorter disk: the rest is dirty, and a warning says so" {
	truncate -s 1000448 short.img
	truncate -s 2M disk.img
	ok bitmap-add -g 4K short.img b
	ok bitmap-mark short.img b 0 1
	ok bitmap-import disk.img b --from short.img
	[[ $stderr == *"bitmap 'b' covers only 1000448 of 2097152 bytes; the rest is dirty in bitmap 'b'"* ]]
	assert_equal "$(dirty disk.img b)" '0+4096 999424+1097728'
	ok bitmap-add -g 512 disk.img fine
	ok bitmap-import disk.img fine --from short.img#b
	assert_equal "$(dirty disk.img fine)" '0+4096 1000448+1096704'
}

@test "a longer disk: nothing dirty may begin beyond the end" {
	truncate -s 1000448 short.img
	truncate -s 2M long.img
	ok bitmap-add long.img b
	ok bitmap-mark long.img b 0 1
	ok bitmap-mark long.img b 960K 1
	ok bitmap-import short.img b --from long.img
	assert_equal "$stderr" ''
	assert_equal "$(dirty short.img b)" '0+65536 983040+17408'
	ok bitmap-mark long.img b 1M 1
	unchanged refused "Bitmap 'b' is dirty at 1048576, beyond the end of the disk 'short.img' of 1000448 bytes" \
		bitmap-import short.img b --from long.img
	unchanged refused "Bitmap 'b' is dirty at 1048576, beyond the end of the disk 'short.img' of 1000448 bytes" \
		bitmap-import short.img new --from long.img#b
}

@test "what bitmap-add refuses is refused" {
	truncate -s 1M disk.img
	ok bitmap-add disk.img b
	unchanged refused 'Bitmap name cannot be empty' bitmap-import disk.img '' --from '#b'
	unchanged refused "Bitmap name too long: $(printf 'x%.0s' {1..1024})" \
		bitmap-import disk.img "$(printf 'x%.0s' {1..1024})" --from '#b'
	unchanged refused 'Granularity must be power of 2 and at least 512' bitmap-import -g 1000 disk.img c --from '#b'
	unchanged refused "Parameter 'granularity' expects uint32_t" bitmap-import -g 4G disk.img c --from '#b'
}

@test "inconsistent bitmaps are refused on both sides" {
	truncate -s 1M disk.img other.img
	ok bitmap-add disk.img t
	ok bitmap-add other.img b
	touch other.img
	unchanged refused "Bitmap 'b' is inconsistent and cannot be used" bitmap-import disk.img t --from other.img#b
	ok bitmap-import --ignore-stamp disk.img t --from other.img#b
	touch disk.img
	ok bitmap-import --ignore-stamp other.img c --from '#b'
	unchanged refused "Bitmap 't' is inconsistent and cannot be used" bitmap-import disk.img t --from other.img#c
	qcow2 disk.qcow2 1M
	qemu-img bitmap --add disk.qcow2 q
	run qemu-io -f qcow2 -c 'write -q 0 64K' -c abort disk.qcow2
	truncate -s 1M new.img
	unchanged refused "Bitmap 'q' is inconsistent and cannot be used" bitmap-import new.img q --from disk.qcow2
}

@test "a busy bitmap is refused on both sides" {
	qcow2 disk.qcow2 4M
	truncate -s 4M disk.img other.img
	noise 4M | put disk.img 0
	ok bitmap-add disk.img b
	ok bitmap-mark disk.img b 0 4M
	ok bitmap-add other.img o
	start backup-run --speed 128K --sync incremental --bitmap b -F qcow2 disk.img inc.qcow2
	eventually is_busy disk.img b
	unchanged refused "Bitmap 'b' is currently in use by another operation and cannot be used" \
		bitmap-import other.img o --from disk.img#b
	unchanged refused "Bitmap 'b' is currently in use by another operation and cannot be used" \
		bitmap-import disk.img b --from other.img#o
	kill -INT "$bg"
	finish
}

@test "images that QEMU writes are refused; a source that it reads is not" {
	qcow2 disk.qcow2 1M
	truncate -s 1M other.img
	ok bitmap-add disk.qcow2 b
	ok bitmap-add other.img o
	serve qcow2 disk.qcow2
	unchanged refused_like 'Failed to get (shared )?"write" lock' bitmap-import other.img b --from disk.qcow2
	unchanged refused_like 'Failed to get (shared )?"write" lock' bitmap-import disk.qcow2 b --from other.img#o
	served_no_more
	qemu-nbd --fork --read-only --pid-file=nbd.pid -t -f qcow2 -k "$PWD/nbd.sock" disk.qcow2 3>&-
	ok bitmap-import other.img b --from disk.qcow2
}

@test "--dry-run changes nothing, and refuses what would be refused" {
	truncate -s 1M disk.img other.img
	ok bitmap-add other.img b
	ok bitmap-mark other.img b 0 1
	unchanged ok bitmap-import --dry-run disk.img b --from other.img
	[ ! -e disk.img.bitmaps ]
	unchanged refused "Dirty bitmap 'zz' not found" bitmap-import --dry-run disk.img b --from other.img#zz
}

@test "in a transaction: all or nothing, what came before is seen" {
	truncate -s 1M disk.img other.img
	ok bitmap-add other.img b
	ok bitmap-mark other.img b 0 1
	cat > one.json <<- 'END'
		{"actions": [
		  {"type": "block-dirty-bitmap-add", "data": {"node": "disk", "name": "first", "granularity": 4096}},
		  {"type": "x-block-dirty-bitmap-import", "data": {"node": "disk", "name": "first",
		    "source": {"node": "other", "name": "b"}}},
		  {"type": "x-block-dirty-bitmap-import", "data": {"node": "disk", "name": "second", "granularity": 131072,
		    "disabled": true, "x-store": "sidecar", "source": {"node": "disk", "name": "first"}}}]}
	END
	jq '.actions += [{"type": "abort", "data": {}}]' one.json > undone.json
	unchanged refused 'Transaction aborted using Abort action' \
		txn-apply --drive disk=disk.img --drive other=other.img undone.json
	ok txn-apply --drive disk=disk.img --drive other=other.img one.json
	assert_equal "$(dirty disk.img first)" 0+65536
	assert_equal "$(dirty disk.img second)" 0+131072
	bitmap disk.img second '.recording | not'
	local all='txn-apply --drive disk=disk.img'
	echo '{"execute": "x-block-dirty-bitmap-import", "arguments": {"node": "disk", "name": "b"}}' > bad.json
	unchanged refused "Parameter 'source' is missing" $all bad.json
	echo '{"execute": "x-block-dirty-bitmap-import", "arguments": {"node": "disk", "name": "b", "source": {"name": "x"}}}' > bad.json
	unchanged refused "Parameter 'source.node' is missing" $all bad.json
	echo '{"execute": "x-block-dirty-bitmap-import", "arguments": {"node": "disk", "name": "b",
		"source": {"node": "zz", "name": "x"}}}' > bad.json
	unchanged refused "Node 'zz' not found" $all bad.json
}

@test "NBD servers that are not there are told by their URI" {
	truncate -s 1M disk.img
	local uri from
	for uri in 'nbd+unix:///x?socket=nosuch' 'nbds+unix:///?socket=nosuch'; do
		for from in "$uri#b" "$uri"; do
			unchanged refused "Could not open '$uri': Could not connect to the NBD server: connect: No such file or directory" \
				bitmap-import disk.img b --from "$from"
		done
	done
	unchanged refused "Could not open 'nbd:unix:s': It is not the URI of an NBD export" bitmap-import disk.img b --from nbd:unix:s#b
	[[ $stderr == *"a file of this name is ./nbd:unix:s"* ]]
	truncate -s 1M nbd-disk.img
	ok bitmap-add nbd-disk.img b
	ok bitmap-import disk.img b --from nbd-disk.img
}

@test "usage" {
	usage bitmap-import
	usage bitmap-import disk.img b
	usage bitmap-import --from x#y disk.img
	usage bitmap-import disk.img b --from other.img --store nowhere
}
