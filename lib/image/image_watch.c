/*
 * Notices that another program writes to an image that is open for writing: each of our own changes is put between a
 * look at the stamp, which must still be the one after our last change, and the taking of a new one.
 *
 * Changes of ours may run at the same time; only the first to begin looks, and only the last to end takes the stamp.
 * A write of another program while one of ours is under way is therefore not noticed, nor one in the same tick of the
 * clock.  On a network file system our own data may reach the server, and change the times, later, as it may reach a
 * block device and its counter: there the stamp is taken when a flush has left nothing to be written.
 */
#include "image_impl.h"

#include "base/error.h"

void tide_image_watch(struct tide_image *image)
{
	if (image->is_uri || image->watch.on)
		return;
	pthread_mutex_init(&image->watch.lock, NULL);
	image->watch.on = image->watch.is_known = true;
	image->watch.times_are_local =
	        tide_stamp_is_local(image->fd) && (image->data_fd < 0 || tide_stamp_is_local(image->data_fd));
}

/* Taking the stamp of a device writes it out. */
void tide_image_watch_closely(struct tide_image *image)
{
	image->watch.times_are_local |= image->device.is_one;
}

void tide_image_watch_release(struct tide_image *image)
{
	if (image->watch.on)
		pthread_mutex_destroy(&image->watch.lock);
	image->watch.on = false;
}

/* In doubt somebody wrote. */
static bool is_changed(const struct tide_image *image)
{
	struct tide_stamp now, data;

	return tide_image_take_stamp(image, &now, &data, NULL) < 0 || !tide_stamp_is_equal(&now, &image->stamp);
}

void tide_image_change_begin(struct tide_image *image, bool is_flush)
{
	struct tide_image_watch *w = &image->watch;

	if (!w->on)
		return;
	pthread_mutex_lock(&w->lock);
	if (w->running++ == 0 && w->is_known && !atomic_load(&w->others_wrote) && is_changed(image))
		atomic_store(&w->others_wrote, true);
	if (is_flush)
		w->is_unflushed = false;
	pthread_mutex_unlock(&w->lock);
}

/* When the image is changed later only its bitmaps are ours: the data file counts with its earlier stamp. */
static bool renew(struct tide_image *image)
{
	if (image->write_later)
		return tide_image_stamp_now(image, &image->stamp, NULL) == 0;
	return tide_image_take_stamp(image, &image->stamp, &image->data_stamp, NULL) == 0;
}

void tide_image_change_end(struct tide_image *image, bool is_flushed)
{
	struct tide_image_watch *w = &image->watch;

	if (!w->on)
		return;
	pthread_mutex_lock(&w->lock);
	w->is_unflushed |= !is_flushed;
	if (--w->running == 0)
		w->is_known = (w->times_are_local || !w->is_unflushed) && renew(image);
	pthread_mutex_unlock(&w->lock);
}

bool tide_image_others_wrote(const struct tide_image *image)
{
	return atomic_load_explicit(&image->watch.others_wrote, memory_order_relaxed);
}
