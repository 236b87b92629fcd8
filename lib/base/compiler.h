/*
 * Attributes that let compilers check more, and small macros. No code, no types.
 */
#ifndef TIDE_COMPILER_H
#define TIDE_COMPILER_H

#define TIDE_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#define TIDE_MUST_CHECK        __attribute__((warn_unused_result))
#define TIDE_NONNULL           __attribute__((nonnull))

/* Runs fn(&variable) when the variable leaves its scope.  Such a function abandons; it cannot fail. */
#define TIDE_CLEANUP(fn) __attribute__((cleanup(fn)))

#define TIDE_ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

#define TIDE_MIN(a, b) ((a) < (b) ? (a) : (b))
#define TIDE_MAX(a, b) ((a) > (b) ? (a) : (b))

#endif
