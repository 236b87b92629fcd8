/*
 * Gives a new file the owner and mode of another one (owner.h).
 */
#include "owner.h"

#include <errno.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "bytes.h"
#include "error.h"

/* acl(5), as the kernel stores it: a version, then entries of a tag, permissions and an id. */
#define ACL_NAME  "system.posix_acl_access"
#define ACL_GROUP 0x04u
#define ACL_HEAD  4u
#define ACL_ENTRY 8u
#define ACL_MAX   4096u

/*
 * The mode without what an access control list hides: with one, the group bits of the mode are the most that any
 * person or group of the list may do, and not what the owning group may.
 */
static mode_t mode_without_list(int fd, mode_t mode)
{
	uint8_t list[ACL_MAX];
	ssize_t len = fgetxattr(fd, ACL_NAME, list, sizeof(list));

	if (len < 0 && errno != ERANGE)
		return mode;
	for (size_t at = ACL_HEAD; len > 0 && at + ACL_ENTRY <= (size_t)len; at += ACL_ENTRY) {
		if (tide_get_le16(list + at) == ACL_GROUP)
			return mode & ~(mode_t)(~(unsigned)tide_get_le16(list + at + 2) << 3 & 070);
	}
	return mode & ~(mode_t)070;
}

/* The file system, or the privileges of this process, do not allow it. */
static bool is_not_allowed(int sys)
{
	return sys == EPERM || sys == EACCES || sys == EINVAL || sys == ENOTSUP || sys == ENOSYS;
}

int tide_owner_copy(int fd, int like, mode_t least, struct tide_error *err)
{
	struct stat st;
	mode_t mode;

	if (fstat(like, &st) < 0)
		return tide_error_set_sys(err, errno, "Could not look at the image's owner and mode");
	if (!S_ISREG(st.st_mode))
		return 0;
	mode = mode_without_list(like, st.st_mode & 0666);
	if (fchown(fd, st.st_uid, st.st_gid) < 0) {
		if (!is_not_allowed(errno))
			return tide_error_set_sys(err, errno, "Could not give the file to the owner of the image");
		if (fchown(fd, (uid_t)-1, st.st_gid) < 0) {
			if (!is_not_allowed(errno))
				return tide_error_set_sys(err, errno,
				                          "Could not give the file to the group of the image");
			mode &= 0600;
		}
	}
	if (fchmod(fd, mode | (least & 0600)) < 0)
		return tide_error_set_sys(err, errno, "Could not set the mode of the file");
	return 0;
}

int tide_owner_narrow(int fd, int like, struct tide_error *err)
{
	struct stat own, other;
	mode_t mode, allowed;

	if (fstat(fd, &own) < 0 || fstat(like, &other) < 0)
		return tide_error_set_sys(err, errno, "Could not look at the image's owner and mode");
	mode = S_ISREG(other.st_mode) ? mode_without_list(like, other.st_mode) : 0;
	/* Members of another group are others there. */
	allowed = 0600 | (mode & 06) | (own.st_gid == other.st_gid ? mode & 060 : (mode & 06) << 3);
	if (!(own.st_mode & 0666 & ~allowed))
		return 0;
	if (fchmod(fd, own.st_mode & allowed) < 0)
		return tide_error_set_sys(err, errno, "Could not set the mode of the file");
	return 0;
}
