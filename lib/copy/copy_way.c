#include "copy_way.h"

#include <errno.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/compiler.h"
#include "base/error.h"
#include "base/range.h"

#define BLOCK_MIN 4096u

int tide_copy_way_wanted(enum tide_copy_way *way, struct tide_error *err)
{
	static const struct {
		const char *name;
		enum tide_copy_way way;
	} names[] = {
		{ "reflink", TIDE_COPY_WAY_REFLINK }, { "kernel", TIDE_COPY_WAY_KERNEL }, { "rw", TIDE_COPY_WAY_RW },
		{ "direct", TIDE_COPY_WAY_DIRECT },   { "uring", TIDE_COPY_WAY_DIRECT },
	};
	const char *wanted = getenv("TIDE_COPY");

	*way = TIDE_COPY_WAY_AUTO;
	if (!wanted || !*wanted)
		return 0;
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(names); i++) {
		if (!strcmp(wanted, names[i].name)) {
			*way = names[i].way;
			return 0;
		}
	}
	tide_error_set(err, TIDE_E_REFUSED, "TIDE_COPY is '%s': there is no such way to copy", wanted);
	return tide_error_hint(err, "reflink, kernel, rw, direct or uring; without it the best one is chosen");
}

bool tide_copy_way_is_remote(int fd)
{
	static const unsigned types[] = { 0x6969 /* NFS */, 0xff534d42 /* CIFS */, 0xfe534d42 /* SMB2 */,
		                          0x00c36400 /* Ceph */ };
	struct statfs fs;

	if (fstatfs(fd, &fs) < 0)
		return false;
	for (size_t i = 0; i < TIDE_ARRAY_SIZE(types); i++) {
		if ((unsigned)fs.f_type == types[i])
			return true;
	}
	return false;
}

uint64_t tide_copy_way_block(int fd)
{
	struct statfs fs;

	if (fstatfs(fd, &fs) < 0 || !tide_range_is_pow2((uint64_t)fs.f_bsize))
		return BLOCK_MIN;
	return TIDE_MAX((uint64_t)fs.f_bsize, BLOCK_MIN);
}

static enum tide_copy_answer answer_of(int sys)
{
	switch (sys) {
	case EXDEV:
	case EOPNOTSUPP:
	case ENOTTY:
	case ENOSYS:
	case EPERM:
	case ETXTBSY:
		return TIDE_COPY_NEVER;
	default:
		return TIDE_COPY_NOT_HERE;
	}
}

enum tide_copy_answer tide_copy_way_reflink(int source, uint64_t from, uint64_t len, int target, uint64_t to)
{
	struct file_clone_range range = { .src_fd = source, .src_offset = from, .src_length = len, .dest_offset = to };
	int rc;

	do
		rc = ioctl(target, FICLONERANGE, &range);
	while (rc < 0 && errno == EINTR);
	return rc == 0 ? TIDE_COPY_DONE : answer_of(errno);
}

enum tide_copy_answer tide_copy_way_kernel(int source, uint64_t from, uint64_t len, int target, uint64_t to)
{
	loff_t in = (loff_t)from, out = (loff_t)to;

	while (len) {
		ssize_t n = copy_file_range(source, &in, target, &out, len, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return answer_of(errno);
		if (n == 0) /* the source ends here, or its file system says so of what it cannot copy */
			return TIDE_COPY_NOT_HERE;
		len -= (uint64_t)n;
	}
	return TIDE_COPY_DONE;
}
