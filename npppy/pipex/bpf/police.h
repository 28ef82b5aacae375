/* SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only) */
/*
 * Token buckets.  Tokens are octets times 10^9, so that an elapsed nanosecond adds the rate, and nothing is lost to
 * rounding.
 */
#ifndef PIPEX_POLICE_H
#define PIPEX_POLICE_H

#include "session.h"

#define NSEC 1000000000ull

/* Take the octets of a packet out of a bucket.  False: there are not so many. */
INLINE bool police(const struct flow *f, __u32 way, __u32 size)
{
	__u32 index = 2 * f->slot + way;
	__u64 cost = size * NSEC;
	struct pipex_bucket *b;
	__u64 now, elapsed, full, added;
	bool pass = true;

	if (!(f->blocks & (way == PIPEX_UP ? PIPEX_POLICE_UP : PIPEX_POLICE_DOWN)))
		return true;
	b = bpf_map_lookup_elem(&buckets, &index);
	if (!b)
		return true;
	now = bpf_ktime_get_ns();
	bpf_spin_lock(&b->lock);
	if (b->rate) {
		full = b->burst * NSEC;
		if (b->tokens > full)
			b->tokens = full;
		/* Another processor's clock may have been read later. */
		if (now > b->stamp_ns) {
			elapsed = now - b->stamp_ns;
			/* The product cannot exceed 64 bits where it would not fill the bucket. */
			added = b->stamp_ns && elapsed < full / b->rate ? elapsed * b->rate : full;
			if (added > full - b->tokens)
				added = full - b->tokens;
			b->tokens += added;
			b->stamp_ns = now;
		}
		pass = b->tokens >= cost;
		if (pass)
			b->tokens -= cost;
	}
	bpf_spin_unlock(&b->lock);
	return pass;
}

#endif
