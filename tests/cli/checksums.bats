#!/usr/bin/env bats
# Checksums of stored data: backup-run --checksums, chain-verify --data and --record, chain-restore.

load helper

# disk.img with a full backup and an increment, which cover different ranges.
backups() {
	raw disk.img 4M
	noise 100000 9 | put disk.img 1100000
	ok bitmap-add disk.img b
	done_ backup-run --bitmap b --bitmap-mode on-success -F qcow2 "$@" disk.img full.qcow2
	noise 300000 1 > data
	ok image-write disk.img 1000000 < data
	done_ backup-run --sync incremental --bitmap b -F qcow2 --backing full.qcow2 "$@" disk.img inc.qcow2
}

# data STATUS VERDICT ARG...: of chain-verify; the reply is left in chain.json.
data() {
	local want=$1 word=$2
	shift 2
	attempt chain-verify --output=json "$@"
	assert_equal "$status" "$want"
	jq .return <<< "$output" > chain.json
	assert_equal "$(jq -r .verdict chain.json)" "$word"
}

# place FILE OFFSET: where a byte of the disk is in the file.
place() {
	qemu-img map --output=json "$1" | jq --argjson at "$2" --arg f "$1" \
		'.[] | select(.data and (.offset != null) and .start <= $at and $at < .start + .length) | .offset + $at - .start'
}

# rot FILE OFFSET: inverts a byte as a failing disk does, which changes no time.
rot() {
	touch -r "$1" when
	flip "$@"
	touch -r when "$1"
}

# reopened [write]: opens full.qcow2 for reading in a running QEMU, reopens it for writing, and writes to it.
reopened() {
	python3 - "$1" <<- 'PY'
		import json, subprocess, sys
		def node(ro):
		    return {"driver": "qcow2", "node-name": "n", "read-only": ro,
		            "file": {"driver": "file", "filename": "full.qcow2", "node-name": "f", "read-only": ro}}
		todo = [("qmp_capabilities", {}), ("blockdev-add", node(True)), ("blockdev-reopen", {"options": [node(False)]})]
		if sys.argv[1] == "write":
		    todo += [("human-monitor-command", {"command-line": 'qemu-io n "write -P 9 2M 1000"'})]
		todo += [("quit", {})]
		said = "".join(json.dumps({"execute": c, "arguments": a}) for c, a in todo)
		r = subprocess.run(["qemu-system-x86_64", "-M", "none", "-nodefaults", "-display", "none", "-qmp", "stdio"],
		                   input=said, capture_output=True, text=True, timeout=60)
		assert r.returncode == 0 and '"error"' not in r.stdout, r.stdout + r.stderr
	PY
}

# committed OFFSET: writes to an overlay of full.qcow2, and commits it into full.qcow2.
committed() {
	qemu-img create -q -f qcow2 -b full.qcow2 -F qcow2 over.qcow2
	qemu-io -c "write -P 7 $1 1000" over.qcow2 > /dev/null
	qemu-img commit -q over.qcow2
	qemu-img check -q full.qcow2
}

@test "a chain is proven without its source" {
	backups
	rm disk.img
	unchanged data 0 whole --data inc.qcow2
	jq -e 'all(.images[]; .proven > 0 and .unproven == 0)' chain.json
	qemu-img check -q full.qcow2
	qemu-img check -q inc.qcow2
}

@test "chain-info says which images have checksums" {
	backups
	cp disk.img raw.img
	done_ backup-run -f raw -F raw --checksums always raw.img r.raw
	done_ backup-run -f raw -F qcow2 --checksums never raw.img n.qcow2
	done_ chain-info --output=json inc.qcow2
	assert_equal "$(jq -c '[.return.images[].checksums]' <<< "$output")" '[true,true]'
	done_ chain-info --output=json n.qcow2
	assert_equal "$(jq -c '[.return.images[].checksums]' <<< "$output")" '[null]'
	done_ chain-info -f raw r.raw
	[[ $output == *", with checksums"* ]]
	touch -d '2020-01-01' r.raw
	done_ chain-info -f raw r.raw
	[[ $output != *checksums* ]]
}

@test "a rotten byte: its range of the disk and the restore points" {
	local at
	backups
	at=$(place full.qcow2 2100000)
	rot full.qcow2 "$at"
	data 0 whole inc.qcow2
	unchanged data 3 damaged --data inc.qcow2
	jq -e '.images[1].findings | any(.kind == "data" and .offset <= 2100000 and 2100000 < .offset + .length
		and (.text | contains("full.qcow2, inc.qcow2")))' chain.json
	refused_like 'do not have their checksum' chain-restore inc.qcow2 out.img
	[[ $stderr == *--salvage* ]]
	[ ! -e out.img ]
}

@test "a rotten byte that the increment covers is visible in the full backup only" {
	local at
	backups
	at=$(place full.qcow2 1100000)
	rot full.qcow2 "$at"
	data 3 damaged --data inc.qcow2
	jq -e '.images[1].findings | any(.kind == "data" and (.text | endswith("visible in full.qcow2")))' chain.json
	done_ chain-restore inc.qcow2 out.img
	same raw out.img raw disk.img
	refused_like 'do not have their checksum' chain-restore full.qcow2 other.img
}

@test "a restore rescues the ranges that have their checksums" {
	local at
	backups
	at=$(place full.qcow2 2100000)
	rot full.qcow2 "$at"
	attempt chain-restore --salvage inc.qcow2 out.img
	assert_equal "$status" 3
	jq -ce '.return["x-unreadable"] == [{"start": 2097152, "length": 65536}]' <<< "$output"
	head -c 65536 /dev/zero | put disk.img 2097152
	same raw out.img raw disk.img
}

@test "rotten tables: all that they describe" {
	local l1 l2
	backups
	cp -p full.qcow2 first.qcow2
	l1=$((0x$(od -An -tx1 -j40 -N8 full.qcow2 | tr -d ' ')))
	l2=$((0x00$(od -An -tx1 -j$((l1 + 1)) -N7 full.qcow2 | tr -d ' ')))
	# An entry of a cluster that is zero: the table stays well-formed.
	rot full.qcow2 $((l2 + 8 * 60 + 7))
	data 3 damaged --data inc.qcow2
	refused_like . chain-restore inc.qcow2 out.img
	# The header is compared, too.
	cp -p first.qcow2 full.qcow2
	rot full.qcow2 30
	data 3 damaged --data full.qcow2
	# A table of checksums that is damaged proves nothing, and the data is not called damaged.
	cp -p first.qcow2 full.qcow2
	rot full.qcow2 $(($(stat -c %s full.qcow2) - 65536 + 48))
	data 1 unknown --data full.qcow2
	done_ chain-restore inc.qcow2 out.img
	[[ $stderr == *'not proven'* ]]
	same raw out.img raw disk.img
}

@test "compressed data is proven as it is stored" {
	local type size
	for type in zlib zstd; do
		backups --compress -o compression_type=$type
		data 0 whole --data inc.qcow2
		size=$(stat -c %s full.qcow2)
		rot full.qcow2 $((size / 2))
		data 3 damaged --data inc.qcow2
		rm -f disk.img* full.qcow2 inc.qcow2
	done
}

@test "QEMU marks no change that it commits: neither proven nor called rotten" {
	backups
	cp -p full.qcow2 first.qcow2
	# In place: the checksums differ, and the message names both causes.
	committed 2M
	data 3 damaged --data full.qcow2
	jq -e '.images[0].findings | any(.kind == "data" and (.text | contains("qemu-img commit")))' chain.json
	# The same for copies of it, with and without the time.
	cp full.qcow2 copy.qcow2
	data 3 damaged --data copy.qcow2
	jq -e '.images[0].findings | any(.kind == "data" and (.text | contains("qemu-img commit")))' chain.json
	cp -p full.qcow2 copy.qcow2
	data 3 damaged --data copy.qcow2
	jq -e '.images[0].findings | any(.kind == "data" and (.text | contains("qemu-img commit")))' chain.json
	# New clusters replace the table.
	rm full.qcow2 over.qcow2
	raw disk.img 1M
	truncate -s 4M disk.img
	done_ backup-run -F qcow2 disk.img full.qcow2
	committed 3M
	attempt chain-verify --output=json --data full.qcow2
	jq -e '.return.images[0].findings | any(.text | contains("void"))' <<< "$output"
	jq -e '.return.images[0].findings | all(.kind != "data")' <<< "$output"
	# A commit of nothing changes nothing.
	cp -p first.qcow2 full.qcow2
	qemu-img create -q -f qcow2 -b full.qcow2 -F qcow2 over.qcow2
	qemu-img commit -q over.qcow2
	data 0 whole --data full.qcow2
}

@test "a running QEMU that reopens the image" {
	command -v qemu-system-x86_64 > /dev/null || skip 'no qemu-system-x86_64'
	backups
	reopened ''
	data 0 whole --data full.qcow2
	reopened write
	data 3 damaged --data full.qcow2
	jq -e '.images[0].findings | any(.kind == "data" and (.text | contains("qemu-img commit")))' chain.json
	qemu-img check -q full.qcow2
}

@test "a copy, a move and a new time leave the checksums valid" {
	backups
	cp full.qcow2 copy.qcow2
	unchanged data 0 whole --data copy.qcow2
	mv copy.qcow2 moved.qcow2
	touch moved.qcow2
	data 0 whole --data moved.qcow2
	# All of it is proven, so the links are, whatever the times say.
	touch full.qcow2
	unchanged data 0 whole inc.qcow2
	data 0 whole --data inc.qcow2
	rot full.qcow2 "$(place full.qcow2 2100000)"
	data 1 unknown inc.qcow2
	data 3 damaged --data inc.qcow2
	rejected chain-restore inc.qcow2 restored.img
}

@test "every cluster size" {
	local size
	for size in 512 4K 64K 2M; do
		backups -o cluster_size=$size
		data 0 whole --data inc.qcow2
		qemu-img check -q inc.qcow2
		rm -f disk.img* full.qcow2 inc.qcow2
	done
}

@test "writers make the checksums void, and nothing is called rotten" {
	local n=0 command
	backups
	cp -p full.qcow2 first.qcow2
	for command in "qemu-io -f qcow2 -c 'write -P 7 2M 1000' full.qcow2" 'qemu-img bitmap --add full.qcow2 x' \
		'qemu-img resize -q full.qcow2 8M' 'qemu-img resize -q --shrink full.qcow2 2M' \
		'qemu-img snapshot -c x full.qcow2' 'qemu-img amend -f qcow2 -o lazy_refcounts=on full.qcow2' \
		'qemu-img amend -f qcow2 -o compat=0.10 full.qcow2' 'qemu-img rebase -u -b "" full.qcow2' \
		'image-write -f qcow2 --pattern 7 full.qcow2 2M 1000' 'bitmap-add -f qcow2 --store image full.qcow2 y'; do
		cp -p first.qcow2 full.qcow2
		eval "$command" > /dev/null
		qemu-img check -q full.qcow2
		attempt chain-verify --output=json --data full.qcow2
		jq -e '.return.verdict != "whole" and (.return.images[0].findings |
			any(.text | contains("checksums are void")) and all(.kind != "data"))' <<< "$output"
		n=$((n + 1))
	done
	assert_equal $n 10
	# Readers do not.
	cp -p first.qcow2 full.qcow2
	qemu-img check -q full.qcow2
	qemu-img info full.qcow2 > /dev/null
	data 0 whole --data full.qcow2
}

@test "--record adds checksums, and the backups stay what they are" {
	local before
	backups --checksums never
	data 1 unknown --data inc.qcow2
	jq -e '.images[0].findings | any(.text | contains("not proven"))' chain.json
	before=$(stat -c %y full.qcow2)
	data 0 whole --record inc.qcow2
	assert_equal "$(stat -c %y full.qcow2)" "$before"
	qemu-img check -q full.qcow2
	qemu-img check -q inc.qcow2
	unchanged data 0 whole inc.qcow2
	unchanged data 0 whole --data inc.qcow2
	unchanged data 0 whole --record inc.qcow2
	# The next increment is chained on it.
	ok image-write --pattern 3 disk.img 3M 1000
	done_ backup-run --sync incremental --bitmap b -F qcow2 disk.img inc1.qcow2
	data 0 whole --data inc1.qcow2
	done_ chain-restore inc1.qcow2 out.img
	same raw out.img raw disk.img
}

# kept ARG...: --record finds data without the checksum it had, and no file changes.
kept() {
	unchanged attempt chain-verify --output=json --record "$@"
	assert_equal "$status" 3
}

@test "--record after a change: only if that is accepted, and not the old backup" {
	backups
	committed 2M
	kept full.qcow2
	jq -e '.return.images[0].findings | any(.kind == "data" and .offset == 2097152)' <<< "$output"
	attempt chain-verify --output=json --record --accept full.qcow2
	jq -e '.return.images[0] | .unproven == 0 and (.findings | all(.kind != "data"))' <<< "$output"
	# Checksums of today prove nothing about the day of the backup.
	data 1 unknown full.qcow2
	data 1 unknown --data full.qcow2
	jq -e '.images[0].findings | all(.text | contains("changed after it had been made"))' chain.json
	# An image that is not a backup is whole.
	qemu-img convert -O qcow2 full.qcow2 other.qcow2
	data 0 whole --record other.qcow2
	committed 1M
	qemu-img check -q full.qcow2
}

@test "--record does not accept the rot of a copy" {
	local at
	backups
	at=$(place full.qcow2 2100000)
	cp full.qcow2 copy.qcow2
	unchanged data 0 whole --record copy.qcow2
	rot copy.qcow2 "$at"
	kept copy.qcow2
	jq -e '.return.images[0].findings | any(.kind == "data" and .offset <= 2100000 and 2100000 < .offset + .length)' <<< "$output"
	data 3 damaged --data copy.qcow2
	# In a header that is read in another way, and in the middle of a chain.
	cp full.qcow2 copy.qcow2
	rot copy.qcow2 30
	kept copy.qcow2
	[[ $stderr == *'the header does not have its checksum'* ]]
	rot full.qcow2 "$at"
	touch full.qcow2
	kept inc.qcow2
	# No consent helps where only damage explains a difference.
	rm -f disk.img* full.qcow2 inc.qcow2
	backups
	rot full.qcow2 "$at"
	kept --accept full.qcow2
}

@test "--record does not accept the rot of a void table's image" {
	local at
	backups
	at=$(place full.qcow2 2100000)
	# A program that opens the image for writing, and changes nothing, makes the checksums void.
	qemu-io -c 'flush' full.qcow2
	cp -p full.qcow2 void.qcow2
	data 1 unknown --data full.qcow2
	rot full.qcow2 "$at"
	data 1 unknown --data full.qcow2
	kept inc.qcow2
	[[ $stderr == *'do not have the checksum they had'*--accept* ]]
	cp -p void.qcow2 full.qcow2
	attempt chain-verify --record full.qcow2
	attempt chain-verify --output=json --data full.qcow2
	jq -e '.return.images[0] | .proven > 0 and .unproven == 0 and (.findings | all(.kind != "data"))' <<< "$output"
	# A change on purpose.
	qemu-io -c 'write -P 7 2M 1000' full.qcow2 > /dev/null
	kept full.qcow2
	attempt chain-verify --output=json --record --accept full.qcow2
	jq -e '.return.images[0] | .proven > 0 and .unproven == 0 and (.findings | all(.kind != "data"))' <<< "$output"
}

@test "--record does not accept the rot of a raw file" {
	raw disk.img 4M
	truncate -s 4000001 disk.img
	done_ backup-run --checksums always -F raw disk.img copy.img
	mkdir away
	cp copy.img copy.img.bitmaps copy.img.bitmaps.sums away
	cd away
	data 1 unknown --data copy.img
	flip copy.img 3000000
	kept copy.img
	[[ $stderr == *'do not have the checksum they had'* ]]
	# Nor if the file was cut or became longer.
	flip copy.img 3000000
	truncate -s 4000000 copy.img
	kept copy.img
	truncate -s 4100000 copy.img
	kept copy.img
	cp ../copy.img copy.img
	# One without a change gets checksums that count.
	attempt chain-verify --record copy.img
	attempt chain-verify --output=json --data copy.img
	jq -e '.return.images[0].proven == 4000001' <<< "$output"
	flip copy.img 3000000
	kept copy.img
	attempt chain-verify --record --accept copy.img
	attempt chain-verify --output=json --data copy.img
	jq -e '.return.images[0] | .proven == 4000001 and (.findings | all(.kind != "data"))' <<< "$output"
}

@test "--record completes checksums, and compares those that there are" {
	local at
	raw disk.img 4M
	TIDE_COPY=kernel done_ backup-run -F qcow2 disk.img copy.qcow2
	cp -p copy.qcow2 first.qcow2
	data 1 unknown --data copy.qcow2
	data 0 whole --record copy.qcow2
	unchanged data 0 whole --data copy.qcow2
	# The L1 table has checksums.
	cp -p first.qcow2 copy.qcow2
	at=$((0x$(od -An -tx1 -j40 -N8 copy.qcow2 | tr -d ' ')))
	rot copy.qcow2 $((at + 4000))
	kept copy.qcow2
}

@test "a copy that a commit changed gets no proof of its birth from --record" {
	backups --checksums never
	cp full.qcow2 first.qcow2
	mv first.qcow2 full.qcow2
	qemu-img create -q -f qcow2 -b full.qcow2 -F qcow2 over.qcow2
	qemu-io -c 'write -P 7 0 4M' over.qcow2 > /dev/null
	qemu-img commit -q over.qcow2
	data 3 damaged full.qcow2
	attempt chain-verify --record full.qcow2
	data 3 damaged full.qcow2
	data 3 damaged --data full.qcow2
	jq -e '.images[0] | .proven > 0 and .unproven == 0' chain.json
}

@test "--record refuses damage, and a disk in use" {
	backups --checksums never
	qemu-img convert -O qcow2 full.qcow2 other.qcow2
	ok bitmap-add -f qcow2 other.qcow2 x
	attempt chain-verify --record -f qcow2 other.qcow2
	assert_equal "$status" 1
	[[ $stderr == *'has bitmaps in a sidecar'* ]]
	rm full.qcow2
	attempt chain-verify --record inc.qcow2
	assert_equal "$status" 3
	[[ $stderr == *'no checksums were stored'* ]]
	data 3 damaged --data inc.qcow2
}

@test "--checksums always refuses a target that cannot have them" {
	raw disk.img 1M
	refused_like 'cannot have checksums' backup-run --checksums always -F qcow2 -o compat=0.10 disk.img copy.qcow2
	[ ! -e copy.qcow2 ]
	done_ backup-run --checksums always -F qcow2 disk.img copy.qcow2
	data 0 whole --data copy.qcow2
	usage backup-run --checksums sometimes -F qcow2 disk.img other.qcow2
}

@test "an existing target has checksums only if they are asked for" {
	raw disk.img 1M
	done_ backup-run -F qcow2 disk.img copy.qcow2
	noise 1000 2 > data
	ok image-write -f raw disk.img 5000 < data
	done_ backup-run --mode existing -F qcow2 disk.img copy.qcow2
	data 1 unknown --data copy.qcow2
	done_ backup-run --mode existing --checksums always -F qcow2 disk.img copy.qcow2
	data 0 whole --data copy.qcow2
	same qcow2 copy.qcow2 raw disk.img
}

@test "a raw target has its checksums beside it" {
	raw disk.img 4M
	truncate -s 40M disk.img
	noise 1000 3 >> disk.img
	done_ backup-run --checksums always -F raw disk.img copy.img
	[ -e copy.img.bitmaps.sums ]
	# Holes take no space there.
	[ "$(stat -c %s copy.img.bitmaps.sums)" -lt 8192 ]
	unchanged data 0 whole --data copy.img
	jq -e '.images[0] | .proven == 41944040 and .unproven == 0' chain.json
	cp --sparse=always -p copy.img first.img
	rot copy.img 3000000
	data 3 damaged --data copy.img
	jq -e '.images[0].findings | any(.kind == "data" and .offset == 2949120 and .length == 65536)' chain.json
	refused_like 'do not have their checksum' chain-restore copy.img out.img
	attempt chain-restore --salvage copy.img out.img
	assert_equal "$status" 3
	# The rest of the block is a hole.
	jq -ce '.return["x-unreadable"] == [{"start": 2998272, "length": 4096}]' <<< "$output"
	rot copy.img 3000000
	# In a hole, and at the end.
	rot copy.img 30000000
	data 3 damaged --data copy.img
	rot copy.img 30000000
	rot copy.img 41944039
	data 3 damaged --data copy.img
	jq -e '.images[0].findings | any(.kind == "data" and .offset + .length == 41944040)' chain.json
	rot copy.img 41944039
	data 0 whole --data copy.img
	# A program that writes to it makes them void.
	flip copy.img 3000000
	data 1 unknown --data copy.img
	jq -e '.images[0].findings | any(.text | contains("void"))' chain.json
	done_ chain-restore --allow-part copy.img other.img
	same raw copy.img raw other.img
	# Damage of the table proves nothing, and calls nothing damaged.
	cp -p first.img copy.img
	flip copy.img.bitmaps.sums 70
	data 1 unknown --data copy.img
	done_ chain-restore copy.img third.img
	[[ $stderr == *'not proven'* ]]
	data 0 whole --record copy.img
	data 0 whole --data copy.img
}

@test "a raw target: --record, and what replaces it" {
	raw disk.img 4M
	done_ backup-run --checksums never -F raw disk.img copy.img
	[ ! -e copy.img.bitmaps.sums ]
	data 1 unknown --data copy.img
	data 0 whole --record copy.img
	unchanged data 0 whole --data copy.img
	unchanged data 0 whole copy.img
	done_ backup-run --checksums never --overwrite -F raw disk.img copy.img
	[ ! -e copy.img.bitmaps.sums ]
	data 1 unknown --data copy.img
	# An existing target.
	done_ backup-run --checksums always --mode existing -F raw disk.img copy.img
	data 0 whole --data copy.img
	# A chain whose backing image is raw.
	ok bitmap-add disk.img b
	done_ backup-run --checksums always --bitmap b --bitmap-mode on-success --overwrite -F raw disk.img copy.img
	ok image-write --pattern 5 disk.img 1M 1M
	done_ backup-run --checksums always --sync incremental --bitmap b -F qcow2 disk.img inc.qcow2
	data 0 whole --data inc.qcow2
	rot copy.img 100
	data 3 damaged --data inc.qcow2
	refused_like 'do not have their checksum' chain-restore inc.qcow2 out.img
	rm copy.img.bitmaps.sums
	data 1 unknown --data inc.qcow2
	done_ chain-restore inc.qcow2 out.img
}

@test "data that the kernel copied has no checksums, unless they are wanted" {
	raw disk.img 4M
	TIDE_COPY=kernel done_ backup-run -F qcow2 disk.img copy.qcow2
	data 1 unknown --data copy.qcow2
	jq -e '.images[0].findings | any(.text | test("[0-9]+ bytes of the disk have no checksum"))' chain.json
	TIDE_COPY=kernel done_ backup-run --checksums always --overwrite -F qcow2 disk.img copy.qcow2
	data 0 whole --data copy.qcow2
	TIDE_COPY=kernel done_ backup-run -F raw disk.img copy.img
	[ ! -e copy.img.bitmaps.sums ]
}

# hostile FILE FIELD VALUE [TABLE-FIELD]: changes a field of the extension, or of the table's head, and all checksums.
hostile() {
	python3 - "$@" <<- 'PY'
		import ctypes, ctypes.util, struct, sys
		xxh = ctypes.CDLL("libxxhash.so.0").XXH3_64bits
		xxh.restype, xxh.argtypes = ctypes.c_uint64, [ctypes.c_char_p, ctypes.c_size_t]
		def crc32c(data):
		    crc = 0xffffffff
		    for b in data:
		        crc ^= b
		        for _ in range(8):
		            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
		    return crc ^ 0xffffffff
		name, field, value = sys.argv[1], sys.argv[2], int(sys.argv[3])
		with open(name, "r+b") as f:
		    data = bytearray(f.read())
		    at = data.index(b"TIDC") + 8
		    if field == "ext":
		        struct.pack_into("<Q", data, at + int(sys.argv[4]), value)
		    else:
		        table = struct.unpack_from("<Q", data, at + 8)[0]
		        struct.pack_into("<Q", data, table + int(sys.argv[4]), value)
		        chunks = struct.unpack_from("<Q", data, table + 32)[0]
		        head = bytes(data[table:table + 48 + 8 * chunks])
		        struct.pack_into("<Q", data, at + 24, xxh(head, len(head)))
		    struct.pack_into("<I", data, at + 4, crc32c(data[at:at + 4] + data[at + 8:at + 64]))
		    f.seek(0)
		    f.write(data)
	PY
	touch -r when "$1"
}

@test "a hostile table of checksums proves nothing, and calls nothing damaged" {
	local row n=0
	backups
	cp -p full.qcow2 first.qcow2
	touch -r full.qcow2 when
	# Its place: outside, before the data, on metadata; its length; its range and its counts.
	for row in 'ext 99999999999 8' 'ext 9223372036854775807 8' 'ext 0 8' 'ext 65536 8' 'ext 0 16' 'ext 47 16' \
		'ext 18446744073709551615 16' 'ext 4611686018427387904 16' 'head 0 16' 'head 18446744073709551615 16' \
		'head 0 24' 'head 18446744073709551615 24' 'head 9223372036854775807 24' 'head 4503599627370496 24' \
		'head 0 32' 'head 2 32' 'head 2251799813685248 32' 'head 2 48' 'head 0 8'; do
		cp -p first.qcow2 full.qcow2
		# shellcheck disable=SC2086 # words
		set -- $row
		hostile full.qcow2 "$1" "$2" "$3"
		(ulimit -v 1000000 && exec chain-verify --output=json --data full.qcow2) > reply.json 2> err || :
		jq -e '.return.images[0].findings | any(.kind == "unknown") and all(.kind != "data")' reply.json
		done_ chain-restore --overwrite inc.qcow2 out.img
		same raw out.img raw disk.img
		# A new table replaces it, whatever it says about its place.
		data 0 whole --record inc.qcow2
		data 0 whole --data inc.qcow2
		qemu-img check -q full.qcow2
		n=$((n + 1))
	done
	assert_equal $n 19
}

@test "without checksums, what is compressed is decompressed" {
	local type at
	noise 1M | xxd -p > disk.img
	truncate -s 4M disk.img
	for type in zlib zstd; do
		qemu-img convert -q -c -f raw -O qcow2 -o compression_type=$type disk.img $type.qcow2
		data 1 unknown --data $type.qcow2
		# The fourth cluster.
		at=$(python3 - $type.qcow2 <<- 'P'
			import struct, sys
			with open(sys.argv[1], "rb") as f:
			    f.seek(40)
			    f.seek(struct.unpack(">Q", f.read(8))[0])
			    f.seek((struct.unpack(">Q", f.read(8))[0] & 0x00fffffffffffe00) + 3 * 8)
			    print(struct.unpack(">Q", f.read(8))[0] & (1 << 54) - 1)
		P
		)
		head -c 300 < /dev/zero | tr '\0' '\377' | put $type.qcow2 $((at + 20))
		verdict=$(chain-verify $type.qcow2)
		[[ $verdict == *whole* ]]
		data 3 damaged --data $type.qcow2
		assert_equal "$(jq -c '.images[0].findings[] | select(.kind == "data") | [.offset, .length]' chain.json)" '[196608,65536]'
		rejected chain-restore $type.qcow2 restored.img
	done
}

@test "no way of copying restores rot" {
	local way
	backups
	rot full.qcow2 "$(place full.qcow2 2100000)"
	for way in kernel rw direct; do
		rm -f r.img
		TIDE_COPY=$way rejected chain-restore full.qcow2 r.img
		[[ $stderr == *'do not have their checksum'* ]]
		[ ! -e r.img ]
		TIDE_COPY=$way rejected chain-restore -F qcow2 inc.qcow2 r.img
	done
}

@test "an end of less than a block has its checksum, and none restores with rot" {
	truncate -s 8M disk.img
	noise 100 7 >> disk.img
	done_ backup-run -f raw -F qcow2 disk.img t.qcow2
	data 0 whole --data t.qcow2
	done_ backup-run -f raw -F raw disk.img t.raw
	data 0 whole -f raw --data t.raw
	rot t.raw $((8 * 1024 * 1024 + 50))
	data 3 damaged -f raw --data t.raw
	rejected chain-restore -f raw t.raw r.img
}

@test "reflinks: what has checksums is compared before it is shared" {
	local loop
	truncate -s 400M fs.img
	mkfs.xfs -q fs.img 2> /dev/null || skip 'no mkfs.xfs'
	mkdir fs
	mount -o loop fs.img fs || skip 'loop devices cannot be used here'
	mounts+=("$PWD/fs")
	noise 8M > fs/disk.img
	done_ backup-run -f raw -F qcow2 --checksums always fs/disk.img fs/f.qcow2
	data 0 whole --data fs/f.qcow2
	done_ chain-restore fs/f.qcow2 fs/r.img
	cmp fs/disk.img fs/r.img
	rm fs/disk.img fs/r.img
	rot fs/f.qcow2 "$(place fs/f.qcow2 3000000)"
	rejected chain-restore fs/f.qcow2 fs/r.img
	attempt chain-restore --salvage fs/f.qcow2 fs/r.img
	assert_equal "$status" 3
	assert_equal "$(jq -c '.return."x-unreadable"' <<< "$output")" '[{"start":2949120,"length":65536}]'
}

@test "--record over what the header had of other lengths" {
	raw disk.img 4M
	done_ backup-run -q --sync auto --bitmap n --checksums never -F qcow2 disk.img t.qcow2
	ok image-write --pattern 7 disk.img 1M 64K
	done_ backup-run -q --sync auto --bitmap n --mode existing --checksums never -F qcow2 disk.img t.qcow2
	done_ chain-verify --record t.qcow2
	data 0 whole --data t.qcow2
}
