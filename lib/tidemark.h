/*
 * libtidemark: dirty bitmaps and incremental backups of disk images.
 *
 * This is the one public header; every command in cmd/ is written against it alone.
 *
 * A program opens a session, names the images it will talk about (drives), and hands
 * actions to a transaction.  Running the transaction prepares every action, commits all
 * or none of them, runs the jobs they started to their end, and delivers the replies and
 * events, each a line of JSON as QEMU's QMP would print it, to the session's `line`
 * callback.  The queries below change nothing and need no transaction.
 *
 * Units: every offset, length, size and granularity is in bytes.  Ranges are half-open.
 * Ownership: strings in argument structures belong to the caller and are copied; the
 * result of a query belongs to the caller, who releases it with the matching _free.
 * Errors: a fallible function returns 0, or -1 (NULL for pointers) and fills *err, which
 * may be NULL.  Threads: a session belongs to one thread; only tide_session_cancel may be
 * called from another thread or a signal handler.
 *
 * Versions: a program keeps working with later versions of the library.  Structures only grow, at their end, and all
 * zero is the default of what is new.
 *   - A structure that the program makes is passed with its size, which the functions below do unseen.  A smaller one
 *     than the library's is extended by zeroes; a larger one is refused as unsupported (TIDE_E_UNSUPPORTED) if what the
 *     library does not know of it is not zero.  So it has to be all zero before its members are set.
 *   - A structure that the library returns or hands to a callback is allocated by the library, and lists of such are
 *     arrays of pointers.  A program must not copy one, or take its size.
 *   - struct tide_error, tide_range and tide_bitmap_ref are final: they stay as they are.
 *   - Enumerations and flags get new values: a program has to expect values that it does not know.
 *
 * Semantics follow QEMU 7.2's QMP commands of the same names; tidemark(7) lists where
 * they differ on purpose.
 */
#ifndef TIDEMARK_H
#define TIDEMARK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TIDE_VERSION_STRING "0.1.0"

/* The version of the library that is running. */
const char *tide_version(void);

/* ---- errors ------------------------------------------------------------------------ */

enum tide_code {
	TIDE_E_NONE = 0,
	TIDE_E_REFUSED,           /* a request that cannot be granted; nothing changed */
	TIDE_E_USAGE,             /* the words of the request are wrong */
	TIDE_E_IO,                /* a system call failed; `sys` holds errno */
	TIDE_E_NOMEM,             /* out of memory */
	TIDE_E_CORRUPT,           /* a file does not hold what its format promises */
	TIDE_E_UNSUPPORTED,       /* a valid file or request that this version does not handle */
	TIDE_E_LOCKED,            /* another program uses the image */
	TIDE_E_CANCELLED,         /* ended by tide_session_cancel */
	TIDE_E_PARTIAL,           /* some jobs of the transaction succeeded and some failed */
	TIDE_E_COMMAND_NOT_FOUND, /* QMP class CommandNotFound */
	TIDE_E_DEVICE_NOT_ACTIVE, /* QMP class DeviceNotActive */
	TIDE_E_DAMAGED,           /* a check did its work, and found damage or a difference */
	TIDE_E_UNREPORTED,        /* all was done, but the session's `line` could not deliver a reply or event */
};

struct tide_error {
	enum tide_code code;
	int sys;    /* errno, or 0 */
	char *msg;  /* for people and for QMP's "desc"; never NULL once code is set */
	char *hint; /* how to solve the problem, or NULL; not part of QMP's reply */
};

#define TIDE_ERROR_INIT                    \
	{                                  \
		TIDE_E_NONE, 0, NULL, NULL \
	}

/* Frees the texts and sets the error back to its initial state. */
void tide_error_release(struct tide_error *err);

/* The exit status that the command-line contract gives this code: 0 to 4. */
int tide_error_exit_status(enum tide_code code);

/* QMP's error class for this code, e.g. "GenericError". */
const char *tide_error_class(enum tide_code code);

/* ---- session ----------------------------------------------------------------------- */

struct tide_session;

struct tide_progress {
	const char *device; /* the job's device id */
	uint64_t offset;    /* bytes done, as the job's events count them */
	uint64_t len;       /* bytes to do */
	bool finished;      /* last call for this job */
};

struct tide_session_options {
	void *data; /* handed to each callback */

	/*
	 * One reply or event, a line of JSON without its newline.  Return -1 when it could not be delivered: jobs
	 * continue, and the transaction or request that has done all its work fails with TIDE_E_UNREPORTED.
	 */
	int (*line)(void *data, const char *json);

	/* A warning for people; the command continues. image may be NULL. */
	void (*warning)(void *data, const char *image, const char *text);

	/* Called about ten times a second while a job runs. */
	void (*progress)(void *data, const struct tide_progress *progress);

	bool job_events; /* deliver JOB_STATUS_CHANGE too */

	/*
	 * A warning that people must see even if they want none: a change was decided, and is not in place yet or not
	 * known to be durable.  NULL: it is a warning like others.
	 */
	void (*alert)(void *data, const char *image, const char *text);
};

static inline struct tide_session *tide_session_new(const struct tide_session_options *options, struct tide_error *err);
void tide_session_free(struct tide_session *session);

/* Cancels every job of the session, now running or started later.  Async-signal-safe. */
void tide_session_cancel(struct tide_session *session);

/* Wakes every job that an error stopped (on_error stop, enospc, auto): it tries the same piece again.
 * Async-signal-safe. */
void tide_session_resume(struct tide_session *session);

/* Delivers {"error": …} for err unless this request has had its reply already. */
int tide_session_reply_error(struct tide_session *session, const struct tide_error *err);

/*
 * Names in images that are followed only when the caller vouches for the images: an image from a
 * stranger could name any file of the host.  Without these flags a name must be a plain path that,
 * symbolic links resolved, leads to a file in the directory of the image that holds it or in one
 * below that, and the format of a backing image must be recorded.
 */
enum tide_allow {
	TIDE_ALLOW_OUTSIDE = 1 << 0,  /* plain paths that lead elsewhere */
	TIDE_ALLOW_PROTOCOL = 1 << 1, /* "file:" and those "json:" names that describe a plain file */
	TIDE_ALLOW_PROBE = 1 << 2,    /* backing images without a recorded format: it is probed, and may be raw */
	TIDE_ALLOW_ANY = 7,           /* all of the above */

	/* Not a name: a backup of an export that other clients of its server can write to meanwhile. */
	TIDE_ALLOW_CHANGING = 1 << 8,
	/* Not a name either: an increment on another backing image than the backup that its bitmap counts from. */
	TIDE_ALLOW_BASE = 1 << 9,
	/* Nor this: a restore from a part, or from a chain that shows another disk than the one that was backed up. */
	TIDE_ALLOW_PART = 1 << 10,
};

struct tide_drive {
	const char *id;      /* the name that requests, replies and events use; NULL: file name up to its first dot */
	const char *path;    /* a file or a block device */
	const char *format;  /* one of tide_image_format; NULL: as pinned in the sidecar, else probed */
	const char *sidecar; /* NULL: IMAGE.bitmaps, or for a block device a file in /var/lib/tidemark */
	bool ignore_stamp;   /* trust the bitmaps although the image changed around the tracking */
	bool force_share;    /* look although another program may be writing */
	unsigned allow;      /* enum tide_allow, for the chain of this image and of the targets of its jobs */
};

/* Makes an image known to the session.  Opens nothing.  *id (may be NULL) is the name it got, owned by the session. */
static inline int tide_session_add_drive(struct tide_session *session, const struct tide_drive *drive, const char **id,
                                         struct tide_error *err);

/* ---- transactions ------------------------------------------------------------------ */

struct tide_txn;

struct tide_txn *tide_txn_new(struct tide_session *session, struct tide_error *err);
void tide_txn_free(struct tide_txn *txn);

/* Prepare, then abort: whatever would be refused is refused, nothing changes. */
void tide_txn_set_dry_run(struct tide_txn *txn, bool dry_run);

/* QMP's completion-mode: the jobs succeed together or fail together. */
void tide_txn_set_grouped(struct tide_txn *txn, bool grouped);

/*
 * Runs the transaction: prepares all actions in order, commits them, runs their jobs to
 * the end and delivers the reply and the events.  Returns -1 when an action was refused
 * (nothing changed), a job did not succeed (its events say so), or all was done but its
 * reply or an event could not be delivered (TIDE_E_UNREPORTED).
 */
int tide_txn_run(struct tide_txn *txn, struct tide_error *err);

enum tide_store_kind {
	TIDE_STORE_SIDECAR = 0, /* IMAGE.bitmaps */
	TIDE_STORE_IMAGE,       /* inside a qcow2, as QEMU keeps them */
};

struct tide_bitmap_add {
	const char *node;
	const char *name;
	bool has_granularity;
	uint64_t granularity;
	bool disabled;
	enum tide_store_kind store;
};

/* The arguments of bitmap-remove, -clear, -enable and -disable. */
struct tide_bitmap_edit {
	const char *node;
	const char *name;
};

/* A bitmap, in the arguments below.  Final. */
struct tide_bitmap_ref {
	const char *node;
	const char *name;
};

struct tide_bitmap_merge {
	const char *node;
	const char *target;
	size_t n_sources;
	const struct tide_bitmap_ref *sources; /* a source's node NULL: the target's */
};

/*
 * The dirty ranges of source become dirty in target.  A target that does not exist is created with the settings below;
 * a granularity or `disabled` is refused for an existing one.  The two disks may differ in size.  If the source's disk
 * is shorter, the rest of the target becomes dirty; if it is longer, a dirty range beyond the target's end is refused.
 */
struct tide_bitmap_transfer {
	struct tide_bitmap_ref source, target;
	bool has_granularity;
	uint64_t granularity; /* without one: the source's */
	bool disabled;
	enum tide_store_kind store;
};

/* Final. */
struct tide_range {
	uint64_t off, len;
};

struct tide_bitmap_mark {
	const char *node;
	const char *name;
	bool unset;
	bool clamp;      /* what lies beyond the disk is left out, with a warning, not refused */
	uint64_t covers; /* the ranges come from a list that speaks of this many bytes of the disk: fewer warn; 0: it
	                    does not say */
	size_t n_ranges;
	const struct tide_range *ranges;
};

struct tide_bitmap_rescan {
	const char *node;
	const char *name;
	const char *against;        /* a path: what to compare the disk with, the top of a chain */
	const char *against_format; /* NULL: probed, and then raw is refused */
	uint64_t *differing;        /* NULL, or gets the bytes that differ, in whole granules clipped to the disk */
};

enum tide_write_kind {
	TIDE_WRITE_DATA = 0, /* from `input` */
	TIDE_WRITE_PATTERN,  /* `length` times `pattern` */
	TIDE_WRITE_ZERO,
	TIDE_WRITE_DISCARD,
};

struct tide_image_write {
	const char *node;
	enum tide_write_kind kind;
	uint64_t offset;
	bool has_length; /* required but for TIDE_WRITE_DATA, which then reads to the end of input */
	uint64_t length;
	uint8_t pattern;
	int input; /* file descriptor; not closed */
};

enum tide_sync_mode {
	TIDE_SYNC_FULL = 0,
	TIDE_SYNC_TOP,
	TIDE_SYNC_INCREMENTAL,
	TIDE_SYNC_BITMAP,
	TIDE_SYNC_NONE,
	/*
	 * tide_txn_backup only: incremental if the bitmap and the chain that it counts from can be used, else full
	 * with a bitmap that starts again.  The reply says which and why.
	 */
	TIDE_SYNC_AUTO,
};

enum tide_bitmap_mode {
	TIDE_BITMAP_MODE_UNSET = 0,
	TIDE_BITMAP_MODE_ON_SUCCESS,
	TIDE_BITMAP_MODE_NEVER,
	TIDE_BITMAP_MODE_ALWAYS,
};

enum tide_new_image_mode {
	TIDE_MODE_ABSOLUTE_PATHS = 0, /* create the target, or replace an existing one */
	TIDE_MODE_EXISTING,
	TIDE_MODE_NEW, /* create the target; refuse an existing one.  Not a mode of QMP */
};

enum tide_on_error {
	TIDE_ON_ERROR_REPORT = 0,
	TIDE_ON_ERROR_IGNORE,
	TIDE_ON_ERROR_ENOSPC,
	TIDE_ON_ERROR_STOP,
	TIDE_ON_ERROR_AUTO,
};

enum tide_checksums {
	TIDE_CHECKSUMS_UNSET = 0, /* auto */
	TIDE_CHECKSUMS_AUTO,      /* in a new target that can have them, of all but what the kernel copied */
	TIDE_CHECKSUMS_NEVER,
	TIDE_CHECKSUMS_ALWAYS, /* of everything, even if it has to be read for that; or the backup is refused */
};

struct tide_backup {
	const char *device;
	const char *target;
	const char *format; /* of the target; NULL: the source's when created, else probed */
	enum tide_sync_mode sync;
	enum tide_new_image_mode mode;
	const char *bitmap; /* NULL: none */
	enum tide_bitmap_mode bitmap_mode;
	enum tide_store_kind store; /* where sync auto puts a bitmap that it makes */
	bool reset_bitmap; /* sync full, mode on-success: the bitmap may be disabled or inconsistent, and is as good as
	               new afterwards */
	const char *backing;        /* the new target's backing image; NULL: none (sync top: the source's) */
	const char *backing_format; /* NULL: probed, and then raw is refused */
	const char *settings; /* of a new target, "cluster_size=64K,compression_type=zstd"; NULL: the format's own */
	const char *job_id;   /* NULL: the device id */
	uint64_t speed;       /* bytes a second; 0: unlimited */
	bool compress;        /* the same file each time, if source and target were the same */
	bool detect_zeroes;   /* no data is shared or copied by the kernel, where zero bytes are not noticed */
	const char *filter_node_name;        /* checked as QEMU checks it, and otherwise unused; NULL: none */
	bool has_max_workers, has_max_chunk; /* the same for x-perf */
	int64_t max_workers, max_chunk;
	enum tide_on_error on_source_error;
	enum tide_on_error on_target_error;
	uint32_t retry_after; /* seconds after which a stopped job tries again by itself; 0: only tide_session_resume */
	uint64_t full_every;  /* sync auto: increments after which a full backup is made; 0: any number */
	uint64_t full_every_seconds; /* the same for the age of the full backup */
	const char *reason;          /* for the mode, as the reply says it; NULL: it was requested */
	bool describe;               /* the reply says what the backup is: its id, base, target, mode and reason */
	bool use_base; /* backing NULL: an increment is chained on the backup that its bitmap counts from, if that is
	                  known */
	enum tide_checksums checksums; /* of the stored data, in the target */
};

/* "key=value" settings of a new image, as qemu-img's -o. */
struct tide_image_create {
	const char *path;
	const char *format;         /* NULL: raw */
	const char *backing;        /* NULL: none; a relative name is relative to the new image's directory */
	const char *backing_format; /* required with backing */
	bool has_size;
	uint64_t size;
	const char *settings; /* "cluster_size=64K,compression_type=zstd", or NULL */
	unsigned allow;       /* enum tide_allow, for the images below the backing image */
};

struct tide_chain_restore {
	const char *device; /* the top image */
	const char *target;
	const char *format;   /* NULL: raw */
	bool overwrite;       /* replace an existing target */
	bool in_place;        /* write only the differences to an existing image or block device */
	uint64_t *written;    /* NULL, or gets the number of bytes that differed, if the target existed */
	bool compress;        /* a new target only */
	const char *settings; /* the same, as tide_image_create's; or NULL */
	/*
	 * Write zeroes where damage, or a missing image, makes the chain unreadable; not with in_place, and as the only
	 * action of its transaction.  If there are such ranges, the transaction does all its work, its reply lists
	 * them, and it fails with TIDE_E_DAMAGED.
	 */
	bool salvage;
	/* The sidecar of an existing target, whose bitmaps record what is written; NULL: its bitmaps do not record it.
	 */
	const char *sidecar;
};

static inline int tide_txn_bitmap_add(struct tide_txn *txn, const struct tide_bitmap_add *args, struct tide_error *err);
static inline int tide_txn_bitmap_remove(struct tide_txn *txn, const struct tide_bitmap_edit *args,
                                         struct tide_error *err);
static inline int tide_txn_bitmap_clear(struct tide_txn *txn, const struct tide_bitmap_edit *args,
                                        struct tide_error *err);
static inline int tide_txn_bitmap_enable(struct tide_txn *txn, const struct tide_bitmap_edit *args,
                                         struct tide_error *err);
static inline int tide_txn_bitmap_disable(struct tide_txn *txn, const struct tide_bitmap_edit *args,
                                          struct tide_error *err);
static inline int tide_txn_bitmap_merge(struct tide_txn *txn, const struct tide_bitmap_merge *args,
                                        struct tide_error *err);
static inline int tide_txn_bitmap_mark(struct tide_txn *txn, const struct tide_bitmap_mark *args,
                                       struct tide_error *err);
/* The same, but for the names that QMP's actions have. */
static inline int tide_txn_bitmap_import(struct tide_txn *txn, const struct tide_bitmap_transfer *args,
                                         struct tide_error *err);
static inline int tide_txn_bitmap_export(struct tide_txn *txn, const struct tide_bitmap_transfer *args,
                                         struct tide_error *err);
/*
 * Makes exactly those granules dirty whose content differs from another image's, and the bitmap usable if it was
 * inconsistent.  The comparison is part of preparing: actions after it in the transaction see its result.
 */
static inline int tide_txn_bitmap_rescan(struct tide_txn *txn, const struct tide_bitmap_rescan *args,
                                         struct tide_error *err);
static inline int tide_txn_image_write(struct tide_txn *txn, const struct tide_image_write *args,
                                       struct tide_error *err);
static inline int tide_txn_image_create(struct tide_txn *txn, const struct tide_image_create *args,
                                        struct tide_error *err);
static inline int tide_txn_backup(struct tide_txn *txn, const struct tide_backup *args, struct tide_error *err);
/* target is the id of another drive, which must exist; format, mode, backing and settings are not looked at. */
static inline int tide_txn_blockdev_backup(struct tide_txn *txn, const struct tide_backup *args,
                                           struct tide_error *err);
/* Always refused: the transaction is undone. */
int tide_txn_abort(struct tide_txn *txn, struct tide_error *err);
static inline int tide_txn_chain_restore(struct tide_txn *txn, const struct tide_chain_restore *args,
                                         struct tide_error *err);

/* ---- queries ----------------------------------------------------------------------- */

struct tide_bitmap_info {
	char *name; /* as bytes; need not be UTF-8 */
	uint64_t count;
	uint64_t granularity;
	bool recording;
	bool busy;
	bool persistent;
	bool inconsistent;
	enum tide_store_kind store;
	/* The backup that it counts from; base_id NULL: unknown. */
	char *base_id;     /* 32 hexadecimal digits */
	char *base_path;   /* where that backup was put */
	int64_t base_time; /* of that backup, seconds since 1970 */
};

struct tide_bitmap_list {
	size_t n;
	struct tide_bitmap_info **items; /* newest first, as QEMU lists them */
};

int tide_query_bitmaps(struct tide_session *session, const char *node, struct tide_bitmap_list **list,
                       struct tide_error *err);
void tide_bitmap_list_free(struct tide_bitmap_list *list);

struct tide_dump {
	uint64_t disk_size;
	uint64_t granularity;
	uint64_t count;
	size_t n;
	struct tide_range *dirty; /* ascending, disjoint, not touching, clipped to the disk */
};

int tide_query_dump(struct tide_session *session, const char *node, const char *name, struct tide_dump **dump,
                    struct tide_error *err);
void tide_dump_free(struct tide_dump *dump);

/* QEMU's hash of a bitmap, x-debug-block-dirty-bitmap-sha256: its time grows with the disk, not with what is dirty. */
int tide_query_sha256(struct tide_session *session, const char *node, const char *name, char hex[65],
                      struct tide_error *err);

enum tide_feature_kind {
	TIDE_FEATURE_BOOL = 0,
	TIDE_FEATURE_NUMBER,
	TIDE_FEATURE_TEXT,
};

struct tide_feature {
	char *key; /* as qemu-img info names it, e.g. "refcount-bits" */
	enum tide_feature_kind kind;
	uint64_t number;
	char *text;
};

/* An internal snapshot of an image. */
struct tide_snapshot {
	char *id, *name;
	uint64_t vm_state_size;
	uint64_t date_sec, date_nsec;         /* when it was taken */
	uint64_t vm_clock_sec, vm_clock_nsec; /* the guest's clock then */
	bool has_icount;
	uint64_t icount; /* instructions that the guest had run then */
};

struct tide_image_info {
	char *filename;
	char *format;
	uint64_t virtual_size;
	uint64_t actual_size;  /* bytes allocated by the file system */
	uint64_t cluster_size; /* 0: the format has none */
	bool is_remote;        /* no file here: actual_size is not known */
	bool dirty;
	bool corrupt;
	uint32_t snapshots; /* how many */
	size_t n_features;
	struct tide_feature **features;   /* "format-specific" */
	struct tide_bitmap_list *bitmaps; /* those inside the image and, for the top one, the sidecar's */
	char *sidecar;                    /* top image: the sidecar's path if there is one, else NULL */
	char *backing_filename;           /* as written in the image, or NULL */
	char *backing_path;               /* where that leads to */
	char *backing_format;
	struct tide_image_info *backing; /* the next image of the chain, or NULL */
	struct tide_snapshot **snapshot; /* the snapshots, in the order of the image, then NULL */
};

int tide_query_image(struct tide_session *session, const char *node, struct tide_image_info **info,
                     struct tide_error *err);
void tide_image_info_free(struct tide_image_info *info);

/* ---- chains ------------------------------------------------------------------------ */

enum tide_finding_kind {
	TIDE_FINDING_LEAK = 0, /* space that nothing refers to counts as used: harmless but for the space */
	TIDE_FINDING_REFCOUNT, /* used more often than it is counted: the next write may destroy it */
	TIDE_FINDING_OVERLAP,  /* two structures in one place, whatever its count */
	TIDE_FINDING_BOUNDS,   /* leads out of the file */
	TIDE_FINDING_ENTRY,    /* a table's entry that the format does not allow */
	TIDE_FINDING_COPIED,   /* the flag "used once" does not fit the reference count */
	TIDE_FINDING_HEADER,   /* the header, snapshot table or bitmap directory */
	TIDE_FINDING_LINK,     /* the backing image is not there, or not what it was */
	TIDE_FINDING_DOUBT,    /* may be in order, but should be known; no damage */
	TIDE_FINDING_UNKNOWN,  /* what could not be checked, and why */
	TIDE_FINDING_PART,     /* the image holds only what changed since another one, which is not there */
	TIDE_FINDING_DATA,     /* stored data does not have its checksum: off and len are bytes of the disk */
	TIDE_FINDING_KINDS,
};

struct tide_finding {
	enum tide_finding_kind kind;
	uint64_t off, len; /* bytes of the image file; len 0: no place */
	char *text;
};

/* The word for it in replies: "leak". */
const char *tide_finding_name(enum tide_finding_kind kind);

enum tide_verdict {
	TIDE_VERDICT_WHOLE = 0,
	TIDE_VERDICT_UNKNOWN, /* something could not be looked at, and the rest is whole */
	TIDE_VERDICT_DAMAGED, /* or it differs */
	TIDE_VERDICT_PART,    /* in order as far as it goes, and useless without the backup that it counts from */
};

/* The birth record of a backup (tidemark-backup(5)).  Identifiers are 32 hexadecimal digits; NULL: none or unknown. */
struct tide_backup_info {
	char *id;
	char *disk;        /* of the disk it is a copy of */
	char *base;        /* the backup it counts from */
	char *transaction; /* the same in all backups of one transaction */
	char *device;      /* the id of the disk's device, or NULL */
	char *bitmap;      /* the name of the bitmap that selected what was copied, or NULL */
	const char *sync;  /* "full", "incremental", … */
	int64_t time;      /* seconds since 1970 */
	int64_t base_time; /* 0: unknown */
	uint64_t exact_size;
	bool is_part;       /* it holds only what changed since its base */
	bool is_incomplete; /* its job failed, and it was kept */
	bool is_unchanged;  /* nothing has changed the file since */
};

struct tide_chain_image {
	char *filename; /* relative to the top image's directory where it is in there */
	char *path;     /* absolute, symbolic links resolved */
	char *format;   /* NULL: it could not be opened, and what follows up to `bitmaps` is not known */
	uint64_t virtual_size;
	uint64_t cluster_size;            /* 0: the format has none */
	uint64_t data, zeroes;            /* bytes of the disk that this image says itself; not with `verify` */
	bool is_remote;                   /* no file here: its sizes and time are not known */
	uint64_t file_size;               /* bytes */
	uint64_t actual_size;             /* bytes allocated by the file system */
	int64_t modified_s;               /* seconds since 1970 */
	uint32_t modified_ns;             /* and nanoseconds */
	char *backing_filename;           /* as written in the image, or NULL */
	char *backing_format;             /* or NULL */
	struct tide_bitmap_list *bitmaps; /* inside, and for the top image those of its sidecar */
	enum tide_verdict verdict;
	uint64_t *counts;  /* of all findings, by enum tide_finding_kind */
	size_t n_findings; /* the first TIDE_FINDINGS_MAX of them */
	struct tide_finding **findings;
	struct tide_backup_info *backup; /* NULL: it has no birth record */
	bool has_checksums;              /* of stored data, which chain-verify --data compares */
	uint64_t proven;                 /* with `data`: bytes of the file that have checksums, right or wrong */
	uint64_t unproven;               /* the same: bytes of the disk that have none, if others have */
};

#define TIDE_FINDINGS_MAX 10000

struct tide_chain {
	size_t n;
	struct tide_chain_image **images; /* the top one first; the last may be one that could not be opened */
	bool verified;                    /* the images' metadata was looked at */
	bool compared;                    /* with another image, to the end */
	enum tide_verdict verdict;
	uint64_t size;      /* compared: bytes */
	uint64_t differing; /* bytes */
	size_t n_differences;
	struct tide_range *differences; /* ascending, disjoint, not touching; in units of `unit` bytes */
	uint64_t unit;
	size_t accepted; /* images that got a record */
};

struct tide_chain_options {
	bool verify;                /* check each image's metadata too */
	const char *against;        /* verify: the path of an image, or top of a chain, to compare with; or NULL */
	const char *against_format; /* NULL: probed, and then raw is refused */
	/*
	 * verify: if the disk looks like the one that was backed up, all images get records that say so, in place of
	 * records that their files no longer fit.  Nothing is accepted if there is damage, or a difference to
	 * `against`.
	 */
	bool accept;
	bool data; /* verify: prove all stored data by its checksums */
	/*
	 * verify: store checksums in images that have none or not all, unless there is damage; then prove them. With
	 * `accept`, which then accepts nothing else, data may differ from checksums that it had if a program can have
	 * changed it.
	 */
	bool record;
};

/*
 * Returns the chain as far as it can be followed, with its problems.  -1: the top image cannot be read, or the
 * comparison ended early.
 */
static inline int tide_query_chain(struct tide_session *session, const char *node,
                                   const struct tide_chain_options *options, struct tide_chain **chain,
                                   struct tide_error *err);
void tide_chain_free(struct tide_chain *chain);
int tide_reply_chain(struct tide_session *session, const struct tide_chain *chain);

/* Deliver what a query returned as {"return": …}. */
int tide_reply_bitmaps(struct tide_session *session, const struct tide_bitmap_list *list);
int tide_reply_dump(struct tide_session *session, const struct tide_dump *dump);
int tide_reply_sha256(struct tide_session *session, const char *hex);
int tide_reply_image(struct tide_session *session, const struct tide_image_info *info);

/* ---- tracking writes ---------------------------------------------------------------- */

/*
 * An image that is open for long, as a server of disks has it.  Whatever is written through it is recorded, before it
 * is written, in every bitmap of the node that records.  The image is locked as by any writer until it is closed;
 * meanwhile tide_query_bitmaps and tide_query_dump, of any program, show what is dirty at the moment.  A program that
 * dies loses no bit.
 *
 * Threads: all calls between open and close may come from any number of threads at once, on any ranges.
 * Errors: err->sys is an errno, EIO where no other says it better.
 */
struct tide_tracker;

enum tide_durability {
	TIDE_DURABILITY_CRASH = 0, /* no bit is lost when the program dies; if the storage may have been set back since,
	                              by a power loss or a new mount, all of the disk counts as dirty */
	TIDE_DURABILITY_POWER,     /* a bit is on stable storage before what it stands for is written */
};

struct tide_tracker_options {
	enum tide_durability durability;
	bool read_only; /* records nothing, and shares the image with other readers */

	void *data; /* handed to the callback */
	/* Something a person should know; called while it is opened or closed, or by a request; image may be NULL. */
	void (*warning)(void *data, const char *image, const char *text);
};

struct tide_tracker_info {
	uint64_t size;         /* of the disk, bytes */
	uint64_t cluster_size; /* requests that are aligned to it are the cheapest; 0: none */
	bool read_only;
	bool recording; /* a bitmap records what is written */
	bool fast_zero; /* zeroing whole clusters never writes them */
	const char *format;
};

enum tide_tracker_flags {
	TIDE_TRACKER_FUA = 1 << 0,       /* durable when the call returns */
	TIDE_TRACKER_MAY_TRIM = 1 << 1,  /* zero: space may be given back */
	TIDE_TRACKER_FAST_ZERO = 1 << 2, /* zero: rather fail with ENOTSUP than write zeroes */
};

enum tide_extent_flags {
	TIDE_EXTENT_IS_HOLE = 1 << 0, /* takes no space */
	TIDE_EXTENT_IS_ZERO = 1 << 1, /* reads as zeroes */
};

static inline int tide_tracker_open(const struct tide_drive *drive, const struct tide_tracker_options *options,
                                    struct tide_tracker **tracker, struct tide_error *err);
/*
 * Makes all durable and adds what was recorded to the bitmaps.  Frees the tracker, also when it fails: then the next
 * program that opens the node does that.
 */
int tide_tracker_close(struct tide_tracker *tracker, struct tide_error *err);
static inline void tide_tracker_get_info(const struct tide_tracker *tracker, struct tide_tracker_info *info);

int tide_tracker_read(struct tide_tracker *tracker, void *buf, uint64_t off, uint64_t len, struct tide_error *err);
int tide_tracker_write(struct tide_tracker *tracker, const void *buf, uint64_t off, uint64_t len, unsigned flags,
                       struct tide_error *err);
int tide_tracker_zero(struct tide_tracker *tracker, uint64_t off, uint64_t len, unsigned flags, struct tide_error *err);
/* Gives back what whole clusters of the range take; they read as zeroes. */
int tide_tracker_trim(struct tide_tracker *tracker, uint64_t off, uint64_t len, unsigned flags, struct tide_error *err);
/* All that was written before is durable. */
int tide_tracker_flush(struct tide_tracker *tracker, struct tide_error *err);
/* Reads ahead, as far as that is possible. */
int tide_tracker_cache(struct tide_tracker *tracker, uint64_t off, uint64_t len, struct tide_error *err);
/* Reports the kind, enum tide_extent_flags, of the *n bytes at off; *n is from 1 to len. */
int tide_tracker_extent(struct tide_tracker *tracker, uint64_t off, uint64_t len, unsigned *kind, uint64_t *n,
                        struct tide_error *err);

/* ---- commands in JSON -------------------------------------------------------------- */

struct tide_stream;

/*
 * QMP commands, one JSON value after another, read from a file descriptor (which stays the
 * caller's).
 */
struct tide_stream_options {
	bool dry_run;         /* as tide_txn_set_dry_run, for every command */
	uint32_t retry_after; /* as in struct tide_backup, for every backup */
	unsigned allow;       /* as in struct tide_drive, for the drives that commands add */
};

static inline struct tide_stream *tide_stream_new(struct tide_session *session, int fd,
                                                  const struct tide_stream_options *options, struct tide_error *err);
void tide_stream_free(struct tide_stream *stream);

/*
 * Reads one command, as soon as it is complete, and runs it to the end of its jobs.  Each
 * gets its reply, whether it succeeds or not.  1: it succeeded; 0: the input has ended; -1: it
 * failed, and the next call reads the next command.  tide_session_cancel ends the waiting for input, with
 * TIDE_E_CANCELLED.
 */
int tide_stream_next(struct tide_stream *stream, struct tide_error *err);

/* ---- formats of images ------------------------------------------------------------- */

/* The names of the image formats, from 0 up; NULL after the last one. */
const char *tide_image_format(size_t i);

enum tide_format_use {
	TIDE_FORMAT_FILE = 1 << 0,    /* files and block devices can be images of it */
	TIDE_FORMAT_URI = 1 << 1,     /* so can what the URI of one of its schemes leads to */
	TIDE_FORMAT_CREATE = 1 << 2,  /* new images can be made */
	TIDE_FORMAT_OVERLAY = 1 << 3, /* with a backing image */
};

/* The uses that the format of that name has, of enum tide_format_use; 0: there is no such format. */
unsigned tide_image_format_uses(const char *format);

/* The settings that new images of a format can be given, from 0 up; NULL after the last one. */
const char *tide_image_format_setting(const char *format, size_t i);

/* The schemes of the URIs that can be opened as images ("nbd+unix"), from 0 up; NULL after the last one. */
const char *tide_image_scheme(size_t i);

/* ---- ranges written elsewhere ------------------------------------------------------ */

struct tide_range_list {
	size_t n;
	struct tide_range *ranges;
	uint64_t covers; /* the input describes this many bytes of the disk, from 0 on; 0: unknown */
};

/*
 * A range in the list was written, or may have been.  Ranges that a format calls a hole, clean, or in a backing image
 * were not written; ranges that it calls zeroes were.
 */
struct tide_ranges_options {
	const char *format;  /* one of tide_ranges_format; NULL: detected */
	uint64_t block_size; /* of lists that count in blocks and do not say their size: blocks, era-invalidate; 0: not
	                        given */
};

/* The names of the formats, from 0 up; NULL after the last one. */
const char *tide_ranges_format(size_t i);

/*
 * Reads the ranges that another program recorded from a file descriptor, to its end.  options may be NULL.
 * Nothing is returned unless the whole input made sense.
 */
static inline int tide_ranges_read(int fd, const struct tide_ranges_options *options, struct tide_range_list **list,
                                   struct tide_error *err);
/* The size of the blocks that era_invalidate counts in, from what era_dump prints of the same metadata. */
int tide_ranges_read_era_dump(int fd, uint64_t *block_size, struct tide_error *err);
void tide_range_list_free(struct tide_range_list *list);

/*
 * A size as people write it: decimal or 0x…, then nothing or one of K M G T P E
 * (powers of 1024), optionally followed by "iB".  A decimal number with a suffix may have a
 * fraction, which is rounded down: 1.5G.  Nothing else, no sign, no space.
 */
int tide_parse_size(const char *text, uint64_t *size, struct tide_error *err);

/* Splits text in place at its first comma that is not doubled, and halves doubled ones.  Returns the rest, or NULL. */
char *tide_parse_cut(char *text);

/* "ID=PATH[,format=FORMAT][,sidecar=PATH]", split in place: *drive points into text. */
static inline int tide_parse_drive(char *text, struct tide_drive *drive, struct tide_error *err);

/* ---- the sizes of structures ------------------------------------------------------- */

/*
 * The library exports the calls above that take a structure with one more argument: the size of the structure in the
 * calling program.  The functions here hide it from C and C++; a binding for another language uses the exported ones.
 */
#define TIDE_TXN_CALL(name_, type_)                                                                             \
	int name_##_sized(struct tide_txn *txn, const struct type_ *args, size_t size, struct tide_error *err); \
	static inline int name_(struct tide_txn *txn, const struct type_ *args, struct tide_error *err)         \
	{                                                                                                       \
		return name_##_sized(txn, args, sizeof(*args), err);                                            \
	}
TIDE_TXN_CALL(tide_txn_bitmap_add, tide_bitmap_add)
TIDE_TXN_CALL(tide_txn_bitmap_remove, tide_bitmap_edit)
TIDE_TXN_CALL(tide_txn_bitmap_clear, tide_bitmap_edit)
TIDE_TXN_CALL(tide_txn_bitmap_enable, tide_bitmap_edit)
TIDE_TXN_CALL(tide_txn_bitmap_disable, tide_bitmap_edit)
TIDE_TXN_CALL(tide_txn_bitmap_merge, tide_bitmap_merge)
TIDE_TXN_CALL(tide_txn_bitmap_mark, tide_bitmap_mark)
TIDE_TXN_CALL(tide_txn_bitmap_import, tide_bitmap_transfer)
TIDE_TXN_CALL(tide_txn_bitmap_export, tide_bitmap_transfer)
TIDE_TXN_CALL(tide_txn_bitmap_rescan, tide_bitmap_rescan)
TIDE_TXN_CALL(tide_txn_image_write, tide_image_write)
TIDE_TXN_CALL(tide_txn_image_create, tide_image_create)
TIDE_TXN_CALL(tide_txn_backup, tide_backup)
TIDE_TXN_CALL(tide_txn_blockdev_backup, tide_backup)
TIDE_TXN_CALL(tide_txn_chain_restore, tide_chain_restore)
#undef TIDE_TXN_CALL

struct tide_session *tide_session_new_sized(const struct tide_session_options *options, size_t size,
                                            struct tide_error *err);
static inline struct tide_session *tide_session_new(const struct tide_session_options *options, struct tide_error *err)
{
	return tide_session_new_sized(options, sizeof(*options), err);
}

int tide_session_add_drive_sized(struct tide_session *session, const struct tide_drive *drive, size_t size,
                                 const char **id, struct tide_error *err);
static inline int tide_session_add_drive(struct tide_session *session, const struct tide_drive *drive, const char **id,
                                         struct tide_error *err)
{
	return tide_session_add_drive_sized(session, drive, sizeof(*drive), id, err);
}

int tide_query_chain_sized(struct tide_session *session, const char *node, const struct tide_chain_options *options,
                           size_t size, struct tide_chain **chain, struct tide_error *err);
static inline int tide_query_chain(struct tide_session *session, const char *node,
                                   const struct tide_chain_options *options, struct tide_chain **chain,
                                   struct tide_error *err)
{
	return tide_query_chain_sized(session, node, options, sizeof(*options), chain, err);
}

int tide_tracker_open_sized(const struct tide_drive *drive, size_t drive_size,
                            const struct tide_tracker_options *options, size_t size, struct tide_tracker **tracker,
                            struct tide_error *err);
static inline int tide_tracker_open(const struct tide_drive *drive, const struct tide_tracker_options *options,
                                    struct tide_tracker **tracker, struct tide_error *err)
{
	return tide_tracker_open_sized(drive, sizeof(*drive), options, sizeof(*options), tracker, err);
}

void tide_tracker_get_info_sized(const struct tide_tracker *tracker, struct tide_tracker_info *info, size_t size);
static inline void tide_tracker_get_info(const struct tide_tracker *tracker, struct tide_tracker_info *info)
{
	tide_tracker_get_info_sized(tracker, info, sizeof(*info));
}

struct tide_stream *tide_stream_new_sized(struct tide_session *session, int fd,
                                          const struct tide_stream_options *options, size_t size,
                                          struct tide_error *err);
static inline struct tide_stream *tide_stream_new(struct tide_session *session, int fd,
                                                  const struct tide_stream_options *options, struct tide_error *err)
{
	return tide_stream_new_sized(session, fd, options, sizeof(*options), err);
}

int tide_ranges_read_sized(int fd, const struct tide_ranges_options *options, size_t size,
                           struct tide_range_list **list, struct tide_error *err);
static inline int tide_ranges_read(int fd, const struct tide_ranges_options *options, struct tide_range_list **list,
                                   struct tide_error *err)
{
	return tide_ranges_read_sized(fd, options, sizeof(*options), list, err);
}

int tide_parse_drive_sized(char *text, struct tide_drive *drive, size_t size, struct tide_error *err);
static inline int tide_parse_drive(char *text, struct tide_drive *drive, struct tide_error *err)
{
	return tide_parse_drive_sized(text, drive, sizeof(*drive), err);
}

#ifdef __cplusplus
}
#endif

#endif
