#!/usr/bin/env bats
# bitmap-rescan: the granules that differ from another image become dirty, and no others.

load helper

# A disk, its full backup, and changes since; the bitmap b knows some of them.
backed_up_disk() {
	raw disk.img "$1"
	ok bitmap-add disk.img b
	done_ backup-run --bitmap b --bitmap-mode on-success -F qcow2 disk.img full.qcow2
}

# Each read takes a while, so that others can come in between; `trace` tells of them.
slow=(strace -D -f -qq -o trace -e trace=pread64 -e inject=pread64:delay_enter=200000
	bitmap-rescan --against other.img -F raw disk.img b)

slow_pair() {
	noise 6M > disk.img
	cp disk.img other.img
	printf x | put other.img 3M
	ok bitmap-add disk.img b
	ok bitmap-mark disk.img b 0 2M
	export ASAN_OPTIONS="detect_leaks=0:$ASAN_OPTIONS"
}

@test "sets the bits that differ, clears those that do not" {
	raw disk.img 4M
	cp disk.img other.img
	ok bitmap-add disk.img b
	ok bitmap-mark disk.img b 0 1M
	printf x | put other.img 3M
	noise 100K 5 | put other.img 2000000
	ok bitmap-rescan --against other.img -F raw disk.img b
	assert_equal "$stderr" 'bitmap-rescan: disk.img: 262144 bytes (256 KiB) differ, in whole granules'
	assert_equal "$(dirty disk.img b)" '1966080+196608 3145728+65536'
	bitmap disk.img b '.recording and (.busy | not) and (has("inconsistent") | not) and .granularity == 65536'
	cp disk.img other.img
	ok bitmap-rescan --against other.img --against-format raw -q disk.img b
	assert_equal "$stderr" ''
	assert_equal "$(dirty disk.img b)" ''
	ok bitmap-rescan --against other.img -F raw disk.img b
	assert_equal "$stderr" 'bitmap-rescan: disk.img: nothing differs'
}

@test "in the bitmap's granularity, whether it records or not" {
	truncate -s 1000000 disk.img
	truncate -s 1000000 other.img
	printf x | put disk.img 999999
	printf x | put disk.img 70000
	ok bitmap-add -g 512 disk.img small
	ok bitmap-add -g 16M --disabled disk.img large
	ok bitmap-rescan --against other.img -F raw disk.img small
	assert_equal "$(dirty disk.img small)" '69632+512 999936+64'
	assert_equal "$stderr" 'bitmap-rescan: disk.img: 576 bytes (576 B) differ, in whole granules'
	ok bitmap-rescan --against other.img -F raw disk.img large
	assert_equal "$(dirty disk.img large)" 0+1000000
	bitmap disk.img large '.recording | not'
	bitmap disk.img small .recording
}

@test "an inconsistent bitmap is good again, and the chain goes on" {
	backed_up_disk 4M
	noise 5000 9 | put disk.img 1M
	bitmap disk.img b .inconsistent
	unchanged refused "Bitmap 'b' is inconsistent and cannot be used" \
		backup-run --sync incremental --bitmap b -F qcow2 --backing full.qcow2 disk.img inc.qcow2
	[[ $stderr == *bitmap-rescan* ]]
	ok bitmap-rescan --against full.qcow2 disk.img b
	assert_equal "$(dirty disk.img b)" 1048576+65536
	bitmap disk.img b '(has("inconsistent") | not)'
	done_ backup-run --sync incremental --bitmap b -F qcow2 --backing full.qcow2 disk.img inc.qcow2
	same raw disk.img qcow2 inc.qcow2
	ok image-write --pattern 7 disk.img 3M 1
	done_ backup-run --sync incremental --bitmap b -F qcow2 --backing inc.qcow2 disk.img inc2.qcow2
	ok chain-restore inc2.qcow2 restored.img
	cmp disk.img restored.img
}

@test "against a chain, of a qcow2 disk with a backing image" {
	qcow2 base.qcow2 4M
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 disk.qcow2
	ok bitmap-add disk.qcow2 b
	device=disk done_ backup-run --bitmap b --bitmap-mode on-success -F qcow2 disk.qcow2 0.qcow2
	ok image-write --pattern 1 disk.qcow2 1M 64K
	done_ backup-run --sync incremental --bitmap b -F qcow2 --backing 0.qcow2 disk.qcow2 1.qcow2
	qemu-io -f qcow2 -c 'write -q -P 2 3M 64K' -c 'write -q -z 0 64K' disk.qcow2
	unchanged refused_like inconsistent bitmap-clear disk.qcow2 b
	ok bitmap-rescan --against 1.qcow2 disk.qcow2 b
	assert_equal "$(dirty disk.qcow2 b)" '0+65536 3145728+65536'
	ok bitmap-rescan --against 0.qcow2 disk.qcow2 b
	assert_equal "$(dirty disk.qcow2 b)" '0+65536 1048576+65536 3145728+65536'
	# Against its own backing image too.
	ok bitmap-rescan --against base.qcow2 disk.qcow2 b
	assert_equal "$(dirty disk.qcow2 b)" '0+65536 1048576+65536 3145728+65536'
}

@test "a bitmap inside the image that QEMU left open is good again, for QEMU too" {
	qcow2 disk.qcow2 4M
	ok bitmap-add --store image disk.qcow2 b
	ok bitmap-add disk.qcow2 s
	done_ backup-run --bitmap b --bitmap-mode on-success -F qcow2 disk.qcow2 full.qcow2
	qemu-nbd --fork --pid-file=nbd.pid -t -f qcow2 -k "$PWD/nbd.sock" disk.qcow2 3>&-
	qemu-io -f raw -c 'write -q -P 5 1M 64K' -c 'write -q -P 6 3M 128K' -c flush "nbd+unix:///?socket=$PWD/nbd.sock"
	kill -KILL "$(cat nbd.pid)"
	rm nbd.pid
	eventually bitmap disk.qcow2 b '.inconsistent and .store == "image"'
	unchanged refused "Bitmap 'b' is inconsistent and cannot be used" \
		backup-run --sync incremental --bitmap b -F qcow2 --backing full.qcow2 disk.qcow2 inc.qcow2
	unchanged ok bitmap-rescan --dry-run --against full.qcow2 disk.qcow2 b
	ok bitmap-rescan --against full.qcow2 disk.qcow2 b
	bitmap disk.qcow2 b '(has("inconsistent") | not) and .recording and .store == "image" and .count == 196608'
	assert_equal "$(dirty disk.qcow2 b)" '1048576+65536 3145728+131072'
	bitmap disk.qcow2 s .inconsistent
	clean disk.qcow2
	# QEMU loads it, records into it and saves it.
	qemu-io -f qcow2 -c 'write -q -P 7 2M 64K' disk.qcow2
	assert_equal "$(dirty disk.qcow2 b)" '1048576+65536 2097152+65536 3145728+131072'
	done_ backup-run --sync incremental --bitmap b -F qcow2 --backing full.qcow2 disk.qcow2 inc.qcow2
	same qcow2 disk.qcow2 qcow2 inc.qcow2
	clean disk.qcow2
	ok bitmap-rescan --against inc.qcow2 disk.qcow2 s
	bitmap disk.qcow2 s '(has("inconsistent") | not) and .count == 0'
}

@test "others stay inconsistent, and are named" {
	backed_up_disk 1M
	ok bitmap-add disk.img c
	printf x | put disk.img 0
	ok bitmap-rescan --against full.qcow2 disk.img b
	[[ $stderr == *"bitmap 'c' is still inconsistent"* ]]
	bitmap disk.img b '(has("inconsistent") | not)'
	bitmap disk.img c .inconsistent
	ok bitmap-rescan --against full.qcow2 disk.img c
	bitmap disk.img c '(has("inconsistent") | not)'
}

@test "disks of other sizes: what is longer is dirty where it is not zero" {
	backed_up_disk 1M
	truncate -s 3M disk.img
	printf x | put disk.img 2M
	ok bitmap-rescan --against full.qcow2 disk.img b
	assert_equal "$(dirty disk.img b)" 2097152+65536
	done_ backup-run --sync incremental --bitmap b -F qcow2 --backing full.qcow2 disk.img inc.qcow2
	same raw disk.img qcow2 inc.qcow2
	truncate -s 512K disk.img
	ok bitmap-rescan --against inc.qcow2 disk.img b
	assert_equal "$(dirty disk.img b)" ''
	printf x | put disk.img 524287
	ok bitmap-rescan --against inc.qcow2 disk.img b
	assert_equal "$(dirty disk.img b)" 458752+65536
}

@test "equals what a comparison byte by byte says" {
	local i
	for i in 1 2 3; do
		raw disk.img 3M
		noise 1500000 "$i" | put disk.img $((i * 100000))
		cp --sparse=always disk.img other.img
		python3 - "$i" <<- 'PY'
			import random, sys
			random.seed(sys.argv[1])
			for name in ("disk.img", "other.img"):
			    with open(name, "r+b") as f:
			        for _ in range(6):
			            f.seek(random.randrange(3 << 20))
			            f.write(bytes([random.randrange(3)]) * random.randrange(1, 3000))
			        f.truncate(3 << 20)
		PY
		rm -f disk.img.bitmaps
		ok bitmap-add -g 4K disk.img b
		ok bitmap-rescan --against other.img -F raw disk.img b
		bitmap-dump --output=json disk.img b > dump.json
		python3 - <<- 'PY'
			import json
			a, b = open("disk.img", "rb").read(), open("other.img", "rb").read()
			want = {at for at in range(0, len(a), 4096) if a[at:at + 4096] != b[at:at + 4096]}
			got = {at for r in json.load(open("dump.json"))["return"] if r["dirty"]
			       for at in range(r["start"], r["start"] + r["length"], 4096)}
			assert want and want == got, (want ^ got)
		PY
	done
}

@test "holes are not read" {
	truncate -s 8T disk.img
	truncate -s 8T other.img
	ok bitmap-add -g 1M disk.img b
	printf x | put disk.img $((5 << 40))
	ok timeout 20 bitmap-rescan --against other.img -F raw disk.img b
	assert_equal "$(dirty disk.img b)" $((5 << 40))+1048576
}

@test "a format that would have to be guessed, and images that prove nothing" {
	backed_up_disk 1M
	cp disk.img other.img
	unchanged refused "The format of 'other.img' cannot be derived from its content" \
		bitmap-rescan --against other.img disk.img b
	[[ $stderr == *'--against-format raw'* ]]
	unchanged refused "'disk.img' is the image itself: it cannot differ" \
		bitmap-rescan --against disk.img -F raw disk.img b
	ln disk.img hard.img
	ln -s disk.img soft.img
	unchanged refused_like 'is the image itself' bitmap-rescan --against hard.img -F raw disk.img b
	unchanged refused_like 'is the image itself' bitmap-rescan --against soft.img -F raw disk.img b
	qemu-img create -q -f qcow2 -b disk.img -F raw over.qcow2
	unchanged refused "'over.qcow2' reads from the image itself: data that it reads from there cannot differ" \
		bitmap-rescan --against over.qcow2 disk.img b
}

@test "refusals leave the bitmap as it was" {
	backed_up_disk 1M
	cp disk.img other.img
	unchanged refused "Dirty bitmap 'x' not found" bitmap-rescan --against full.qcow2 disk.img x
	unchanged refused_like 'nosuch.*No such file or directory' bitmap-rescan --against nosuch disk.img b
	unchanged refused_like "Unknown driver 'vmdk'" bitmap-rescan --against full.qcow2 -F vmdk disk.img b
	unchanged refused_like "Could not open 'nbd.unix:///x.socket=nosuch'.*NBD server" bitmap-rescan \
		--against 'nbd+unix:///x?socket=nosuch' disk.img b
	unchanged refused_like 'other.img' bitmap-rescan --against other.img -F qcow2 disk.img b
	unchanged ok bitmap-rescan --dry-run --against other.img -F raw disk.img b
	serve qcow2 full.qcow2
	refused_like 'Failed to get shared "write" lock' bitmap-rescan --against full.qcow2 disk.img b
	served_no_more
	serve raw disk.img
	refused_like 'Failed to get shared "write" lock' bitmap-rescan --against full.qcow2 disk.img b
	served_no_more
	ok bitmap-rescan --against full.qcow2 disk.img b
}

@test "a damaged image: an error that names it, and no change" {
	noise 1M > disk.img
	ok bitmap-add disk.img b
	ok bitmap-mark disk.img b 0 128K
	yes | head -c 1M > plain
	qemu-img convert -c -O qcow2 plain full.qcow2
	break_cluster full.qcow2 $((512 * 1024))
	unchanged refused_like 'full\.qcow2' bitmap-rescan --against full.qcow2 disk.img b
	assert_equal "$(dirty disk.img b)" 0+131072
}

@test "not while a backup runs: it must be able to end" {
	noise 4M > disk.img
	ok bitmap-add disk.img b
	ok bitmap-add disk.img c
	ok bitmap-mark disk.img b 0 1M
	cp disk.img other.img
	start backup-run --speed 128K --sync incremental --bitmap b -F qcow2 disk.img inc.qcow2
	eventually is_busy disk.img b
	refused "Bitmap 'b' is currently in use by another operation and cannot be used" \
		bitmap-rescan --against other.img -F raw disk.img b
	refused "Bitmap 'b' is currently in use by another operation and cannot be used" \
		bitmap-rescan --against other.img -F raw disk.img c
	kill -INT "$bg"
	finish
	ok bitmap-rescan --against other.img -F raw disk.img c
}

@test "cancelled or killed: the bitmap is as before" {
	slow_pair
	local number
	for number in 2 15 9; do
		rm -f trace
		ended $number 'grep -q "262144, " trace' "${slow[@]}"
		assert_equal "$ended" "signal $number"
		assert_equal "$(dirty disk.img b)" 0+2097152
		bitmap disk.img b '.recording and (.busy | not) and (has("inconsistent") | not)'
	done
	ok bitmap-rescan --against other.img -F raw disk.img b
	assert_equal "$(dirty disk.img b)" 3145728+65536
}

@test "an image that changes meanwhile: refused" {
	slow_pair
	local image
	for image in disk.img other.img; do
		rm -f trace
		start "${slow[@]}"
		eventually grep -q '262144, ' trace
		printf y | put $image 5M
		finish
		assert_equal "$status" 1
		[[ $output == *"$image' was changed by another program while it was read"* ]]
	done
	bitmap disk.img b '.inconsistent and .count == 2097152'
}

@test "in a transaction, and what comes after it sees the result" {
	backed_up_disk 1M
	printf x | put disk.img 600000
	done_ txn-apply --drive disk=disk.img <<- 'END'
		{"execute": "x-block-dirty-bitmap-rescan", "arguments": {"node": "disk", "name": "b", "against": "full.qcow2"}}
	END
	assert_equal "$(dirty disk.img b)" 589824+65536
	printf x | put disk.img 100000
	done_ txn-apply --drive disk=disk.img <<- 'END'
		{"execute": "transaction", "arguments": {"actions": [
			{"type": "x-block-dirty-bitmap-rescan",
			 "data": {"node": "disk", "name": "b", "against": "full.qcow2", "against-format": "qcow2"}},
			{"type": "drive-backup", "data": {"device": "disk", "sync": "incremental", "bitmap": "b", "format": "qcow2",
			 "target": "inc.qcow2", "x-backing": {"path": "full.qcow2"}}}]}}
	END
	same raw disk.img qcow2 inc.qcow2
	assert_equal "$(dirty disk.img b)" ''
	# Refused by a later action: nothing has changed.
	printf x | put disk.img 200000
	attempt txn-apply --drive disk=disk.img <<- 'END'
		{"execute": "transaction", "arguments": {"actions": [
			{"type": "x-block-dirty-bitmap-rescan", "data": {"node": "disk", "name": "b", "against": "inc.qcow2"}},
			{"type": "abort", "data": {}}]}}
	END
	assert_equal "$status" 1
	bitmap disk.img b .inconsistent
}

# A transaction that rescans b of disk.img, slowly, and adds a bitmap to second.img.
slow_transaction() {
	slow_pair
	noise 1M 3 > second.img
	ok bitmap-add second.img s
	cat > commands <<- END
		{"execute": "transaction", "arguments": {"actions": [
			{"type": "block-dirty-bitmap-add", "data": {"node": "second", "name": "n"}},
			$1
			{"type": "x-block-dirty-bitmap-rescan",
			 "data": {"node": "disk", "name": "${2:-b}", "against": "other.img", "against-format": "raw"}}]}}
	END
	rm -f trace
	start strace -D -f -qq -o trace -e trace=pread64 -e inject=pread64:delay_enter=300000 \
		txn-apply --drive second=second.img --drive disk=disk.img commands
	eventually grep -q '262144, ' trace
}

@test "a comparison in a transaction holds no other node's sidecar" {
	slow_transaction ''
	done_ timeout 5 bitmap-add second.img m
	device=second done_ timeout 5 backup-run --sync full --bitmap s --bitmap-mode on-success -F qcow2 second.img s.qcow2
	bitmap disk.img b '.count == 2097152'
	finish
	assert_equal "$status" 0
	assert_equal "$(dirty disk.img b)" 3145728+65536
	assert_equal "$(bitmap-list --output=json second.img | jq -r '[.return[].name] | sort | join(" ")')" 'm n s'
}

@test "a comparison in a transaction, of a bitmap that the transaction adds" {
	slow_transaction '{"type": "block-dirty-bitmap-add", "data": {"node": "disk", "name": "new", "granularity": 4096}},' new
	ok timeout 5 bitmap-add second.img m
	finish
	assert_equal "$status" 0
	assert_equal "$(dirty disk.img new)" 3145728+4096
	assert_equal "$(dirty disk.img b)" 0+2097152
}

@test "a comparison in a transaction: the image may not change before its end" {
	slow_transaction ''
	run -1 qemu-io -f raw -c 'write -q -P 7 5M 512' disk.img
	[[ $output == *'Failed to get "write" lock'* ]]
	printf y | put disk.img 5M
	finish
	assert_equal "$status" 1
	[[ $output == *"disk.img' was changed by another program while it was read"* ]]
	assert_equal "$(bitmap-list --output=json second.img | jq -r '[.return[].name] | sort | join(" ")')" s
}

@test "usage" {
	usage bitmap-rescan
	usage bitmap-rescan --against other.img
	usage bitmap-rescan --against other.img disk.img
	usage bitmap-rescan disk.img b
	[[ $stderr == *'--against'* ]]
	usage bitmap-rescan --against other.img disk.img b more
}
