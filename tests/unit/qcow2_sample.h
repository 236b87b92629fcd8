/*
 * qcow2 images for tests: driven through the driver's own calls, judged by qemu-img.
 */
#ifndef TIDE_QCOW2_SAMPLE_H
#define TIDE_QCOW2_SAMPLE_H

#include <fcntl.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/bytes.h"
#include "base/range.h"
#include "image/driver.h"
#include "unit.h"

#define K UINT64_C(1024)
#define M (K * K)
#define G (K * M)
#define T (K * G)

struct sample {
	int fd, data_fd; /* data_fd: the external data file, -1: none */
	void *state;
	struct tide_driver_info info;
	const uint8_t *below; /* what a backing image of the same size holds, or NULL */
};

static const struct tide_image_driver *const qcow2 = &tide_qcow2_driver;

static inline uint64_t rnd(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state * UINT64_C(0x2545f4914f6cdd1d) >> 16;
}

/* Runs a command line in silence; its exit status. */
static inline TIDE_PRINTF(1, 2) int sh(const char *fmt, ...)
{
	static char line[65536];
	va_list ap;
	int n, status;

	va_start(ap, fmt);
	n = snprintf(line, sizeof(line), "cd '%s' && { ", unit_dir());
	n += vsnprintf(line + n, sizeof(line) - (size_t)n, fmt, ap);
	snprintf(line + n, sizeof(line) - (size_t)n, "; } >out.txt 2>&1");
	va_end(ap);
	fflush(stdout);
	status = system(line);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 255;
}

static inline bool has_qemu(void)
{
	return sh("command -v qemu-img && command -v qemu-io") == 0;
}

/* Shows what the last command printed. */
static inline void show_output(void)
{
	char line[512];
	FILE *f = fopen(unit_path("out.txt"), "r");

	while (f && fgets(line, sizeof(line), f))
		printf("#   %s", line);
	if (f)
		fclose(f);
}

/* qemu-img check finds nothing at all. */
static inline bool is_clean(const char *name)
{
	bool clean = CHECK_EQ_I64(sh("qemu-img check -f qcow2 %s", name), 0);

	if (!clean)
		show_output();
	return clean;
}

/* A whole file; free() it. */
static inline uint8_t *slurp(const char *name, uint64_t *len)
{
	int fd = open(unit_path(name), O_RDONLY | O_CLOEXEC);
	struct stat st;
	uint8_t *data;
	uint64_t n = 0;

	if (fd < 0 || fstat(fd, &st) < 0 || !(data = malloc((size_t)st.st_size + 1))) {
		printf("Bail out! cannot read %s\n", name);
		exit(1);
	}
	while (n < (uint64_t)st.st_size) {
		ssize_t r = pread(fd, data + n, (size_t)st.st_size - n, (off_t)n);

		if (r <= 0)
			break;
		n += (uint64_t)r;
	}
	close(fd);
	*len = n;
	return data;
}

static inline void spew(const char *name, const void *data, uint64_t len)
{
	int fd = open(unit_path(name), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	uint64_t n = 0;

	while (fd >= 0 && n < len) {
		ssize_t r = pwrite(fd, (const uint8_t *)data + n, len - n, (off_t)n);

		if (r <= 0)
			break;
		n += (uint64_t)r;
	}
	if (fd < 0 || n < len || close(fd) < 0) {
		printf("Bail out! cannot write %s\n", name);
		exit(1);
	}
}

static inline int sample_open(struct sample *s, const char *name, unsigned flags, struct tide_error *err)
{
	*s = (struct sample){ .fd = open(unit_path(name), (flags ? O_RDWR : O_RDONLY) | O_CLOEXEC), .data_fd = -1 };
	if (qcow2->open(s->fd, unit_dir(), flags, &s->info, &s->state, err) == 0) {
		if (!s->info.data_file)
			return 0;
		s->data_fd = open(unit_path("disk.data"), (flags ? O_RDWR : O_RDONLY) | O_CLOEXEC);
		CHECK_EQ_I64(qcow2->set_data_file(s->state, s->data_fd, err), 0);
		return 0;
	}
	tide_driver_info_release(&s->info);
	close(s->fd);
	return -1;
}

static inline int sample_create(const char *name, const struct tide_driver_create *options, struct tide_error *err)
{
	int fd = open(unit_path(name), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	int rc = qcow2->create(fd, options, err);

	close(fd);
	return rc;
}

static inline void sample_close(struct sample *s)
{
	qcow2->close(s->state);
	tide_driver_info_release(&s->info);
	close(s->fd);
	if (s->data_fd >= 0)
		close(s->data_fd);
}

static inline int sample_read(struct sample *s, uint8_t *buf, uint64_t off, uint64_t len, struct tide_error *err)
{
	while (len) {
		struct tide_extent e;

		if (qcow2->extent(s->state, off, len, &e, err) < 0)
			return -1;
		if (!CHECK(e.off == off && e.len > 0 && e.len <= len))
			return -1;
		if (e.kind == TIDE_EXTENT_HOLE && s->below)
			memcpy(buf, s->below + off, e.len);
		else if (e.kind != TIDE_EXTENT_DATA)
			memset(buf, 0, e.len);
		else if (!e.mapped && qcow2->read(s->state, buf, off, e.len, err) < 0)
			return -1;
		else if (e.mapped && !CHECK_EQ_I64(pread(e.map_fd, buf, e.len, (off_t)e.map_off), (int64_t)e.len))
			return -1;
		buf += e.len;
		off += e.len;
		len -= e.len;
	}
	return 0;
}

static inline int sample_put(struct sample *s, const uint8_t *buf, uint64_t off, uint64_t len, uint64_t *done,
                             struct tide_error *err)
{
	struct tide_extent place;
	int rc = qcow2->write_begin(s->state, off, len, &place, err);

	if (rc)
		return rc;
	if (!CHECK(place.off == off && place.len > 0 && place.len <= len && place.mapped))
		return -1;
	if (!CHECK_EQ_I64(pwrite(place.map_fd, buf, place.len, (off_t)place.map_off), (int64_t)place.len)) {
		qcow2->write_abort(s->state, &place);
		return -1;
	}
	*done = place.len;
	return qcow2->write_commit(s->state, &place, err);
}

/* Writes, whole clusters where the driver wants them. */
static inline int sample_write(struct sample *s, const uint8_t *buf, uint64_t off, uint64_t len, struct tide_error *err)
{
	while (len) {
		uint64_t cluster = s->info.subcluster_size ? s->info.subcluster_size : s->info.cluster_size, done = 0;
		int rc = sample_put(s, buf, off, len, &done, err);

		if (rc == 1) {
			uint64_t start = off - off % cluster, whole = TIDE_MIN(cluster, s->info.size - start), n = 0;
			uint8_t *bounce = malloc(whole);

			done = TIDE_MIN(len, start + whole - off);
			rc = sample_read(s, bounce, start, whole, err);
			memcpy(bounce + (off - start), buf, done);
			if (rc == 0)
				rc = sample_put(s, bounce, start, whole, &n, err);
			free(bounce);
			if (rc == 0)
				CHECK_EQ_U64(n, whole);
		}
		if (rc) {
			CHECK_EQ_I64(rc, -1);
			return -1;
		}
		buf += done;
		off += done;
		len -= done;
	}
	return 0;
}

static inline int sample_zero(struct sample *s, uint64_t off, uint64_t len, bool may_unmap, struct tide_error *err)
{
	uint8_t *zeroes;
	int rc = qcow2->zero(s->state, off, len, may_unmap, err);

	if (rc != 1)
		return rc;
	zeroes = calloc(1, len);
	rc = sample_write(s, zeroes, off, len, err);
	free(zeroes);
	return rc;
}

static inline void fill(uint8_t *buf, uint64_t len, uint64_t *seed)
{
	for (uint64_t i = 0; i < len; i += 4) {
		uint32_t word = (uint32_t)rnd(seed);

		memcpy(buf + i, &word, TIDE_MIN(len - i, sizeof(word)));
	}
}

/* Some of it random, the rest one byte: it compresses, to any size. */
static inline void fill_soft(uint8_t *buf, uint64_t len, uint64_t *seed)
{
	uint64_t noise = rnd(seed) % (len + 1);

	if (rnd(seed) % 2)
		noise /= 64;
	fill(buf, noise, seed);
	memset(buf + noise, 1 + (int)(rnd(seed) % 255), len - noise);
}

/* Writes whole clusters compressed, where they get smaller; *n_plain counts those that do not. */
static inline int sample_pack(struct sample *s, const uint8_t *buf, uint64_t off, uint64_t len, unsigned *n_plain,
                              struct tide_error *err)
{
	uint64_t cluster = s->info.cluster_size, n = (len + cluster - 1) / cluster, used = 0;
	uint8_t *out = malloc(n * cluster), *whole = calloc(1, n * cluster);
	struct tide_packed *packed = calloc(n, sizeof(*packed));
	void *packer = NULL;
	size_t n_packed = 0;
	int rc = qcow2->packer_new(s->state, &packer, err);

	memcpy(whole, buf, len);
	for (uint64_t i = 0; rc == 0 && i < n; i++) {
		size_t room = cluster;

		rc = qcow2->pack(packer, whole + i * cluster, out + used, &room, err);
		if (rc == 0) {
			packed[n_packed++] = (struct tide_packed){ off + i * cluster, out + used, room };
			CHECK(room > 0 && room < cluster);
			used += room;
		} else if (rc > 0) {
			(*n_plain)++;
			rc = sample_write(s, buf + i * cluster, off + i * cluster, TIDE_MIN(cluster, len - i * cluster),
			                  err);
		}
	}
	if (packer)
		qcow2->packer_free(packer);
	if (rc == 0)
		rc = qcow2->write_packed(s->state, packed, n_packed, err);
	free(packed);
	free(whole);
	free(out);
	return rc;
}

/* Compares the whole disk with the model. */
static inline bool check_content(struct sample *s, const uint8_t *model)
{
	struct tide_error err = TIDE_ERROR_INIT;
	uint8_t *buf = malloc(s->info.size + 1);
	bool good = CHECK_OK(sample_read(s, buf, 0, s->info.size, &err), &err) && CHECK_MEM(buf, model, s->info.size);

	free(buf);
	return good;
}

/* Compares the model with the content that qemu-img reads from the image or one of its snapshots. */
static inline bool check_with_qemu(const char *name, const char *snapshot, const uint8_t *model, uint64_t size)
{
	uint64_t len;
	uint8_t *got;
	bool good;

	if (!CHECK_EQ_I64(sh("qemu-img convert -f qcow2 %s%s -O raw %s q.raw", snapshot ? "-l snapshot.name=" : "",
	                     snapshot ? snapshot : "", name),
	                  0)) {
		show_output();
		return false;
	}
	got = slurp("q.raw", &len);
	good = CHECK_EQ_U64(len, size) && CHECK_MEM(got, model, size);
	free(got);
	return good;
}

#endif
