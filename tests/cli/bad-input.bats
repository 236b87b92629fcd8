#!/usr/bin/env bats
# Damaged sidecars and images, full disks, directories that cannot be written:
# a clear message, nothing changed.

load helper

# A sidecar with all kinds of content, in the file good too.
sidecar() {
	raw disk.img 16M
	ok bitmap-add -g 512 disk.img mixed
	ok bitmap-add --disabled disk.img full
	ok bitmap-add disk.img empty
	awk 'BEGIN { srand(1); for (i = 0; i < 4000; i++) print int(rand() * 32768) * 512, 512 }' > ranges
	ok bitmap-mark --from ranges disk.img mixed
	ok bitmap-mark disk.img full 0 16M
	cp disk.img.bitmaps good
	size=$(stat -c %s good)
}

# variants FILE cut|flip DENSE STEP [END]: copies of FILE in the directory variants, each named after the offset at
# which it is cut or has a byte inverted: each of the first DENSE, every STEPth up to END, and the last.
variants() {
	rm -rf variants
	mkdir variants
	python3 - "$@" <<- 'PY'
		import sys
		name, how, dense, step = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
		data = open(name, "rb").read()
		end = min(int(sys.argv[5]), len(data)) if len(sys.argv) > 5 else len(data)
		for n in sorted({*range(min(dense, end)), *range(dense, end, step), end - 1}):
		    new = data[:n] if how == "cut" else data[:n] + bytes([data[n] ^ 255]) + data[n + 1:]
		    open(f"variants/{n}", "wb").write(new)
	PY
	sha256sum variants/* > sums
}

# damaged FILE: as a sidecar it is refused by name, with exit status 1.
damaged() {
	local status=0 out err
	bitmap-list --output=json --sidecar "$1" disk.img > out.json 2> out.err || status=$?
	out=$(< out.json) err=$(< out.err)
	[ $status -eq 1 ] || fail "$1: status $status, $out $err"
	[[ $err == *"$1"* && ${#err} -gt 40 ]] || fail "$1: $err"
	[[ $err != *Sanitizer* && $err != *'runtime error'* ]] || fail "$1: $err"
	[[ $out == '{"error": {"class": "GenericError", "desc": "'*'"}}' ]] || fail "$1: $out"
}

@test "a sidecar cut short: refused and left as it is" {
	sidecar
	local v
	variants good cut 200 97
	for v in variants/*; do damaged "$v"; done
	sha256sum --quiet -c sums
}

@test "a sidecar with bytes flipped: refused and left as it is" {
	sidecar
	local v
	variants good flip 300 97
	for v in variants/*; do damaged "$v"; done
	sha256sum --quiet -c sums
}

@test "a sidecar with something else in it" {
	sidecar
	mkdir variants
	noise 5000 > variants/noise
	seq 10000 > variants/text
	head -c 100000 /dev/zero > variants/zeroes
	printf '{"return": []}' > variants/json
	cat good good > variants/twice
	(cat good; printf x) > variants/longer
	cp disk.img variants/image
	local v
	for v in variants/*; do
		sha256sum "$v" > sums
		damaged "$v"
		sha256sum --quiet -c sums
	done
}

@test "a sidecar of another disk" {
	raw other.img 2M
	ok bitmap-add other.img b
	raw disk.img 1M
	cp other.img.bitmaps disk.img.bitmaps
	attempt backup-run --sync incremental --bitmap b -F qcow2 disk.img x.qcow2
	assert_equal "$status" 1
	[ ! -e x.qcow2 ]
}

@test "with a damaged sidecar every command that needs it stops before it changes anything" {
	sidecar
	flip disk.img.bitmaps $((size / 2))
	unchanged refused_like 'disk\.img\.bitmaps' bitmap-add disk.img n
	unchanged refused_like 'disk\.img\.bitmaps' bitmap-remove disk.img full
	unchanged refused_like 'disk\.img\.bitmaps' bitmap-clear disk.img full
	unchanged refused_like 'disk\.img\.bitmaps' bitmap-enable disk.img full
	unchanged refused_like 'disk\.img\.bitmaps' bitmap-disable disk.img empty
	unchanged refused_like 'disk\.img\.bitmaps' bitmap-merge disk.img empty full
	unchanged refused_like 'disk\.img\.bitmaps' bitmap-mark disk.img full 0 1
	unchanged refused_like 'disk\.img\.bitmaps' bitmap-dump --output=json disk.img full
	unchanged refused_like 'disk\.img\.bitmaps' image-write --pattern 1 disk.img 0 1
	unchanged refused_like 'disk\.img\.bitmaps' backup-run --sync incremental --bitmap full -F qcow2 disk.img x.qcow2
	[[ $desc == *[0-9]* ]]
	[ ! -e x.qcow2 ]
}

@test "a sidecar that is no file, or may not be read" {
	raw disk.img 1M
	mkdir disk.img.bitmaps
	unchanged refused_like 'disk\.img\.bitmaps' bitmap-list --output=json disk.img
	unchanged refused_like 'disk\.img\.bitmaps' bitmap-add disk.img b
	rmdir disk.img.bitmaps
	ok bitmap-add disk.img b
	chmod 000 disk.img.bitmaps
	refused_like 'disk\.img\.bitmaps.*Permission denied' mortal bitmap-list --output=json disk.img
	refused_like 'disk\.img\.bitmaps.*Permission denied' mortal image-write --pattern 1 disk.img 0 1
}

@test "the format is pinned: a guest that writes a qcow2 header into a raw image stays in it" {
	raw disk.img 1M
	ok bitmap-add disk.img b
	qemu-img create -q -f qcow2 evil.qcow2 64M
	qemu-img create -q -f qcow2 -u -b /etc/passwd -F raw evil2.qcow2 64M
	for f in evil.qcow2 evil2.qcow2; do
		ok image-write disk.img 0 < $f
		bitmap disk.img b '.granularity == 65536 and (has("inconsistent") | not)'
		done_ backup-run --overwrite -F qcow2 disk.img full.qcow2
		event BLOCK_JOB_COMPLETED '{"device": "disk", "len": 1048576, "offset": 1048576, "speed": 0, "type": "backup"}'
		same raw disk.img qcow2 full.qcow2
		done_ backup-run --overwrite disk.img full.img
		cmp disk.img full.img
		ok image-write --pattern 7 disk.img 1048575 1
		assert_equal "$(byte disk.img 1048575)" 07
	done
}

# ---- images ----

# poke OFFSET HEX: into bad.qcow2, a fresh copy of good.qcow2.
poke() {
	cp good.qcow2 bad.qcow2
	python3 -c 'import sys; sys.stdout.buffer.write(bytes.fromhex(sys.argv[1]))' "$2" | put bad.qcow2 "$1"
}

# sound CMD...: exit status 0 or 1, with a message in that case.
sound() {
	local status=0
	timeout 20 "$@" > out.json 2> out.err || status=$?
	[ $status -le 1 ] || fail "$*: status $status: $(cat out.err)"
	[[ $(< out.err) != *Sanitizer* && $(< out.err) != *'runtime error'* ]] || fail "$*: $(< out.err)"
	[ $status -eq 0 ] || [ -s out.err ] || fail "$*: no message"
}

@test "a qcow2 cut short" {
	qcow2 good.qcow2 3M
	local n v
	variants good.qcow2 cut 120 61 600
	for v in variants/*; do
		sound image-info -f qcow2 --output=json "$v"
		[ "${v#*/}" -ge 104 ] || [[ $(< out.json) == *'"error"'* ]] || fail "$v: $(< out.json)"
	done
	sha256sum --quiet -c sums
	for n in 65536 65537 131072 196608 200000 262144 300000 393216; do
		head -c $n good.qcow2 > bad.qcow2
		sound backup-run -f qcow2 bad.qcow2 copy.img
		sound image-write -f qcow2 --pattern 1 bad.qcow2 0 1M
	done
}

@test "a qcow2 with a byte of its header flipped" {
	# Its backing image is there for the original and, one level down, for the variants.
	qemu-img create -q -f qcow2 base.qcow2 3M
	cp base.qcow2 ..
	qemu-img create -q -f qcow2 -b ../base.qcow2 -F qcow2 good.qcow2
	qemu-img bitmap --add good.qcow2 b
	local v
	variants good.qcow2 flip 420 1000 420
	for v in variants/*; do
		sound image-info -f qcow2 --allow-backing=any --output=json "$v"
		[ $((${v#*/} % 4)) -ne 3 ] || sound backup-run -f qcow2 --allow-backing=any "$v" copy.img
	done
	sha256sum --quiet -c sums
}

@test "a qcow2 with damaged tables" {
	qcow2 good.qcow2 3M
	local n l1 l2 rt
	l1=$((16#$(od -An -tx1 -j 40 -N 8 good.qcow2 | tr -d ' \n')))
	l2=$((16#$(od -An -tx1 -j $l1 -N 8 good.qcow2 | tr -d ' \n') & 0x00fffffffffffe00))
	rt=$((16#$(od -An -tx1 -j 48 -N 8 good.qcow2 | tr -d ' \n')))
	for n in $l1 $l2 $((l2 + 24 * 8)) $rt; do
		for ((i = 0; i < 8; i++)); do
			cp good.qcow2 bad.qcow2
			flip bad.qcow2 $((n + i))
			sound backup-run -f qcow2 bad.qcow2 copy.img
			sound image-write -f qcow2 --pattern 1 bad.qcow2 0 1
			sound image-write -f qcow2 --pattern 1 bad.qcow2 1M 64K
			rm -f copy.img
		done
	done
}

@test "a qcow2 with sizes and offsets at their limits" {
	qcow2 good.qcow2 3M
	local offset hex what
	while read -r offset hex what; do
		poke "$offset" "$hex"
		sha256sum bad.qcow2 > sums
		refused_like . image-info --output=json -f qcow2 bad.qcow2
		[ ${#desc} -gt 20 ] || fail "$what: only says $desc"
		refused_like . backup-run -f qcow2 bad.qcow2 copy.img
		[ ! -e copy.img ]
		sha256sum --quiet -c sums
	done <<- END
		0 00000000 magic
		4 00000001 version
		4 00000004 version
		8 ffffffffffffffff backing name offset
		20 00000008 cluster bits
		20 00000016 cluster bits
		20 ffffffff cluster bits
		24 ffffffffffffffff size
		24 8000000000000000 size
		24 0080000000000000 size
		36 00000000 L1 size
		36 ffffffff L1 size
		40 ffffffffffffffff L1 offset
		40 0000000000000001 L1 offset
		72 0000000000000020 incompatible feature 5
		72 8000000000000000 incompatible feature 63
		96 00000007 refcount order
		96 ffffffff refcount order
		100 00000000 header length
		100 ffffffff header length
	END
}

# qemu-img measures the machine for the key's derivation, and gives up now and then when it is busy ("Unable to get
# accurate CPU usage").
luks_image() { # FILE
	local try
	for try in {1..50}; do
		! qemu-img create -q -f qcow2 --object secret,id=s,data=abc \
			-o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 "$1" 1M || return 0
		sleep 0.1
	done
	echo "qemu-img made no encrypted image in $try tries"
	return 1
}

@test "a qcow2 that is of another kind is refused by name" {
	local c
	luks_image luks.qcow2
	unchanged refused_like '[Ee]ncrypt|LUKS' backup-run luks.qcow2 copy.qcow2
	unchanged refused_like '[Ee]ncrypt|LUKS' image-write --pattern 1 luks.qcow2 0 1
	qemu-img create -q -u -f qcow2 -b luks.qcow2 -F qcow2 over.qcow2 1M
	for c in chain-info chain-verify; do
		unchanged refused_like 'LUKS' $c --output=json luks.qcow2
		attempt $c --output=json over.qcow2
		assert_equal "$status" 1
		jq -e '.return.images[1].findings[0] | .kind == "unknown" and (.text | contains("LUKS"))' <<< "$output"
	done
	for c in luks over; do
		unchanged refused_like 'LUKS' chain-restore $c.qcow2 copy.img
	done
	qcow2 good.qcow2 1M
	poke 32 00000001
	unchanged refused_like '[Ee]ncrypt|AES' backup-run bad.qcow2 copy.qcow2
	poke 72 0000000000000020
	unchanged refused_like 'feature' backup-run bad.qcow2 copy.qcow2
	# Marked as corrupt: nobody writes to it.
	poke 72 0000000000000002
	unchanged refused_like 'corrupt' image-write --pattern 1 bad.qcow2 0 1
}

@test "chains that loop, or are too deep, or miss a link" {
	qcow2 a.qcow2 1M
	qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2
	qemu-img rebase -u -b b.qcow2 -F qcow2 a.qcow2
	unchanged refused_like 'loop|itself|cycle|circular' timeout 10 backup-run b.qcow2 copy.qcow2
	qcow2 self.qcow2 1M
	qemu-img rebase -u -b self.qcow2 -F qcow2 self.qcow2
	unchanged refused_like 'loop|itself|cycle|circular' timeout 10 image-info --output=json self.qcow2
	qemu-img create -q -f qcow2 -u -b nosuch.qcow2 -F qcow2 miss.qcow2 1M
	unchanged refused_like "nosuch.qcow2.*No such file or directory" backup-run miss.qcow2 copy.qcow2
	qcow2 0.qcow2 1M
	python3 - <<- 'PY'
		import subprocess
		subprocess.check_call(["qemu-img", "create", "-q", "-f", "qcow2", "-u", "-b", "cNNN.qcow2", "-F", "qcow2", "t", "1M"])
		template = open("t", "rb").read()
		for i in range(1, 203):
		    data = template.replace(b"cNNN.qcow2", f"c{i - 1:03d}.qcow2".encode())
		    open(f"c{i:03d}.qcow2", "wb").write(data)
	PY
	mv 0.qcow2 c000.qcow2
	done_ backup-run c150.qcow2 copy.qcow2
	same qcow2 c000.qcow2 qcow2 copy.qcow2
	rm copy.qcow2
	unchanged refused_like '200' backup-run c202.qcow2 copy.qcow2
}

@test "a backing image without format is not guessed at" {
	raw base.img 1M
	qemu-img create -q -f qcow2 -b base.img -F raw disk.qcow2
	# The extension that names the format becomes one that nobody knows.
	assert_equal "$(od -An -tx1 -j 112 -N 4 disk.qcow2 | tr -d ' \n')" e2792aca
	printf '\x12\x34\x56\x78' | put disk.qcow2 112
	unchanged refused_like 'format' backup-run disk.qcow2 copy.qcow2
}

@test "names in an image do not lead astray" {
	raw base.img 1M
	qemu-img create -q -f qcow2 -u -b 'json:{"driver": "raw", "file": {"driver": "file", "filename": "base.img"}}' -F raw j.qcow2 1M
	unchanged rejected backup-run j.qcow2 copy.qcow2
	qemu-img create -q -f qcow2 -u -b 'nbd://localhost:1/x' -F raw n.qcow2 1M
	unchanged rejected backup-run n.qcow2 copy.qcow2
	qemu-img create -q -f qcow2 -u -b /dev/zero -F raw z.qcow2 1M
	unchanged refused_like 'outside' backup-run z.qcow2 copy.qcow2
	unchanged refused_like 'Neither a regular file' backup-run --allow-backing=outside z.qcow2 copy.qcow2
	mkfifo fifo
	qemu-img create -q -f qcow2 -u -b fifo -F raw f.qcow2 1M
	rm -f copy.qcow2
	unchanged rejected timeout 10 backup-run f.qcow2 copy.qcow2
}

# ---- places ----

@test "a full disk: bitmaps stay as they were" {
	tiny_fs tiny 512k
	truncate -s 64M tiny/disk.img
	ok bitmap-add -g 512 tiny/disk.img b
	ok bitmap-mark tiny/disk.img b 0 512
	noise 60000 | od -An -v -tu2 -w2 | awk '{ print $1 * 1024, 512 }' > ranges
	truncate -s 64M tiny/bare.img
	dd if=/dev/zero of=tiny/ballast bs=4K status=none 2> /dev/null || true
	unchanged refused_like "sidecar '.*tiny/bare.img.bitmaps': .*No space left on device" bitmap-add tiny/bare.img b
	unchanged refused_like 'No space left on device' bitmap-mark --from ranges tiny/disk.img b
	unchanged refused_like 'No space left on device' image-create -f qcow2 tiny/new.qcow2 1M
	assert_equal "$(dirty tiny/disk.img b)" 0+512
	rm tiny/ballast
	ok bitmap-mark --from ranges tiny/disk.img b
	assert_equal "$(ls tiny)" $'bare.img\ndisk.img\ndisk.img.bitmaps'
}

@test "a full disk: a write that cannot be recorded is not made" {
	tiny_fs tiny 512k
	truncate -s 64M tiny/disk.img
	ok bitmap-add -g 512 tiny/disk.img b
	dd if=/dev/zero of=tiny/ballast bs=4K status=none 2> /dev/null || true
	noise 4096 > data
	attempt image-write tiny/disk.img 1M < data
	assert_equal "$status" 1
	[[ $stderr == *'No space left on device'* ]]
	rm tiny/ballast
	bitmap tiny/disk.img b 'has("inconsistent") | not'
	if [ "$(byte tiny/disk.img 1048576)" != 00 ]; then
		assert_equal "$(dirty tiny/disk.img b)" 1048576+4096
	fi
	ok image-write tiny/disk.img 1M < data
	cmp -n 4096 -i 1048576:0 tiny/disk.img data
}

@test "a read-only directory" {
	mkdir ro
	raw ro/disk.img 1M
	raw ro/new.img 1M
	ok bitmap-add ro/disk.img b
	chmod 555 ro
	unchanged refused_like 'Permission denied' mortal bitmap-add ro/new.img b
	unchanged refused_like 'Permission denied' mortal bitmap-add ro/disk.img c
	unchanged refused_like 'Permission denied' mortal bitmap-mark ro/disk.img b 0 1
	unchanged refused_like 'Permission denied' mortal bitmap-clear ro/disk.img b
	unchanged refused_like 'Permission denied' mortal bitmap-remove ro/disk.img b
	unchanged done_ mortal bitmap-list ro/disk.img
	unchanged done_ mortal bitmap-dump ro/disk.img b
	unchanged done_ mortal image-info ro/disk.img
	# A full backup of an image in such a directory changes nothing there.
	done_ mortal backup-run ro/disk.img copy.img
	cmp ro/disk.img copy.img
	chmod 755 ro
}

@test "paths of all kinds" {
	local p
	for p in 'with space' 'quo"te' $'new\nline' 'a,b=c' ':colon' 'json:{}' 'nbd:x' -- 'ümlaut' $'\xff'; do
		raw "./$p.img" 1M
		ok bitmap-add "./$p.img" b
		done_ backup-run -F qcow2 "./$p.img" "./$p.qcow2"
		ok image-write --pattern 1 "./$p.img" 0 1
		bitmap "./$p.img" b '.count == 65536'
	done
	p=$(printf 'd%.0s' {1..250})
	raw "$p" 1M
	unchanged refused_like 'File name too long' bitmap-add "$p" b
}

@test "a FIFO in the place of the sidecar" {
	truncate -s 1M disk.img
	mkfifo disk.img.bitmaps
	refused_like "is not a regular file, and so not a sidecar" timeout 10 bitmap-add disk.img b
	[[ $stderr == *"--sidecar"* ]]
	attempt timeout 10 bitmap-list disk.img
	assert_equal "$status" 1
	[[ $stderr == *"is not a regular file"* ]]
}
