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
	done_ backup-run --sync incremental --bitmap b -F qcow2 --backing s/full/f.qcow2 disk.img s/inc/deep/j.qcow2
	done_ backup-run --sync incremental --bitmap b -F qcow2 --backing s/full/f.qcow2 disk.img k.qcow2
	done_ backup-run --sync incremental --bitmap b -F qcow2 --backing s/full/f.qcow2 disk.img s/full/l.qcow2
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
