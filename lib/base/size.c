/*
 * Parses sizes as people write them: a decimal or hexadecimal number and one of the suffixes K M G
 * T P E. A decimal number with a suffix may have a fraction. Everything else is refused, so that no typing error
 * passes as a size.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "error.h"
#include "range.h"

/*
 * Parses the number at the start of text; *end is what follows it. False when text does not start with a number.
 * Sets errno to ERANGE or 0.
 */
static bool parse_number(const char *text, uint64_t *v, const char **end)
{
	bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
	const char *digits = hex ? text + 2 : text;

	/* strtoull alone would accept blanks, signs and a second 0x. */
	if (strspn(digits, hex ? "0123456789abcdefABCDEF" : "0123456789") == 0)
		return false;
	errno = 0;
	*v = strtoull(text, (char **)end, hex ? 16 : 10);
	return true;
}

/* The most digits of a fraction: 10^18 fits into 64 bits, and so does their product with 2^60 into 128. */
#define FRACTION_MAX 18u

/* The digits after a point as a number of 10^-digits; *end moves past them. */
static uint64_t parse_fraction(const char **end, unsigned *digits)
{
	const char *p = *end + 1;
	uint64_t fraction = 0;

	*digits = 0;
	if (**end != '.')
		return 0;
	for (; *p >= '0' && *p <= '9' && *digits < FRACTION_MAX; p++, ++*digits)
		fraction = fraction * 10 + (uint64_t)(*p - '0');
	if (*digits)
		*end = p;
	return fraction;
}

/* fraction * 10^-digits * 2^shift, rounded down as QEMU does. */
static uint64_t scale_fraction(uint64_t fraction, unsigned digits, unsigned shift)
{
	unsigned __int128 scaled = (unsigned __int128)fraction << shift;

	for (; digits; digits--)
		scaled /= 10;
	return (uint64_t)scaled;
}

int tide_parse_size(const char *text, uint64_t *size, struct tide_error *err)
{
	static const char suffixes[] = "KkMmGgTtPpEe";
	const char *end;
	uint64_t v;
	unsigned shift = 0;

	if (!parse_number(text, &v, &end))
		return tide_error_set(err, TIDE_E_USAGE, "'%s' is not a size: it does not start with a digit", text);
	bool overflow = errno == ERANGE, hex = text[0] == '0' && (text[1] | 0x20) == 'x';
	const char *point = end;
	unsigned digits = 0;
	uint64_t fraction = hex ? 0 : parse_fraction(&end, &digits);
	const char *suffix = *end ? strchr(suffixes, *end) : NULL;
	if (suffix) {
		shift = 10 * (unsigned)((suffix - suffixes) / 2 + 1);
		end++;
		if (strcmp(end, "iB") == 0)
			end += 2;
	}
	if (!suffix) /* there are no parts of bytes */
		end = point;
	if (*end)
		return tide_error_set(err, TIDE_E_USAGE,
		                      "'%s' is not a size: expected a number and at most one of K M G T P E, "
		                      "found '%s'",
		                      text, end);
	if (overflow || !tide_range_shl(v, shift, size))
		return tide_error_set(err, TIDE_E_USAGE, "'%s' is too large: sizes go up to 2^64 - 1", text);
	/* The fraction is less than one unit, so it fits into the bits that the shift made. */
	*size += scale_fraction(fraction, digits, shift);
	return 0;
}
