/*
 * The sidecar in memory: a list of bitmap entries, newest first, each with its bitmap either still
 * encoded or decoded on first use. This file allocates, copies, finds and frees entries;
 * sidecar_decode.c and sidecar_encode.c convert the list from and to bytes.
 */
#include "sidecar.h"

#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "image/image_formats.h"
#include "sidecar_format.h"

/* ---- the index: a hash table of the entries by name ---------------------------------- */

#define INDEX_MIN 32u /* with fewer entries, the list itself is searched */

struct tide_sidecar_index {
	size_t mask, n, room; /* mask + 1 places, a power of two; n of them in use, at most room */
	struct tide_sidecar_bitmap *place[];
};

/* The place of the entry with this name, or the free one where it belongs. */
static struct tide_sidecar_bitmap **index_place(struct tide_sidecar_index *index, const char *name)
{
	uint64_t hash = UINT64_C(0xcbf29ce484222325);
	size_t i;

	for (const char *p = name; *p; p++)
		hash = (hash ^ (uint8_t)*p) * UINT64_C(0x100000001b3);
	for (i = (hash ^ hash >> 32) & index->mask; index->place[i]; i = (i + 1) & index->mask) {
		if (!strcmp(index->place[i]->name, name))
			break;
	}
	return &index->place[i];
}

/* False: it is full. */
static bool index_add(struct tide_sidecar_index *index, struct tide_sidecar_bitmap *entry)
{
	if (index->n == index->room)
		return false;
	*index_place(index, entry->name) = entry;
	index->n++;
	return true;
}

static struct tide_sidecar_index *index_new(const struct tide_sidecar *sc)
{
	size_t places = 4 * INDEX_MIN;
	struct tide_sidecar_index *index;

	while (places < 4 * sc->n)
		places *= 2;
	index = tide_mem_alloc(1, sizeof(*index) + places * sizeof(index->place[0]), NULL);
	if (!index)
		return NULL;
	index->mask = places - 1;
	index->room = places / 2;
	for (size_t i = 0; i < sc->n; i++)
		index_add(index, sc->items[i]);
	return index;
}

static void drop_index(struct tide_sidecar *sc)
{
	free(sc->index);
	sc->index = NULL;
}

struct tide_sidecar *tide_sidecar_new(struct tide_error *err)
{
	return tide_mem_alloc(1, sizeof(struct tide_sidecar), err);
}

bool tide_sidecar_bitmap_records(const struct tide_sidecar_bitmap *entry)
{
	return entry->enabled && !entry->in_use;
}

bool tide_sidecar_records(const struct tide_sidecar *sc)
{
	for (size_t i = 0; i < sc->n; i++) {
		if (tide_sidecar_bitmap_records(sc->items[i]))
			return true;
	}
	return false;
}

bool tide_sidecar_is_guess(const struct tide_sidecar *sc)
{
	return !(sc->compatible & TIDE_SIDECAR_FORMAT_GIVEN) && !tide_image_is_raw_format(sc->format);
}

void tide_sidecar_distrust(struct tide_sidecar *sc)
{
	for (size_t i = 0; i < sc->n; i++)
		sc->items[i]->untracked = true;
}

void tide_sidecar_free(struct tide_sidecar *sc)
{
	if (!sc)
		return;
	for (size_t i = 0; i < sc->n; i++)
		tide_sidecar_bitmap_free(sc->items[i]);
	drop_index(sc);
	tide_birth_free(sc->birth);
	tide_lineage_last_free(sc->last_full);
	tide_lineage_named_free(&sc->inside);
	if (sc->items)
		free(sc->items - sc->front);
	free(sc);
}

void tide_sidecar_bitmap_free(struct tide_sidecar_bitmap *entry)
{
	if (!entry)
		return;
	tide_sidecar_bitmap_free(entry->successor);
	tide_lineage_base_free(entry->base);
	tide_bitmap_free(entry->bitmap);
	free(entry->encoded);
	free(entry->name);
	free(entry->group);
	free(entry);
}

static void bitmap_freep(struct tide_sidecar_bitmap **entry)
{
	tide_sidecar_bitmap_free(*entry);
}

static void sidecar_freep(struct tide_sidecar **sc)
{
	tide_sidecar_free(*sc);
}

struct tide_sidecar_bitmap *tide_sidecar_bitmap_new(const char *name, uint64_t disk_size, uint64_t granularity,
                                                    struct tide_error *err)
{
	TIDE_CLEANUP(bitmap_freep) struct tide_sidecar_bitmap *entry = NULL;

	if (name && !*name) {
		tide_error_set(err, TIDE_E_REFUSED, "Bitmap name cannot be empty");
		return NULL;
	}
	entry = tide_mem_alloc(1, sizeof(*entry), err);
	if (!entry)
		return NULL;
	entry->enabled = true;
	entry->granularity = granularity;
	entry->bitmap = tide_bitmap_new(disk_size, granularity, err);
	if (!entry->bitmap)
		return NULL;
	if (name && strlen(name) > TIDE_SIDECAR_NAME_MAX) {
		tide_error_set(err, TIDE_E_REFUSED, "Bitmap name too long: %s", name);
		return NULL;
	}
	if (name && !(entry->name = tide_mem_strdup(name, err)))
		return NULL;
	struct tide_sidecar_bitmap *ret = entry;
	entry = NULL;
	return ret;
}

/* ---- copying ----------------------------------------------------------------------- */

static struct tide_sidecar_bitmap *copy_bitmap(const struct tide_sidecar_bitmap *from, struct tide_error *err)
{
	TIDE_CLEANUP(bitmap_freep) struct tide_sidecar_bitmap *to = tide_mem_alloc(1, sizeof(*to), err);

	if (!to)
		return NULL;
	*to = *from;
	to->name = to->group = NULL;
	to->bitmap = NULL;
	to->encoded = NULL;
	to->successor = NULL;
	to->base = NULL;
	to->removed = false;
	if (tide_lineage_base_copy(&to->base, from->base, err) < 0)
		return NULL;
	if (from->name && !(to->name = tide_mem_strdup(from->name, err)))
		return NULL;
	if (from->group && !(to->group = tide_mem_strdup(from->group, err)))
		return NULL;
	if (from->bitmap && !(to->bitmap = tide_bitmap_copy(from->bitmap, err)))
		return NULL;
	if (from->encoded) {
		to->encoded = tide_mem_realloc(NULL, from->encoded_len, 1, err);
		if (!to->encoded)
			return NULL;
		memcpy(to->encoded, from->encoded, from->encoded_len);
	}
	if (from->successor && !(to->successor = copy_bitmap(from->successor, err)))
		return NULL;
	struct tide_sidecar_bitmap *ret = to;
	to = NULL;
	return ret;
}

struct tide_sidecar *tide_sidecar_copy(const struct tide_sidecar *sc, struct tide_error *err)
{
	TIDE_CLEANUP(sidecar_freep) struct tide_sidecar *to = tide_sidecar_new(err);

	if (!to)
		return NULL;
	*to = *sc;
	to->items = NULL;
	to->index = NULL;
	to->n = to->room = to->front = 0;
	to->birth = NULL;
	to->last_full = NULL;
	to->inside = (struct tide_named_bases){ 0 };
	to->inside.token = sc->inside.token;
	for (size_t i = 0; i < sc->inside.n; i++) {
		if (tide_lineage_named_add(&to->inside, sc->inside.items[i].name, &sc->inside.items[i].base, err) < 0)
			return NULL;
	}
	if ((sc->birth && !(to->birth = tide_birth_copy(sc->birth, err))) ||
	    tide_lineage_last_copy(&to->last_full, sc->last_full, err) < 0)
		return NULL;
	for (size_t i = 0; i < sc->n; i++) {
		struct tide_sidecar_bitmap *entry = copy_bitmap(sc->items[i], err);

		if (!entry || tide_sidecar_insert(to, i, entry, err) < 0) {
			tide_sidecar_bitmap_free(entry);
			return NULL;
		}
	}
	struct tide_sidecar *ret = to;
	to = NULL;
	return ret;
}

/* ---- the list ---------------------------------------------------------------------- */

/*
 * Makes room before the first entry, or after the last one.  Both grow by as much as there is, so that many insertions
 * at either end take a time that is proportional to their number.
 */
static int grow(struct tide_sidecar *sc, bool before, struct tide_error *err)
{
	size_t more = TIDE_MAX(sc->n, (size_t)8), front = before ? sc->front + more : sc->front;
	struct tide_sidecar_bitmap **places = tide_mem_alloc(sc->room + more, sizeof(*places), err);

	if (!places)
		return -1;
	if (sc->items) {
		memcpy(places + front, sc->items, sc->n * sizeof(*places));
		free(sc->items - sc->front);
	}
	sc->items = places + front;
	sc->front = front;
	sc->room += more;
	return 0;
}

int tide_sidecar_insert(struct tide_sidecar *sc, size_t index, struct tide_sidecar_bitmap *entry,
                        struct tide_error *err)
{
	bool before = index == 0 && sc->n > 0;

	index = TIDE_MIN(index, sc->n);
	if ((before ? sc->front == 0 : sc->front + sc->n == sc->room) && grow(sc, before, err) < 0)
		return -1;
	if (before) {
		sc->items--;
		sc->front--;
	} else {
		memmove(&sc->items[index + 1], &sc->items[index],
		        (sc->n - index) * sizeof(struct tide_sidecar_bitmap *));
	}
	sc->items[index] = entry;
	sc->n++;
	if (sc->index && !index_add(sc->index, entry))
		drop_index(sc);
	return 0;
}

struct tide_sidecar_bitmap *tide_sidecar_take(struct tide_sidecar *sc, size_t index)
{
	struct tide_sidecar_bitmap *entry = sc->items[index];

	sc->n--;
	memmove(&sc->items[index], &sc->items[index + 1], (sc->n - index) * sizeof(struct tide_sidecar_bitmap *));
	drop_index(sc);
	return entry;
}

void tide_sidecar_drop_removed(struct tide_sidecar *sc)
{
	size_t kept = 0;

	for (size_t i = 0; i < sc->n; i++) {
		if (sc->items[i]->removed)
			tide_sidecar_bitmap_free(sc->items[i]);
		else
			sc->items[kept++] = sc->items[i];
	}
	if (kept == sc->n)
		return;
	sc->n = kept;
	drop_index(sc);
}

long tide_sidecar_find(const struct tide_sidecar *sc, const char *name)
{
	for (size_t i = 0; i < sc->n; i++)
		if (!strcmp(sc->items[i]->name, name))
			return (long)i;
	return -1;
}

struct tide_sidecar_bitmap *tide_sidecar_lookup(struct tide_sidecar *sc, const char *name)
{
	long at;

	if (!sc->index && sc->n >= INDEX_MIN)
		sc->index = index_new(sc);
	if (sc->index)
		return *index_place(sc->index, name);
	at = tide_sidecar_find(sc, name); /* few entries, or no memory for an index */
	return at < 0 ? NULL : sc->items[at];
}

static int compare_names(const void *a, const void *b)
{
	return strcmp(*(const char *const *)a, *(const char *const *)b);
}

int tide_sidecar_names_check(const struct tide_sidecar *sc, const char **twice, struct tide_error *err)
{
	TIDE_AUTOFREE const char **names = tide_mem_alloc(sc->n, sizeof(*names), err);

	*twice = NULL;
	if (!names)
		return -1;
	for (size_t i = 0; i < sc->n; i++)
		names[i] = sc->items[i]->name;
	qsort(names, sc->n, sizeof(*names), compare_names);
	for (size_t i = 1; i < sc->n; i++) {
		if (!strcmp(names[i - 1], names[i])) {
			*twice = names[i];
			return -1;
		}
	}
	return 0;
}

/* ---- bitmaps ----------------------------------------------------------------------- */

static void put_decoded(struct tide_sidecar_bitmap *entry, struct tide_bitmap *bm)
{
	free(entry->encoded);
	entry->encoded = NULL;
	entry->encoded_len = 0;
	entry->bitmap = bm;
}

struct tide_bitmap *tide_sidecar_bitmap_load(const struct tide_sidecar *sc, struct tide_sidecar_bitmap *entry,
                                             struct tide_error *err)
{
	const char *name = entry->name ? entry->name : "(successor)";

	if (entry->bitmap)
		return entry->bitmap;
	TIDE_AUTOBITMAP struct tide_bitmap *bm = tide_bitmap_new(sc->disk_size, entry->granularity, err);
	if (!bm || tide_sidecar_chunk_load(entry->encoded, entry->encoded_len, bm, err) < 0) {
		tide_error_wrap(err, "Bitmap '%s' in the sidecar cannot be read: chunk data", name);
		return NULL;
	}
	if (tide_bitmap_count(bm) != entry->count) {
		tide_error_set(err, TIDE_E_CORRUPT,
		               "Bitmap '%s' in the sidecar: expected %" PRIu64 " dirty granules, found %" PRIu64, name,
		               entry->count, tide_bitmap_count(bm));
		return NULL;
	}
	put_decoded(entry, bm);
	bm = NULL;
	return entry->bitmap;
}

struct tide_bitmap *tide_sidecar_bitmap_clear(const struct tide_sidecar *sc, struct tide_sidecar_bitmap *entry,
                                              struct tide_error *err)
{
	struct tide_bitmap *bm;

	if (entry->bitmap) {
		tide_bitmap_clear(entry->bitmap);
		return entry->bitmap;
	}
	bm = tide_bitmap_new(sc->disk_size, entry->granularity, err);
	if (bm)
		put_decoded(entry, bm);
	return bm;
}

int tide_sidecar_bitmap_thaw(const struct tide_sidecar *sc, struct tide_sidecar_bitmap *entry, struct tide_error *err)
{
	if (entry->successor) {
		struct tide_bitmap *bm = tide_sidecar_bitmap_load(sc, entry, err);
		struct tide_bitmap *s = bm ? tide_sidecar_bitmap_load(sc, entry->successor, err) : NULL;

		if (!s || tide_bitmap_merge(bm, s, err) < 0)
			return -1;
		tide_sidecar_bitmap_free(entry->successor);
		entry->successor = NULL;
	}
	entry->token = 0;
	free(entry->group);
	entry->group = NULL;
	return 0;
}

uint64_t tide_sidecar_bitmap_count(const struct tide_sidecar_bitmap *entry)
{
	return entry->bitmap ? tide_bitmap_count(entry->bitmap) : entry->count;
}
