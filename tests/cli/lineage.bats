# Lineage: each increment on the backup that its bitmap counts from, and a part is never taken for a whole.
load helper
load lineage

@test "an increment belongs on the backup that its bitmap counts from" {
	begin
	write 1 1M
	inc --backing full.qcow2 disk.img a.qcow2
	write 2 2M
	refused_like "The bitmap 'n' counts from the backup '.*/a.qcow2' of .* UTC, and '.*/full.qcow2' is another backup, of .* UTC" \
		backup-run --sync incremental --bitmap n -F qcow2 --backing full.qcow2 disk.img b.qcow2
	[ ! -e b.qcow2 ]
	# The bitmap has lost nothing.
	inc --backing a.qcow2 disk.img b.qcow2
	restores b.qcow2
	write 3 3M
	inc --allow-base=other --backing full.qcow2 disk.img c.qcow2
	verdict 0 b.qcow2
}

@test "by itself, an increment is chained on its base, wherever that is" {
	begin
	mkdir far
	write 1 1M
	inc disk.img far/a.qcow2
	assert_equal "$(qemu-img info --output=json far/a.qcow2 | jq -r '."backing-filename"')" "$PWD/full.qcow2"
	write 2 2M
	inc --allow-backing=outside disk.img b.qcow2
	done_ chain-verify --allow-backing=outside b.qcow2
	ok chain-restore --allow-backing=outside b.qcow2 restored.img
	cmp restored.img disk.img
	mv far/a.qcow2 away
	mv b.qcow2 gone.qcow2
	write 3 3M
	refused_like "The backup that the bitmap 'n' counts from, '.*/b.qcow2' of .* UTC, is not there" \
		backup-run --sync incremental --bitmap n -F qcow2 disk.img c.qcow2
}

@test "a part is told from a whole, and restored only on demand" {
	begin
	write 1 1M
	inc --backing none disk.img part.qcow2
	verdict 3 part.qcow2
	[[ $output == *'a part'*'holds only what changed since its base, backup '* ]]
	refused_like "'.*/part.qcow2' cannot be restored: it holds only what changed since its base" \
		chain-restore part.qcow2 r.img
	ok chain-restore --allow-part part.qcow2 r.img
	# Raw targets have no backing image; their record is beside them.
	write 2 2M
	done_ backup-run -q --sync incremental --bitmap n -F raw disk.img part.img
	verdict 3 part.img
	refused_like "cannot be restored" chain-restore part.img r2.img
}

@test "what is attached later has to be the base" {
	begin
	noise 4M 2 > other.img
	done_ backup-run -q -F qcow2 other.img other.qcow2
	write 1 1M
	inc --backing none disk.img part.qcow2
	qemu-img rebase -u -b other.qcow2 -F qcow2 part.qcow2
	verdict 3 part.qcow2
	refused_like "cannot be restored" chain-restore part.qcow2 r.img
	# The right one: a sample agrees, which proves nothing.
	qemu-img rebase -u -b full.qcow2 -F qcow2 part.qcow2
	verdict 1 part.qcow2
	done_ chain-verify --against disk.img -F raw part.qcow2
}

@test "a commit by QEMU into a base, which leaves no other trace, is noticed" {
	begin
	write 1 1M
	inc disk.img a.qcow2
	write 2 2M
	inc disk.img b.qcow2
	verdict 0 b.qcow2
	qemu-img commit -q a.qcow2
	verdict 3 b.qcow2
	write 3 3M
	auto disk.img c.qcow2
	assert_equal "$(member x-sync)" full
	[[ $(member x-reason) == *'was changed after it had been made'* ]]
	restores c.qcow2
}

@test "a bitmap without a known base: a sample of the disk decides" {
	noise 4M > disk.img
	noise 4M 2 > other.img
	done_ backup-run -q -F qcow2 disk.img full.qcow2
	done_ backup-run -q -F qcow2 other.img other.qcow2
	ok bitmap-add disk.img n
	write 1 1M
	refused_like "'.*/other.qcow2' differs from the disk where the bitmap 'n' says" \
		backup-run --sync incremental --bitmap n -F qcow2 --backing other.qcow2 disk.img a.qcow2
	qemu-img convert -O qcow2 other.img foreign.qcow2
	refused_like "'.*/foreign.qcow2' differs from the disk where the bitmap 'n' says" \
		backup-run --sync incremental --bitmap n -F qcow2 --backing foreign.qcow2 disk.img a.qcow2
	inc --backing full.qcow2 disk.img a.qcow2
	restores a.qcow2
}

@test "clear after a full backup: nothing was written in between, so the base is known" {
	noise 4M > disk.img
	ok bitmap-add disk.img n
	done_ backup-run -q -F qcow2 disk.img full.qcow2
	ok bitmap-clear disk.img n
	write 1 1M
	inc disk.img a.qcow2
	assert_equal "$(qemu-img info --output=json a.qcow2 | jq -r '."backing-filename"')" full.qcow2
	restores a.qcow2
	done_ backup-run -q -F qcow2 disk.img full2.qcow2
	write 2 2M
	ok bitmap-clear disk.img n # lacks the write before it
	write 3 3M
	auto disk.img b.qcow2
	assert_equal "$(member x-sync)" full
	[[ $(member x-reason) == 'the backup that the bitmap counts from is not known' ]]
	restores b.qcow2
}

@test "a transaction of clear and full backup, as in QEMU's document" {
	noise 4M > disk.img
	ok bitmap-add disk.img n
	done_ txn-apply --drive d=disk.img - <<- 'JSON'
	{"execute": "transaction", "arguments": {"actions": [
	 {"type": "block-dirty-bitmap-clear", "data": {"node": "d", "name": "n"}},
	 {"type": "drive-backup", "data": {"device": "d", "target": "full.qcow2", "sync": "full", "format": "qcow2"}}]}}
	JSON
	write 1 1M
	inc disk.img a.qcow2
	restores a.qcow2
}

@test "auto: decides by the chain, and is never stuck" {
	begin
	write 1 1M
	auto disk.img 1.qcow2
	assert_equal "$(member x-sync)" incremental
	[[ $(member x-base) =~ ^[0-9a-f]{32}$ ]]
	write 2 2M
	auto --full-every 1 disk.img 2.qcow2
	assert_equal "$(member x-sync)" full
	assert_equal "$(member x-reason)" 'the chain has 1 increment'
	write 3 3M
	rm 2.qcow2
	auto disk.img 3.qcow2
	assert_equal "$(member x-sync)" full
	[[ $(member x-reason) == *'cannot be opened'* ]]
	write 4 1M
	auto --backing full.qcow2 disk.img 4.qcow2
	assert_equal "$(member x-sync)" full
	assert_equal "$(member x-reason)" 'the backing image that was given is not the backup that the bitmap counts from'
	write 5 1M
	auto disk.img 5.qcow2
	assert_equal "$(member x-sync)" incremental
	restores 5.qcow2
	# A first bitmap that was made by hand counts from nothing.
	ok bitmap-add disk.img by-hand
	done_ backup-run -q --sync auto --bitmap by-hand -F qcow2 disk.img 6.qcow2
	assert_equal "$(member x-sync)" full
	restores 6.qcow2
}

@test "auto of several disks in one transaction: a decision each, one point in time" {
	begin
	write 1 1M
	noise 2M 3 > two.img
	done_ txn-apply --drive d=disk.img --drive e=two.img - <<- 'JSON'
	{"execute": "transaction", "arguments": {"actions": [
	 {"type": "drive-backup", "data": {"device": "d", "target": "d.qcow2", "x-sync": "auto", "bitmap": "n", "format": "qcow2"}},
	 {"type": "drive-backup", "data": {"device": "e", "target": "e.qcow2", "x-sync": "auto", "bitmap": "n", "format": "qcow2"}}]}}
	JSON
	local reply
	reply=$(grep '"return"' <<< "$output")
	assert_equal "$(jq -r '.return["x-backups"][] | ."x-sync"' <<< "$reply")" $'incremental\nfull'
	restores d.qcow2
	ok chain-restore e.qcow2 e.img
	cmp e.img two.img
}

@test "image and sidecar rolled back together: the next backup belongs on what the bitmap counts from" {
	mkdir vm
	cd vm
	begin
	mv full.qcow2 ..
	cd ..
	mv vm vm1
	mkdir vm
	cp -a vm1/. vm/
	cd vm
	cp ../full.qcow2 full.qcow2
	write 2 2M
	auto disk.img ../day2.qcow2
	cd ..
	rm -r vm
	cp -a vm1 vm
	cd vm
	cp ../full.qcow2 full.qcow2
	write 3 3M
	refused_like "is another backup" \
		backup-run --sync incremental --bitmap n --allow-backing=outside -F qcow2 --backing ../day2.qcow2 disk.img day3.qcow2
	auto --backing ../day2.qcow2 disk.img day3.qcow2
	restores day3.qcow2
}

@test "disable and enable: the base stays known only while nothing is written" {
	begin
	ok bitmap-disable disk.img n
	ok bitmap-enable disk.img n
	write 1 1M
	inc disk.img a.qcow2
	restores a.qcow2
	ok bitmap-disable disk.img n
	write 2 2M
	ok bitmap-enable disk.img n
	write 3 3M
	auto disk.img b.qcow2
	assert_equal "$(member x-sync)" full
	restores b.qcow2
}

@test "the disk itself is no backing image of its backup" {
	begin
	refused_like "The disk '.*/disk.img' itself cannot be the backing image of its backup" \
		backup-run --sync incremental --bitmap n -F qcow2 --backing disk.img,format=raw disk.img a.qcow2
	refused_like "The disk '.*/disk.img' itself" backup-run --allow-base=other --sync incremental --bitmap n -F qcow2 \
		--backing disk.img,format=raw disk.img a.qcow2
}

@test "a backup whose size was changed is no base, whatever is allowed" {
	begin
	write 1 1M
	cp full.qcow2 larger.qcow2
	qemu-img resize -q larger.qcow2 8M
	refused_like "The backup '.*larger.qcow2' was made of a disk of 4194304 bytes, and has another size now" \
		backup-run --allow-base=other --sync incremental --bitmap n -F qcow2 --backing larger.qcow2 disk.img a.qcow2
	[ ! -e a.qcow2 ]
	noise 2M > other.img
	done_ backup-run -q -f raw -F qcow2 other.img other.qcow2
	mv other.qcow2 full.qcow2
	refused_like "'.*/full.qcow2' of .* UTC, is not there: another file has its name" \
		backup-run --sync incremental --bitmap n -F qcow2 disk.img a.qcow2
}

@test "a backup that a bitmap counts from, or that such a one stands on, is never replaced" {
	begin
	write 1 1M
	inc disk.img a.qcow2
	unchanged refused_like "'full.qcow2': '.*/a.qcow2', from which the bitmap 'n' counts, needs the backup of that name" \
		backup-run --overwrite -F qcow2 disk.img full.qcow2
	unchanged refused_like "'a.qcow2': the bitmap 'n' counts from the backup of that name" \
		backup-run --overwrite --sync incremental --bitmap n --backing full.qcow2 -F qcow2 disk.img a.qcow2
	unchanged refused_like "'a.qcow2': the bitmap 'n' counts from the backup" \
		backup-run --overwrite --sync auto --bitmap n -F qcow2 disk.img a.qcow2
	# QMP replaces what exists, but not these.
	rejected txn-apply --drive d=disk.img - <<- 'JSON'
	{"execute": "drive-backup", "arguments": {"device": "d", "target": "full.qcow2", "sync": "full", "format": "qcow2"}}
	JSON
	[[ $output == *"needs the backup of that name"* ]]
	restores a.qcow2
	# By another name it is the same backup.
	mv a.qcow2 moved.qcow2
	unchanged refused_like "the bitmap 'n' counts from the backup of that name" \
		backup-run --overwrite -F qcow2 disk.img moved.qcow2
	# What nothing stands on may be replaced.
	mv moved.qcow2 a.qcow2
	write 2 2M
	inc disk.img b.qcow2
	ok bitmap-remove disk.img n
	done_ backup-run --overwrite -F qcow2 disk.img full.qcow2
}

# Three increments; two of them are of places that the fingerprint looks at.
chain_of_3() {
	local i
	begin
	for i in 1 2 3; do
		write $i ${i}M
		inc disk.img $i.qcow2
		cp disk.img disk.$i
	done
}

@test "--accept: a chain that qemu-img commit has changed, and left right" {
	chain_of_3
	qemu-img commit -q 1.qcow2
	verdict 3 3.qcow2
	refused_like "cannot be restored" chain-restore 2.qcow2 r.img
	done_ chain-verify --accept 3.qcow2
	verdict 0 3.qcow2
	# The first image has become another backup, and is one.
	verdict 0 full.qcow2
	ok chain-restore full.qcow2 r.img
	cmp r.img disk.1
	ok chain-restore --overwrite 2.qcow2 r.img
	cmp r.img disk.2
	# So it does without the image that is empty now.
	qemu-img rebase -u -b full.qcow2 -F qcow2 2.qcow2
	attempt chain-verify --accept 3.qcow2
	assert_equal "$status" 1
	[[ $stderr == *"2.qcow2' is on another backup than its base, and only the top image is compared"* ]]
	attempt chain-verify --accept 2.qcow2
	assert_equal "$status" 1
	[[ $stderr == *"is on another backup than its base, and a sample proves too little; use --against"* ]]
	done_ chain-verify --accept --against disk.2 -F raw 2.qcow2
	# The file was changed, so it is another backup.
	done_ chain-verify --accept --against disk.img -F raw --output=json 3.qcow2
	jq -e '.return | .verdict == "whole" and .accepted > 0 and (.images | length == 3)' <<< "$output"
	restores 3.qcow2
	write 4 1M
	auto disk.img 4.qcow2
	restores 4.qcow2
}

@test "--accept: an image whose contents changed is another backup, also outside of the sample" {
	begin
	write 1 2M
	inc disk.img 1.qcow2
	write 2 3M
	cp -a 1.qcow2 aside.qcow2
	inc disk.img 2.qcow2
	qemu-img create -q -f qcow2 -b full.qcow2 -F qcow2 over.qcow2
	qemu-io -f qcow2 -c 'write -q -P 9 2600K 4K' over.qcow2
	qemu-img commit -q over.qcow2
	verdict 1 2.qcow2
	done_ chain-verify --accept 2.qcow2
	verdict 3 aside.qcow2
	[[ $output == *'its base is backup '*', and the backing image is another one, '* ]]
	# So it is without a record.
	qemu-img convert -O qcow2 full.qcow2 flat
	mv flat full.qcow2
	done_ chain-verify --accept 2.qcow2
	verdict 3 aside.qcow2
}

@test "--accept: what convert and rebase have left right" {
	chain_of_3
	qemu-img convert -O qcow2 2.qcow2 flat
	mv flat 2.qcow2
	verdict 1 3.qcow2
	done_ chain-verify --accept 3.qcow2
	restores 3.qcow2
	assert_equal "$(qemu-img info --output=json --backing-chain 3.qcow2 | jq length)" 2
	qemu-img rebase -b full.qcow2 -F qcow2 3.qcow2
	verdict 1 3.qcow2
	refused_like "its backing image is another backup than its base" chain-restore 3.qcow2 r.img
	done_ chain-verify --accept --against disk.img -F raw 3.qcow2
	[[ $output == *'accepted: 1 image got a record'* && $output == *'the same'* ]]
	restores 3.qcow2
}

@test "--accept: what is wrong stays so" {
	chain_of_3
	qemu-img rebase -u -b full.qcow2 -F qcow2 3.qcow2
	sha256sum ./*.qcow2 > before
	attempt chain-verify --accept 3.qcow2
	assert_equal "$status" 3
	[[ $stderr == *'nothing is accepted'*'shows another disk than the one that was backed up'* ]]
	# The right one again; and then another backup of that name, as it was made.
	qemu-img rebase -u -b 2.qcow2 -F qcow2 3.qcow2
	done_ chain-verify --accept 3.qcow2
	noise 4M 5 > other.img
	done_ backup-run -q -F qcow2 other.img other.qcow2
	mv other.qcow2 2.qcow2
	attempt chain-verify --accept 3.qcow2
	assert_equal "$status" 3
	# Damage is not accepted, and neither is a part.
	inc --backing none disk.img part.qcow2
	qemu-io -f qcow2 -c 'read -q 0 1' part.qcow2
	attempt chain-verify --accept part.qcow2
	assert_equal "$status" 3
	# A difference to the disk is none either.
	mkdir apart
	cd apart
	begin
	qemu-io -f qcow2 -c 'read -q 0 1' full.qcow2
	write 9 1M
	attempt chain-verify --accept --against disk.img -F raw full.qcow2
	assert_equal "$status" 3
	verdict 1 full.qcow2
	done_ chain-verify --accept full.qcow2
	verdict 0 full.qcow2
}

@test "--accept: raw backups get their record beside them" {
	noise 4M > disk.img
	ok bitmap-add disk.img n
	done_ backup-run -q -F raw --bitmap n --bitmap-mode on-success disk.img full.img
	write 1 1M
	inc disk.img a.qcow2
	verdict 0 a.qcow2
	touch full.img
	verdict 1 a.qcow2
	done_ chain-verify --accept a.qcow2
	verdict 0 a.qcow2
	verdict 0 full.img
	restores a.qcow2
}

@test "an increment is refused on a chain that is not in order below its base" {
	begin
	write 1 1M
	inc disk.img a.qcow2
	noise 4M 2 > other.img
	done_ backup-run -q -F qcow2 other.img other.qcow2
	write 2 2M
	# The base is the right one, and its own backing image is another backup.
	qemu-img rebase -u -b other.qcow2 -F qcow2 a.qcow2
	refused_like "An increment on '.*/a.qcow2' could not be restored: '.*/a.qcow2' is not in order" \
		backup-run --sync incremental --bitmap n -F qcow2 disk.img b.qcow2
	[ ! -e b.qcow2 ]
	qemu-img rebase -u -b full.qcow2 -F qcow2 a.qcow2
	inc disk.img b.qcow2
	# Right, but only --accept makes it a chain that is restored.
	qemu-img rebase -b other.qcow2 -F qcow2 a.qcow2
	write 3 3M
	refused_like "'.*/a.qcow2' is not in order: its backing image is another backup than its base" \
		backup-run --sync incremental --bitmap n -F qcow2 disk.img c.qcow2
	auto disk.img c.qcow2
	restores c.qcow2
}

@test "where identifiers prove nothing, all of a small disk is compared" {
	noise 12M > disk.img
	auto disk.img full.qcow2
	ok bitmap-disable disk.img n
	# A place that a sample of 256 blocks nearly always misses.
	ok image-write --pattern 1 disk.img 1822218 3
	refused_like "'.*/full.qcow2' differs from the disk where the bitmap 'n' says" \
		backup-run --sync incremental --bitmap n -F qcow2 --backing full.qcow2 disk.img a.qcow2
}

@test "a full backup in an overlay does without the images below" {
	begin
	write 1 1M
	inc --backing none disk.img part.qcow2
	qemu-img create -q -f qcow2 -b part.qcow2 -F qcow2 over.qcow2
	auto --mode existing disk.img over.qcow2
	assert_equal "$(member x-sync)" full
	restores over.qcow2
}

@test "a copy of a backup that QEMU commits into is another disk" {
	begin
	cp -a full.qcow2 copy.qcow2
	verdict 0 copy.qcow2
	cp -a full.qcow2 seen.qcow2
	qemu-img create -q -f qcow2 -b copy.qcow2 -F qcow2 over.qcow2
	qemu-io -f qcow2 -c 'write -q -P 7 0 64K' over.qcow2
	qemu-img commit -q over.qcow2
	verdict 3 copy.qcow2
	refused_like "cannot be restored" chain-restore copy.qcow2 r.img
	# Where the sample does not look, at the old name again.
	write 1 1M
	inc disk.img a.qcow2
	qemu-img create -q -f qcow2 -b seen.qcow2 -F qcow2 over2.qcow2
	qemu-io -f qcow2 -c 'write -q -P 9 2600K 4K' over2.qcow2
	qemu-img commit -q over2.qcow2
	mv seen.qcow2 full.qcow2
	verdict 1 a.qcow2
	verdict 1 full.qcow2
	write 2 2M
	auto disk.img b.qcow2
	assert_equal "$(member x-sync)" full
	restores b.qcow2
	# The time was set back, and the sample shows it.
	cp -a b.qcow2 kept.qcow2
	qemu-img create -q -f qcow2 -b kept.qcow2 -F qcow2 over3.qcow2
	qemu-io -f qcow2 -c 'write -q -P 7 0 64K' over3.qcow2
	qemu-img commit -q over3.qcow2
	touch -r b.qcow2 kept.qcow2
	mv kept.qcow2 b.qcow2
	write 3 3M
	auto disk.img c.qcow2
	assert_equal "$(member x-sync)" full
	[[ $(member x-reason) == *'a file shows another disk than the one that was backed up' ]]
	restores c.qcow2
}

@test "a qcow2 on a block device has no times that show a change" {
	begin
	truncate -s 16M device
	loop device
	qemu-img create -q -f qcow2 "$loop" 4M
	done_ backup-run -q --mode existing -F qcow2 disk.img "$loop"
	attempt chain-verify -f qcow2 "$loop"
	assert_equal "$status" 1
	[[ $output == *'it or its backing image may have been changed'* ]]
	done_ chain-verify -f qcow2 --against disk.img -F raw "$loop"
}

@test "an increment on an image without a record is whole until that one changes" {
	noise 1M > disk.img
	qemu-img convert -f raw -O qcow2 disk.img full.qcow2
	ok bitmap-add disk.img b
	ok image-write --pattern 7 disk.img 0 64K
	done_ backup-run --sync incremental --bitmap b -F qcow2 --backing full.qcow2 disk.img top.qcow2
	attempt chain-verify top.qcow2
	assert_equal "$status" 0
	qemu-io -f qcow2 -c 'write -q -P 9 512K 64K' full.qcow2
	attempt chain-verify top.qcow2
	[ "$status" -ne 0 ]
}

@test "what follows a part is a part, unless a backing image is given" {
	local id='' before
	raw disk.img 1M
	ok bitmap-add disk.img b
	for n in 1 2; do
		ok image-write --pattern "$n" disk.img 0 64K
		before=$id
		done_ backup-run --sync incremental --bitmap b -F qcow2 disk.img "$n.qcow2"
		id=$(jq -r 'select(.return) | .return["x-id"]' <<< "$output")
		[[ $output == *'"x-part": true'* ]]
		assert_equal "$(qemu-img info --output json "$n.qcow2" | jq -r '."backing-filename"')" null
		attempt chain-verify "$n.qcow2"
		assert_equal "$status" 3
	done
	[[ $(chain-info --output=json 2.qcow2) == *"\"base\": \"$before\""* ]]
	refused_like "holds only what changed" \
		backup-run --sync incremental --bitmap b --backing 2.qcow2 -F qcow2 disk.img 3.qcow2
}

@test "identifiers of disks, and the size of a backup" {
	noise 1M > disk.img
	cp disk.img same.img
	auto disk.img full.qcow2
	auto same.img same.qcow2
	ok bitmap-add disk.img m
	refused_like "'.*/same.qcow2' is a backup of another disk" \
		backup-run --sync incremental --bitmap m -F qcow2 --backing same.qcow2 disk.img a.qcow2
	qemu-img resize -q -f qcow2 full.qcow2 2M
	refused_like "'.*/full.qcow2' was made of a disk of 1048576 bytes, and has another size now" \
		backup-run --sync incremental --bitmap m -F qcow2 --backing full.qcow2 disk.img a.qcow2
}

# mount_image DIR: fs.img, as whichever device comes next.
mount_image() {
	loop fs.img
	mount "$loop" "$1" 2> /dev/null || skip 'cannot mount'
	mounts+=("$PWD/$1")
}

@test "backups on a file system that becomes another device are as they were made" {
	mkdir fs
	truncate -s 64M fs.img
	mkfs.ext4 -q fs.img
	mount_image fs
	begin
	done_ backup-run -q --sync auto --bitmap m -F qcow2 disk.img fs/0.qcow2
	write 1 1M
	done_ backup-run -q --sync auto --bitmap m -F qcow2 disk.img fs/1.qcow2
	local before=$loop
	umount fs
	losetup -d "$loop"
	mounts=() loops=()
	truncate -s 1M other.img
	loop other.img
	mount_image fs
	[ "$loop" != "$before" ]
	verdict 0 fs/1.qcow2
	write 2 2M
	done_ backup-run -q --sync auto --bitmap m -F qcow2 disk.img fs/2.qcow2
	assert_equal "$(member x-sync)" incremental
	qemu-img commit -q fs/1.qcow2
	verdict 3 fs/2.qcow2
}

@test "a copy whose time lost its nanoseconds is not a changed file" {
	noise 4M > disk.img
	auto --checksums never disk.img full.qcow2 # they would prove it
	write 1 1M
	inc disk.img 1.qcow2
	touch -d "@$(stat -c %Y full.qcow2)" full.qcow2
	verdict 0 1.qcow2
	touch -d "@$(($(stat -c %Y full.qcow2) + 1))" full.qcow2
	verdict 1 1.qcow2
}


# backed_up_as SYNC TARGET [REASON]: the backup has everything that the disk has.
backed_up_as() {
	auto disk.qcow2 "$2"
	assert_equal "$(member x-sync)" "$1"
	[ -z "${3-}" ] || assert_equal "$(member x-reason)" "$3"
	ok chain-restore --overwrite "$2" restored.img
	same raw restored.img qcow2 disk.qcow2
}

@test "a bitmap inside an image that is restored without its sidecar, or the sidecar without it" {
	local stranger='the image and its sidecar are not of the same time: the backup that the bitmap counts from is not known'
	qemu-img create -q -f qcow2 disk.qcow2 64M # too large to be compared completely
	ok bitmap-add --store image disk.qcow2 n
	backed_up_as full full.qcow2
	ok image-write --pattern 1 disk.qcow2 1M 64K
	backed_up_as incremental 1.qcow2
	cp -a disk.qcow2 old.qcow2
	cp -a disk.qcow2.bitmaps old.bitmaps
	# QEMU keeps what connects the two.
	qemu-io -f qcow2 -c 'write -q -P 2 21M 64K' disk.qcow2
	qemu-img bitmap --add -f qcow2 disk.qcow2 other
	backed_up_as incremental 2.qcow2
	ok image-write --pattern 3 disk.qcow2 22M 64K
	assert_equal "$stderr" ''
	backed_up_as incremental 3.qcow2
	clean disk.qcow2
	cp -a old.bitmaps disk.qcow2.bitmaps
	ok image-write --pattern 4 disk.qcow2 23M 64K
	refused_like 'The image and its sidecar are not of the same time' \
		backup-run --sync incremental --bitmap n -F qcow2 --backing 1.qcow2 disk.qcow2 4.qcow2
	backed_up_as full 4.qcow2 "$stranger"
	ok image-write --pattern 5 disk.qcow2 35M 64K
	backed_up_as incremental 5.qcow2
	cp -a old.qcow2 disk.qcow2
	ok image-write --pattern 5 disk.qcow2 24M 64K
	refused_like 'The image and its sidecar are not of the same time' \
		backup-run --sync incremental --bitmap n -F qcow2 --backing 5.qcow2 disk.qcow2 6.qcow2
	backed_up_as full 6.qcow2 "$stranger"
	ok image-write --pattern 7 disk.qcow2 37M 64K
	backed_up_as incremental 7.qcow2
	# Both together are of one time.
	cp -a old.qcow2 disk.qcow2
	cp -a old.bitmaps disk.qcow2.bitmaps
	qemu-io -f qcow2 -c 'write -q -P 6 25M 64K' disk.qcow2
	backed_up_as incremental 8.qcow2
	ok bitmap-remove disk.qcow2 n
	qemu-img bitmap --add -f qcow2 disk.qcow2 n
	cp -a old.bitmaps disk.qcow2.bitmaps
	backed_up_as full 9.qcow2 "$stranger"
}

@test "a bitmap inside an image whose header has no room: its base stays unknown" {
	qemu-img create -q -f qcow2 -o cluster_size=512 disk.qcow2 32M
	ok bitmap-add --store image -g 64K disk.qcow2 n
	python3 - disk.qcow2 <<- 'PY'
		import struct, sys
		with open(sys.argv[1], "r+b") as f:
		    head = f.read(512)
		    off, = struct.unpack_from(">I", head, 100)
		    while struct.unpack_from(">I", head, off)[0]:
		        off += 8 + (struct.unpack_from(">I", head, off + 4)[0] + 7) // 8 * 8
		    f.seek(off)
		    f.write(struct.pack(">II", 0x12345678, 512 - off - 16) + bytes(512 - off - 8))
	PY
	backed_up_as full full.qcow2
	clean disk.qcow2
	ok image-write --pattern 1 disk.qcow2 1M 64K
	backed_up_as full 1.qcow2 'the backup that the bitmap counts from is not known'
	bitmap disk.qcow2 n '.base == null'
	ok image-write --pattern 2 disk.qcow2 1M 64K
	inc --backing 1.qcow2 disk.qcow2 2.qcow2
	done_ chain-verify --against disk.qcow2 2.qcow2
}

# from_later VERSION FILE: its birth record is of that version.
from_later() {
	python3 - "$@" <<- 'PY'
		import struct, sys
		with open(sys.argv[2], "r+b") as f:
		    f.seek(f.read(4096).index(b"TIDB") + 8 + 16)
		    f.write(struct.pack("<H", int(sys.argv[1])))
	PY
}

@test "a birth record of a later version: nothing is known of the backup" {
	begin
	write 1 1M
	inc --backing none disk.img part.qcow2
	from_later 2 part.qcow2
	verdict 1 part.qcow2
	[[ $output == *'cannot tell'*'it may be a part, because its birth record was made by a later version'* ]]
	refused_like "cannot be restored: it may be a part, because its birth record was made by a later version" \
		chain-restore part.qcow2 r.img
	ok chain-restore --allow-part part.qcow2 r.img
	unchanged refused_like "the backup of that name was made by a later version" \
		backup-run --overwrite -F qcow2 disk.img part.qcow2
	unchanged refused_like "may be any backup, because its birth record was made by a later version" \
		backup-run --mode existing -F qcow2 disk.img part.qcow2
	unchanged refused_like "may be any backup" \
		backup-run --sync incremental --bitmap n --backing part.qcow2 -F qcow2 disk.img a.qcow2
	attempt chain-verify --accept part.qcow2
	assert_equal "$status" 1
	auto disk.img a.qcow2
	assert_equal "$(member x-sync)" full
	[[ $(member x-reason) == *'a file has a birth record that was made by a later version' ]]
	restores a.qcow2
	# A damaged one, inside and beside.
	write 2 2M
	inc --backing none disk.img part2.qcow2
	from_later 0 part2.qcow2
	verdict 1 part2.qcow2
	[[ $output == *'because its birth record is damaged'* ]]
	done_ backup-run -q --overwrite -F qcow2 disk.img part2.qcow2
	verdict 0 part2.qcow2
	write 3 3M
	done_ backup-run -q --sync incremental --bitmap n -F raw disk.img part.img
	flip part.img.bitmaps 200
	verdict 3 part.img
	rejected chain-restore -f raw part.img r2.img
	qemu-img create -q -f qcow2 -b part.img -F raw over.qcow2
	verdict 1 over.qcow2
	refused_like 'because its birth record is damaged' chain-restore over.qcow2 r2.img
}

# after DAYS CMD...: as if it were so many days and a minute later.
after() {
	local days=$1
	shift
	LATER=$((days * 86400 + 60)) LD_PRELOAD=$BUILD/helpers/later.so "$@"
}

@test "auto: a full backup when the last one is so many days old" {
	begin
	local day
	for day in 1 2; do
		write "$day" 1M
		after "$day" auto --full-every 3d disk.img "$day.qcow2"
		assert_equal "$(member x-sync)" incremental
	done
	write 3 1M
	# The age is that of the full backup, not of the last increment.
	after 3 auto --full-every 3d disk.img 3.qcow2
	assert_equal "$(member x-sync)" full
	assert_equal "$(member x-reason)" 'the last full backup is 3 days old'
	write 4 1M
	after 4 auto --full-every 3d disk.img 4.qcow2
	assert_equal "$(member x-base)" "$(chain-info --output=json 3.qcow2 | jq -r '.return.images[0].backup.id')"
	after 4 auto --full-every 1d disk.img 5.qcow2
	assert_equal "$(member x-reason)" 'the last full backup is 1 day old'
	# A clock that was put back makes no backup old.
	write 5 1M
	after -9 auto --full-every 1d disk.img 6.qcow2
	assert_equal "$(member x-sync)" incremental
	restores 6.qcow2
}

@test "auto: a full backup when the chain is as deep as can be read" {
	local i
	noise 64K > disk.img
	auto disk.img 1.qcow2
	for i in {2..200}; do
		write $((i % 256)) 0
		backup-run -q --sync auto --bitmap n -F qcow2 disk.img $i.qcow2 > out
		jq -es '.[0].return["x-sync"] == "incremental"' out > /dev/null || fail "$(cat out)"
	done
	restores 200.qcow2
	write 7 0
	auto disk.img 201.qcow2
	assert_equal "$(member x-sync)" full
	assert_equal "$(member x-reason)" 'the chain has 200 images, which is the limit'
	restores 201.qcow2
}

@test "auto: a base that cannot be read leads to a full backup" {
	local at
	qemu-img create -q -f qcow2 disk.qcow2 4M
	noise 512K | xxd -p | head -c 1M > data
	ok image-write disk.qcow2 0 < data
	ok bitmap-add --store image disk.qcow2 n
	done_ backup-run -q --sync auto --bitmap n --compress -o compression_type=zstd --checksums never -F qcow2 \
		disk.qcow2 full.qcow2
	ok image-write --pattern 3 disk.qcow2 2M 64K
	touch -r full.qcow2 when
	for at in 400000 500000 600000 700000; do
		flip full.qcow2 "$at"
	done
	touch -r when full.qcow2
	auto disk.qcow2 2.qcow2
	assert_equal "$(member x-sync)" full
	[[ $(member x-reason) == *'cannot be read'* ]]
}

@test "--against an image on the same base proves nothing of the base" {
	noise 64M > disk.img # beyond what is compared completely
	auto disk.img full.qcow2
	write 1 5M
	inc disk.img 1.qcow2
	write 2 9M
	inc disk.img 2.qcow2
	qemu-img rebase -u -f qcow2 -b full.qcow2 -F qcow2 2.qcow2
	verdict 1 2.qcow2
	cp 2.qcow2 sibling.qcow2
	attempt chain-verify --against sibling.qcow2 2.qcow2
	assert_equal "$status" 1
	attempt chain-verify --accept --against sibling.qcow2 2.qcow2
	assert_equal "$status" 1
	[[ $stderr == *"'sibling.qcow2' reads from '"*"/full.qcow2', too, so it proves nothing of that image"* ]]
	verdict 1 2.qcow2
	attempt chain-verify --accept --against disk.img -F raw 2.qcow2
	assert_equal "$status" 3
}
