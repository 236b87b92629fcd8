# Lineage: the exit status of chain-restore is 0 only if the chain is proven.
load helper
load lineage

# unproven CMD...: the restore is complete, and nothing proves that it is right.
unproven() {
	attempt "$@"
	assert_equal "$status" 3
}

@test "a rescue says what comes from no base or from another one" {
	begin
	write 1 1M
	inc --backing none disk.img part.qcow2
	unproven chain-restore --salvage part.qcow2 r.img
	[[ $stderr == *"nothing proves that it is the disk that was backed up: '"*"/part.qcow2': it holds only what changed"* ]]
	[[ $stderr == *'1048576 bytes at 0 of the disk come from a base that is absent or not proven'* ]]
	assert_equal "$(jq -c '.return["x-unproven"]' <<< "$output")" \
		'[{"start":0,"length":1048576},{"start":1114112,"length":3080192}]'
	done_ chain-restore --overwrite --salvage --allow-part part.qcow2 r.img
	# Another backup in the place of the base.
	noise 4M 2 > other.img
	done_ backup-run -q -F qcow2 other.img other.qcow2
	qemu-img rebase -u -b other.qcow2 -F qcow2 part.qcow2
	unproven chain-restore --overwrite --salvage part.qcow2 r.img
	[[ $stderr == *'the disk is not the one that was backed up'* ]]
	jq -e '.return["x-unproven"] | length == 2' <<< "$output"
	# A missing base.
	mv other.qcow2 away
	unproven chain-restore --overwrite --salvage part.qcow2 r.img
	# A chain that is proven.
	noise 4M > proven.img
	done_ backup-run -q --sync auto --bitmap n -F qcow2 proven.img p0.qcow2
	ok image-write --pattern 1 proven.img 1M 64K
	done_ backup-run -q --sync auto --bitmap n -F qcow2 proven.img p1.qcow2
	done_ chain-restore --overwrite --salvage p1.qcow2 r.img
	cmp r.img proven.img
}

@test "what chain-verify cannot tell, chain-restore restores with status 3" {
	begin
	write 1 1M
	inc disk.img a.qcow2
	qemu-io -f qcow2 -c 'read -q 0 1' full.qcow2
	verdict 1 a.qcow2
	unproven chain-restore a.qcow2 r.img
	[[ $stderr == *'nothing proves that it is the disk that was backed up'* ]]
	cmp r.img disk.img
	unproven chain-restore --in-place -F raw a.qcow2 r.img
	done_ chain-restore --overwrite --allow-part a.qcow2 r.img
	done_ chain-verify --accept a.qcow2
	ok chain-restore --overwrite a.qcow2 r.img
	cmp r.img disk.img
}

@test "an overlay without a record, whose backing image was changed" {
	noise 4M > base.img
	ok image-create -f qcow2 -b base.img -F raw over.qcow2
	ok chain-restore over.qcow2 r.img
	qemu-io -f raw -c 'write -q -P 9 1M 64K' base.img
	verdict 3 over.qcow2
	unproven chain-restore --overwrite over.qcow2 r.img
	[[ $stderr == *'another content than when this image was created on it'* ]]
	# Images of other programs say nothing of each other.
	qemu-img create -q -f qcow2 -b base.img -F raw foreign.qcow2
	ok chain-restore --overwrite foreign.qcow2 r.img
}
