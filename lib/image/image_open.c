/*
 * Opens and creates images: probing, the external data file, and the backing chain. A chain is opened from
 * the top down; each image of it is locked before it is read, its stamp is taken under the lock, and the
 * names in it are judged before they are followed (backing.h).
 */
#include "image_impl.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "backing.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/mark.h"
#include "base/mem.h"
#include "base/sysio.h"

#define NAMED_MAX 8u /* errors name at most this many images, from the top */

/* The images above, while a chain is being opened. */
struct chain_link {
	const struct tide_image *image;
	const struct chain_link *above;
	unsigned depth;
};

static const struct tide_image_driver *probe(int fd, struct tide_error *err)
{
	const struct tide_image_driver *driver;
	uint8_t head[TIDE_IMAGE_PROBED] = { 0 }, tail[TIDE_IMAGE_PROBED] = { 0 };
	const char *foreign;
	uint64_t size;
	size_t n;

	if (tide_sysio_size(fd, &size, err) < 0)
		return NULL;
	n = TIDE_MIN(size, sizeof(head));
	if (tide_sysio_pread(fd, head, n, 0, true, err) < 0 || tide_sysio_pread(fd, tail, n, size - n, false, err) < 0)
		return NULL;
	driver = tide_image_judge(head, tail, n, &foreign);
	if (foreign) {
		/* A backup of its bytes as of a raw disk could lack what is stored in other files. */
		tide_error_set(err, TIDE_E_UNSUPPORTED,
		               "The image looks like one of format '%s', which this version does not "
		               "support",
		               foreign);
		tide_error_hint(err, "if it is a raw disk that only begins like one, specify the format raw");
		return NULL;
	}
	if (!driver)
		tide_error_set(err, TIDE_E_UNSUPPORTED, "Image format not recognized");
	return driver;
}

static bool is_called_raw(const char *path)
{
	size_t n = strlen(path);

	return n > 4 && !strcmp(path + n - 4, ".raw");
}

/* A raw disk may begin with any bytes that its guest has written. */
static const struct tide_image_driver *probe_and_doubt(const struct tide_image *image, struct tide_error *err)
{
	const struct tide_image_driver *driver = probe(image->fd, err);
	const char *raw = tide_image_raw_driver()->name;
	bool marked = driver && !driver->is_raw && tide_mark_is(image->fd, raw);

	if (!driver || driver->is_raw || (!marked && !is_called_raw(image->path)))
		return driver;
	tide_error_set(err, TIDE_E_REFUSED, "The image begins like one of format '%s', but %s", driver->name,
	               marked ? "was written as a raw image" : "has the name of a raw image");
	tide_error_hint(err, "a guest may have written these bytes: specify the format %s, or %s if you trust it", raw,
	                driver->name);
	return NULL;
}

static const struct tide_image_driver *choose_driver(const struct tide_image *image, const char *format,
                                                     struct tide_error *err)
{
	const struct tide_image_driver *driver;
	TIDE_AUTOFREE char *names = NULL;

	if (!format)
		return probe_and_doubt(image, err);
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

static struct tide_image *image_new(const char *path, struct tide_error *err)
{
	struct tide_image *image = tide_mem_alloc(1, sizeof(*image), err);

	if (!image)
		return NULL;
	image->fd = image->data_fd = image->claim_fd = image->data_claim_fd = -1;
	pthread_mutex_init(&image->change_lock, NULL);
	pthread_mutex_init(&image->head_lock, NULL);
	image->path = tide_mem_strdup(path, err);
	if (!image->path) {
		pthread_mutex_destroy(&image->change_lock);
		pthread_mutex_destroy(&image->head_lock);
		free(image);
		return NULL;
	}
	return image;
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

/* A guest of a raw disk could name any file in the header of a qcow2. */
static int check_consent(const struct tide_image *image, struct tide_error *err)
{
	if (!image->probed || tide_mark_is(image->data_fd, TIDE_MARK_DATA_FILE))
		return 0;
	tide_error_set(err, TIDE_E_REFUSED,
	               "The image, whose format was not specified, leads writes to the data file '%s', which was not "
	               "made here",
	               image->data_path);
	return tide_error_hint(err, "if you trust the image, specify its format, %s", image->driver->name);
}

/* Before a file that the header names is opened: a guest may have written the header. */
static int check_believed(const struct tide_image *image, struct tide_error *err)
{
	/* Below the top, a probe is what the user has allowed. */
	return image->is_top ? tide_image_check_not_raw(image, image->path, "-f", err) : 0;
}

static int open_data_file(struct tide_image *image, const struct tide_image_options *options, struct tide_error *err)
{
	bool write = (image->flags & TIDE_OPEN_WRITE) &&
	             !image->write_later; /* write_later changes only the image file, not the disk */

	if (check_believed(image, err) < 0)
		return -1;
	image->data_path = tide_image_find_data_file(image->path, image->info.data_file, options->allow, err);
	if (!image->data_path)
		return -1;
	image->data_fd = tide_sysio_open_disk(image->data_path, (write ? O_RDWR : O_RDONLY) | O_NONBLOCK, err);
	if (image->data_fd < 0)
		return tide_error_hint(err, "it is the image's external data file, and nothing can be read without it");
	if (check_data_file(image, err) < 0)
		return tide_error_wrap(err, "Could not open data file '%s'", image->data_path);
	if (!options->force_share &&
	    tide_lock_acquire(image->data_fd, write ? TIDE_LOCK_WRITE_HELD : TIDE_LOCK_READ_HELD,
	                      write ? TIDE_LOCK_WRITE_UNSHARED : TIDE_LOCK_READ_UNSHARED, image->data_path, err) < 0)
		return -1;
	if (write && (check_consent(image, err) < 0 ||
	              tide_sysio_claim(image->data_fd, image->data_path, &image->data_claim_fd, err) < 0))
		return -1;
	return image->driver->set_data_file(image->state, image->data_fd, err);
}

/* A rescue can do without the data file: the tables tell which ranges it held. */
static int do_without_data_file(struct tide_image *image, const struct tide_image_options *options,
                                struct tide_error *why, struct tide_error *err)
{
	if (!options->salvage || image->data_fd >= 0 || !tide_image_salvage_may(why))
		return tide_error_move(err, why);
	tide_error_move(&image->data_broken, why);
	return 0;
}

/* Adds the data file's stamp, taken once it is locked, to the image's own. */
static int add_data_file(struct tide_image *image, const struct tide_image_options *options, struct tide_error *err)
{
	struct tide_error why = TIDE_ERROR_INIT;
	struct tide_device device;

	if (open_data_file(image, options, &why) < 0)
		return do_without_data_file(image, options, &why, err);
	if (tide_stamp_take(image->data_fd, &image->data_stamp, err) < 0)
		return -1;
	tide_stamp_add(&image->stamp, &image->data_stamp);
	tide_device_identify(image->data_fd, &device);
	tide_device_add(&image->device, &device);
	return 0;
}

static int open_driver(struct tide_image *image, struct tide_error *err)
{
	TIDE_AUTOFREE char *dir = tide_sysio_dir_name(image->path, err);

	if (!dir)
		return -1;
	return image->driver->open(image->fd, dir, image->flags, &image->info, &image->state, err);
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

/* A raw file has no end mark: only the size that the overlay recorded reveals that the file was cut. */
static int check_uncut(const struct tide_image *image, struct tide_error *err)
{
	const struct tide_fingerprint *made_on = image->info.fingerprint;
	const struct tide_image *backing = image->backing;

	if (!made_on || !made_on->has_file || !backing->driver->is_raw || !backing->stamp.valid ||
	    backing->stamp.size >= made_on->stamp.size)
		return 0;
	tide_error_set(err, TIDE_E_CORRUPT,
	               "The backing file '%s' was cut: it has %" PRIu64 " bytes, and had %" PRIu64
	               " when '%s' was made on it",
	               backing->path, backing->stamp.size, made_on->stamp.size, image->path);
	return tide_error_hint(err, "copy it again from where it came from");
}

/* trusted: a person has just given the name. The names in the images below are judged even then. */
static int open_backing(struct tide_image *image, const struct tide_image_options *options,
                        const struct chain_link *above, bool trusted, struct tide_error *err)
{
	struct chain_link here = { image, above, above ? above->depth + 1 : 1 };
	struct tide_image_options below = {
		.force_share = options->force_share,
		.partial = options->partial,
		.salvage = options->salvage,
		.allow = options->allow,
		.cancel = options->cancel,
	};
	TIDE_AUTOBACKING struct tide_backing found = TIDE_BACKING_INIT;
	const char *name = image->info.backing;

	if (!name || options->no_backing)
		return 0;
	if (check_believed(image, err) < 0)
		return -1;
	if (tide_backing_find_opened(image->path, options->path, "backing file", name,
	                             trusted ? TIDE_ALLOW_ANY : options->allow, &found, err) < 0)
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
	if (check_uncut(image, err) == 0)
		return 0;
	if (options->salvage) { /* what it has left can be read */
		image->backing->uncut_size = image->info.fingerprint->stamp.size;
		return -1;
	}
	tide_image_close(image->backing);
	image->backing = NULL;
	return -1;
}

static int open_checked(struct tide_image *image, const struct tide_image_options *options,
                        const struct chain_link *above, struct tide_error *err)
{
	if (remember_file(image, err) < 0 || check_no_loop(image, above, err) < 0)
		return -1;
	/* This lock comes first: a program that waits for it must not hold locks that block its present holder. */
	if (image->write_later &&
	    tide_lock_bitmaps(image->fd, TIDE_IMAGE_LOCK_WAIT_MS, options->cancel, image->path, err) < 0)
		return -1;
	if (!options->force_share &&
	    tide_lock_acquire(image->fd, options->write ? TIDE_LOCK_WRITE_HELD : TIDE_LOCK_READ_HELD,
	                      options->write ? TIDE_LOCK_WRITE_UNSHARED : TIDE_LOCK_READ_UNSHARED, image->path,
	                      err) < 0)
		return -1;
	if (options->write && tide_sysio_claim(image->fd, image->path, &image->claim_fd, err) < 0)
		return -1;
	/* The stamp that counts is taken now that the lock keeps other writers out. */
	if (tide_stamp_take(image->fd, &image->stamp, err) < 0)
		return -1;
	if (!image->stamp.valid)
		tide_device_identify(image->fd, &image->device);
	image->cancel = options->cancel;
	image->probed = !options->format || options->guessed;
	image->is_top = !above;
	image->driver = choose_driver(image, options->format, err);
	if (!image->driver || open_driver(image, err) < 0)
		return -1;
	if (image->info.data_file && add_data_file(image, options, err) < 0)
		return -1;
	return options->write ? tide_image_check_recording(image, err) : 0;
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
	image->fd = tide_sysio_open_disk(real ? real : options->path, (writes ? O_RDWR : O_RDONLY) | O_NONBLOCK, err);
	if (image->fd < 0)
		return -1;
	image->own_fd = true;
	image->flags = writes ? TIDE_OPEN_WRITE : options->salvage ? TIDE_OPEN_SALVAGE : 0;
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
	if (open_backing(image, options, above, false, &image->broken) < 0 && !options->partial &&
	    !(options->salvage && tide_image_salvage_may(&image->broken))) {
		tide_error_move(err, &image->broken);
		return above && above->depth >= NAMED_MAX ? -1
		                                          : tide_error_wrap(err, "Could not open '%s'", options->path);
	}
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
