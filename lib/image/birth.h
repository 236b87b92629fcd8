/*
 * The birth record of a backup: what it is a copy of, when it was made, and which backup it counts from. It travels
 * with the file: inside a qcow2, beside any other (store/sidecar.h). man/tidemark-backup.5 specifies its bytes.
 *
 * A record says what the file was when it was made. `intact` says whether the file is still that: another program that
 * writes to a qcow2 clears the flag that says so, and a file with a record beside it has a stamp there.
 */
#ifndef TIDE_BIRTH_H
#define TIDE_BIRTH_H

#include <stddef.h>

#include "base/compiler.h"
#include "base/id.h"
#include "tidemark.h"

#define TIDE_BIRTH_BYTES_MAX         160u
#define TIDE_BIRTH_FINGERPRINT_BYTES 16u

struct tide_birth {
	struct tide_id id;    /* of this backup; not zero */
	struct tide_id disk;  /* of the disk it is a copy of */
	struct tide_id point; /* the same in all backups of one transaction */
	struct tide_id base;  /* the backup it counts from; zero: unknown, or none */
	int64_t time;         /* when it was begun, seconds since 1970 */
	int64_t base_time;    /* the same of the base; 0: unknown */
	enum tide_sync_mode sync;
	bool is_part;        /* it holds only what changed since its base */
	bool is_incomplete;  /* its job failed; the file was kept (bitmap-mode always) */
	uint64_t exact_size; /* of the disk, bytes */
	/* The first bytes of the disk's fingerprint (fingerprint.h); zeroes: unknown. */
	uint8_t fingerprint[TIDE_BIRTH_FINGERPRINT_BYTES];
	char *device; /* the id of the disk's device, or NULL */
	char *bitmap; /* the name of the bitmap that selected what was copied, or NULL */
	/*
	 * Why the record cannot be read, as a clause about it; then nothing else is known of the backup, which may be a
	 * part. NULL: it can. Not stored.
	 */
	const char *unknown;
	bool is_later; /* it is unknown because a later version made it */
	bool intact;   /* nothing has changed the file since; not stored in the record */
	/* The file is a copy of the one that was made: only what clears a flag in it is noticed. Not stored. */
	bool is_copy;
};

void tide_birth_free(struct tide_birth *birth); /* NULL: nothing */
void tide_birth_freep(struct tide_birth **birth);
#define TIDE_AUTOBIRTH TIDE_CLEANUP(tide_birth_freep)

bool tide_birth_has_fingerprint(const struct tide_birth *birth);
struct tide_birth *tide_birth_copy(const struct tide_birth *birth, struct tide_error *err);

/* Puts the record's bytes at out, which has room for TIDE_BIRTH_BYTES_MAX, and returns their number. */
size_t tide_birth_encode(const struct tide_birth *birth, uint8_t *out);
/* A record that cannot be read. */
struct tide_birth *tide_birth_unknown(bool is_later, struct tide_error *err);
/*
 * The bytes of a record, which others may follow. If they are not one of a version that is known, *birth has nothing
 * but the reason.
 */
int tide_birth_decode(const uint8_t *data, size_t len, struct tide_birth **birth, struct tide_error *err);

#endif
