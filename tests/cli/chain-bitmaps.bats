#!/usr/bin/env bats
# Bitmaps inside a backing image and its overlay, in one command or transaction.

load helper

# chain [FIRST SECOND]: base.qcow2 with bitmap b, and its overlay top.qcow2 with bitmap c, which is dirty at 1M.
# FIRST has the lower inode number: files are opened in the order of these.
chain() {
	local first=${1-base.qcow2} second=${2-top.qcow2}
	rm -f ./*.qcow2 ./*.bitmaps*
	: > "$first"
	: > "$second"
	qemu-img create -q -f qcow2 base.qcow2 8M
	qemu-io -f qcow2 -c 'write -q -P 1 0 4M' base.qcow2
	qemu-img bitmap --add -f qcow2 base.qcow2 b
	qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2
	qemu-img bitmap --add -f qcow2 top.qcow2 c
	qemu-io -f qcow2 -c 'write -q -P 2 1M 64K' top.qcow2
}

apply() {
	done_ txn-apply --drive base=base.qcow2 --drive top=top.qcow2 "$@"
}

# What oVirt does before it commits an overlay to its backing image.
@test "a bitmap of the overlay is merged into one of its backing image" {
	chain
	ok bitmap-merge base.qcow2 b top.qcow2#c
	assert_equal "$(dirty base.qcow2 b)" 1048576+65536
	ok bitmap-import --store image base.qcow2 x --from top.qcow2#c
	assert_equal "$(dirty base.qcow2 x)" 1048576+65536
	ok bitmap-clear base.qcow2 x
	ok bitmap-export top.qcow2 c --to base.qcow2#x
	assert_equal "$(dirty base.qcow2 x)" 1048576+65536
	clean base.qcow2 top.qcow2
}

# QEMU's test 254.
@test "a bitmap moves from the backing image to the overlay in one transaction" {
	chain
	qemu-img bitmap --merge c -b top.qcow2 -F qcow2 -f qcow2 base.qcow2 b
	apply - <<- 'END'
		{ "actions": [
		  { "type": "block-dirty-bitmap-add", "data": { "node": "top", "name": "n", "x-store": "image" } },
		  { "type": "block-dirty-bitmap-merge",
		    "data": { "node": "top", "target": "n", "bitmaps": [ { "node": "base", "name": "b" } ] } },
		  { "type": "block-dirty-bitmap-remove", "data": { "node": "base", "name": "b" } } ] }
	END
	assert_equal "$output" '{"return": {}}'
	assert_equal "$(names base.qcow2)" ''
	assert_equal "$(dirty top.qcow2 n)" 1048576+65536
	clean base.qcow2 top.qcow2
}

@test "backups of an overlay and of its backing image, whose bitmap is settled meanwhile" {
	chain
	local mode
	for mode in individual grouped; do
		rm -f full.qcow2 inc.qcow2
		qemu-io -f qcow2 -c 'write -q -P 3 5M 64K' -c 'write -q -P 4 6M 128K' base.qcow2
		apply - <<- END
			{ "execute": "transaction", "arguments": { "properties": { "completion-mode": "$mode" }, "actions": [
			  { "type": "drive-backup", "data": { "device": "top", "target": "full.qcow2", "format": "qcow2",
			    "sync": "full", "speed": 16000000 } },
			  { "type": "drive-backup", "data": { "device": "base", "target": "inc.qcow2", "format": "qcow2",
			    "sync": "incremental", "bitmap": "b", "mode": "absolute-paths" } },
			  { "type": "block-dirty-bitmap-add",
			    "data": { "node": "base", "name": "$mode", "x-store": "image" } } ] } }
		END
		bitmap base.qcow2 b '.count == 0 and (.busy | not)'
		bitmap base.qcow2 "$mode" '.count == 0'
		same qcow2 full.qcow2 qcow2 top.qcow2
		clean base.qcow2 full.qcow2
	done
}

@test "a bitmap inside the backing image of a new target" {
	chain
	done_ backup-run -F qcow2 top.qcow2 full.qcow2
	ok bitmap-add --store image full.qcow2 f
	local mode names=f
	for mode in individual grouped; do
		rm -f inc.qcow2
		apply --drive full=full.qcow2 - <<- END
			{ "execute": "transaction", "arguments": { "properties": { "completion-mode": "$mode" }, "actions": [
			  { "type": "drive-backup", "data": { "device": "top", "target": "inc.qcow2", "format": "qcow2",
			    "sync": "bitmap", "bitmap-mode": "never", "bitmap": "c", "x-backing": { "path": "full.qcow2" } } },
			  { "type": "block-dirty-bitmap-add",
			    "data": { "node": "full", "name": "$mode", "x-store": "image" } } ] } }
		END
		assert_equal "$(names full.qcow2)" "$mode $names"
		names="$mode $names"
		same qcow2 inc.qcow2 qcow2 top.qcow2
	done
}

@test "bitmaps of an overlay whose backing image is missing" {
	chain
	local store
	ok bitmap-add top.qcow2 s
	mv base.qcow2 away
	bitmap top.qcow2 s '.count == 0'
	assert_equal "$(dirty top.qcow2 c)" 1048576+65536
	for store in c s; do
		ok bitmap-disable top.qcow2 $store
		ok bitmap-enable top.qcow2 $store
		ok bitmap-mark top.qcow2 $store 0 64K
	done
	ok bitmap-merge top.qcow2 s c
	assert_equal "$(dirty top.qcow2 s)" '0+65536 1048576+65536'
	ok bitmap-remove top.qcow2 c
	ok bitmap-clear top.qcow2 s
	assert_equal "$(names top.qcow2)" s
	# What reads the disk is refused, also together with what does not.
	unchanged refused_like 'Could not open backing file' backup-run -F qcow2 top.qcow2 new.qcow2
	unchanged refused_like 'Could not open backing file' bitmap-rescan --against away top.qcow2 s
	unchanged refused_like 'Could not open backing file' image-write --pattern 1 top.qcow2 0 1
	unchanged refused_like 'Could not open backing file' txn-apply --drive top=top.qcow2 - <<- 'END'
		{ "actions": [ { "type": "block-dirty-bitmap-disable", "data": { "node": "top", "name": "s" } },
		  { "type": "drive-backup", "data": { "device": "top", "target": "new.qcow2", "format": "qcow2", "sync": "full" } } ] }
	END
	mv away base.qcow2
	done_ backup-run -F qcow2 top.qcow2 new.qcow2
	same qcow2 new.qcow2 qcow2 top.qcow2
}

@test "other programs are still kept out" {
	chain
	serve qcow2 top.qcow2
	unchanged refused 'Failed to get shared "write" lock' bitmap-merge base.qcow2 b top.qcow2#c
	served_no_more
	ok bitmap-merge base.qcow2 b top.qcow2#c
}

@test "a transaction on both that died: completed or undone by the next one, whatever it opens first" {
	local order call
	cat > both.json <<- 'END'
		{ "actions": [
		  { "type": "block-dirty-bitmap-merge",
		    "data": { "node": "base", "target": "b", "bitmaps": [ { "node": "top", "name": "c" } ] } },
		  { "type": "block-dirty-bitmap-clear", "data": { "node": "top", "name": "c" } } ] }
	END
	for order in 'base.qcow2 top.qcow2' 'top.qcow2 base.qcow2'; do
		for call in pwrite64:{2..18..4} pwrite64:{13..17} fsync:{2..10..2}; do
			# shellcheck disable=SC2086 # two words
			chain $order
			# A leak check cannot work under a tracer.
			ASAN_OPTIONS="detect_leaks=0:$ASAN_OPTIONS" run strace -f -qq -o trace -e "trace=${call%:*}" -e "inject=${call%:*}:signal=KILL:when=${call#*:}" \
				txn-apply --drive base=base.qcow2 --drive top=top.qcow2 both.json
			apply both.json
			assert_equal "$(dirty base.qcow2 b)" 1048576+65536
			assert_equal "$(dirty top.qcow2 c)" ''
		done
	done
}
