/*
 * A bare copier of extents: what the machine can do when there is nothing else to do.
 *
 *   copier [-t THREADS | -u | -l] [-r] [-w] RANGES SOURCE TARGET    one after the other into a new file, synced
 *   copier -c RANGES SOURCE TARGET                                  compares instead
 *
 * -t reads ahead by WILLNEED and starts writeback early; -u has sixteen pieces under way through io_uring; -l shares
 * (FICLONERANGE).  -r, -w: O_DIRECT on that side.  RANGES: lines of OFFSET LENGTH, multiples of 4096.
 */
#include <err.h>
#include <fcntl.h>
#include <inttypes.h>
#include <liburing.h>
#include <linux/fs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define PIECE (UINT64_C(1) << 20)
#define DEPTH 16

struct extent {
	uint64_t from, to, len; /* len <= PIECE */
};

struct slot {
	uint8_t *buf;
	struct extent *x;
	bool writing;
};

static struct extent *extents;
static size_t n_extents;
static atomic_size_t next;
static int source, target;

static void add(uint64_t from, uint64_t to, uint64_t len)
{
	if (n_extents % 1024 == 0)
		extents = realloc(extents, (n_extents + 1024) * sizeof(*extents));
	if (!extents)
		err(1, "memory");
	extents[n_extents++] = (struct extent){ from, to, len };
}

static void read_ranges(const char *path)
{
	FILE *f = fopen(path, "r");
	uint64_t off, len, to = 0;

	if (!f)
		err(1, "%s", path);
	while (fscanf(f, "%" SCNu64 " %" SCNu64, &off, &len) == 2) {
		for (uint64_t done = 0, n; done < len; done += n, to += n) {
			n = len - done < PIECE ? len - done : PIECE;
			add(off + done, to, n);
		}
	}
	fclose(f);
}

static uint8_t *buffer(void)
{
	void *p;

	if (posix_memalign(&p, 4096, PIECE))
		err(1, "memory");
	return p;
}

static void *copy(void *arg)
{
	uint8_t *buf = buffer();
	size_t i;

	while ((i = atomic_fetch_add(&next, 1)) < n_extents) {
		const struct extent *x = &extents[i];

		for (size_t k = i; k < n_extents && k < i + DEPTH; k += DEPTH - 1)
			posix_fadvise(source, (off_t)extents[k].from, (off_t)extents[k].len, POSIX_FADV_WILLNEED);
		if (pread(source, buf, x->len, (off_t)x->from) != (ssize_t)x->len ||
		    pwrite(target, buf, x->len, (off_t)x->to) != (ssize_t)x->len)
			err(1, "copy");
		sync_file_range(target, (off_t)x->to, (off_t)x->len, SYNC_FILE_RANGE_WRITE);
	}
	free(buf);
	return arg;
}

static void by_threads(unsigned n)
{
	pthread_t thread[64];

	n = n < 64 ? n : 64;
	for (unsigned i = 0; i < n; i++) {
		if (pthread_create(&thread[i], NULL, copy, NULL))
			err(1, "thread");
	}
	for (unsigned i = 0; i < n; i++)
		pthread_join(thread[i], NULL);
}

static void submit(struct io_uring *ring, struct slot *s)
{
	struct io_uring_sqe *e = io_uring_get_sqe(ring);

	if (s->writing)
		io_uring_prep_write(e, target, s->buf, (unsigned)s->x->len, s->x->to);
	else
		io_uring_prep_read(e, source, s->buf, (unsigned)s->x->len, s->x->from);
	io_uring_sqe_set_data(e, s);
}

static void by_uring(void)
{
	struct slot slot[DEPTH];
	struct io_uring ring;
	struct io_uring_cqe *c;
	size_t begun = 0, active = 0;

	if (io_uring_queue_init(DEPTH, &ring, 0) < 0)
		errx(1, "io_uring is not there");
	for (; active < DEPTH && begun < n_extents; active++) {
		slot[active] = (struct slot){ buffer(), &extents[begun++], false };
		submit(&ring, &slot[active]);
	}
	while (active) {
		io_uring_submit_and_wait(&ring, 1);
		while (io_uring_peek_cqe(&ring, &c) == 0) {
			struct slot *s = io_uring_cqe_get_data(c);

			if (c->res != (int)s->x->len)
				errx(1, "a transfer ended with %d", c->res);
			io_uring_cqe_seen(&ring, c);
			if (s->writing && begun == n_extents) {
				active--;
				continue;
			}
			if (s->writing)
				s->x = &extents[begun++];
			s->writing = !s->writing;
			submit(&ring, s);
		}
	}
}

static void by_sharing(void)
{
	for (size_t i = 0; i < n_extents;) {
		struct file_clone_range r = { source, extents[i].from, 0, extents[i].to };

		for (; i < n_extents && extents[i].from == r.src_offset + r.src_length; i++)
			r.src_length += extents[i].len;
		if (ioctl(target, FICLONERANGE, &r) < 0)
			err(1, "sharing");
	}
}

static void compare(void)
{
	uint8_t *a = buffer(), *b = buffer();

	for (size_t i = 0; i < n_extents; i++) {
		const struct extent *x = &extents[i];

		if (pread(source, a, x->len, (off_t)x->from) != (ssize_t)x->len ||
		    pread(target, b, x->len, (off_t)x->to) != (ssize_t)x->len || memcmp(a, b, x->len))
			errx(1, "the copy of %" PRIu64 " differs", x->from);
	}
}

int main(int argc, char **argv)
{
	bool uring = false, share = false, check = false;
	int read_flags = O_RDONLY, write_flags = O_RDWR | O_CREAT | O_TRUNC, opt;
	unsigned threads = 2;

	while ((opt = getopt(argc, argv, "t:ulrwc")) != -1) {
		switch (opt) {
		case 't':
			threads = (unsigned)strtoul(optarg, NULL, 10);
			break;
		case 'u':
			uring = true;
			break;
		case 'l':
			share = true;
			break;
		case 'r':
			read_flags |= O_DIRECT;
			break;
		case 'w':
			write_flags |= O_DIRECT;
			break;
		case 'c':
			check = true;
			write_flags = O_RDONLY;
			break;
		default:
			return 2;
		}
	}
	if (argc - optind != 3)
		return 2;
	read_ranges(argv[optind]);
	source = open(argv[optind + 1], read_flags);
	target = open(argv[optind + 2], write_flags, 0644);
	if (source < 0 || target < 0)
		err(1, "open");
	if (check)
		compare();
	else if (share)
		by_sharing();
	else if (uring)
		by_uring();
	else
		by_threads(threads);
	if (!check && fdatasync(target) < 0)
		err(1, "sync");
	return 0;
}
