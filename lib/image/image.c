/*
 * Images: probing, opening a chain, locks and stamps, and the calls that go straight to a driver. A
 * chain is opened from the top down; each image of it is locked before it is read, its stamp is
 * taken under the lock, and the names in it are judged before they are followed (backing.h).
 */
#include "image_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backing.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/mem.h"
#include "base/range.h"
#include "base/sysio.h"

/* How long a writer waits for other users of the image. */
#define LOCK_WAIT_MS 10000u
#define NAMED_MAX    8u /* errors name at most this many images, from the top */

/* The images above, while a chain is being opened. */
struct chain_link {
	const struct tide_image *image;
	const struct chain_link *above;
	unsigned depth;
};

static const struct tide_image_driver *probe(int fd, struct tide_error *err)
{
	const struct tide_image_driver *driver;
	uint8_t head[512] = { 0 };
	const char *foreign;
	uint64_t size;
	size_t n;

	if (tide_sysio_size(fd, &size, err) < 0)
		return NULL;
	n = TIDE_MIN(size, sizeof(head));
	if (tide_sysio_pread(fd, head, n, 0, true, err) < 0)
		return NULL;
	foreign = tide_driver_foreign(head, n);
	if (foreign) {
		/* A backup of its bytes as of a raw disk could lack what is stored in other files. */
		tide_error_set(err, TIDE_E_UNSUPPORTED,
		               "The image looks like one of format '%s', which this version does not "
		               "support",
		               foreign);
		tide_error_hint(err, "if it is a raw disk that only begins like one, specify the format raw");
		return NULL;
	}
	driver = tide_image_probe_driver(head, n);
	if (!driver)
		tide_error_set(err, TIDE_E_UNSUPPORTED, "Image format not recognized");
	return driver;
}

static const struct tide_image_driver *choose_driver(int fd, const char *format, struct tide_error *err)
{
	const struct tide_image_driver *driver;
	TIDE_AUTOFREE char *names = NULL;

	if (!format)
		return probe(fd, err);
	driver = tide_image_find_driver(format);
	if (driver && driver->open)
		return driver;
	if (driver) {
		tide_error_set(err, TIDE_E_REFUSED, "It is not the URI of %s", driver->uri_noun);
		tide_error_hint(err, "such URIs begin with %s", driver->uri_example);
		return NULL;
	}
	names = tide_image_format_list(0, err);
	if (names) {
		tide_error_set(err, TIDE_E_REFUSED, "Unknown driver '%s'", format);
		tide_error_hint(err, "this version knows the formats %s", names);
	}
	return NULL;
}

char *tide_image_resolve(const char *path, const char *name, struct tide_error *err)
{
	return tide_backing_join(path, name, err);
}

char *tide_image_backing_path(const struct tide_image *image, const char *path, struct tide_error *err)
{
	TIDE_AUTOBACKING struct tide_backing found = TIDE_BACKING_INIT;
	char *shown;

	/* A name that cannot be followed is shown unchanged. */
	if (tide_backing_find(path, "backing file", image->info.backing, TIDE_ALLOW_ANY, &found, NULL) < 0)
		return tide_backing_join(path, image->info.backing, err);
	shown = found.path;
	found.path = NULL;
	return shown;
}

static struct tide_image *image_new(const char *path, struct tide_error *err)
{
	struct tide_image *image = tide_mem_alloc(1, sizeof(*image), err);

	if (!image)
		return NULL;
	image->fd = image->data_fd = -1;
	image->path = tide_mem_strdup(path, err);
	if (!image->path) {
		free(image);
		return NULL;
	}
	return image;
}

void tide_image_close(struct tide_image *image)
{
	while (image) {
		struct tide_image *backing = image->backing;

		if (image->state)
			image->driver->close(image->state);
		tide_driver_info_release(&image->info);
		tide_error_release(&image->broken);
		if (image->own_fd)
			tide_sysio_close(image->fd);
		tide_sysio_close(image->data_fd);
		free(image->data_path);
		free(image->path);
		free(image);
		image = backing;
	}
}

void tide_image_closep(struct tide_image **image)
{
	tide_image_close(*image);
}

static int remember_file(struct tide_image *image, struct tide_error *err)
{
	struct stat st;

	if (fstat(image->fd, &st) < 0)
		return tide_error_set_sys(err, errno, "fstat");
	if (S_ISDIR(st.st_mode))
		return tide_error_set_sys(err, EISDIR, "Not an image");
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return tide_error_set(err, TIDE_E_UNSUPPORTED, "Neither a regular file nor a block device");
	image->dev = st.st_dev;
	image->ino = st.st_ino;
	return tide_stamp_take(image->fd, &image->stamp, err);
}

static int check_no_loop(const struct tide_image *image, const struct chain_link *above, struct tide_error *err)
{
	for (const struct chain_link *l = above; l; l = l->above) {
		if (tide_image_is_same_file(image, l->image))
			return tide_error_set(err, TIDE_E_CORRUPT, "The backing chain leads back to '%s': it is a loop",
			                      image->path);
	}
	return 0;
}

/* Takes the stamp of all files of the image; *data: of its data file alone. */
static int take_stamp(const struct tide_image *image, struct tide_stamp *stamp, struct tide_stamp *data,
                      struct tide_error *err)
{
	*data = *stamp = (struct tide_stamp){ 0 };
	if (image->is_uri)
		return 0;
	if (tide_stamp_take(image->fd, stamp, err) < 0)
		return -1;
	if (image->data_fd >= 0 && tide_stamp_take(image->data_fd, data, err) < 0)
		return -1;
	tide_stamp_add(stamp, data);
	return 0;
}

/*
 * Used after we have changed the image file alone: the data file counts with its earlier stamp, so that a change of
 * it by another program shows.
 */
int tide_image_stamp_now(const struct tide_image *image, struct tide_stamp *stamp, struct tide_error *err)
{
	if (tide_stamp_take(image->fd, stamp, err) < 0)
		return -1;
	tide_stamp_add(stamp, &image->data_stamp);
	return 0;
}

static int renew_stamp(struct tide_image *image, struct tide_error *err)
{
	return tide_image_stamp_now(image, &image->stamp, err);
}

/*
 * Finds the external data file. QEMU looks in the directory it is started in; with two candidates it cannot be
 * known which is meant.
 */
char *tide_image_find_data_file(const char *image, const char *name, unsigned allow, struct tide_error *err)
{
	TIDE_AUTOBACKING struct tide_backing found = TIDE_BACKING_INIT;
	struct stat a, b;

	if (tide_backing_find(image, "data file", name, allow, &found, err) < 0)
		return NULL;
	if (tide_image_is_uri(found.path)) {
		tide_error_set(err, TIDE_E_UNSUPPORTED,
		               "The data file '%s' that '%s' names cannot be followed: it is not a file", name, image);
		return NULL;
	}
	if (stat(found.path, &a) == 0 && stat(name, &b) == 0 && (a.st_dev != b.st_dev || a.st_ino != b.st_ino)) {
		tide_error_set(err, TIDE_E_REFUSED,
		               "The data file '%s' could be '%s' or the one in the current directory", name,
		               found.path);
		tide_error_hint(err, "specify it with an absolute path: qemu-img amend -o data_file=PATH '%s'", image);
		return NULL;
	}
	return tide_mem_strdup(found.path, err);
}

static int check_data_file(const struct tide_image *image, struct tide_error *err)
{
	struct stat st;

	if (fstat(image->data_fd, &st) < 0)
		return tide_error_set_sys(err, errno, "fstat");
	if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		return tide_error_set(err, TIDE_E_UNSUPPORTED, "Neither a regular file nor a block device");
	if (st.st_dev == image->dev && st.st_ino == image->ino)
		return tide_error_set(err, TIDE_E_CORRUPT, "The image names itself as its external data file");
	return 0;
}

static int open_data_file(struct tide_image *image, const struct tide_image_options *options, struct tide_error *err)
{
	bool write = (image->flags & TIDE_OPEN_WRITE) &&
	             !image->write_later; /* write_later changes only the image file, not the disk */

	image->data_path = tide_image_find_data_file(image->path, image->info.data_file, options->allow, err);
	if (!image->data_path)
		return -1;
	image->data_fd = tide_sysio_open(image->data_path, (write ? O_RDWR : O_RDONLY) | O_NONBLOCK, err);
	if (image->data_fd < 0)
		return tide_error_hint(err, "it is the image's external data file, and nothing can be read without it");
	if (check_data_file(image, err) < 0)
		return tide_error_wrap(err, "Could not open data file '%s'", image->data_path);
	if (!options->force_share &&
	    tide_lock_acquire(image->data_fd, write ? TIDE_LOCK_WRITE_HELD : TIDE_LOCK_READ_HELD,
	                      write ? TIDE_LOCK_WRITE_UNSHARED : TIDE_LOCK_READ_UNSHARED, image->data_path, err) < 0)
		return -1;
	return image->driver->set_data_file(image->state, image->data_fd, err);
}

/* Adds the data file's stamp, taken once it is locked, to the image's own. */
static int add_data_file(struct tide_image *image, const struct tide_image_options *options, struct tide_error *err)
{
	if (open_data_file(image, options, err) < 0 || tide_stamp_take(image->data_fd, &image->data_stamp, err) < 0)
		return -1;
	tide_stamp_add(&image->stamp, &image->data_stamp);
	return 0;
}

static int open_driver(struct tide_image *image, struct tide_error *err)
{
	TIDE_AUTOFREE char *dir = tide_sysio_dir_name(image->path, err);

	if (!dir)
		return -1;
	return image->driver->open(image->fd, dir, image->flags, &image->info, &image->state, err);
}

/* Writing without recording would leave enabled bitmaps incomplete. */
static int check_recording(const struct tide_image *image, struct tide_error *err)
{
	for (size_t i = 0; i < image->info.n_bitmaps && !image->records_bitmaps; i++) {
		const struct tide_driver_bitmap *b = &image->info.bitmaps[i];

		if (!b->enabled || b->in_use)
			continue;
		tide_error_set(
		        err, TIDE_E_UNSUPPORTED,
		        "The bitmap '%s' inside the image is enabled, but this version cannot record writes in it",
		        b->name);
		return tide_error_hint(err, "disable or remove it first: qemu-img bitmap --disable IMAGE '%s'",
		                       b->name);
	}
	return 0;
}

static int open_link(const struct tide_image_options *options, const char *real, const struct chain_link *above,
                     struct tide_image **out, struct tide_error *err);

/* The format in the name itself comes first, then the recorded one; *format NULL: it must be probed, and may be. */
static int choose_backing_format(const struct tide_image *image, const struct tide_backing *found, unsigned allow,
                                 const char **format, struct tide_error *err)
{
	const char *recorded = image->info.backing_format;

	*format = found->format ? found->format : recorded;
	if (found->format && recorded && strcmp(found->format, recorded))
		return tide_error_set(err, TIDE_E_CORRUPT,
		                      "The backing file name '%s' of '%s' specifies format '%s', but '%s' is recorded",
		                      image->info.backing, image->path, found->format, recorded);
	if (*format || (allow & TIDE_ALLOW_PROBE))
		return 0;
	tide_error_set(err, TIDE_E_REFUSED, "Backing file '%s' specified without backing format", image->info.backing);
	return tide_error_hint(
	        err,
	        "record it: qemu-img rebase -u -b '%s' -F FORMAT '%s'; or, if you trust both images, let it be "
	        "probed: --allow-backing=probe",
	        image->info.backing, image->path);
}

/* trusted: a person has just given the name. The names in the images below are judged even then. */
static int open_backing(struct tide_image *image, const struct tide_image_options *options,
                        const struct chain_link *above, bool trusted, struct tide_error *err)
{
	struct chain_link here = { image, above, above ? above->depth + 1 : 1 };
	struct tide_image_options below = {
		.force_share = options->force_share,
		.partial = options->partial,
		.allow = options->allow,
		.cancel = options->cancel,
	};
	TIDE_AUTOBACKING struct tide_backing found = TIDE_BACKING_INIT;
	const char *name = image->info.backing;

	if (!name || options->no_backing)
		return 0;
	if (tide_backing_find(image->path, "backing file", name, trusted ? TIDE_ALLOW_ANY : options->allow, &found,
	                      err) < 0)
		return -1;
	image->backing_outside = found.outside;
	if (choose_backing_format(image, &found, options->allow, &below.format, err) < 0)
		return -1;
	if (here.depth > TIDE_IMAGE_DEPTH_MAX) {
		tide_error_set(err, TIDE_E_REFUSED, "The backing chain is deeper than %d images", TIDE_IMAGE_DEPTH_MAX);
		return tide_error_hint(
		        err,
		        "begin a new chain with a full backup; qemu-img convert turns an old chain into one image");
	}
	below.path = found.path;
	if (open_link(&below, found.real, &here, &image->backing, err) < 0)
		return here.depth > NAMED_MAX ? -1 : tide_error_wrap(err, "Could not open backing file");
	return 0;
}

static int open_checked(struct tide_image *image, const struct tide_image_options *options,
                        const struct chain_link *above, struct tide_error *err)
{
	if (remember_file(image, err) < 0 || check_no_loop(image, above, err) < 0)
		return -1;
	/* This lock comes first: a program that waits for it must not hold locks that block its present holder. */
	if (image->write_later && tide_lock_bitmaps(image->fd, LOCK_WAIT_MS, image->path, err) < 0)
		return -1;
	if (!options->force_share &&
	    tide_lock_acquire(image->fd, options->write ? TIDE_LOCK_WRITE_HELD : TIDE_LOCK_READ_HELD,
	                      options->write ? TIDE_LOCK_WRITE_UNSHARED : TIDE_LOCK_READ_UNSHARED, image->path,
	                      err) < 0)
		return -1;
	/* The stamp that counts is taken now that the lock keeps other writers out. */
	if (tide_stamp_take(image->fd, &image->stamp, err) < 0)
		return -1;
	image->driver = choose_driver(image->fd, options->format, err);
	if (!image->driver || open_driver(image, err) < 0)
		return -1;
	if (image->info.data_file && add_data_file(image, options, err) < 0)
		return -1;
	return options->write ? check_recording(image, err) : 0;
}

/* A URI's image is raw, and is called so as well. */
static int open_uri(const struct tide_image_options *options, const struct chain_link *above, struct tide_image *image,
                    struct tide_error *err)
{
	const struct tide_image_driver *driver = tide_image_uri_driver(image->path);
	bool writes = options->write || options->write_later;

	image->is_uri = true;
	image->fd = options->has_lock_fd ? options->lock_fd : -1;
	image->flags = (writes ? TIDE_OPEN_WRITE : 0) | (above ? TIDE_OPEN_UNTRUSTED : 0);
	if (options->format && strcmp(options->format, driver->name) && !tide_image_is_raw_format(options->format)) {
		tide_error_set(err, TIDE_E_UNSUPPORTED,
		               "The URI of %s leads to a raw disk: a %s image in it cannot be used", driver->uri_noun,
		               options->format);
		return driver->uri_raw_hint ? tide_error_hint(err, "%s", driver->uri_raw_hint) : -1;
	}
	if (image->fd >= 0 && !options->force_share &&
	    tide_lock_acquire(image->fd, options->write ? TIDE_LOCK_WRITE_HELD : TIDE_LOCK_READ_HELD,
	                      options->write ? TIDE_LOCK_WRITE_UNSHARED : TIDE_LOCK_READ_UNSHARED, image->path,
	                      err) < 0)
		return -1;
	image->driver = driver;
	return driver->open_uri(image->path, image->flags, options->cancel, &image->info, &image->state, err);
}

static int open_file(const struct tide_image_options *options, const char *real, const struct chain_link *above,
                     struct tide_image *image, struct tide_error *err)
{
	bool writes = options->write || options->write_later;

	/* O_NONBLOCK: opening a FIFO must not hang; the flag has no effect on files and block devices. */
	image->fd = tide_sysio_open(real ? real : options->path, (writes ? O_RDWR : O_RDONLY) | O_NONBLOCK, err);
	if (image->fd < 0)
		return -1;
	image->own_fd = true;
	image->flags = writes ? TIDE_OPEN_WRITE : 0;
	image->write_later = options->write_later && !options->write;
	if (image->write_later)
		image->flags |= TIDE_OPEN_LATER;
	image->records_bitmaps = options->records_bitmaps;
	image->locks = !options->force_share;
	if (open_checked(image, options, above, err) < 0)
		/* QEMU's message names only the lock. */
		return err && err->code == TIDE_E_LOCKED ? -1
		                                         : tide_error_wrap(err, "Could not open '%s'", options->path);
	return 0;
}

/*
 * real: the path without symbolic links, or NULL when the file does not exist. The judged path is the one that is
 * opened.
 */
static int open_link(const struct tide_image_options *options, const char *real, const struct chain_link *above,
                     struct tide_image **out, struct tide_error *err)
{
	TIDE_AUTOIMAGE struct tide_image *image = image_new(real ? real : options->path, err);

	if (!image)
		return -1;
	if (tide_image_is_uri(options->path)) {
		if (open_uri(options, above, image, err) < 0)
			return err && err->code == TIDE_E_LOCKED
			               ? -1
			               : tide_error_wrap(err, "Could not open '%s'", options->path);
	} else if (open_file(options, real, above, image, err) < 0) {
		return -1;
	}
	if (open_backing(image, options, above, false, options->partial ? &image->broken : err) < 0 &&
	    !options->partial)
		return above && above->depth >= NAMED_MAX ? -1
		                                          : tide_error_wrap(err, "Could not open '%s'", options->path);
	*out = image;
	image = NULL;
	return 0;
}

int tide_image_open(const struct tide_image_options *options, struct tide_image **image, struct tide_error *err)
{
	TIDE_AUTOFREE char *real = tide_image_is_uri(options->path) ? NULL : realpath(options->path, NULL);

	if (tide_image_check_scheme(options->path, err) < 0)
		return tide_error_wrap(err, "Could not open '%s'", options->path);
	return open_link(options, real, NULL, image, err);
}

/*
 * The image and its data file get their names together; until then the image layer knows the data file by its
 * descriptor.
 */
static int take_new_data_file(struct tide_image *image, int data_fd, struct tide_error *err)
{
	if (!image->info.data_file)
		return 0;
	image->data_path = tide_image_find_data_file(image->path, image->info.data_file, TIDE_ALLOW_ANY, err);
	if (!image->data_path)
		return -1;
	image->data_fd = fcntl(data_fd, F_DUPFD_CLOEXEC, 0);
	if (image->data_fd < 0)
		return tide_error_set_sys(err, errno, "Could not open data file '%s'", image->data_path);
	return image->driver->set_data_file(image->state, image->data_fd, err);
}

int tide_image_create(int fd, int data_fd, const char *path, const struct tide_image_driver *driver,
                      const struct tide_driver_create *options, struct tide_image **out, struct tide_error *err)
{
	TIDE_AUTOIMAGE struct tide_image *image = image_new(path, err);
	struct tide_image_options follow = { .allow = options->allow };

	if (!image)
		return -1;
	if (driver->create(fd, options, err) < 0)
		return -1;
	image->fd = fd;
	image->flags = TIDE_OPEN_WRITE | TIDE_OPEN_NEW;
	image->driver = driver;
	if (remember_file(image, err) < 0 || open_driver(image, err) < 0 ||
	    take_new_data_file(image, data_fd, err) < 0 || open_backing(image, &follow, NULL, true, err) < 0)
		return -1;
	*out = image;
	image = NULL;
	return 0;
}

const char *tide_image_path(const struct tide_image *image)
{
	return image->path;
}

const char *tide_image_format_name(const struct tide_image *image)
{
	return image->driver->name;
}

bool tide_image_is_raw(const struct tide_image *image)
{
	return image->driver->is_raw;
}

int tide_image_fd(const struct tide_image *image)
{
	return image->fd;
}

bool tide_image_is_file(const struct tide_image *image)
{
	return !image->is_uri;
}

uint64_t tide_image_size(const struct tide_image *image)
{
	return image->info.size;
}

uint64_t tide_image_exact_size(const struct tide_image *image)
{
	uint64_t size = image->info.size;

	/* An overlay that QEMU made over a backup does not record the exact size; the images below do. */
	for (; image && image->info.size == size; image = image->backing) {
		if (image->info.exact_size)
			return image->info.exact_size;
	}
	return size;
}

const struct tide_driver_info *tide_image_info(const struct tide_image *image)
{
	return &image->info;
}

struct tide_image *tide_image_backing(const struct tide_image *image)
{
	return image->backing;
}

bool tide_image_is_backing_outside(const struct tide_image *image)
{
	return image->backing_outside;
}

const struct tide_error *tide_image_broken(const struct tide_image *image)
{
	return image->broken.code ? &image->broken : NULL;
}

bool tide_image_is_same_file(const struct tide_image *a, const struct tide_image *b)
{
	if (a->is_uri || b->is_uri)
		return a->is_uri && b->is_uri && !strcmp(a->path, b->path);
	return a->dev == b->dev && a->ino == b->ino;
}

int tide_image_check_unchanged(const struct tide_image *image, struct tide_error *err)
{
	for (; image; image = image->backing) {
		struct tide_stamp now, data;

		if (take_stamp(image, &now, &data, err) < 0)
			return tide_error_wrap(err, "'%s'", image->path);
		if (!tide_stamp_is_equal(&now, &image->stamp))
			return tide_error_set(err, TIDE_E_REFUSED,
			                      "'%s' was changed by another program while it was read", image->path);
	}
	return 0;
}

int tide_image_flush(struct tide_image *image, struct tide_error *err)
{
	if (image->driver->flush(image->state, err) < 0)
		return tide_error_wrap(err, "'%s'", image->path);
	return image->write_later ? renew_stamp(image, err) : take_stamp(image, &image->stamp, &image->data_stamp, err);
}

int tide_image_sync_times(struct tide_image *image, struct tide_error *err)
{
	if (image->is_uri)
		return 0;
	if (fsync(image->fd) < 0)
		return tide_error_set_sys(err, errno, "Could not flush '%s'", image->path);
	if (image->data_fd >= 0 && fsync(image->data_fd) < 0)
		return tide_error_set_sys(err, errno, "Could not flush '%s'", image->data_path);
	return 0;
}

const struct tide_stamp *tide_image_stamp(const struct tide_image *image)
{
	return &image->stamp;
}

bool tide_image_can_compress(const struct tide_image *image)
{
	return image->driver->write_packed && !image->info.data_file;
}

int tide_image_packer_new(struct tide_image *image, void **packer, struct tide_error *err)
{
	return image->driver->packer_new(image->state, packer, err);
}

void tide_image_packer_free(struct tide_image *image, void *packer)
{
	if (packer)
		image->driver->packer_free(packer);
}

int tide_image_pack(struct tide_image *image, void *packer, const void *cluster, void *out, size_t *len,
                    struct tide_error *err)
{
	int rc = image->driver->pack(packer, cluster, out, len, err);

	return rc < 0 ? tide_error_wrap(err, "'%s'", image->path) : rc;
}

int tide_image_write_packed(struct tide_image *image, const struct tide_packed *clusters, size_t n,
                            struct tide_error *err)
{
	for (size_t i = 0; i < n; i++) {
		if (tide_image_check_range(image, clusters[i].off, 1, true, err) < 0)
			return -1;
	}
	if (image->driver->write_packed(image->state, clusters, n, err) < 0)
		return tide_error_wrap(err, "'%s'", image->path);
	return 0;
}

int tide_image_check(const struct tide_image *image, const struct tide_check *check, struct tide_error *err)
{
	if (!image->driver->check || image->driver->check(image->fd, check, err) == 0)
		return 0;
	return tide_error_wrap(err, "'%s'", image->path);
}

int tide_image_read_bitmap(struct tide_image *image, size_t index, struct tide_bitmap **out, struct tide_error *err)
{
	if (!image->driver->bitmap_read || index >= image->info.n_bitmaps)
		return tide_error_set(err, TIDE_E_REFUSED, "The image holds no bitmap number %zu", index);
	return image->driver->bitmap_read(image->state, index, out, err);
}

int tide_image_reclaim_bitmap(struct tide_image *image, size_t index, struct tide_error *err)
{
	if (!image->driver->bitmap_reclaim || index >= image->info.n_bitmaps)
		return tide_error_set(err, TIDE_E_REFUSED, "The image holds no bitmap number %zu", index);
	return image->driver->bitmap_reclaim(image->state, index, err);
}

bool tide_image_can_store_bitmaps(const struct tide_image *image)
{
	return image->driver->bitmaps_stage != NULL;
}

int tide_image_stage_bitmaps(struct tide_image *image, const struct tide_driver_bitmap_put *put, size_t n,
                             struct tide_driver_switch *sw, struct tide_error *err)
{
	if (!tide_image_can_store_bitmaps(image))
		return tide_error_set(err, TIDE_E_UNSUPPORTED, "Operation not supported");
	if (tide_image_check_write(image, err) < 0 || image->driver->bitmaps_stage(image->state, put, n, sw, err) < 0)
		return -1;
	return renew_stamp(image, err);
}

int tide_image_commit_bitmaps(struct tide_image *image, struct tide_error *err)
{
	if (tide_image_check_write(image, err) < 0)
		return -1;
	if (image->driver->bitmaps_commit(image->state, &image->info, err) < 0)
		return tide_error_wrap(err, "'%s'", image->path);
	return renew_stamp(image, err);
}

void tide_image_abort_bitmaps(struct tide_image *image)
{
	if (image->driver->bitmaps_abort)
		image->driver->bitmaps_abort(image->state);
	/* If this fails, the stamp stays the old one and the file counts as changed, which is safe. */
	renew_stamp(image, NULL);
}

void tide_image_renounce_write(struct tide_image *image)
{
	if (!image->write_later || image->write_locked || image->renounced)
		return;
	tide_lock_bitmaps_drop(image->fd);
	image->renounced = true;
}

int tide_image_lock_write(struct tide_image *image, struct tide_error *err)
{
	if (image->renounced)
		return tide_error_set(err, TIDE_E_REFUSED, "writing to '%s' is no longer possible", image->path);
	if (!image->write_later || image->write_locked)
		return 0;
	if (check_recording(image, err) < 0)
		return -1;
	if (image->locks &&
	    tide_lock_raise(image->fd, TIDE_LOCK_WRITE_HELD & ~TIDE_LOCK_READ_HELD, LOCK_WAIT_MS, image->path, err) < 0)
		return -1;
	image->write_locked = true;
	return 0;
}

void tide_image_unlock_write(struct tide_image *image)
{
	if (!image->write_later || !image->write_locked)
		return;
	if (image->locks)
		tide_lock_lower(image->fd, TIDE_LOCK_WRITE_HELD & ~TIDE_LOCK_READ_HELD);
	image->write_locked = false;
}
