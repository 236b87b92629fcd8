#!/usr/bin/env bats
# Names in images: those that are followed, those that need --allow-backing, and names that the user gives.

load helper

# overlay FILE BACKING FORMAT: with that name, whether it leads anywhere or not.
overlay() {
	qemu-img create -q -f qcow2 -u -b "$2" -F "$3" "$1" 1M
}

# no_format FILE: the extension that names the backing format becomes one that nobody knows.
no_format() {
	assert_equal "$(od -An -tx1 -j 112 -N 4 "$1" | tr -d ' \n')" e2792aca
	printf '\x12\x34\x56\x78' | put "$1" 112
}

# reads OPTION... FILE: it can be opened and holds what secret.img holds; without the option it cannot.
reads() {
	rm -f flat.img
	done_ chain-restore "$@" flat.img
	cmp flat.img secret.img
	rm flat.img
}

# not_without WORD FILE: refused, naming the image, the name, and the way on; the way on works.
not_without() {
	unchanged refused_like "$(basename "$2")" chain-restore "$2" flat.img
	[[ $stderr == *"--allow-backing=$1"* ]] || fail "no way on: $stderr"
	reads "--allow-backing=$1" "$2"
	reads --allow-backing=any "$2"
	reads --allow-backing outside,probe,protocol "$2"
}

# lines_up: a directory vm with images, and a file beside it that they must not reach.
lines_up() {
	raw secret.img 1M
	mkdir -p vm/below
	cp secret.img vm/base.img
	cp secret.img vm/below/base.img
}

@test "in the directory and below it" {
	lines_up
	overlay vm/a.qcow2 base.img raw
	reads vm/a.qcow2
	overlay vm/b.qcow2 below/base.img raw
	reads vm/b.qcow2
	overlay vm/c.qcow2 ./below/../base.img raw
	reads vm/c.qcow2
	overlay vm/d.qcow2 "$PWD/vm/base.img" raw
	reads vm/d.qcow2
	ln -s base.img vm/link.img
	overlay vm/e.qcow2 link.img raw
	reads vm/e.qcow2
	# The image is where its file is, not where a link to it is.
	ln -s vm/a.qcow2 here.qcow2
	reads here.qcow2
	cd vm
	done_ chain-restore a.qcow2 flat.img
	cmp flat.img base.img
}

@test "outside: absolute, upwards, through links" {
	lines_up
	overlay vm/a.qcow2 "$PWD/secret.img" raw
	not_without outside vm/a.qcow2
	overlay vm/b.qcow2 ../secret.img raw
	not_without outside vm/b.qcow2
	ln -s ../secret.img vm/link.img
	overlay vm/c.qcow2 link.img raw
	not_without outside vm/c.qcow2
	ln -s .. vm/up
	overlay vm/d.qcow2 up/secret.img raw
	not_without outside vm/d.qcow2
	# A directory whose name begins like this one's is another one.
	mkdir vmx
	cp secret.img vmx/base.img
	overlay vm/e.qcow2 ../vmx/base.img raw
	not_without outside vm/e.qcow2
	overlay vm/below/f.qcow2 ../base.img raw
	not_without outside vm/below/f.qcow2
	for o in protocol probe protocol,probe; do
		refused_like 'outside' chain-restore --allow-backing=$o vm/a.qcow2 flat.img
	done
}

@test "whether a file outside is there is not told" {
	mkdir vm
	local name
	for name in /nosuch/file /etc/nosuch ../nosuch ../nosuch/x x/../../../nosuch; do
		overlay vm/a.qcow2 "$name" raw
		refused_like "names lies outside" image-info --output=json vm/a.qcow2
		refused_like "No such file" image-info --output=json --allow-backing=outside vm/a.qcow2
	done
	overlay vm/a.qcow2 nosuch raw
	refused_like "No such file" image-info --output=json vm/a.qcow2
}

@test "each image of a chain is judged where it is" {
	lines_up
	overlay vm/below/mid.qcow2 ../base.img raw
	overlay vm/top.qcow2 below/mid.qcow2 qcow2
	not_without outside vm/top.qcow2
	overlay vm/below/mid.qcow2 base.img raw
	reads vm/top.qcow2
}

@test "protocols and json: names" {
	lines_up
	local n=0 name
	for name in file:base.img "file:$PWD/vm/base.img" \
		'json:{"driver": "raw", "file": {"driver": "file", "filename": "base.img"}}' \
		'json:{"driver":"raw","file.driver":"file","file.filename":"base.img"}' \
		'json:{"driver":"file","filename":"base.img"}' \
		'json:{"file.filename":"base.img"}' \
		"json:{'driver':'raw','file':{'driver':'file','filename':'base.img'}}" \
		'json:{"driver":"raw","node-name":"n0","read-only":true,"file":{"driver":"file","filename":"base.img","locking":"off"}}'; do
		overlay "vm/$((n += 1)).qcow2" "$name" raw
		not_without protocol "vm/$n.qcow2"
	done
	# What is inside is judged like any other name.
	overlay vm/o.qcow2 'json:{"driver":"raw","file":{"driver":"file","filename":"../secret.img"}}' raw
	refused_like outside chain-restore --allow-backing=protocol vm/o.qcow2 flat.img
	reads --allow-backing=protocol,outside vm/o.qcow2
	done_ image-info --output=json --allow-backing=any vm/o.qcow2
	jq -e '.return."full-backing-filename" == "vm/../secret.img"' <<< "$output"
}

@test "QEMU reads the same through json: names" {
	qcow2 base.qcow2 1M
	qemu-io -f qcow2 -c 'write -P 7 64k 64k' base.qcow2
	overlay a.qcow2 'json:{"driver":"qcow2","file":{"driver":"file","filename":"base.qcow2"}}' qcow2
	done_ chain-restore --allow-backing=protocol a.qcow2 flat.img
	qemu-img convert -f qcow2 -O raw a.qcow2 judge.img
	cmp flat.img judge.img
}

@test "names that are not understood are refused by what they need" {
	lines_up
	# like WORDS NAME
	like() {
		overlay vm/a.qcow2 "$2" raw
		refused_like "$1" chain-restore --allow-backing=any vm/a.qcow2 flat.img
		[ ! -e flat.img ]
	}
	like 'not the URI of an NBD export' nbd:localhost:1
	like "driver 'http'" http://localhost:1/x
	like "driver 'nbd'" 'json:{"driver":"raw","file":{"driver":"nbd","host":"localhost","port":"1"}}'
	like "driver 'vmdk'" 'json:{"driver":"vmdk","file":{"driver":"file","filename":"base.img"}}'
	like "option 'offset'" 'json:{"driver":"raw","offset":512,"file":{"driver":"file","filename":"base.img"}}'
	like "option 'backing'" 'json:{"driver":"qcow2","backing":null,"file":{"driver":"file","filename":"base.img"}}'
	like "'file' is not an object" 'json:{"driver":"raw","file":"node0"}'
	like 'no file name' 'json:{"driver":"raw"}'
	like 'not an object' 'json:[]'
	like "'filename' is not a string" 'json:{"driver":"file","filename":1}'
	like 'given twice' 'json:{"filename":"base.img","file.filename":"base.img"}'
	like "specifies format 'qcow2', but 'raw' is recorded" 'json:{"driver":"qcow2","file":{"driver":"file","filename":"base.img"}}'
	like 'vm/a.qcow2' 'json:{"driver":'
}

@test "probe" {
	lines_up
	overlay vm/a.qcow2 base.img raw
	no_format vm/a.qcow2
	not_without probe vm/a.qcow2
	qemu-img convert -f raw -O qcow2 secret.img vm/base.qcow2
	overlay vm/b.qcow2 base.qcow2 qcow2
	no_format vm/b.qcow2
	not_without probe vm/b.qcow2
	# What a guest has written into its raw disk names a file of the host: judged as any name.
	overlay vm/evil.img ../secret.img raw
	overlay vm/c.qcow2 evil.img raw
	no_format vm/c.qcow2
	refused_like outside chain-restore --allow-backing=probe vm/c.qcow2 flat.img
}

@test "every command that opens a chain" {
	lines_up
	overlay vm/a.qcow2 ../secret.img raw
	qemu-img create -q -f qcow2 target.qcow2 1M
	local all=(--allow-backing=outside)
	# both CMD ARG...: refused without the option, done with it.
	both() {
		refused_like outside "$@"
		done_ "$1" "${all[@]}" "${@:2}"
	}
	# A bitmap does not depend on backing images, and what opens none may name any.
	ok bitmap-add vm/a.qcow2 b
	ok bitmap-disable vm/a.qcow2 b
	ok bitmap-enable "${all[@]}" vm/a.qcow2 b
	both image-write --pattern 7 vm/a.qcow2 0 64K
	done_ bitmap-list --output=json vm/a.qcow2
	done_ bitmap-dump --output=json vm/a.qcow2 b
	ok bitmap-mark vm/a.qcow2 b 64K 64K
	ok bitmap-add vm/a.qcow2 c
	ok bitmap-merge vm/a.qcow2 c b
	raw disk.img 1M
	done_ bitmap-add disk.img d
	ok bitmap-merge disk.img d vm/a.qcow2#b
	both backup-run --sync incremental --bitmap b -F qcow2 vm/a.qcow2 vm/inc.qcow2
	both bitmap-rescan --against disk.img vm/a.qcow2 b
	ok bitmap-clear vm/a.qcow2 b
	ok bitmap-remove vm/a.qcow2 b
	both image-create -f qcow2 -b a.qcow2 -F qcow2 vm/over.qcow2
	both backup-run --sync full --mode existing -F qcow2 disk.img vm/over.qcow2
	local query='{"execute": "query-block"}'
	attempt txn-apply --drive a=vm/a.qcow2 - <<< "$query"
	assert_equal "$status" 1
	done_ txn-apply "${all[@]}" --drive a=vm/a.qcow2 - <<< "$query"
	local add='{"execute": "blockdev-add", "arguments": {"driver": "qcow2", "node-name": "a",
		"file": {"driver": "file", "filename": "vm/a.qcow2"}}}
		{"execute": "query-named-block-nodes"}'
	attempt txn-apply - <<< "$add"
	assert_equal "$status" 1
	done_ txn-apply "${all[@]}" - <<< "$add"
}

@test "what a person names may be anywhere, and leads to a warning" {
	mkdir full inc
	raw disk.img 1M
	ok bitmap-add disk.img b
	done_ backup-run -F qcow2 disk.img full/full.qcow2
	[ -z "$stderr" ]
	ok image-write --pattern 9 disk.img 0 64K
	done_ backup-run --sync incremental --bitmap b -F qcow2 --backing full/full.qcow2 disk.img inc/inc.qcow2
	[[ $stderr == *inc/inc.qcow2*warning*--allow-backing=outside* ]] || fail "$stderr"
	refused_like outside chain-restore inc/inc.qcow2 flat.img
	done_ chain-restore --allow-backing=outside inc/inc.qcow2 flat.img
	cmp flat.img disk.img
	# An increment on the increment: the new one names a neighbour, the neighbour does not.
	ok image-write --pattern 8 disk.img 128K 64K
	refused_like outside backup-run --sync incremental --bitmap b -F qcow2 --backing inc/inc.qcow2 disk.img inc/inc2.qcow2
	[ ! -e inc/inc2.qcow2 ]
	done_ backup-run --sync incremental --bitmap b -F qcow2 --allow-backing=outside --backing inc/inc.qcow2 disk.img inc/inc2.qcow2
	[ -z "$stderr" ]
	rm flat.img
	done_ chain-restore --allow-backing=outside inc/inc2.qcow2 flat.img
	cmp flat.img disk.img
	# sync top makes an overlay of the source's backing image.
	overlay full/disk.qcow2 full.qcow2 qcow2
	done_ backup-run --sync top -F qcow2 full/disk.qcow2 inc/top.qcow2
	[[ $stderr == *inc/top.qcow2*--allow-backing=outside* ]] || fail "$stderr"
	done_ image-create -f qcow2 -b ../full/full.qcow2 -F qcow2 inc/new.qcow2
	[[ $stderr == *inc/new.qcow2*--allow-backing=outside* ]] || fail "$stderr"
	done_ image-create -q -f qcow2 -b ../full/full.qcow2 -F qcow2 inc/new2.qcow2
	[ -z "$stderr" ]
	done_ image-create -f qcow2 -b full.qcow2 -F qcow2 full/new.qcow2
	[ -z "$stderr" ]
}

@test "words that are not accepted" {
	raw disk.img 1M
	local word
	for word in '' all 'outside,' ',outside' 'outside,,' 'outside probe' OUTSIDE 'outside|probe'; do
		usage image-info "--allow-backing=$word" disk.img
	done
	usage image-info --allow-backing
}
