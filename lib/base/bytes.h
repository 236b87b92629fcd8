/*
 * Integers in files: explicit width, explicit byte order, any alignment.
 *
 * On-disk structures are read and written through these, never through packed structs.
 */
#ifndef TIDE_BYTES_H
#define TIDE_BYTES_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define TIDE_BYTES_DEFINE(order, bits)                                       \
	static inline uint##bits##_t tide_get_##order##bits(const void *p)   \
	{                                                                    \
		uint##bits##_t v;                                            \
		memcpy(&v, p, sizeof(v));                                    \
		return order##bits##toh(v);                                  \
	}                                                                    \
	static inline void tide_put_##order##bits(void *p, uint##bits##_t v) \
	{                                                                    \
		v = hto##order##bits(v);                                     \
		memcpy(p, &v, sizeof(v));                                    \
	}

TIDE_BYTES_DEFINE(be, 16)
TIDE_BYTES_DEFINE(be, 32)
TIDE_BYTES_DEFINE(be, 64)
TIDE_BYTES_DEFINE(le, 16)
TIDE_BYTES_DEFINE(le, 32)
TIDE_BYTES_DEFINE(le, 64)

#undef TIDE_BYTES_DEFINE

#endif
