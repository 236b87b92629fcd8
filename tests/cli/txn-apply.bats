#!/usr/bin/env bats
# txn-apply: QMP commands in JSON.  tests/interop/qmp-errors compares the texts of refusals with a real QEMU.

load helper

# disks: drive0 and drive1, 1 MiB each, with a bitmap "b" on drive0 that has 128 KiB dirty.
disks() {
	raw zero.img 1M
	raw one.img 1M
	bitmap-add zero.img b > quiet.json
	bitmap-mark zero.img b 0 128K > quiet.json
	drives=(--drive 'drive0=zero.img,format=raw' --drive 'drive1=one.img,format=raw')
}

# apply JSON [OPTION...]: the commands come from a file.
apply() {
	printf '%s\n' "$1" > commands.json
	shift
	attempt txn-apply "${drives[@]}" "$@" commands.json
}

# applied JSON [OPTION...]: one success, and nothing else.
applied() {
	apply "$@"
	assert_equal "$status" 0
	assert_equal "$output" '{"return": {}}'
}

# denied DESC JSON: one error of this text, no file changed.
denied() {
	local before
	before=$(state)
	apply "$2"
	error_reply
	assert_equal "$desc" "$1"
	assert_equal "$(state)" "$before"
}

# action TYPE DATA-MEMBERS: for a list of actions.
action() {
	printf '{"type": "%s", "data": {%s}}' "$1" "$2"
}

# actions ACTION...: a bare transaction.
actions() {
	local IFS=,
	printf '{"actions": [%s]}' "$*"
}

@test "every bitmap command by itself" {
	disks
	applied '{"execute": "block-dirty-bitmap-add", "arguments": {"node": "drive0", "name": "n", "granularity": 4096, "disabled": true}}'
	bitmap zero.img n '.granularity == 4096 and (.recording | not)'
	applied '{"execute": "block-dirty-bitmap-enable", "arguments": {"node": "drive0", "name": "n"}}'
	bitmap zero.img n .recording
	applied '{"execute": "block-dirty-bitmap-disable", "arguments": {"node": "drive0", "name": "n"}}'
	bitmap zero.img n '.recording | not'
	applied '{"execute": "block-dirty-bitmap-merge", "arguments": {"node": "drive0", "target": "n", "bitmaps": ["b"]}}'
	assert_equal "$(dirty zero.img n)" 0+131072
	applied '{"execute": "block-dirty-bitmap-clear", "arguments": {"node": "drive0", "name": "b"}}'
	assert_equal "$(dirty zero.img b)" ''
	applied '{"execute": "block-dirty-bitmap-remove", "arguments": {"node": "drive0", "name": "n"}}'
	assert_equal "$(names zero.img)" b
}

@test "the hash of a bitmap is QEMU's" {
	disks
	apply '{"execute": "x-debug-block-dirty-bitmap-sha256", "arguments": {"node": "drive0", "name": "b"}}'
	assert_equal "$status" 0
	assert_equal "$output" "{\"return\": {\"sha256\": \"$(hash_of zero.img b)\"}}"
	refute [ -e one.img.bitmaps ]
}

@test "query-block and query-named-block-nodes" {
	disks
	qemu-img create -q -f qcow2 -b zero.img -F raw top.qcow2
	drives+=(--drive top=top.qcow2)
	apply '{"execute": "query-block"} {"execute": "query-named-block-nodes", "arguments": {"flat": true}}'
	assert_equal "$status" 0
	jq -se '.[0].return | map(.device) == ["drive0", "drive1", "top"]' <<< "$output"
	jq -se '.[0].return[0].inserted | .file == "zero.img" and .drv == "raw" and .ro == false and ."node-name" == "drive0"
		and .image."virtual-size" == 1048576 and .image.format == "raw" and .image.filename == "zero.img"' <<< "$output"
	jq -se '.[0].return[0].inserted["dirty-bitmaps"] == [{"name": "b", "recording": true, "persistent": true,
		"busy": false, "granularity": 65536, "count": 131072}]' <<< "$output"
	jq -se '.[0].return[1].inserted | has("dirty-bitmaps") | not' <<< "$output"
	jq -se '.[0].return[2].inserted | .image["backing-image"].filename == "zero.img" and .backing_file_depth == 1' <<< "$output"
	jq -se '.[1].return == (.[0].return | reverse | map(.inserted))' <<< "$output"
}

@test "a stream: a reply each, with the id it was given; a failure does not stop it" {
	disks
	apply '{"execute": "qmp_capabilities", "id": 1}
		{"execute": "block-dirty-bitmap-add", "arguments": {"node": "drive0", "name": "n"}, "id": "two"}
		{"id": {"n": [3, null, 1.50]}, "execute": "block-dirty-bitmap-add", "arguments": {"node": "drive0", "name": "n"}}{"id": 4}
		{"execute": "nonsense", "id": false}
		{"execute": "block-dirty-bitmap-remove", "arguments": {"node": "drive0", "name": "n"}}'
	assert_equal "$status" 1
	assert_equal "$output" '{"return": {}, "id": 1}
{"return": {}, "id": "two"}
{"id": {"n": [3, null, 1.5]}, "error": {"class": "GenericError", "desc": "Bitmap already exists: n"}}
{"id": 4, "error": {"class": "GenericError", "desc": "QMP input lacks member '"'execute'"'"}}
{"id": false, "error": {"class": "CommandNotFound", "desc": "The command nonsense has not been found"}}
{"return": {}}'
	assert_equal "$(grep -c '^txn-apply: ' <<< "$stderr")" 3
}

names_are() {
	[ "$(names "$1")" = "$2" ]
}

@test "each command runs as soon as it is complete" {
	disks
	mkfifo pipe
	exec 8<> pipe
	start txn-apply "${drives[@]}" pipe
	printf '{"execute": "block-dirty-bitmap-add", "arguments": {"node": "drive0", "name": "n"}' >&8
	sleep 0.2
	assert_equal "$(names zero.img)" b
	printf '}' >&8
	eventually grep -q return bg.out
	assert_equal "$(names zero.img)" 'n b'
	printf '{"execute": "block-dirty-bitmap-remove", "arguments": {"node": "drive0", "name": "n"}}' >&8
	eventually names_are zero.img b
	kill -INT "$bg"
	finish
	exec 8>&-
	assert_equal "$status" 130
	assert_equal "$output" $'{"return": {}}\n{"return": {}}'
}

@test "standard input: by default, and for -" {
	disks
	printf '{"execute": "block-dirty-bitmap-clear", "arguments": {"node": "drive0", "name": "b"}}' > in
	ok txn-apply "${drives[@]}" < in
	ok txn-apply "${drives[@]}" - < in
	: > empty
	attempt txn-apply "${drives[@]}" empty
	assert_equal "$status:$output" 0:
	refused "Could not open 'nosuch': No such file or directory" txn-apply "${drives[@]}" nosuch
}

@test "what documentation looks like: arrows, replies, dots, commas before brackets" {
	disks
	apply '
	-> { "execute": "transaction",
	     "arguments": { "actions": [
	       { "type": "block-dirty-bitmap-add",
	         "data": { "node": "drive0", "name": "n", }, },
	     ], },
	   }
	<- { "return": {} }
	<- {
	     "timestamp": {...},
	     "data": { "status": "null", "id": "drive0" },
	     "event": "JOB_STATUS_CHANGE"
	   }
	...
	-> { '"'execute': 'block-dirty-bitmap-remove', 'arguments': { 'node': 'drive0', 'name': \"n\" }"' }
	<- { "return": {} }'
	assert_equal "$status" 0
	assert_equal "$output" $'{"return": {}}\n{"return": {}}'
}

@test "the same input in the smallest pieces gives the same replies" {
	disks
	local commands='{"execute":"block-dirty-bitmap-clear","arguments":{"node":"drive0","name":"\u0062"},"id":-12.5e0}
		<- {"a": tru} foo {"a":01} -> {"actions":[]}7'
	apply "$commands"
	assert_equal "$status" 1
	local whole=$output
	assert_equal "$(wc -l <<< "$whole")" 6
	python3 -c 'import subprocess, sys, time
p = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, bufsize=0)
for b in sys.argv[1].encode() + b"\n":
    p.stdin.write(bytes([b]))
    time.sleep(0.001)
p.stdin.close()
sys.exit(p.wait())' "$commands" txn-apply -q "${drives[@]}" > pieces.out 2> pieces.err || true
	assert_equal "$(cat pieces.out)" "$whole"
}

@test "input that is not JSON" {
	disks
	local text want
	while IFS='~' read -r text want; do
		denied "$want" "$text"
	done <<- 'END'
		{"execute"}~JSON parse error, missing : in object pair
		{"execute": }~JSON parse error, expecting value
		{1: 2}~JSON parse error, key is not a string in object
		{"a": 1 "b": 2}~JSON parse error, expected separator in dict
		{"a": [1 2]}~JSON parse error, expected separator in list
		{"a": tru}~JSON parse error, invalid keyword 'tru'
		{"a": "\x"}~JSON parse error, invalid escape sequence in string
		{"a": "\ud800"}~JSON parse error, \ud800 is not a valid Unicode character
		{"a": "\u0000"}~JSON parse error, \u0000 is not a valid Unicode character
		{"a": 1, "a": 2}~JSON parse error, duplicate key
		{"a": 1e999}~JSON parse error, number out of range
		&~JSON parse error, stray '&'
		{"a": ~JSON parse error, premature EOI
		[]~QMP input must be a JSON object
		5~QMP input must be a JSON object
	END
	denied $'JSON parse error, stray \'"b\n\'' '{"a": "b'
	local deep
	deep=$(printf '[%.0s' {1..120})
	denied 'JSON nesting depth limit exceeded' "{\"id\": $deep"
}

@test "add, merge and clear in one transaction split a bitmap" {
	disks
	applied "$(actions "$(action block-dirty-bitmap-add '"node": "drive0", "name": "old", "disabled": true')" \
		"$(action block-dirty-bitmap-merge '"node": "drive0", "target": "old", "bitmaps": ["b"]')" \
		"$(action block-dirty-bitmap-clear '"node": "drive0", "name": "b"')")"
	assert_equal "$(dirty zero.img old)" 0+131072
	assert_equal "$(dirty zero.img b)" ''
}

@test "a new bitmap can be removed again, a removed one not be made again" {
	disks
	applied "$(actions "$(action block-dirty-bitmap-add '"node": "drive0", "name": "n"')" \
		"$(action block-dirty-bitmap-remove '"node": "drive0", "name": "n"')")"
	assert_equal "$(names zero.img)" b
	denied 'Bitmap already exists: b' "$(actions "$(action block-dirty-bitmap-remove '"node": "drive0", "name": "b"')" \
		"$(action block-dirty-bitmap-add '"node": "drive0", "name": "b"')")"
	denied "Bitmap 'b' is currently in use by another operation and cannot be used" \
		"$(actions "$(action block-dirty-bitmap-remove '"node": "drive0", "name": "b"')" \
			"$(action block-dirty-bitmap-clear '"node": "drive0", "name": "b"')")"
}

@test "one refused action undoes all: every file is byte for byte what it was" {
	disks
	local change refused_one
	change=$(action block-dirty-bitmap-clear '"node": "drive0", "name": "b"'),$(action block-dirty-bitmap-disable '"node": "drive0", "name": "b"'),$(action block-dirty-bitmap-add '"node": "drive1", "name": "n"')
	while IFS='~' read -r refused_one want; do
		denied "$want" "{\"actions\": [$change, $refused_one]}"
	done <<- END
		$(action abort '')~Transaction aborted using Abort action
		$(action block-dirty-bitmap-enable '"node": "drive1", "name": "zz"')~Dirty bitmap 'zz' not found
		$(action block-dirty-bitmap-merge '"node": "drive1", "target": "n", "bitmaps": ["n", "zz"]')~Dirty bitmap 'zz' not found
		$(action block-dirty-bitmap-clear '"node": "drive2", "name": "b"')~Node 'drive2' not found
		$(action drive-backup '"device": "drive2", "target": "t", "sync": "full"')~Cannot find device='drive2' nor node-name='drive2'
		$(action drive-backup '"device": "drive0", "target": "nosuch/t", "sync": "full"')~Could not create 'nosuch/t': No such file or directory
		$(action blockdev-backup '"device": "drive0", "target": "drive0", "sync": "full"')~Source and target cannot be the same
		$(action drive-backup '"device": "drive0", "target": "t", "sync": "full"'),$(action abort '')~Transaction aborted using Abort action
		$(action blockdev-snapshot-sync '')~Action 'blockdev-snapshot-sync' needs a running virtual machine
	END
	denied "Parameter 'actions[3].data.name' is missing" "{\"actions\": [$change, $(action block-dirty-bitmap-clear '"node": "drive0"')]}"
}

@test "a merge of no bitmaps has no effect" {
	disks
	applied '{"execute": "block-dirty-bitmap-merge", "arguments": {"node": "drive0", "target": "b", "bitmaps": []}}'
	assert_equal "$(dirty zero.img b)" 0+131072
}

@test "clear and full backup start a chain, x-backing goes on with it" {
	disks
	apply "$(actions "$(action block-dirty-bitmap-clear '"node": "drive0", "name": "b"')" \
		"$(action drive-backup '"device": "drive0", "target": "full.qcow2", "format": "qcow2", "sync": "full"')")"
	assert_equal "$status" 0
	assert_equal "$(dirty zero.img b)" ''
	same raw zero.img qcow2 full.qcow2
	image-write --pattern 7 zero.img 300K 5K > quiet.json
	apply '{"execute": "drive-backup", "arguments": {"device": "drive0", "target": "inc.qcow2", "format": "qcow2", "sync": "incremental",
		"bitmap": "b", "x-backing": {"path": "full.qcow2", "format": "qcow2"}, "auto-dismiss": true, "x-perf": {"max-workers": 1}}}'
	assert_equal "$status" 0
	device=drive0 event BLOCK_JOB_COMPLETED '{"device": "drive0", "len": 65536, "offset": 65536, "speed": 0, "type": "backup"}'
	same raw zero.img qcow2 inc.qcow2
}

@test "blockdev-backup: onto another drive, or a node that was added" {
	disks
	apply '{"execute": "blockdev-backup", "arguments": {"device": "drive0", "target": "drive1", "sync": "full", "job-id": "j"}}'
	assert_equal "$status" 0
	event BLOCK_JOB_COMPLETED '{"device": "j", "len": 1048576, "offset": 1048576, "speed": 0, "type": "backup"}'
	cmp zero.img one.img
	qemu-img create -q -f qcow2 t.qcow2 1M
	apply '{"execute": "blockdev-add", "arguments": {"node-name": "t", "driver": "qcow2", "file": {"driver": "file", "filename": "t.qcow2"}}}
		{"execute": "blockdev-backup", "arguments": {"device": "drive0", "target": "t", "sync": "incremental", "bitmap": "b"}}'
	assert_equal "$status" 0
	event BLOCK_JOB_COMPLETED '{"device": "drive0", "len": 131072, "offset": 131072, "speed": 0, "type": "backup"}'
	assert_equal "$(dirty zero.img b)" ''
	denied 'node-name=drive0 is conflicting with a device id' \
		'{"execute": "blockdev-add", "arguments": {"node-name": "drive0", "driver": "raw", "file": {"driver": "file", "filename": "one.img"}}}'
	denied "Could not open 'nosuch': No such file or directory" \
		'{"execute": "blockdev-add", "arguments": {"node-name": "x", "driver": "raw", "file": {"driver": "file", "filename": "nosuch"}}}'
}

@test "blockdev-add and blockdev-del: a node for one target after the other, as documentation has it" {
	disks
	local i node
	node='"driver": "qcow2", "file": {"driver": "file", "filename": "t%s.qcow2",},},}'
	for i in 0 1; do qemu-img create -q -f qcow2 t$i.qcow2 1M; done
	for i in 0 1; do
		printf -- '-> {"execute": "blockdev-add", "arguments": {"node-name": "target0", '"$node"$'\n<- { "return": {} }\n' $i
		echo '-> {"execute": "blockdev-backup", "arguments": {"device": "drive0", "target": "target0", "sync": "full",},}'
		echo '-> {"execute": "query-block"} -> {"execute": "query-named-block-nodes"}'
		printf -- '-> {\n"execute": "blockdev-del",\n"arguments": {\n"node-name": "target0",\n}\n}\n\n<- { "return": {} }\n...\n'
	done > in
	apply "$(cat in)"
	assert_equal "$status" 0
	assert_equal "$(jq -c 'select(.event | not) | .return | if type == "array" then map(.device // ."node-name") else . end' <<< "$output" |
		tr '\n' ' ')" '{} {} ["drive0","drive1"] ["target0","drive1","drive0"] {} {} {} ["drive0","drive1"] ["target0","drive1","drive0"] {} '
	same raw zero.img qcow2 t0.qcow2
	same raw zero.img qcow2 t1.qcow2
	denied "Failed to find node with node-name='drive0'" '{"execute": "blockdev-del", "arguments": {"node-name": "drive0"}}'
}

@test "two backups in one transaction, with a job's states" {
	disks
	apply "$(actions "$(action drive-backup '"device": "drive0", "target": "t0", "sync": "full"')" \
		"$(action drive-backup '"device": "drive1", "target": "t1", "sync": "full"')")" --job-events
	assert_equal "$status" 0
	assert_equal "$(jq -s 'map(select(.event == "BLOCK_JOB_COMPLETED").data.device) | sort | join(" ")' <<< "$output")" '"drive0 drive1"'
	assert_equal "$(jq -s 'map(select(.data.status == "created").data.id) | join(" ")' <<< "$output")" '"drive0 drive1"'
	cmp zero.img t0
	cmp one.img t1
}

# two MODE: incremental backups of both drives in one transaction; the target of drive0 has no room.
two() {
	disks
	bitmap-add one.img b > quiet.json
	bitmap-mark one.img b 0 64K > quiet.json
	tiny_fs small 4K
	apply "{\"actions\": [$(action drive-backup '"device": "drive0", "target": "small/t", "sync": "incremental", "bitmap": "b"'),
		$(action drive-backup '"device": "drive1", "target": "t", "sync": "incremental", "bitmap": "b"')],
		\"properties\": {\"completion-mode\": \"$1\"}}"
	refute [ -e small/t ]
	assert_equal "$(dirty zero.img b)" 0+131072
}

@test "individual: one job fails, the other does not, and the status says so" {
	two individual
	assert_equal "$status" 3
	assert_equal "$(dirty one.img b)" ''
	jq -se 'map(select(.event == "BLOCK_JOB_COMPLETED").data) | sort_by(.device) | .[0].error == "No space left on device" and
		(.[1] | has("error") | not)' <<< "$output"
}

@test "grouped: one job fails, and nothing has happened" {
	two grouped
	assert_equal "$status" 1
	assert_equal "$(dirty one.img b)" 0+65536
	refute [ -e t ]
	jq -se 'map(select(.event == "BLOCK_JOB_COMPLETED").data) | length == 1 and .[0].error == "No space left on device"' <<< "$output"
	jq -se 'map(select(.event == "BLOCK_JOB_CANCELLED").data.device) == ["drive1"]' <<< "$output"
}

@test "dry-run: what would be refused is refused, nothing changes" {
	disks
	local before
	before=$(state)
	printf '%s' "$(actions "$(action block-dirty-bitmap-clear '"node": "drive0", "name": "b"')" \
		"$(action drive-backup '"device": "drive0", "target": "t", "sync": "full"')")" > in
	ok txn-apply --dry-run "${drives[@]}" - < in
	printf '{"execute": "block-dirty-bitmap-clear", "arguments": {"node": "drive0", "name": "zz"}}' > in
	refused "Dirty bitmap 'zz' not found" txn-apply --dry-run "${drives[@]}" - < in
	rm in
	assert_equal "$(state)" "$before"
}

@test "--drive: commas doubled, a sidecar, a format; and what it is not" {
	truncate -s 1M 'a,b.img'
	printf '{"execute": "block-dirty-bitmap-add", "arguments": {"node": "x", "name": "n"}}' > in
	ok txn-apply --drive 'x=a,,b.img,sidecar=s,,1,format=raw' in
	[ -e s,1 ]
	refused "Duplicate ID 'x' for drive" txn-apply --drive 'x=a,,b.img' --drive x=in in
	refused "Unknown driver 'vmdk'" txn-apply --drive 'x=a,,b.img,format=vmdk' in
	local wrong
	for wrong in x x= =x 'x=a,b.img' 'x=a,,b.img,size=5' ''; do usage txn-apply --drive "$wrong" in; done
	usage txn-apply in in
}

@test "a stamp that moved: refused, unless told otherwise" {
	disks
	put zero.img 4096 <<< changed
	printf '{"execute": "block-dirty-bitmap-clear", "arguments": {"node": "drive0", "name": "b"}}' > in
	refused "Bitmap 'b' is inconsistent and cannot be used" txn-apply "${drives[@]}" in
	ok txn-apply --ignore-stamp "${drives[@]}" in
}

@test "where a bitmap is kept, and what QEMU would look at, is checked" {
	disks
	denied "Parameter 'x-store' does not accept value 'x'" \
		'{"execute": "block-dirty-bitmap-add", "arguments": {"node": "drive0", "name": "n", "x-store": "x"}}'
	denied "Can't store persistent bitmaps to drive0: Operation not supported" \
		'{"execute": "block-dirty-bitmap-add", "arguments": {"node": "drive0", "name": "n", "x-store": "image"}}'
	denied "Parameter 'x-backing.path' is missing" \
		'{"execute": "drive-backup", "arguments": {"device": "drive0", "target": "t", "sync": "full", "x-backing": {}}}'
	denied 'Could not create node: Node name too long' '{"execute": "drive-backup", "arguments": {"device": "drive0",
		"target": "t", "sync": "full", "filter-node-name": "n2345678901234567890123456789012"}}'
	denied "Capability 'oob' is not available: commands run one after another" \
		'{"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}}'
	denied "QMP input member 'exec-oob' is unexpected" '{"exec-oob": "query-block"}'
}

@test "an image in place of commands: it stops after the first errors" {
	noise 1M > disk.img
	unchanged attempt txn-apply --drive d=disk.img disk.img
	assert_equal "$status" 1
	assert_equal "$(grep -c '"error"' <<< "$output")" 16
	[[ $stderr == *'after 16 errors in a row nothing more is read: is this a file of QMP commands?'* ]] || fail "$stderr"
	# Errors that are not in a row do not end it.
	for _ in {1..40}; do
		printf '%s\n' '&' '{"execute": "query-block"}'
	done > mixed
	attempt txn-apply --drive d=disk.img mixed
	assert_equal "$status" 1
	assert_equal "$(grep -c '"error"' <<< "$output")" 40
	assert_equal "$(grep -c '"return"' <<< "$output")" 40
}

@test "JSON in place of commands: it stops after the first errors" {
	local line
	noise 1M > disk.img
	for line in '{}' '{"a": 1}' '[]' '1' '{"return": {}}' '{"execute": 1}' $'{}\n&' '{"type": "abort", "data": {}}'; do
		for _ in {1..100}; do
			echo "$line"
		done > many
		attempt txn-apply --drive d=disk.img many
		assert_equal "$status" 1
		assert_equal "$(grep -c '"error"' <<< "$output")" 16
	done
	# A transaction that is too long is refused once, and what remains of it is no command.
	python3 -c 'print("{\"actions\": [" + ",".join(["{}"] * 3000000) + "]}")' > many
	attempt txn-apply --drive d=disk.img many
	assert_equal "$status" 1
	assert_equal "$(grep -c '"error"' <<< "$output")" 16
	# A client may ask for commands that only QEMU has, and for known ones with wrong arguments.
	for _ in {1..40}; do
		echo '{"execute": "query-status"}'
	done > many
	attempt txn-apply --drive d=disk.img many
	assert_equal "$(grep -c CommandNotFound <<< "$output")" 40
	for _ in {1..40}; do
		echo '{"execute": "block-dirty-bitmap-add", "arguments": {}}'
	done > many
	attempt txn-apply --drive d=disk.img many
	assert_equal "$(grep -c '"error"' <<< "$output")" 40
}

# compares ACTION N: how many comparisons a transaction with N of these actions needs, each for another bitmap of disk.img.
compares() {
	python3 - "$@" > many.json <<- 'PY'
		import json, sys
		actions = [{"type": sys.argv[1], "data": {"node": "disk", "name": f"b{i}"}} for i in range(int(sys.argv[2]))]
		print(json.dumps({"actions": actions}))
	PY
	COMPARES=$PWD/compares LD_PRELOAD=$BUILD/helpers/compares.so txn-apply --drive disk=disk.img many.json > out.json || return
	[ "$(cat out.json)" = '{"return": {}}' ] || return
	cat compares
}

@test "a transaction of 65,535 bitmaps takes four times the work of one of 16,383" {
	! grep -q __asan_init "$BUILD/lib/libtidemark.so" || skip 'a preload library cannot stand before that of the sanitizer'
	[ "$(head -c 2 "$BUILD/bin/txn-apply")" != '#!' ] || skip 'valgrind compares as well'
	local action few many
	mkdir few many
	truncate -s 1M few/disk.img many/disk.img
	for action in add clear disable remove; do
		few=$(cd few && compares block-dirty-bitmap-$action 16383)
		many=$(cd many && compares block-dirty-bitmap-$action 65535)
		echo "$action: $few, $many"
		((few > 16383 && many < 6 * few))
	done
}

@test "one image under two names of a transaction is named, not another process" {
	truncate -s 1M disk.img
	ok bitmap-add -f raw disk.img b
	ln -s disk.img link.img
	cat > two.json <<- 'J'
		{"execute": "transaction", "arguments": {"actions": [
		 {"type": "block-dirty-bitmap-clear", "data": {"node": "x", "name": "b"}},
		 {"type": "block-dirty-bitmap-disable", "data": {"node": "y", "name": "b"}}]}}
	J
	refused_like "^'x' and 'y' are the same image, 'disk.img'$" \
		txn-apply --drive x=disk.img --drive y=disk.img two.json
	refused_like "^'x' and 'y' are the same image, " txn-apply --drive x=disk.img --drive y=link.img two.json
	[[ $stderr == *"give the image one name"* ]]
	assert_equal "$(bitmap-list --output=json disk.img | jq -c '.return[0].recording')" true
}
