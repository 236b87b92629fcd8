/*
 * An open image: its properties, its stamp, the calls that go straight to its driver, and the lock that
 * turns a reader into a writer. image_open.c opens images, image_io.c has the checked requests.
 */
#include "image_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backing.h"
#include "base/error.h"
#include "base/lock.h"
#include "base/mem.h"
#include "base/sysio.h"
#include "birth.h"

char *tide_image_resolve(const char *path, const char *name, struct tide_error *err)
{
	return tide_backing_join(path, name, err);
}

char *tide_image_backing_path(const struct tide_image *image, const char *path, struct tide_error *err)
{
	TIDE_AUTOBACKING struct tide_backing found = TIDE_BACKING_INIT;
	char *shown;

	/* A name that cannot be followed is shown unchanged. */
	if (tide_backing_find_opened(path, image->path, "backing file", image->info.backing, TIDE_ALLOW_ANY, &found,
	                             NULL) < 0)
		return tide_backing_join(path, image->info.backing, err);
	shown = found.path;
	found.path = NULL;
	return shown;
}

void tide_image_close(struct tide_image *image)
{
	while (image) {
		struct tide_image *backing = image->backing;

		if (image->state)
			image->driver->close(image->state);
		tide_sums_free(image->sums);
		tide_sums_free(image->proof);
		tide_driver_info_release(&image->info);
		tide_error_release(&image->broken);
		tide_error_release(&image->data_broken);
		tide_image_watch_release(image);
		tide_image_salvage_free(image->salvage);
		if (image->own_fd)
			tide_sysio_close(image->fd);
		tide_sysio_close(image->data_fd);
		tide_sysio_close(image->claim_fd);
		tide_sysio_close(image->data_claim_fd);
		free(image->data_path);
		free(image->path);
		pthread_mutex_destroy(&image->change_lock);
		pthread_mutex_destroy(&image->head_lock);
		free(image);
		image = backing;
	}
}

void tide_image_closep(struct tide_image **image)
{
	tide_image_close(*image);
}

int tide_image_take_stamp(const struct tide_image *image, struct tide_stamp *stamp, struct tide_stamp *data,
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

/* Writing without recording would leave enabled bitmaps incomplete. */
int tide_image_check_recording(const struct tide_image *image, struct tide_error *err)
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

bool tide_image_is_probed(const struct tide_image *image)
{
	return image->probed;
}

int tide_image_check_format(const struct tide_image *image, const char *name, const char *option,
                            struct tide_error *err)
{
	const char *raw = tide_image_raw_driver()->name, *format = image->driver->name;
	const char *space = strchr("=", option[strlen(option) - 1]) ? "" : " ";
	struct stat st;

	if (!image->probed || (!image->driver->is_raw && fstat(image->fd, &st) == 0 && S_ISREG(st.st_mode)))
		return 0;
	tide_error_set(err, TIDE_E_REFUSED, "The format of '%s' cannot be derived from its content", name);
	if (image->driver->is_raw)
		return tide_error_hint(err, "if it is a %s image, specify %s%s%s", raw, option, space, raw);
	return tide_error_hint(err,
	                       "if it is a %s disk, whose guest may have written these bytes, specify %s%s%s; if it is "
	                       "a %s image, %s%s%s",
	                       raw, option, space, raw, format, option, space, format);
}

int tide_image_check_not_raw(const struct tide_image *image, const char *name, const char *option,
                             struct tide_error *err)
{
	return image->driver->is_raw ? 0 : tide_image_check_format(image, name, option, err);
}

bool tide_image_is_file(const struct tide_image *image)
{
	return !image->is_uri;
}

uint64_t tide_image_size(const struct tide_image *image)
{
	return image->info.size;
}

uint64_t tide_image_exact_size(struct tide_image *image)
{
	uint64_t size = image->info.size, exact = image->info.exact_size;

	return exact && exact < size && tide_image_is_zero(image, exact, size - exact) ? exact : size;
}

bool tide_image_can_resize(const struct tide_image *image)
{
	struct stat st;

	return image->driver->is_raw && !image->is_uri && fstat(image->fd, &st) == 0 && S_ISREG(st.st_mode);
}

int tide_image_set_exact_size(struct tide_image *image, uint64_t size, struct tide_error *err)
{
	int rc;

	if (!image->driver->set_exact_size)
		return 0;
	if (tide_image_check_write(image, err) < 0)
		return -1;
	tide_image_change_begin(image, false);
	rc = image->driver->set_exact_size(image->state, size, &image->info, err);
	tide_image_change_end(image, false);
	return rc < 0 ? tide_error_wrap(err, "'%s'", image->path) : 0;
}

int tide_image_set_fingerprint(struct tide_image *image, const struct tide_fingerprint *fp, struct tide_error *err)
{
	struct tide_fingerprint *copy;
	int rc;

	if (!image->driver->set_fingerprint || !image->info.backing)
		return 1;
	if (tide_image_check_write(image, err) < 0)
		return -1;
	copy = tide_mem_alloc(1, sizeof(*copy), err);
	if (!copy)
		return -1;
	*copy = *fp;
	tide_image_change_begin(image, false);
	rc = image->driver->set_fingerprint(image->state, fp, err);
	tide_image_change_end(image, false);
	if (rc != 0) {
		free(copy);
		return rc < 0 ? tide_error_wrap(err, "'%s'", image->path) : 1;
	}
	free(image->info.fingerprint);
	image->info.fingerprint = copy;
	return 0;
}

int tide_image_set_birth(struct tide_image *image, const struct tide_birth *birth, struct tide_error *err)
{
	struct tide_birth *copy;
	int rc;

	if (!image->driver->set_birth)
		return 1;
	if (tide_image_check_write(image, err) < 0)
		return -1;
	copy = tide_birth_copy(birth, err);
	if (!copy)
		return -1;
	tide_image_change_begin(image, false);
	rc = image->driver->set_birth(image->state, birth, err);
	tide_image_change_end(image, false);
	if (rc != 0) {
		tide_birth_free(copy);
		return rc < 0 ? tide_error_wrap(err, "'%s'", image->path) : 1;
	}
	tide_birth_free(image->info.birth);
	image->info.birth = copy;
	return 0;
}

uint64_t tide_image_write_unit(const struct tide_image *image)
{
	return image->info.subcluster_size ? image->info.subcluster_size : image->info.cluster_size;
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

const struct tide_error *tide_image_data_broken(const struct tide_image *image)
{
	return image->data_broken.code ? &image->data_broken : NULL;
}

bool tide_image_is_same_file(const struct tide_image *a, const struct tide_image *b)
{
	if (a->is_uri || b->is_uri)
		return a->is_uri && b->is_uri && !strcmp(a->path, b->path);
	return a->dev == b->dev && a->ino == b->ino;
}

bool tide_image_reads_file(const struct tide_image *chain, uint64_t dev, uint64_t ino)
{
	for (const struct tide_image *link = chain->backing; link; link = link->backing) {
		if (!link->is_uri && link->dev == dev && link->ino == ino)
			return true;
	}
	return false;
}

void tide_image_share_owner(struct tide_image *chain, struct tide_image *owner)
{
	if (!owner->write_later || owner->is_uri)
		return;
	for (struct tide_image *link = chain; link; link = link->backing) {
		if (link == owner || (link->flags & TIDE_OPEN_WRITE) || !tide_image_is_same_file(link, owner) ||
		    !tide_stamp_is_equal(&link->stamp, &owner->stamp))
			continue;
		if (link->locks && owner->locks) {
			tide_lock_release(link->fd, TIDE_LOCK_READ_HELD, TIDE_LOCK_READ_UNSHARED);
			link->locks = false;
		}
		link->owner = owner;
	}
}

/* While the owner has the write lock, it alone can have changed the file, and its stamp is not renewed yet. */
static int is_unchanged(const struct tide_image *image, bool *unchanged, struct tide_error *err)
{
	struct tide_image *owner = image->owner;
	struct tide_stamp now, data;
	int rc = 0;

	*unchanged = true;
	if (owner)
		pthread_mutex_lock(&owner->change_lock);
	if (!owner || !owner->write_locked) {
		rc = tide_image_take_stamp(image, &now, &data, err);
		*unchanged = rc == 0 && tide_stamp_is_equal(&now, owner ? &owner->stamp : &image->stamp);
	}
	if (owner)
		pthread_mutex_unlock(&owner->change_lock);
	return rc;
}

int tide_image_check_unchanged(const struct tide_image *image, struct tide_error *err)
{
	for (; image; image = image->backing) {
		bool unchanged;

		if (is_unchanged(image, &unchanged, err) < 0)
			return tide_error_wrap(err, "'%s'", image->path);
		if (!unchanged)
			return tide_error_set(err, TIDE_E_REFUSED,
			                      "'%s' was changed by another program while it was read", image->path);
	}
	return 0;
}

int tide_image_flush(struct tide_image *image, struct tide_error *err)
{
	int rc;

	tide_image_change_begin(image, true);
	rc = image->driver->flush(image->state, err);
	tide_image_change_end(image, rc == 0);
	if (rc < 0)
		return tide_error_wrap(err, "'%s'", image->path);
	if (image->watch.on)
		return 0;
	return image->write_later ? renew_stamp(image, err)
	                          : tide_image_take_stamp(image, &image->stamp, &image->data_stamp, err);
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

int tide_image_settle(const struct tide_image *image, struct tide_error *err)
{
	const int fds[] = { image->fd, image->data_fd };

	if (image->is_uri || tide_stamp_settle(fds, TIDE_ARRAY_SIZE(fds), err) == 0)
		return 0;
	return tide_error_wrap(err, "'%s'", image->path);
}

int tide_image_settle_chain(const struct tide_image *image, struct tide_error *err)
{
	for (; image; image = image->backing) {
		if (tide_image_settle(image, err) < 0)
			return -1;
	}
	return 0;
}

const struct tide_device *tide_image_device(const struct tide_image *image)
{
	return &image->device;
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
	int rc;

	for (size_t i = 0; i < n; i++) {
		if (tide_image_check_range(image, clusters[i].off, 1, true, err) < 0)
			return -1;
	}
	tide_image_change_begin(image, false);
	rc = image->driver->write_packed(image->state, clusters, n, err);
	tide_image_change_end(image, false);
	return rc < 0 ? tide_error_wrap(err, "'%s'", image->path) : 0;
}

int tide_image_check(const struct tide_image *image, const struct tide_check *check, struct tide_error *err)
{
	if (!image->driver->check || image->driver->check(image->fd, image->data_fd, check, err) == 0)
		return 0;
	return tide_error_wrap(err, "'%s'", image->path);
}

int tide_image_snapshots(const struct tide_image *image, struct tide_snapshot ***list, struct tide_error *err)
{
	*list = NULL;
	if (!image->driver->snapshots || image->driver->snapshots(image->state, list, err) == 0)
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

int tide_image_set_bitmaps_token(struct tide_image *image, const struct tide_id *token, struct tide_error *err)
{
	return image->driver->bitmaps_token ? image->driver->bitmaps_token(image->state, token, err) : 0;
}

int tide_image_stage_bitmaps(struct tide_image *image, const struct tide_driver_bitmap_put *put, size_t n,
                             struct tide_driver_switch *sw, struct tide_error *err)
{
	int rc;

	if (!tide_image_can_store_bitmaps(image))
		return tide_error_set(err, TIDE_E_UNSUPPORTED, "Operation not supported");
	if (tide_image_check_write(image, err) < 0)
		return -1;
	tide_image_change_begin(image, false);
	rc = image->driver->bitmaps_stage(image->state, put, n, sw, err);
	tide_image_change_end(image, rc == 0);
	return rc < 0 || image->watch.on ? rc : renew_stamp(image, err);
}

int tide_image_commit_bitmaps(struct tide_image *image, struct tide_error *err)
{
	int rc;

	if (tide_image_check_write(image, err) < 0)
		return -1;
	tide_image_change_begin(image, false);
	rc = image->driver->bitmaps_commit(image->state, &image->info, err);
	tide_image_change_end(image, rc == 0);
	if (rc < 0)
		return tide_error_wrap(err, "'%s'", image->path);
	return image->watch.on ? 0 : renew_stamp(image, err);
}

void tide_image_abort_bitmaps(struct tide_image *image)
{
	tide_image_change_begin(image, false);
	if (image->driver->bitmaps_abort)
		image->driver->bitmaps_abort(image->state);
	tide_image_change_end(image, true);
	/* If this fails, the stamp stays the old one and the file counts as changed, which is safe. */
	if (!image->watch.on)
		renew_stamp(image, NULL);
}

void tide_image_renounce_write(struct tide_image *image)
{
	if (!image->write_later || image->write_locked || image->renounced)
		return;
	tide_lock_bitmaps_drop(image->fd);
	image->renounced = true;
}

static void set_write_locked(struct tide_image *image, bool locked)
{
	pthread_mutex_lock(&image->change_lock);
	image->write_locked = locked;
	pthread_mutex_unlock(&image->change_lock);
}

int tide_image_lock_write(struct tide_image *image, struct tide_error *err)
{
	if (image->renounced)
		return tide_error_set(err, TIDE_E_REFUSED, "writing to '%s' is no longer possible", image->path);
	if (!image->write_later || image->write_locked)
		return 0;
	if (tide_image_check_recording(image, err) < 0)
		return -1;
	if (image->locks && tide_lock_raise(image->fd, TIDE_LOCK_WRITE_HELD & ~TIDE_LOCK_READ_HELD,
	                                    TIDE_IMAGE_LOCK_WAIT_MS, image->cancel, image->path, err) < 0)
		return -1;
	set_write_locked(image, true);
	return 0;
}

void tide_image_unlock_write(struct tide_image *image)
{
	if (!image->write_later || !image->write_locked)
		return;
	if (image->locks)
		tide_lock_lower(image->fd, TIDE_LOCK_WRITE_HELD & ~TIDE_LOCK_READ_HELD);
	set_write_locked(image, false);
}
