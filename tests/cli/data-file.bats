#!/usr/bin/env bats
# qcow2 images with an external data file: finding that file, and treating the two files as one image.

load helper

# disk FILE DATA [OPTIONS]: an image of 1 MiB over a data file, with something in it.
disk() {
	qemu-img create -q -f qcow2 -o "data_file=$2${3:+,$3}" "$1" 1M
	noise 100K > content
	qemu-io -f qcow2 -c 'write -q -s content 0 100K' -c 'write -q -s content 500K 100K' "$1"
}

@test "the data file is looked for beside the image" {
	mkdir images elsewhere
	cd images
	disk disk.qcow2 disk.data
	qemu-img convert -f qcow2 -O raw disk.qcow2 ../expected
	cd ../elsewhere
	ok bitmap-add -f qcow2 ../images/disk.qcow2 b
	done_ backup-run -q -F raw ../images/disk.qcow2 full.raw
	cmp full.raw ../expected
	ok image-write --pattern 7 ../images/disk.qcow2 200K 1
	done_ backup-run -q --sync incremental --bitmap b -F raw --mode existing ../images/disk.qcow2 full.raw
	assert_equal "$(byte full.raw $((200 * 1024)))" 07
	assert_equal "$(byte ../images/disk.data $((200 * 1024)))" 07
	# QEMU, started here, would take this one.
	raw disk.data 1M
	rm full.raw
	unchanged refused_like "The data file 'disk.data' could be '.*/images/disk.data' or the one in the current directory" \
		backup-run -F raw ../images/disk.qcow2 full.raw
	[[ $stderr == *'qemu-img amend -o data_file=PATH'* ]]
	(cd ../images && qemu-img amend -f qcow2 -o "data_file=$PWD/disk.data" disk.qcow2)
	done_ backup-run -q -F raw ../images/disk.qcow2 full.raw
	assert_equal "$(byte full.raw $((200 * 1024)))" 07
}

@test "image-info names it, as qemu-img does" {
	disk disk.qcow2 disk.data
	disk raw.qcow2 raw.data data_file_raw=on
	local image
	for image in disk raw; do
		qemu-img info --output=json "$image.qcow2" > theirs
		done_ image-info --output=json "$image.qcow2"
		assert_equal "$(jq -S '.return."format-specific".data' <<< "$output")" "$(jq -S '."format-specific".data' theirs)"
	done
	done_ image-info raw.qcow2
	assert_line '    data file: raw.data'
	assert_line '    data file raw: true'
}

@test "without its data file an image is refused" {
	disk disk.qcow2 disk.data
	mv disk.data away
	unchanged refused_like "Could not open 'disk.qcow2': Could not open '.*/disk.data': No such file or directory" \
		backup-run disk.qcow2 copy.raw
	unchanged refused_like 'No such file or directory' image-write --pattern 1 disk.qcow2 0 1
	mkfifo disk.data
	unchanged refused_like 'disk.data.*Neither a regular file nor a block device' timeout 10 backup-run disk.qcow2 copy.raw
	rm disk.data
	mkdir disk.data
	unchanged refused_like 'disk.data' backup-run disk.qcow2 copy.raw
	rmdir disk.data
	ln -s disk.qcow2 disk.data
	unchanged refused_like 'names itself as its external data file' backup-run disk.qcow2 copy.raw
	unchanged refused_like 'names itself as its external data file' image-write --pattern 1 disk.qcow2 0 1
	rm disk.data
	mv away disk.data
	done_ backup-run disk.qcow2 copy.raw
}

@test "a name that is more than a path is not followed" {
	disk disk.qcow2 disk.data
	local name
	for name in 'json:{"driver":"file","filename":"disk.data"}' nbd://localhost/x fat:rw:/tmp; do
		python3 - "$name" << 'PY'
import sys
image, name = bytearray(open("disk.qcow2", "rb").read()), sys.argv[1].encode()
assert image[112:116] == b"DATA"
rest = image[128:1024]
image[112:1024] = (b"DATA" + len(name).to_bytes(4, "big") + name + bytes(-len(name) % 8) + rest)[:912]
open("bad.qcow2", "wb").write(image)
PY
		unchanged refused_like 'The data file .* names is not a plain path' \
			backup-run bad.qcow2 copy.raw
	done
}

@test "a write to the data file alone takes the trust" {
	local how stamp
	disk disk.qcow2 disk.data
	ok bitmap-add -f qcow2 disk.qcow2 b
	ok image-write --pattern 1 disk.qcow2 0 1000
	bitmap disk.qcow2 b 'has("inconsistent") | not'
	cp --preserve=all disk.data kept.data
	cp --preserve=all disk.qcow2 kept.qcow2
	stamp=$(stat -c %y disk.data)
	for how in "qemu-io -f qcow2 -c 'write -q -P 3 0 512' disk.qcow2" 'noise 1 | put disk.data 5' 'touch disk.data' \
		'touch disk.qcow2' 'truncate -s 2M disk.data' "touch -d '$stamp - 1 second' disk.data"; do
		eval "$how"
		bitmap disk.qcow2 b '.inconsistent == true'
		unchanged refused "Bitmap 'b' is inconsistent and cannot be used" \
			backup-run --sync incremental --bitmap b disk.qcow2 copy.raw
		cp --preserve=all kept.data disk.data
		cp --preserve=all kept.qcow2 disk.qcow2
		bitmap disk.qcow2 b 'has("inconsistent") | not'
	done
}

@test "a change of the data file during a backup is noticed" {
	disk disk.qcow2 disk.data
	ok bitmap-add disk.qcow2 b
	ok bitmap-mark disk.qcow2 b 0 1M
	start backup-run --speed 256K --sync incremental --bitmap b -F raw disk.qcow2 copy.raw
	eventually is_busy disk.qcow2 b
	touch disk.data
	finish
	assert_equal "$status" 1
	[[ $stderr == *'was changed by another program while it was read'* ]]
	[ ! -e copy.raw ]
}

@test "the data file is locked with its image" {
	disk disk.qcow2 disk.data data_file_raw=on
	local locked='Failed to get (shared )?"(write|resize)" lock'
	serve raw disk.data
	unchanged refused_like "$locked" backup-run disk.qcow2 copy.raw
	unchanged refused_like "$locked" image-write --pattern 1 disk.qcow2 0 1
	unchanged done_ image-info -U disk.qcow2
	served_no_more
	serve qcow2 disk.qcow2
	unchanged refused_like "$locked" backup-run -f raw disk.data copy.raw
	served_no_more
	# The disk must not be overwritten by its own backup.
	unchanged refused_like "$locked" backup-run --overwrite -F raw disk.qcow2 disk.data
	unchanged refused_like "$locked" backup-run --mode existing -F raw disk.qcow2 disk.data
	ok bitmap-add disk.qcow2 b
	ok bitmap-mark disk.qcow2 b 0 1M
	start backup-run --speed 256K --sync incremental --bitmap b -F raw disk.qcow2 copy.raw
	eventually is_busy disk.qcow2 b
	run -1 qemu-io -f raw -c 'write 0 512' disk.data
	[[ $output == *lock* ]]
	finish
	assert_equal "$status" 0
}

@test "a raw data file stays the disk by itself" {
	disk disk.qcow2 disk.data data_file_raw=on
	ok image-write -f qcow2 --pattern 0x5a disk.qcow2 1000 70000
	ok image-write -f qcow2 --zero disk.qcow2 130K 200K
	ok image-write -f qcow2 --discard disk.qcow2 512K 128K
	clean disk.qcow2
	same qcow2 disk.qcow2 raw disk.data
	done_ image-info disk.qcow2
	assert_line '    data file raw: true'
	# Space is given back.
	local before
	ok image-write -f qcow2 --pattern 1 disk.qcow2 0 1M
	before=$(stat -c %b disk.data)
	ok image-write -f qcow2 --discard disk.qcow2 0 1M
	(($(stat -c %b disk.data) < before))
	same qcow2 disk.qcow2 raw disk.data
}

@test "internal snapshots and an external data file: nobody knows what to write" {
	disk disk.qcow2 disk.data
	python3 -c 'import sys; sys.stdout.buffer.write(bytes.fromhex(sys.argv[1]))' 000000010000000000000000 | put disk.qcow2 60
	unchanged refused_like 'internal snapshots and an external data file' image-write --pattern 1 disk.qcow2 0 1
}

# What qemu-img says of the image x.qcow2, its size in the file system apart.
described() {
	qemu-img info --output=json x.qcow2 | jq -S 'del(."actual-size")'
	stat -c %s x.data
}

@test "image-create makes both, or none" {
	local settings
	for settings in '' ,data_file_raw=on ,extended_l2=on ,data_file_raw=on,extended_l2=on,cluster_size=16K ,cluster_size=512; do
		ok image-create -f qcow2 -o "data_file=x.data$settings" x.qcow2 1M
		clean x.qcow2
		described > ours
		noise 300K > content
		ok image-write x.qcow2 100000 < content
		dd if=/dev/zero of=expected bs=1M count=1 status=none
		put expected 100000 < content
		same qcow2 x.qcow2 raw expected
		clean x.qcow2
		case $settings in *raw=on*) cmp x.data expected ;; esac
		qemu-io -f qcow2 -c 'write -q -P 9 0 100K' x.qcow2
		done_ backup-run x.qcow2 copy.qcow2
		same qcow2 x.qcow2 qcow2 copy.qcow2
		rm x.qcow2 x.data copy.qcow2
		qemu-img create -q -f qcow2 -o "data_file=x.data$settings" x.qcow2 1M
		described > theirs
		diff ours theirs
		rm x.qcow2 x.data
	done
	ok image-create --dry-run -f qcow2 -o data_file=x.data x.qcow2 1M
	[ ! -e x.qcow2 ] && [ ! -e x.data ]
	unchanged refused_like 'nosuch/x.data.*No such file or directory' image-create -f qcow2 -o data_file=nosuch/x.data x.qcow2 1M
	unchanged refused_like 'cannot be the same file' image-create -f qcow2 -o data_file=x.qcow2 x.qcow2 1M
	unchanged refused_like 'cannot be the same file' image-create -f qcow2 -o data_file="../${PWD##*/}/x.qcow2" x.qcow2 1M
	unchanged refused_like 'cannot be followed' image-create -f qcow2 -o data_file=nbd:x x.qcow2 1M
	unchanged refused_like "Invalid parameter 'data_file'" image-create -f raw -o data_file=x.data x.img 1M
	unchanged refused_like 'size' image-create -f qcow2 -o data_file=x.data x.qcow2
}

@test "image-create does not replace a data file, which may be somebody's disk" {
	mkdir sub
	disk disk.qcow2 disk.data
	unchanged refused "Could not create '$PWD/disk.data': File exists" image-create -f qcow2 -o data_file=disk.data new.qcow2 1M
	[[ $stderr == *'the existing file is unchanged'* ]]
	unchanged refused "Could not create '$PWD/disk.data': File exists" image-create -f qcow2 -o data_file=../disk.data sub/new.qcow2 1M
	ln -s nowhere link.data
	unchanged refused "Could not create '$PWD/link.data': File exists" image-create -f qcow2 -o data_file=link.data new.qcow2 1M
	ok image-create -f qcow2 -o data_file=new.data sub/new.qcow2 1M
	[ -e sub/new.data ] && [ ! -e new.data ]
	ok image-write --pattern 1 sub/new.qcow2 0 1M
}

@test "bitmaps inside images with data files and with subclusters" {
	local settings
	for settings in data_file=x.data data_file=x.data,data_file_raw=on extended_l2=on,cluster_size=16K \
		data_file=x.data,cluster_size=512 data_file=x.data,extended_l2=on; do
		rm -f x.qcow2 x.data full.qcow2 inc.qcow2
		qemu-img create -q -f qcow2 -o "$settings" x.qcow2 1M
		qemu-io -f qcow2 -c 'write -q -P 5 100K 300K' x.qcow2
		ok bitmap-add --store image x.qcow2 b
		clean x.qcow2
		qemu-io -f qcow2 -c 'write -q -P 6 500K 1K' x.qcow2
		ok image-write -f qcow2 --pattern 3 x.qcow2 10000 1
		done_ backup-run -F qcow2 x.qcow2 full.qcow2
		ok image-write -f qcow2 --zero x.qcow2 300000 1000
		done_ backup-run --sync incremental --bitmap b -F qcow2 --backing full.qcow2 x.qcow2 inc.qcow2
		same qcow2 x.qcow2 qcow2 inc.qcow2
		clean x.qcow2
		qemu-img info x.qcow2 > info
		case $settings in *raw=on*)
			grep -q 'data file raw: true' info
			same qcow2 x.qcow2 raw x.data
			;;
		esac
		ok bitmap-remove x.qcow2 b
		clean x.qcow2
	done
}

@test "a change of the bitmaps inside does not touch the data file, nor hide that others did" {
	local before
	disk disk.qcow2 disk.data
	truncate -s 300K disk.data
	before=$(stat -c '%s %y' disk.data)
	chmod a-w disk.data
	ok bitmap-add --store image disk.qcow2 inside
	ok bitmap-add disk.qcow2 beside
	ok bitmap-clear disk.qcow2 inside
	assert_equal "$(stat -c '%s %y' disk.data)" "$before"
	bitmap disk.qcow2 beside 'has("inconsistent") | not'
	touch disk.data
	ok bitmap-clear disk.qcow2 inside
	bitmap disk.qcow2 beside '.inconsistent == true'
	ok bitmap-remove disk.qcow2 inside
	bitmap disk.qcow2 beside '.inconsistent == true'
}
