#!/usr/bin/env bats
# Names in images and names of targets: each leads to one file, or to none.
# shellcheck disable=SC2030,SC2031,SC2154

load helper

# X and Y: directories with the same names in them, and different content.
setup_dirs() {
	local d
	mkdir X Y
	for d in X Y; do
		noise 1M > $d/base.raw
		printf '%s%s%s' $d $d $d | put $d/base.raw 0
	done
	qemu-img create -q -f qcow2 -b base.raw -F raw Y/ov.qcow2 1M
}

# reads DIR FILE: what a backup of the image in FILE has is the content of this directory's base image.
reads() {
	rm -f copy.img
	done_ backup-run -q --allow-backing=any -F raw "$2" copy.img
	cmp copy.img "$1/base.raw"
}

@test "a symbolic link to an image with a relative backing name" {
	setup_dirs
	ln -s ../Y/ov.qcow2 X/ov.qcow2
	unchanged refused_like "could be '.*Y/base.raw' or '.*X/base.raw'" \
		backup-run -q --allow-backing=any -F raw X/ov.qcow2 copy.img
	unchanged refused_like "could be '.*Y/base.raw' or '.*X/base.raw'" chain-restore X/ov.qcow2 copy.img
	reads Y Y/ov.qcow2
	# One file, under both names or under one of them.
	mkdir Z
	ln -s ../Y/ov.qcow2 Z/ov.qcow2
	reads Y Z/ov.qcow2
	run -0 image-info Z/ov.qcow2
	[[ $output == *"(actual path: "*"Y/base.raw)"* ]]
	ln -s ../Y/base.raw Z/base.raw
	reads Y Z/ov.qcow2
	ln -s Y W
	reads Y W/ov.qcow2
	run -0 image-info W/ov.qcow2
	[[ $output == *"(actual path: W/base.raw)"* ]]
	# The link is that of a backing image.
	qemu-img create -q -f qcow2 -b X/ov.qcow2 -F qcow2 top.qcow2
	unchanged refused_like "could be '.*Y/base.raw' or '.*X/base.raw'" backup-run --allow-backing=any -F raw top.qcow2 copy.img
}

@test "file: and json: names are relative to the current directory, as in QEMU" {
	local name
	setup_dirs
	for name in 'file:base.raw' 'json:{"driver":"raw","file":{"driver":"file","filename":"base.raw"}}'; do
		qemu-img rebase -u -f qcow2 -b "$name" -F raw Y/ov.qcow2
		cd X
		unchanged refused_like "could be '.*Y/base.raw' or 'base.raw'" backup-run --allow-backing=any -F raw ../Y/ov.qcow2 copy.img
		cd ../Y
		done_ backup-run --allow-backing=any -F raw ov.qcow2 ../copy.img
		cd ..
		cmp copy.img Y/base.raw
		rm copy.img
		mv Y/base.raw kept
		cd X
		unchanged refused_like 'outside' backup-run --allow-backing=protocol -F raw ../Y/ov.qcow2 copy.img
		done_ backup-run --allow-backing=any -F raw ../Y/ov.qcow2 ../copy.img
		cmp ../copy.img base.raw
		cd ..
		mv kept Y/base.raw
		rm copy.img
	done
}

@test "a backing name is stored relative to the target" {
	mkdir -p s/full s/inc s/inc/deep
	noise 1M > disk.img
	ok bitmap-add disk.img b
	done_ backup-run -F qcow2 --bitmap b --bitmap-mode on-success disk.img s/full/f.qcow2
	done_ backup-run --sync incremental --bitmap b -F qcow2 --backing s/full/f.qcow2 disk.img s/inc/i.qcow2
	done_ backup-run --sync incremental --bitmap b --allow-base=other -F qcow2 --backing s/full/f.qcow2 disk.img s/inc/deep/j.qcow2
	done_ backup-run --sync incremental --bitmap b --allow-base=other -F qcow2 --backing s/full/f.qcow2 disk.img k.qcow2
	done_ backup-run --sync incremental --bitmap b --allow-base=other -F qcow2 --backing s/full/f.qcow2 disk.img s/full/l.qcow2
	assert_equal "$(qemu-img info --output=json s/inc/i.qcow2 | jq -r '."backing-filename"')" ../full/f.qcow2
	assert_equal "$(qemu-img info --output=json s/inc/deep/j.qcow2 | jq -r '."backing-filename"')" ../../full/f.qcow2
	assert_equal "$(qemu-img info --output=json k.qcow2 | jq -r '."backing-filename"')" s/full/f.qcow2
	assert_equal "$(qemu-img info --output=json s/full/l.qcow2 | jq -r '."backing-filename"')" f.qcow2
	mv s moved
	for i in moved/inc/i.qcow2 moved/inc/deep/j.qcow2 moved/full/l.qcow2; do
		done_ chain-restore --overwrite --allow-backing=outside $i out.img
		cmp disk.img out.img
	done
}

@test "targets that are no files" {
	noise 1M > disk.img
	done_ backup-run -F qcow2 disk.img full.qcow2
	unchanged refused_like "standard output" backup-run disk.img -
	unchanged refused_like "standard output" chain-restore full.qcow2 -
	unchanged refused_like "standard output" image-create -f qcow2 - 1M
	done_ chain-restore full.qcow2 ./-
	cmp disk.img ./-
	ln -s nowhere/image.img link.img
	unchanged refused_like "is a symbolic link that leads to no file" backup-run disk.img link.img
	unchanged refused_like "is a symbolic link that leads to no file" chain-restore full.qcow2 link.img
	unchanged refused_like "is a symbolic link that leads to no file" chain-restore --overwrite full.qcow2 link.img
	unchanged refused_like "is a symbolic link that leads to no file" image-create -f raw link.img 1M
	unchanged refused_like "it would be a regular file in /dev" chain-restore --overwrite full.qcow2 /dev/tidemark-no-such-device
	unchanged refused_like "it would be a regular file in /dev" backup-run disk.img /dev/tidemark-no-such-device
	[ ! -e /dev/tidemark-no-such-device ]
}

@test "sidecars that are no files" {
	noise 1M > disk.img
	ln -s /dev devices
	unchanged refused_like "a sidecar cannot be written to standard output" bitmap-add --sidecar - disk.img b
	for s in /dev/tidemark-no-such-device devices/tidemark-no-such-device; do
		unchanged refused_like "'$s': it would be a regular file in /dev" bitmap-add --sidecar $s disk.img b
	done
	[ ! -e /dev/tidemark-no-such-device ]
	ok bitmap-add --sidecar ./- disk.img b
	unchanged refused_like "a sidecar cannot be written to standard output" bitmap-add --sidecar - disk.img c
	ok bitmap-add --sidecar ./- disk.img c
	ok bitmap-add --sidecar /dev/shm/tidemark-$$ disk.img b
	rm /dev/shm/tidemark-$$
}

@test "a backing name that begins like a protocol" {
	noise 1M > disk.img
	mkdir sub
	ok bitmap-add disk.img b
	done_ backup-run --bitmap b --bitmap-mode on-success -F qcow2 disk.img ./sub/a:b.qcow2
	ok image-write --pattern 7 disk.img 0 64K
	done_ backup-run --sync bitmap --bitmap-mode never --bitmap b -F qcow2 --backing ./sub/a:b.qcow2 disk.img sub/i.qcow2
	assert_equal "$(qemu-img info --output json sub/i.qcow2 | jq -r '."backing-filename"')" ./a:b.qcow2
	done_ backup-run --sync bitmap --bitmap-mode never --bitmap b -F qcow2 --backing ./sub/a:b.qcow2 disk.img j.qcow2
	assert_equal "$(qemu-img info --output json j.qcow2 | jq -r '."backing-filename"')" ./sub/a:b.qcow2
	done_ backup-run --sync top -F qcow2 sub/i.qcow2 sub/top.qcow2
	assert_equal "$(qemu-img info --output json sub/top.qcow2 | jq -r '."backing-filename"')" ./a:b.qcow2
	for f in sub/i.qcow2 j.qcow2 sub/top.qcow2; do
		done_ chain-restore --overwrite $f out.img
		cmp out.img disk.img
	done
}

# chained IMAGE FORMAT STORE: all commands work on it, and the last backup restores to it.
chained() {
	local to
	ok bitmap-add --store "$3" "$1" b
	ok bitmap-add --store "$3" "$1" c
	ok image-write --pattern 0x11 "$1" 0 64K
	ok bitmap-merge "$1" c b
	ok bitmap-clear "$1" b
	done_ backup-run -q --sync auto --store "$3" --bitmap a -F qcow2 "$1" t0.qcow2
	ok image-write --pattern 0x12 "$1" 64K 64K
	done_ backup-run -q --sync auto --store "$3" --bitmap a -F qcow2 --backing t0.qcow2 "$1" t1.qcow2
	cat > group.json <<- J
		{"properties": {"completion-mode": "grouped"}, "actions": [
		 {"type": "block-dirty-bitmap-clear", "data": {"node": "d", "name": "c"}},
		 {"type": "block-dirty-bitmap-clear", "data": {"node": "e", "name": "b"}},
		 {"type": "drive-backup", "data": {"device": "d", "sync": "bitmap", "bitmap": "b", "bitmap-mode": "on-success",
		  "format": "qcow2", "target": "t2.qcow2", "x-backing": {"path": "t1.qcow2"}}}]}
	J
	[ -e other.img ] || { raw other.img 1M && ok bitmap-add other.img b; }
	done_ txn-apply -q --drive "d=$1" --drive e=other.img group.json
	to=$(printf 'z%.0s' {1..249}).qcow2
	done_ chain-restore -q -F "$2" t2.qcow2 "$to"
	done_ qemu-img compare -f "$2" -F "$2" "$1" "$to"
	done_ chain-info "$to"
	ok bitmap-disable "$1" c
	ok bitmap-remove "$1" c
	rm -f t?.qcow2 "$to"
}

@test "names as long as the file system permits" {
	local n name
	for n in 230 239 240 241 243 244 247; do
		name=$(printf "%0$((n - 4))d" 0).img
		raw "$name" 1M
		chained "$name" raw sidecar
		rm "$name"*
		assert_equal "$(find . -name '.tidemark-*' | wc -l)" 0
	done
	# No room for the sidecar's name: what needs none works, and the rest changes nothing.
	for n in 248 255; do
		name=$(printf "%0$((n - 4))d" 0).img
		raw "$name" 1M
		unchanged refused_like 'File name too long' bitmap-add "$name" b
		[[ $stderr == *'--sidecar PATH'* ]]
		unchanged refused_like 'File name too long' backup-run --sync auto --bitmap b -F qcow2 "$name" t.qcow2
		unchanged refused "Dirty bitmap 'b' not found" bitmap-clear "$name" b
		done_ bitmap-list "$name"
		done_ image-info "$name"
		ok image-write --pattern 0x11 "$name" 0 64K
		done_ backup-run -q -F qcow2 "$name" t.qcow2
		done_ chain-restore -q -F raw --in-place t.qcow2 "$name"
		ok bitmap-add --sidecar short "$name" b
		ok image-write --sidecar short --pattern 0x12 "$name" 0 64K
		list_with --sidecar short
		bitmap "$name" b '.count == 65536'
		rm "$name" short* t.qcow2
		list_with
		name=${name%.img}.qcow2
		name=${name#00}
		qemu-img create -q -f qcow2 "$name" 1M
		chained "$name" qcow2 image
		rm "$name"*
	done
}

@test "a long name and a death between the log and the bitmaps" {
	local name n died=0
	name=$(printf '%0240d' 0).img
	for n in {1..9}; do
		rm -f "$name"* .tidemark-*
		raw "$name" 1M
		ok bitmap-add "$name" b
		cp "$name" before
		run strace -qq -o /dev/null -e trace=pwrite64 -e "inject=pwrite64:signal=KILL:when=$n" \
			image-write --pattern 1 "$name" 0 64K
		[ "$status" -eq 137 ] && compgen -G '.tidemark-*.log' > /dev/null || continue
		died=$((died + 1))
		cmp -s before "$name" || bitmap "$name" b '.count == 65536'
		ok bitmap-enable "$name" b
		cmp -s before "$name" || bitmap "$name" b '.count == 65536'
		compgen -G '.tidemark-*.log' && fail 'the log has not been added'
	done
	[ $died -gt 0 ]
}

@test "a name whose sidecar pins another format" {
	noise 1M > disk.img
	noise 1M 2 > target.img
	ok bitmap-add target.img t
	unchanged refused_like "its sidecar pins the format 'raw', and the new image is 'qcow2'" \
		backup-run -F qcow2 disk.img target.img
	rm target.img
	unchanged refused_like "its sidecar pins the format 'raw', and the new image is 'qcow2'" \
		image-create -f qcow2 target.img 1M
	done_ backup-run -F raw disk.img target.img
	cmp disk.img target.img
}
